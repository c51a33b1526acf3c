//! The long-running parts of a role: the first that ends before it is asked to ends the role.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::error::Error;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::FutureExt;
use parking_lot::Mutex;
use tokio::sync::{Notify, SetOnce};
use tokio_util::sync::CancellationToken;

use crate::failure::{explain, panic_message};

/// How long parts that are cut off may take to be dropped.
const CUT: Duration = Duration::from_secs(1);

/// Named tasks that run until `shutdown`. Clones are handles on the same ones.
///
/// No end goes unnoticed: [`Parts::failure`] tells the first part that returned, failed or panicked though nobody had
/// asked it to end.
#[derive(Clone)]
pub struct Parts {
    shutdown: CancellationToken,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    ended: SetOnce<PartEnded>,
    running: Mutex<BTreeMap<u64, Cow<'static, str>>>,
    number: AtomicU64,
    fewer: Notify,
    /// Cancelled when patience is over.
    cut: CancellationToken,
}

/// A part ended though nobody asked it to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PartEnded {
    /// It returned.
    #[error("the {0} stopped unexpectedly; the log says more")]
    Returned(String),
    /// It returned an error.
    #[error("the {part} failed: {why}")]
    Failed {
        /// The part.
        part: String,
        /// Its error.
        why: String,
    },
    /// It panicked.
    #[error("the {part} broke off at an error of the program: {panic}; the log says where, please report it")]
    Panicked {
        /// The part.
        part: String,
        /// What the panic said.
        panic: String,
    },
}

/// What a part may return: nothing, or an error.
pub trait Outcome: Send + 'static {
    /// The error's text.
    fn error(self) -> Option<String>;
}

impl Outcome for () {
    fn error(self) -> Option<String> {
        None
    }
}

impl<E: Into<Box<dyn Error + Send + Sync>> + Send + 'static> Outcome for Result<(), E> {
    fn error(self) -> Option<String> {
        self.err().map(|error| explain(&*error.into()))
    }
}

impl Parts {
    /// No part yet. All are asked to end by `shutdown`.
    pub fn new(shutdown: CancellationToken) -> Parts {
        Parts { shutdown, shared: Arc::default() }
    }

    /// The same parts, with others that are asked to end by another token.
    #[must_use]
    pub fn until(&self, shutdown: CancellationToken) -> Parts {
        Parts { shutdown, shared: Arc::clone(&self.shared) }
    }

    /// What asks the parts to end.
    pub fn shutdown(&self) -> CancellationToken {
        self.shutdown.clone()
    }

    /// Starts a part that must run until it is asked to end. Must be called within a tokio runtime.
    pub fn spawn<O: Outcome>(
        &self,
        name: impl Into<Cow<'static, str>>,
        part: impl Future<Output = O> + Send + 'static,
    ) {
        self.start(name.into(), true, part);
    }

    /// Starts a part that ends when its work is done. Only a panic or an error of it counts as its end before time.
    pub fn spawn_helper<O: Outcome>(
        &self,
        name: impl Into<Cow<'static, str>>,
        part: impl Future<Output = O> + Send + 'static,
    ) {
        self.start(name.into(), false, part);
    }

    fn start<O: Outcome>(
        &self,
        name: Cow<'static, str>,
        lasts: bool,
        part: impl Future<Output = O> + Send + 'static,
    ) {
        let number = self.shared.number.fetch_add(1, Ordering::Relaxed);
        self.shared.running.lock().insert(number, name.clone());
        let parts = self.clone();
        tokio::spawn(async move {
            let part = AssertUnwindSafe(part).catch_unwind();
            let outcome = parts.shared.cut.run_until_cancelled(part).await;
            let name = name.into_owned();
            let ended = match outcome {
                None => None,
                Some(Err(panic)) => {
                    Some(PartEnded::Panicked { part: name, panic: panic_message(&*panic).to_owned() })
                }
                Some(Ok(outcome)) => match outcome.error() {
                    Some(why) => Some(PartEnded::Failed { part: name, why }),
                    None => lasts.then_some(PartEnded::Returned(name)),
                },
            };
            parts.end(number, ended);
        });
    }

