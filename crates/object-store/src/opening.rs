//! Opening where damage can't do worse than to be told: the database below panics on some flipped bits, and may follow
//! others in circles.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use crate::OpenError;

/// Runs `open` on a thread of its own, which is left to itself if it takes longer than `patience`.
pub(crate) fn guarded<T: Send + 'static>(
    patience: Duration,
    open: impl FnOnce() -> Result<T, OpenError> + Send + 'static,
) -> Result<T, OpenError> {
    let (answer, opened) = sync_channel(1);
    let work = move || {
        let outcome = catch_unwind(AssertUnwindSafe(open));
        let damaged = |_| Err(OpenError::Corrupt { reason: "the database in it is damaged".to_owned() });
        // Who gave up waiting needs no answer: what was opened closes again.
        answer.send(outcome.unwrap_or_else(damaged)).ok();
    };
    std::thread::Builder::new().name("store-open".into()).spawn(work).map_err(OpenError::Thread)?;
    opened.recv_timeout(patience).unwrap_or_else(|error| match error {
        RecvTimeoutError::Timeout => Err(OpenError::Endless { seconds: patience.as_secs() }),
        RecvTimeoutError::Disconnected => {
            Err(OpenError::Corrupt { reason: "reading it broke off".to_owned() })
        }
    })
}

/// How long a file of that many bytes may take: far longer than a slow disk needs.
pub(crate) fn patience(bytes: u64) -> Duration {
    Duration::from_secs(60 + bytes / (1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_and_a_hang_end_in_an_error() {
        let error = guarded::<()>(Duration::from_secs(60), || panic!("on purpose")).unwrap_err();
        assert!(error.to_string().contains("damaged"), "{error}");
        let (hold, held) = sync_channel::<()>(0);
        let error = guarded::<()>(Duration::from_millis(1), move || {
            held.recv().ok();
            Ok(())
        });
        assert!(matches!(error, Err(OpenError::Endless { .. })), "{error:?}");
        drop(hold);
    }
}
