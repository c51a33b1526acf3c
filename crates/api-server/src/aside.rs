//! Work that takes longer than a moment, beside the workers that serve everybody.

use std::sync::Arc;

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::Semaphore;

use crate::error::ApiError;

/// Bytes of input that are worked on at once without asking; more may take milliseconds.
pub(crate) const LIGHT: usize = 64 << 10;

/// The places for heavy work: as many as there are processors, so that none of it waits for a processor in vain.
pub(crate) fn places() -> Arc<Semaphore> {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Arc::new(Semaphore::new(processors.max(2)))
}

/// Does something to the end, also when the caller hangs up meanwhile: as a task, or if it is heavy on a thread of its
/// own once there is a place. A runtime of one thread, as simulations use, has nobody else to hold up.
pub(crate) async fn run<T: Send + 'static>(
    places: &Arc<Semaphore>,
    heavy: bool,
    work: impl Future<Output = Result<T, ApiError>> + Send + 'static,
) -> Result<T, ApiError> {
    let runtime = Handle::current();
    let task = if heavy && runtime.runtime_flavor() == RuntimeFlavor::MultiThread {
        let place = places.clone().acquire_owned().await.map_err(|_| ApiError::Timeout)?;
        tokio::task::spawn_blocking(move || {
            let _place = place;
            runtime.block_on(work)
        })
    } else {
        tokio::spawn(work)
    };
    task.await.unwrap_or_else(|error| Err(ApiError::Internal(error.to_string())))
}

/// The same at a start, when nothing can be done before it is through.
pub(crate) fn at_once<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn heavy_work_leaves_the_only_worker_to_others() {
        let (places, (begun, wait)) =
            (places(), (Arc::new(Semaphore::new(0)), std::sync::mpsc::channel::<()>()));
        let (end, ended) = wait;
        let work = tokio::spawn({
            let (places, begun) = (places.clone(), begun.clone());
            async move {
                run(&places, true, async move {
                    begun.add_permits(1);
                    // As long work would, this keeps its thread.
                    ended.recv().map_err(|error| ApiError::Internal(error.to_string()))
                })
                .await
            }
        });
        let _begun = begun.acquire().await.unwrap();
        let other = run(&places, false, async { Ok(7) }).await.unwrap();
        assert_eq!(other, 7);
        end.send(()).unwrap();
        work.await.unwrap().unwrap();
    }
}