    fn end(&self, number: u64, ended: Option<PartEnded>) {
        let asked = self.shutdown.is_cancelled();
        match ended {
            Some(PartEnded::Returned(_)) if asked => {}
            Some(error) if asked => tracing::warn!(%error, "a part did not end in order"),
            Some(error) => {
                tracing::error!(%error, "a part of this process ended, which ends all");
                let _ = self.shared.ended.set(error);
            }
            None => {}
        }
        self.shared.running.lock().remove(&number);
        self.shared.fewer.notify_waiters();
    }

    /// Waits for a part that ends though nobody asked it to, and tells which and why.
    pub async fn failure(&self) -> PartEnded {
        self.shared.ended.wait().await.clone()
    }

    /// Waits until all parts have ended after their shutdown, or for the first that ends before.
    ///
    /// # Errors
    /// The part that ended before.
    pub async fn ended(&self) -> Result<(), PartEnded> {
        tokio::select! {
            biased;
            ended = self.failure() => Err(ended),
            () = async { self.shutdown.cancelled().await; self.none().await } => Ok(()),
        }
    }

    /// Asks all parts to end and waits for that. Those that don't in time are dropped, which loses nothing: what
    /// matters is on disk, or in the API.
    pub async fn finish(&self, patience: Duration) {
        self.shutdown.cancel();
        if tokio::time::timeout(patience, self.none()).await.is_err() {
            let running = self.shared.running.lock().values().cloned().collect::<Vec<_>>().join(", ");
            tracing::warn!(parts = running, seconds = patience.as_secs(), "not stopped in time, cut off");
            self.shared.cut.cancel();
            let _ = tokio::time::timeout(CUT, self.none()).await;
        }
    }

    /// Drops all parts where they are, as the end of the process would.
    pub fn cut_off(&self) {
        self.shutdown.cancel();
        self.shared.cut.cancel();
    }

    async fn none(&self) {
        loop {
            let fewer = self.shared.fewer.notified();
            if self.shared.running.lock().is_empty() {
                return;
            }
            fewer.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test]
    async fn whoever_ends_before_time_is_told_with_the_reason() {
        type Start = fn(&Parts);
        let cases: [(Start, &str); 3] = [
            (|parts| parts.spawn("binder", async {}), "the binder stopped unexpectedly; the log says more"),
            (
                |parts| parts.spawn("binder", async { Err("no more files") }),
                "the binder failed: no more files",
            ),
            (
                |parts| parts.spawn_helper("binder", async { assert_eq!(7, 8) }),
                "the binder broke off at an error of the program: assertion `left == right` failed\n  left: 7\n right: 8; the log says where, please report it",
            ),
        ];
        for (start, expected) in cases {
            let parts = Parts::new(CancellationToken::new());
            parts.spawn("other", pending::<()>());
            parts.spawn_helper("errand", async {});
            start(&parts);
            assert_eq!(parts.failure().await.to_string(), expected);
            assert_eq!(parts.ended().await.expect_err("one ended").to_string(), expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn parts_that_are_asked_end_in_order_and_the_others_are_cut_off() {
        let parts = Parts::new(CancellationToken::new());
        parts.spawn("slow", {
            let shutdown = parts.shutdown();
            async move {
                shutdown.cancelled().await;
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
        });
        let all = tokio::spawn({
            let parts = parts.clone();
            async move { parts.ended().await }
        });
        tokio::task::yield_now().await;
        parts.shutdown().cancel();
        assert_eq!(all.await.expect("no panic"), Ok(()));

        parts.spawn("stuck", pending::<()>());
        let start = tokio::time::Instant::now();
        parts.finish(Duration::from_secs(3)).await;
        assert_eq!(start.elapsed(), Duration::from_secs(3));
        assert!(parts.shared.ended.get().is_none());
    }

    #[tokio::test]
    async fn some_may_be_asked_to_end_before_the_others() {
        let (parts, stop) = (Parts::new(CancellationToken::new()), CancellationToken::new());
        parts.until(stop.clone()).spawn("guest", stop.clone().cancelled_owned());
        stop.cancel();
        parts.none().await;
        assert!(parts.shared.ended.get().is_none());
    }
}
