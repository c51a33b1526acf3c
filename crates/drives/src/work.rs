//! Blocking work: on threads for it, bounded in number, and awaited no longer than a deadline.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::Semaphore,
    task::spawn_blocking,
    time::{sleep, timeout},
};

/// How long an answer is awaited. The work itself goes on: a dying drive may hold a call for minutes.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

/// What comes before each try of work that nobody waits for: whoever has a device open for a moment lets it go by then.
const PAUSES: [Duration; 4] =
    [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(10), Duration::from_secs(60)];

/// No answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Interrupted {
    #[error("no answer in time")]
    TimedOut,
    #[error("the work broke off: {0}")]
    Broken(String),
}

/// A bounded number of threads.
pub(crate) struct Workers {
    free: Arc<Semaphore>,
}

impl Workers {
    pub(crate) fn new(threads: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(threads)) }
    }

    /// Runs blocking work. If the caller goes away the work still runs to its end, once begun.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Interrupted> {
        let free = self.free.clone();
        let worked = async move {
            // The semaphore is never closed.
            let place = free.acquire_owned().await.map_err(|error| Interrupted::Broken(error.to_string()))?;
            spawn_blocking(move || {
                let _place = place;
                work()
            })
            .await
            .map_err(|error| Interrupted::Broken(error.to_string()))
        };
        let answer = timeout(DEADLINE, worked).await.map_err(|_| Interrupted::TimedOut)?;
        if let Err(error) = &answer {
            tracing::error!(%error, "blocking work was lost");
        }
        answer
    }

    /// Runs blocking work that nobody waits for, and while it says that it is not done, again after each of `PAUSES`. It
    /// is told how many tries came before.
    pub(crate) fn detach(&self, work: impl Fn(usize) -> bool + Send + Sync + 'static) {
        let (free, work) = (self.free.clone(), Arc::new(work));
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

/// Runs blocking work of which there is little.
pub(crate) async fn alone<T: Send + 'static>(
    deadline: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Interrupted> {
    match timeout(deadline, spawn_blocking(work)).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(Interrupted::Broken(error.to_string())),
        Err(_) => Err(Interrupted::TimedOut),
    }
}
