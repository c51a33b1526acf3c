//! Steps of a process, each of which can be its last.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use http::{Method, Request, Response};
use tokio::sync::Notify;
use tower::Service;

/// When a process dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Before the step has its effect.
    Before,
    /// After it had its effect, and before the process hears of it.
    After,
}

/// Counts the writes to the API and the calls of the driver that change something.
#[derive(Clone, Default)]
pub struct Steps {
    taken: Arc<AtomicUsize>,
    crash: Option<(usize, When)>,
    crashed: Arc<Notify>,
}

impl Steps {
    /// Steps that all succeed.
    pub fn new() -> Steps {
        Steps::default()
    }

    /// The step of this number, from 0, is the last one.
    pub fn crashing_at(step: usize, when: When) -> Steps {
        Steps { crash: Some((step, when)), ..Steps::default() }
    }

    /// Waits until the last step was taken.
    pub async fn crashed(&self) {
        self.crashed.notified().await;
    }

    pub async fn step<T>(&self, effect: impl Future<Output = T>) -> T {
        let number = self.taken.fetch_add(1, Ordering::SeqCst);
        match self.crash {
            Some((last, _)) if number > last => std::future::pending().await,
            Some((last, when)) if number == last => {
                if when == When::After {
                    effect.await;
                }
                self.crashed.notify_one();
                std::future::pending().await
            }
            _ => effect.await,
        }
    }

    /// A client's service whose writes are steps, except those of events.
    pub fn service<S>(&self, inner: S, writes: Arc<AtomicUsize>) -> Stepping<S> {
        Stepping { inner, steps: self.clone(), writes }
    }
}

#[derive(Clone)]
pub struct Stepping<S> {
    inner: S,
    steps: Steps,
    writes: Arc<AtomicUsize>,
}

impl<S, B, C> Service<Request<B>> for Stepping<S>
where
    S: Service<Request<B>, Response = Response<C>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let is_step = request.method() != Method::GET && !request.uri().path().contains("/events");
        let answer = self.inner.call(request);
        let (steps, writes) = (self.steps.clone(), self.writes.clone());
        Box::pin(async move {
            if !is_step {
                return answer.await;
            }
            writes.fetch_add(1, Ordering::SeqCst);
            steps.step(answer).await
        })
    }
}
