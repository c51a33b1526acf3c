//! What an answer's code says about the call's effect.

use tonic::Code;

/// Whether the code says that the call is over: nothing is under way at the driver and, for an error, nothing has been
/// done. After the other codes the call may have had its effect, or may have it later: its objects must be treated as
/// existing until a repeated call gives a final answer.
///
/// Kubernetes' sidecars and kubelet draw the same line. `CreateVolume` alone is judged differently by the provisioner,
/// for which `RESOURCE_EXHAUSTED` is final too.
pub fn final_error(code: Code) -> bool {
    !matches!(
        code,
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Unavailable
            | Code::ResourceExhausted
            | Code::Aborted
    )
}

#[cfg(test)]
mod tests {
    use super::final_error;
    use tonic::Code;

    #[test]
    fn codes_after_which_the_call_may_still_take_effect() {
        let open: Vec<i32> = (0..=16).filter(|code| !final_error(Code::from(*code))).collect();
        assert_eq!(open, [1, 4, 8, 10, 14]);
    }
}
