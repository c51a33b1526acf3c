//! The time for which a leader may act.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use http::{Method, Request};
use parking_lot::Mutex;
use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;
use tower::{BoxError, Layer, Service};

/// How long a leader may write: until its lease must have been renewed again.
///
/// As a [`Layer`] of a client it lets reads through always and writes only within that time; a write whose answer
/// does not come in time is given up. What was handed to the network before can't be called back: writes that must not
/// be late carry the version that they were decided upon.
#[derive(Clone, Debug)]
pub struct Term {
    until: Arc<Mutex<Until>>,
}

/// The end by two clocks: the second one also runs while the machine is suspended.
#[derive(Clone, Copy, Debug)]
struct Until {
    awake: Instant,
    boot: Duration,
}

/// A write was refused, because this process no longer leads.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("not written: this process no longer holds its lease")]
pub struct TermOver;

fn since_boot() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs().try_into().unwrap_or_default())
}

impl Term {
    pub(super) fn over_already() -> Term {
        let until = Until { awake: Instant::now(), boot: since_boot() };
        Term { until: Arc::new(Mutex::new(until)) }
    }

    /// Counts from when the renewal was begun; the others count from when it arrived, which is later.
    pub(super) fn extend(&self, begun: Instant, deadline: Duration) {
        let mut until = self.until.lock();
        until.awake = begun + deadline;
        until.boot = since_boot().saturating_sub(begun.elapsed()) + deadline;
    }

    pub(super) fn end(&self) {
        *self.until.lock() = Until { awake: Instant::now(), boot: since_boot() };
    }

    pub(super) fn until(&self) -> Instant {
        self.until.lock().awake
    }

    /// Whether this process may not write any more.
    pub fn is_over(&self) -> bool {
        let until = *self.until.lock();
        Instant::now() >= until.awake || since_boot() >= until.boot
    }

    /// Waits until it is over. Every poll looks at the clocks first: timers of a stopped process fire late.
    async fn over(self) {
        while !self.is_over() {
            let mut timer = pin!(tokio::time::sleep_until(self.until()));
            poll_fn(|context| match self.is_over() {
                true => Poll::Ready(()),
                false => timer.as_mut().poll(context),
            })
            .await;
        }
    }
}

impl<S> Layer<S> for Term {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { inner, term: self.clone() }
    }
}

/// A service that writes only within a [`Term`].
#[derive(Clone, Debug)]
pub struct Guarded<S> {
    inner: S,
    term: Term,
}

impl<S, B> Service<Request<B>> for Guarded<S>
where
    S: Service<Request<B>>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<S::Response, BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let reads = [Method::GET, Method::HEAD, Method::OPTIONS].contains(request.method());
        if !reads && self.term.is_over() {
            return Box::pin(async { Err(TermOver.into()) });
        }
        let (answer, term) = (self.inner.call(request), self.term.clone());
        Box::pin(async move {
            if reads {
                return answer.await.map_err(Into::into);
            }
            tokio::select! {
                biased;
                () = term.over() => Err(TermOver.into()),
                answer = answer => answer.map_err(Into::into),
            }
        })
    }
}
