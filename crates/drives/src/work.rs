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

/// After this, it is looked into why work has not ended.
const LONG: Duration = if cfg!(test) { Duration::from_millis(50) } else { Duration::from_secs(30) };

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
    /// Places for threads, by pace.
    places: [Arc<Semaphore>; 3],
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
            places: [64, 64, 4].map(|threads| Arc::new(Semaphore::new(threads))),
        }
    }
}

impl Lane {
    /// Runs blocking work. If the caller goes away the work still runs to its end, once begun; before, it is dropped.
    /// `late` runs beside it from the moment at which it has taken long.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        pace: Pace,
        work: impl FnOnce() -> T + Send + 'static,
        late: impl Future<Output = ()> + Send + 'static,
    ) -> Result<T, Interrupted> {
        let free = self.places[pace as usize].clone();
        let worked = async move {
            // The semaphore is never closed.
            let place = free.acquire_owned().await.map_err(|error| Interrupted::Broken(error.to_string()))?;
            tokio::spawn(watched(place, work, late)).await.map_err(broken)?
        };
        timeout(DEADLINE, worked).await.map_err(|_| Interrupted::TimedOut)?
    }

    /// Runs work that nobody waits for, and while it says that it is not done, again after each of `PAUSES`. It is told
    /// how many tries came before.
    pub(crate) fn detach(&self, work: impl Fn(usize) -> bool + Send + Sync + 'static) {
        let (free, work) = (self.places[Pace::Slow as usize].clone(), Arc::new(work));
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
}

/// Runs work in its place, and `late` beside it when it takes long, also when its caller has gone.
async fn watched<T: Send + 'static>(
    place: OwnedSemaphorePermit,
    work: impl FnOnce() -> T + Send + 'static,
    late: impl Future<Output = ()> + Send + 'static,
) -> Result<T, Interrupted> {
    let mut task = spawn_blocking(move || {
        let _place = place;
        work()
    });
    if let Ok(answer) = timeout(LONG, &mut task).await {
        return answer.map_err(broken);
    }
    tokio::spawn(late);
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
    use std::{future::ready, sync::mpsc};

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn a_panic_is_no_timeout() {
        let lane = Lane::default();
        let panicked = lane.run(Pace::Quick, || panic!("on purpose"), ready(())).await;
        let Err(Interrupted::Broken(why)) = panicked else { panic!("{panicked:?}") };
        assert!(why.contains("on purpose"), "{why}");
        assert_eq!(lane.run(Pace::Quick, || 7, ready(())).await, Ok(7), "its place is free again");
    }

    #[tokio::test]
    async fn long_work_is_told_of_also_when_the_caller_has_gone() {
        let lane = Lane::default();
        let (go, may_go) = mpsc::channel::<()>();
        let (tell, told) = oneshot::channel();
        let late = async move { tell.send(()).expect("the test waits") };
        let call = lane.run(Pace::Slow, move || may_go.recv().is_err(), late);
        timeout(LONG / 2, call).await.expect_err("the caller goes");
        timeout(Duration::from_secs(10), told).await.expect("it is told").expect("once");
        drop(go);
    }
}
