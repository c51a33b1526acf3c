//! Steps of a process, each of which can be its last.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
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
    fault: Option<(usize, u16)>,
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

    /// The write of this number is refused with a status code: 409 as if the object had changed, 500 for no reason.
    pub fn refusing_at(write: usize, code: u16) -> Steps {
        Steps { fault: Some((write, code)), ..Steps::default() }
    }

    /// How many steps were taken.
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::SeqCst)
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

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl<S, B, C> Service<Request<B>> for Stepping<S>
where
    S: Service<Request<B>, Response = Response<C>>,
    S::Future: Send + 'static,
    C: http_body::Body<Data = Bytes> + Send + 'static,
    C::Error: Into<BoxError>,
{
    type Response = Response<UnsyncBoxBody<Bytes, BoxError>>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let is_step = request.method() != Method::GET && !request.uri().path().contains("/events");
        let answer = self.inner.call(request);
        let (steps, writes) = (self.steps.clone(), self.writes.clone());
        Box::pin(async move {
            let boxed = |answer: Response<C>| answer.map(|body| body.map_err(Into::into).boxed_unsync());
            if !is_step {
                return answer.await.map(boxed);
            }
            let number = writes.fetch_add(1, Ordering::SeqCst);
            if let Some((_, code)) = steps.fault.filter(|(at, _)| *at == number) {
                return Ok(refusal(code));
            }
            steps.step(answer).await.map(boxed)
        })
    }
}

fn refusal(code: u16) -> Response<UnsyncBoxBody<Bytes, BoxError>> {
    let reason = if code == 409 { "Conflict" } else { "InternalError" };
    let status = serde_json::json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
        "reason": reason, "message": "as the test asks"});
    let body = Full::new(Bytes::from(status.to_string())).map_err(|never| match never {}).boxed_unsync();
    Response::builder().status(code).header("content-type", "application/json").body(body).unwrap()
}
