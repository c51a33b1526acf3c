use std::error::Error;
use std::fmt;
use std::future::Future;
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use kube::{Resource, ResourceExt};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use tracing::field::Empty;

use crate::Queue;
use crate::failure::{is_conflict, panic_message};

/// How long reconciliations that are under way at shutdown may take to end by themselves.
const GRACE: Duration = Duration::from_secs(5);
/// A key whose writes come second this often in a row is worth a warning: somebody writes against it.
const CONTESTED: u32 = 10;

/// The name of an object, as a queue's key. The namespace is "" for cluster-scoped kinds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The namespace, or "".
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl Key {
    /// The key of an object.
    pub fn of<K: Resource>(object: &K) -> Key {
        Key { namespace: object.namespace().unwrap_or_default(), name: object.name_any() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// What a reconciliation that succeeded asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing, until the key is added again.
    Done,
    /// To look again after a while.
    After(Duration),
    /// To look again because somebody else's write came first: what was decided upon is not the latest. If the news of
    /// it does not add the key before, that is after 100 ms, and after more each time that it happens again, up to 5 s.
    Overtaken,
}

/// Reconciles the queue's keys, up to `concurrency` at a time, until `shutdown` is cancelled.
///
/// An error is logged once, with its causes, and the key is retried after its backoff; so is one whose reconciliation
/// panics, or takes longer than the queue's deadline and is dropped where it is. A write that came second is no error:
/// see [`Next::Overtaken`]. All reconciliations run in the caller's task: they may borrow from it, and must not block.
/// Those under way at shutdown get five seconds.
///
/// Each runs in a span `reconcile` with the queue's name and the key, in which it may record a `claim` (its UID) and a
/// `pod` (its name).
pub async fn work<T, F, Fut, E>(
    queue: Queue<T>,
    concurrency: usize,
    shutdown: CancellationToken,
    reconcile: F,
) where
    T: Clone + Eq + Hash + fmt::Display,
    F: Fn(T) -> Fut,
    Fut: Future<Output = Result<Next, E>>,
    E: Into<Box<dyn Error + Send + Sync>>,
{
    let mut running = FuturesUnordered::new();
    loop {
        // In this order, so that a simulated run can be repeated.
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(()) = running.next(), if !running.is_empty() => {}
            key = queue.next(), if running.len() < concurrency.max(1) => {
                let span = tracing::info_span!("reconcile", queue = queue.name(), %key, claim = Empty, pod = Empty);
                running.push(one(&queue, &reconcile, key).instrument(span));
            }
        }
    }
    let _ = tokio::time::timeout(GRACE, running.collect::<()>()).await;
}

/// How a reconciliation went wrong.
enum Failure {
    Error(Box<dyn Error + Send + Sync>),
    Panic(String),
    Deadline(Duration),
}

async fn one<T, F, Fut, E>(queue: &Queue<T>, reconcile: &F, key: T)
where
    T: Clone + Eq + Hash + fmt::Display,
    F: Fn(T) -> Fut,
    Fut: Future<Output = Result<Next, E>>,
    E: Into<Box<dyn Error + Send + Sync>>,
{
    let start = Instant::now();
    // Boxed, so that the deadline and the unwinding cost no copies of it.
    let attempt = Box::pin(AssertUnwindSafe(async { reconcile(key.clone()).await }).catch_unwind());
    let outcome = match tokio::time::timeout(queue.deadline(), attempt).await {
        Ok(Ok(outcome)) => outcome.map_err(|error| Failure::Error(error.into())),
        Ok(Err(panic)) => Err(Failure::Panic(panic_message(&*panic).to_owned())),
        Err(_) => Err(Failure::Deadline(queue.deadline())),
    };
    match outcome {
        Ok(Next::Overtaken) => overtaken(queue, &key),
        Ok(next) => {
            queue.succeeded(&key);
            if let Next::After(delay) = next {
                queue.add_after(key.clone(), delay);
            }
        }
        Err(Failure::Error(error)) if is_conflict(&*error) => overtaken(queue, &key),
        Err(failure) => failed(queue, &key, failure),
    }
    queue.finish(&key, start.elapsed());
}

fn overtaken<T: Clone + Eq + Hash + fmt::Display>(queue: &Queue<T>, key: &T) {
    let times = queue.overtaken(key);
    if times.is_multiple_of(CONTESTED) {
        tracing::warn!(
            times,
            "somebody else's write keeps coming first; is the same controller running twice?"
        );
    } else {
        tracing::debug!(times, "another write came first: deciding again");
    }
}

fn failed<T: Clone + Eq + Hash + fmt::Display>(queue: &Queue<T>, key: &T, failure: Failure) {
    let (failures, wait) = queue.failed(key);
    let retry_in_ms = wait.as_millis() as u64;
    match failure {
        Failure::Error(error) => {
            let error = crate::explain(&*error);
            tracing::warn!(failures, retry_in_ms, error, "will retry");
        }
        Failure::Panic(panic) => {
            queue.panicked();
            tracing::error!(
                failures,
                retry_in_ms,
                panic,
                "broke off at an error of the program, please report it; will retry"
            );
        }
        Failure::Deadline(deadline) => {
            let seconds = deadline.as_secs();
            tracing::error!(
                failures,
                retry_in_ms,
                seconds,
                "did not end in time and was given up; will retry"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::HashMap;
    use std::convert::Infallible;

    use super::*;
    use crate::Metrics;

    const DEADLINE: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn failing_keys_are_retried_until_they_succeed() {
        let queue = Queue::new("test", &Metrics::new());
        let (shutdown, attempts) = (CancellationToken::new(), RefCell::new(HashMap::new()));
        queue.add("a");
        queue.add("b");
        let run = work(queue.clone(), 2, shutdown.clone(), async |key: &'static str| {
            let attempt = {
                let mut attempts = attempts.borrow_mut();
                *attempts.entry(key).and_modify(|n| *n += 1).or_insert(1)
            };
            match attempt {
                3 if key == "a" => shutdown.cancel(),
                _ if key == "b" => return Ok(Next::Done),
                _ => return Err("not yet"),
            }
            Ok(Next::Done)
        });
        tokio::time::timeout(DEADLINE, run).await.expect("retries end");
        assert_eq!(attempts.into_inner(), HashMap::from([("a", 3), ("b", 1)]));
    }

    #[tokio::test]
    async fn concurrency_is_bounded_and_no_key_runs_twice_at_once() {
        let queue = Queue::new("test", &Metrics::new());
        let shutdown = CancellationToken::new();
        let (running, most, done) = (RefCell::new(Vec::new()), RefCell::new(0), RefCell::new(0));
        (0..20).for_each(|key| queue.add(key));
        let run = work(queue.clone(), 3, shutdown.clone(), async |key: u32| {
            assert!(!running.borrow().contains(&key));
            running.borrow_mut().push(key);
            most.replace_with(|most| (*most).max(running.borrow().len()));
            if *done.borrow() < 20 {
                queue.add(key);
            }
            tokio::task::yield_now().await;
            running.borrow_mut().retain(|other| *other != key);
            *done.borrow_mut() += 1;
            if *done.borrow() == 40 {
                shutdown.cancel();
            }
            Ok::<_, Infallible>(Next::Done)
        });
        tokio::time::timeout(DEADLINE, run).await.expect("all keys are worked on");
        assert_eq!(*most.borrow(), 3);
    }

    #[tokio::test]
    async fn a_key_comes_back_after_the_delay_that_it_asked_for() {
        let queue = Queue::new("test", &Metrics::new());
        let (shutdown, seen) = (CancellationToken::new(), RefCell::new(0));
        queue.add("key");
        let run = work(queue, 1, shutdown.clone(), async |_| {
            *seen.borrow_mut() += 1;
            if *seen.borrow() == 2 {
                shutdown.cancel();
            }
            Ok::<_, Infallible>(Next::After(Duration::from_millis(1)))
        });
        tokio::time::timeout(DEADLINE, run).await.expect("the key comes back");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_panics_or_never_ends_is_retried_and_the_others_go_on() {
        let metrics = Metrics::new();
        let queue =
            Queue::with_deadline("test", &metrics, crate::Backoff::default(), Duration::from_secs(60));
        let (shutdown, attempts) = (CancellationToken::new(), RefCell::new(Vec::new()));
        ["at once", "late", "never", "well"].into_iter().for_each(|key| queue.add(key));
        let run = work(queue.clone(), 1, shutdown.clone(), |key: &'static str| {
            attempts.borrow_mut().push(key);
            let first = attempts.borrow().iter().filter(|other| **other == key).count() == 1;
            assert!(!(first && key == "at once"), "before there is a future");
            let attempts = &attempts;
            let shutdown = &shutdown;
            async move {
                tokio::task::yield_now().await;
                match (first, key) {
                    (true, "late") => panic!("within it"),
                    (true, "never") => std::future::pending::<()>().await,
                    _ => {}
                }
                if attempts.borrow().len() == 7 {
                    shutdown.cancel();
                }
                Ok::<_, Infallible>(Next::Done)
            }
        });
        let start = Instant::now();
        tokio::time::timeout(Duration::from_secs(70), run).await.expect("all are worked on again");
        assert!(start.elapsed() >= Duration::from_secs(60));
        attempts.borrow_mut().sort_unstable();
        let twice = ["at once", "at once", "late", "late", "never", "never", "well"];
        assert_eq!(attempts.into_inner(), twice);
        let page = metrics.encode();
        assert!(page.contains("workqueue_panics_total{name=\"test\"} 2"), "{page}");
        assert!(queue.is_idle());
    }

    #[tokio::test(start_paused = true)]
    async fn a_conflict_is_no_failure() {
        let (metrics, shutdown) = (Metrics::new(), CancellationToken::new());
        let queue = Queue::new("test", &metrics);
        queue.add("a");
        let tries = RefCell::new(0);
        let run = work(queue, 1, shutdown.clone(), async |_| {
            *tries.borrow_mut() += 1;
            if *tries.borrow() == 2 {
                shutdown.cancel();
                return Ok(Next::Done);
            }
            let status =
                kube::core::Status { reason: "Conflict".to_owned(), code: 409, ..Default::default() };
            Err(kube::Error::Api(Box::new(status)))
        });
        tokio::time::timeout(DEADLINE, run).await.expect("it is decided again");
        let page = metrics.encode();
        assert!(page.contains("workqueue_retries_total{name=\"test\"} 0"), "{page}");
        assert!(page.contains("workqueue_overtaken_total{name=\"test\"} 1"), "{page}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_whose_writes_keep_coming_second_comes_back_later_and_later() {
        let queue = Queue::new("test", &Metrics::new());
        let (shutdown, tries) = (CancellationToken::new(), RefCell::new(0));
        queue.add("key");
        let run = work(queue, 1, shutdown.clone(), async |_| {
            *tries.borrow_mut() += 1;
            Ok::<_, Infallible>(Next::Overtaken)
        });
        let _ = tokio::time::timeout(Duration::from_secs(60), run).await;
        assert!((10..20).contains(&*tries.borrow()), "{tries:?} in a minute");
    }
}
