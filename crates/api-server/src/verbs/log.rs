//! `pods/log`: what containers wrote, from wherever they run.

use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt};
use http::StatusCode;
use serde_json::Value;

use super::read;
use crate::answer::{self, Answer, AnswerBody};
use crate::context::{Context, Target};
use crate::error::ApiError;
use crate::kinds::pod::log::{container, waiting};
use crate::nodes::{LogError, LogRequest};
use crate::object;
use crate::request::Query;

/// Answers `GET pods/NAME/log`.
pub(crate) async fn get(context: &Context, target: &Target, query: &Query) -> Result<Answer, ApiError> {
    let pod = object::decode(&read::fetch(context, target)?.value)?;
    let container = container(&pod, query.log.container.as_deref()).map_err(ApiError::BadRequest)?;
    let node = pod.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or("");
    if node.is_empty() {
        return Err(ApiError::BadRequest(format!("pod {} does not have a host assigned", target.name)));
    }
    let Some(nodes) = context.nodes.get() else {
        return Err(ApiError::Unavailable("no node agent of this server offers logs".into()));
    };
    let waiting = waiting(&pod, &container);
    let request = LogRequest {
        namespace: target.namespace.clone(),
        pod: target.name.clone(),
        uid: object::meta_str(&pod, "uid").to_owned(),
        node: node.to_owned(),
        container,
        options: query.log.clone(),
    };
    let stream = nodes.log(request).await.map_err(|error| match error {
        LogError::NotStarted => ApiError::BadRequest(waiting),
        LogError::NotThere(why) => ApiError::BadRequest(why),
        LogError::Failed(why) => ApiError::Internal(why),
    })?;
    let body = match query.log.limit_bytes {
        Some(limit) => AnswerBody::chunks(limited(stream, limit)),
        None => AnswerBody::chunks(stream),
    };
    Ok(answer::with_type(StatusCode::OK, "text/plain", body))
}

fn limited(stream: BoxStream<'static, Bytes>, limit: u64) -> impl futures::Stream<Item = Bytes> + Send {
    stream.scan(limit, |left, chunk| {
        let take = chunk.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
        *left -= take as u64;
        futures::future::ready((take > 0).then(|| chunk.slice(..take)))
    })
}
