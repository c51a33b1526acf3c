//! What is logged of a call: one span with method, volume, duration and code.

use std::future::Future;
use std::time::Instant;
use tonic::{Code, Response, Status};
use tracing::{Instrument, Span, field};

/// A call's answer, as tonic's services give it.
pub(crate) type Answer<T> = Result<Response<T>, Status>;

/// Answers a call by `work` and logs how it went. Neither secrets nor any other content of the request get here.
pub(crate) async fn answer<T>(
    method: &'static str,
    volume: &str,
    work: impl Future<Output = Result<T, Status>>,
) -> Answer<T> {
    let span = tracing::info_span!("csi", method, volume, code = field::Empty, milliseconds = field::Empty);
    let mut call = Call { span: span.clone(), started: Instant::now(), end: End::HungUp };
    let answer = work.instrument(span).await;
    call.end = match &answer {
        Ok(_) => End::Answered,
        Err(status) => End::Refused(status.code(), status.message().to_owned()),
    };
    answer.map(Response::new)
}

/// A call under way. Logged when it ends, which may be before there is an answer.
struct Call {
    span: Span,
    started: Instant,
    end: End,
}

enum End {
    Answered,
    Refused(Code, String),
    HungUp,
}

impl Drop for Call {
    fn drop(&mut self) {
        let milliseconds = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.span.record("milliseconds", milliseconds);
        let code = match &self.end {
            End::Answered => Code::Ok,
            End::Refused(code, _) => *code,
            End::HungUp => Code::Cancelled,
        };
        self.span.record("code", field::debug(code));
        let _entered = self.span.enter();
        match &self.end {
            End::Answered => tracing::debug!("answered"),
            End::Refused(_, why) => tracing::warn!("refused: {why}"),
            End::HungUp => tracing::warn!("the caller hung up; what was begun is finished"),
        }
    }
}
