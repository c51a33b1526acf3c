//! Answers: bodies that are whole or streamed, and their headers.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::Stream;
use http::{HeaderValue, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use serde_json::Value;

use crate::error::ApiError;

/// The body of an answer: bytes at once, or chunks as they come.
pub struct AnswerBody(Content);

enum Content {
    Whole(Option<Bytes>),
    Chunks(Pin<Box<dyn Stream<Item = Bytes> + Send>>),
}

impl AnswerBody {
    pub(crate) fn whole(bytes: impl Into<Bytes>) -> Self {
        Self(Content::Whole(Some(bytes.into())))
    }

    pub(crate) fn chunks(stream: impl Stream<Item = Bytes> + Send + 'static) -> Self {
        Self(Content::Chunks(Box::pin(stream)))
    }
}

impl std::fmt::Debug for AnswerBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Content::Whole(bytes) => {
                f.debug_tuple("AnswerBody").field(&bytes.as_ref().map(Bytes::len)).finish()
            }
            Content::Chunks(_) => f.write_str("AnswerBody(stream)"),
        }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut self.get_mut().0 {
            Content::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Content::Chunks(stream) => {
                stream.as_mut().poll_next(context).map(|chunk| chunk.map(|bytes| Ok(Frame::data(bytes))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.0, Content::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Content::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Content::Chunks(_) => SizeHint::default(),
        }
    }
}

pub(crate) type Answer = Response<AnswerBody>;

/// JSON with a status.
pub(crate) fn bytes(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    with_type(status, "application/json", AnswerBody::whole(body))
}

/// JSON with a status.
pub(crate) fn json(status: StatusCode, body: &Value) -> Answer {
    bytes(status, body.to_string())
}

/// A body with its media type.
pub(crate) fn with_type(status: StatusCode, media_type: &'static str, body: AnswerBody) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    answer
}

/// A refusal as its Status.
pub(crate) fn refusal(error: &ApiError) -> Answer {
    let mut answer = json(error.status_code(), &error.status());
    if let Some(seconds) = error.retry_after() {
        answer.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    answer
}

/// Adds `Warning` headers, as `kubectl` shows them; at most 32, each cut to 256 characters.
pub(crate) fn warn(answer: &mut Answer, warnings: &[String]) {
    for warning in warnings.iter().take(32) {
        let text: String = warning
            .chars()
            .take(256)
            .map(|char| if char.is_ascii_graphic() || char == ' ' { char } else { '?' })
            .collect();
        let quoted = text.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            answer.headers_mut().append(header::WARNING, value);
        }
    }
}
