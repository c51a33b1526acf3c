//! When a connection has been idle for too long.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::answer::AnswerBody;

/// The requests that a connection is busy with.
#[derive(Debug)]
pub(super) struct Activity(Mutex<State>);

#[derive(Debug)]
struct State {
    busy: usize,
    idle_since: Instant,
}

impl Activity {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(State { busy: 0, idle_since: Instant::now() })))
    }

    /// A request has come; its answer is sent when the guard is dropped.
    pub(super) fn begin(self: &Arc<Self>) -> Busy {
        self.0.lock().busy += 1;
        Busy(self.clone())
    }

    /// When the connection will have been idle for so long; while it is busy, not before that time from now.
    pub(super) fn idle_for(&self, long: Duration) -> Instant {
        let state = self.0.lock();
        let since = if state.busy > 0 { Instant::now() } else { state.idle_since };
        since + long
    }
}

/// A request that is being answered.
#[derive(Debug)]
pub(super) struct Busy(Arc<Activity>);

impl Drop for Busy {
    fn drop(&mut self) {
        let mut state = self.0.0.lock();
        state.busy -= 1;
        state.idle_since = Instant::now();
    }
}

/// A body whose request ends with it.
pub(super) struct BusyBody {
    body: AnswerBody,
    _busy: Busy,
}

impl BusyBody {
    pub(super) fn new(body: AnswerBody, busy: Busy) -> Self {
        Self { body, _busy: busy }
    }
}

impl Body for BusyBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_when_its_last_answer_was_sent() {
        let (idle, second) = (Duration::from_secs(60), Duration::from_secs(1));
        let activity = Activity::new();
        let came = Instant::now();
        assert_eq!(activity.idle_for(idle), came + idle);
        let (first, other) = (activity.begin(), activity.begin());
        tokio::time::advance(second * 100).await;
        drop(first);
        assert_eq!(activity.idle_for(idle), came + second * 160, "one is still being answered");
        drop(other);
        tokio::time::advance(second).await;
        assert_eq!(activity.idle_for(idle), came + second * 160);
    }
}
