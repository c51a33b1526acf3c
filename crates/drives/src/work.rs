//! Blocking work: on threads for it, bounded in number, and awaited no longer than a deadline. Each drive has a lane of its
//! own, so that one that hangs delays nobody else.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::{JoinError, spawn_blocking},
    time::{sleep, timeout},
};

use crate::flush::Flushes;

/// How long an answer is awaited. The work itself goes on: a dying drive may hold a call for minutes. Whoever calls the
/// driver waits longer than this (`csi::CALL_DEADLINE`), so that it hears the reason.
pub const DEADLINE: Duration = Duration::from_secs(100);

/// After this, work that takes a moment where all is well is told of as hanging.
const HANG: Duration = if cfg!(test) { Duration::from_millis(50) } else { Duration::from_secs(30) };

/// What comes before each try of work that nobody waits for: whoever has a device open for a moment lets it go by then.
const PAUSES: [Duration; 4] =
    [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(10), Duration::from_secs(60)];

/// No answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Interrupted {
    /// The work goes on, and the same call finds its result.
    #[error("no answer from the drive in time; the same call finds the result")]
    TimedOut,
    /// The work panicked: a fault of ours. The log has it.
    #[error("the work broke off ({0}); see the log, and try again")]
    Broken(String),
}

/// What all who use one drive share.
pub(crate) struct Lane {
    /// Flushes of trees and records.
    pub(crate) flushes: Flushes,
    /// Flushes of all that files hold.
    pub(crate) syncs: Flushes,
    workers: [Workers; 3],
}

/// How long work takes on a drive that is well.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    /// A moment: making, growing and mounting volumes.
    Quick,
    /// Deleting waits for the kernel to clean up, and must not hold up the rest.
    Slow,
    /// Copying takes as long as there is data.
    Copying,
}

impl Default for Lane {
    fn default() -> Self {
        Self {
            flushes: Flushes::default(),
            syncs: Flushes::default(),
            workers: [64, 64, 4].map(Workers::new),
        }
    }
}

impl Lane {
    /// Runs blocking work. If the caller goes away the work still runs to its end, once begun; before, it is dropped.
    /// `hangs` is called when quick work takes so long that the drive can't be well.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        pace: Pace,
        work: impl FnOnce() -> T + Send + 'static,
        hangs: impl FnOnce() + Send + 'static,
    ) -> Result<T, Interrupted> {
        let free = self.workers(pace).free.clone();
        let worked = async move {
            // The semaphore is never closed.
            let place = free.acquire_owned().await.map_err(|error| Interrupted::Broken(error.to_string()))?;
            let watched = watched(place, work, move || {
                if matches!(pace, Pace::Quick) {
                    hangs();
                }
            });
            tokio::spawn(watched).await.map_err(broken)?
        };
        timeout(DEADLINE, worked).await.map_err(|_| Interrupted::TimedOut)?
    }

    /// Runs work that nobody waits for, and while it says that it is not done, again after each of `PAUSES`. It is told
    /// how many tries came before.
    pub(crate) fn detach(&self, work: impl Fn(usize) -> bool + Send + Sync + 'static) {
        let (free, work) = (self.workers(Pace::Slow).free.clone(), Arc::new(work));
        tokio::spawn(async move {
            for (tries, pause) in PAUSES.into_iter().enumerate() {
                sleep(pause).await;
                let Ok(place) = free.clone().acquire_owned().await else { return };
                let work = work.clone();
                let done = spawn_blocking(move || {
                    let _place = place;
                    work(tries)
                });
                if done.await.unwrap_or(true) {
                    return;
                }
            }
        });
    }

    fn workers(&self, pace: Pace) -> &Workers {
        &self.workers[pace as usize]
    }
}

/// A bounded number of threads.
struct Workers {
    free: Arc<Semaphore>,
}

impl Workers {
    fn new(threads: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(threads)) }
    }
}

/// Runs work in its place, and tells when it hangs, also when its caller has gone.
async fn watched<T: Send + 'static>(
    place: OwnedSemaphorePermit,
    work: impl FnOnce() -> T + Send + 'static,
    hangs: impl FnOnce(),
) -> Result<T, Interrupted> {
    let mut task = spawn_blocking(move || {
        let _place = place;
        work()
    });
    if let Ok(answer) = timeout(HANG, &mut task).await {
        return answer.map_err(broken);
    }
    hangs();
    task.await.map_err(broken)
}

fn broken(error: JoinError) -> Interrupted {
    tracing::error!(%error, "blocking work was lost");
    Interrupted::Broken(error.to_string())
}

/// Runs blocking work of which there is little.
pub(crate) async fn alone<T: Send + 'static>(
    deadline: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Interrupted> {
    match timeout(deadline, spawn_blocking(work)).await {
        Ok(answer) => answer.map_err(broken),
        Err(_) => Err(Interrupted::TimedOut),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    };

    use super::*;

    #[tokio::test]
    async fn a_panic_is_no_timeout() {
        let lane = Lane::default();
        let panicked = lane.run(Pace::Quick, || panic!("on purpose"), || {}).await;
        let Err(Interrupted::Broken(why)) = panicked else { panic!("{panicked:?}") };
        assert!(why.contains("on purpose"), "{why}");
        assert_eq!(lane.run(Pace::Quick, || 7, || {}).await, Ok(7), "its place is free again");
    }

    #[tokio::test]
    async fn a_hang_is_told_once_and_also_when_the_caller_has_gone() {
        let (lane, told) = (Lane::default(), Arc::new(AtomicUsize::new(0)));
        let (go, may_go) = mpsc::channel::<()>();
        let tell = told.clone();
        let call = lane.run(
            Pace::Quick,
            move || may_go.recv().is_err(),
            move || {
                tell.fetch_add(1, Ordering::SeqCst);
            },
        );
        timeout(HANG / 2, call).await.expect_err("the caller goes");
        while told.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        drop(go);
        assert_eq!(told.load(Ordering::SeqCst), 1);
    }
}
