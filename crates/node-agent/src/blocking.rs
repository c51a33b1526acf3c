//! Blocking work off the async workers, with a deadline.

use std::time::Duration;

use crate::volumes::VolumeError;

/// After this the work is no longer waited for. The thread stays with it: the kernel can't be interrupted.
const DEADLINE: Duration = Duration::from_mins(1);

/// Runs `work` on a thread that may block.
pub(crate) async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T, VolumeError> + Send + 'static,
) -> Result<T, VolumeError> {
    match tokio::time::timeout(DEADLINE, tokio::task::spawn_blocking(work)).await {
        Ok(Ok(result)) => result,
        Ok(Err(panic)) => Err(VolumeError::Files { action: what, source: std::io::Error::other(panic) }),
        Err(_) => Err(VolumeError::Stuck(what)),
    }
}
