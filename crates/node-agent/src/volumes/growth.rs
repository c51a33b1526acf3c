//! Growth that ends on the node: when it is due, and what a failure means. Pure.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use resources::expansion::{self, Stage};
use resources::volume;
use tonic::Code;
use values::Quantity;

use super::{VolumeError, csi::CsiError};

/// The size that a claim's volume has to be given on this node: the volume's own, once the controller has done its
/// part.
pub(crate) fn due(of: &PersistentVolumeClaim, on: &PersistentVolume) -> Option<Quantity> {
    let is_due = matches!(expansion::stage(of), Some(Stage::NodePending | Stage::NodeInProgress));
    volume::capacity(on).filter(|_| is_due)?.0.parse().ok()
}

/// What became of a growth that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It may have happened, or may yet.
    Open,
    /// Nothing has grown; it is tried again.
    Ended,
    /// Nothing has grown, nor will.
    Infeasible,
    /// The driver can't do it while the volume is in use: not tried again while it is mounted.
    InUse,
}

impl Failure {
    pub(crate) fn of(error: &VolumeError) -> Failure {
        match error {
            VolumeError::Growth(error) => Failure::of(error),
            VolumeError::Csi(CsiError::Call { status }) => match status.code() {
                Code::FailedPrecondition => Failure::InUse,
                Code::InvalidArgument | Code::OutOfRange | Code::NotFound => Failure::Infeasible,
                code if csi::final_error(code) => Failure::Ended,
                _ => Failure::Open,
            },
            _ => Failure::Open,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tonic::Status;

    use super::*;

    #[test]
    fn growth_is_due_when_the_controller_is_done() {
        let volume: PersistentVolume =
            serde_json::from_value(json!({"spec": {"capacity": {"storage": "2Mi"}}})).unwrap();
        for (stage, expected) in [
            ("NodeResizePending", true),
            ("NodeResizeInProgress", true),
            ("NodeResizeInfeasible", false),
            ("ControllerResizeInProgress", false),
            ("", false),
        ] {
            let claim: PersistentVolumeClaim =
                serde_json::from_value(json!({"status": {"allocatedResourceStatuses": {"storage": stage}}}))
                    .unwrap();
            let expected = expected.then(|| Quantity::from_bytes(2 << 20));
            assert_eq!(due(&claim, &volume), expected, "{stage}");
        }
    }

    #[test]
    fn what_a_failure_means() {
        for (code, expected) in [
            (Code::FailedPrecondition, Failure::InUse),
            (Code::InvalidArgument, Failure::Infeasible),
            (Code::OutOfRange, Failure::Infeasible),
            (Code::NotFound, Failure::Infeasible),
            (Code::Internal, Failure::Ended),
            (Code::Unavailable, Failure::Open),
        ] {
            let error = VolumeError::from(CsiError::Call { status: Status::new(code, "") });
            assert_eq!(Failure::of(&VolumeError::Growth(Box::new(error))), expected, "{code}");
        }
    }
}
