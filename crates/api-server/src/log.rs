//! `pods/log`: what containers wrote, from wherever they run.

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, StreamExt};
use http::StatusCode;
use serde_json::Value;

use crate::answer::{self, Answer, AnswerBody};
use crate::error::ApiError;
pub use crate::request::LogOptions;
use crate::request::Query;
use crate::server::{Shared, Target};
use crate::{object, read};

/// Which log is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRequest {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's uid.
    pub uid: String,
    /// The node that the pod is bound to.
    pub node: String,
    /// The container.
    pub container: String,
    /// What of the log.
    pub options: LogOptions,
}

/// Why a log can't be shown.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The container has not been started.
    #[error("the container is waiting to start")]
    NotStarted,
    /// There is no log; the message says why.
    #[error("{0}")]
    NotThere(String),
    /// The node can't be asked, or failed to answer.
    #[error("{0}")]
    Failed(String),
}

/// Where logs come from: the node agents. A stream of bytes that ends where the log ends, unless it is followed.
pub trait Logs: Send + Sync + 'static {
    /// Opens one container's log.
    fn open(&self, request: LogRequest) -> BoxFuture<'static, Result<BoxStream<'static, Bytes>, LogError>>;
}

/// Answers `GET pods/NAME/log`.
pub(crate) async fn get(shared: &Shared, target: &Target, query: &Query) -> Result<Answer, ApiError> {
    let pod = object::decode(&read::fetch(shared, target)?.value)?;
    let container = container(&pod, query.log.container.as_deref())?;
    let node = pod.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or("");
    if node.is_empty() {
        return Err(ApiError::BadRequest(format!("pod {} does not have a host assigned", target.name)));
    }
    let Some(logs) = shared.logs.get() else {
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
    let stream = logs.open(request).await.map_err(|error| match error {
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

/// What to say while a container is waiting to start, as kubelet says it: with the reason from its status.
fn waiting(pod: &Value, container: &str) -> String {
    let all = ["initContainerStatuses", "containerStatuses"];
    let reason = all
        .iter()
        .flat_map(|field| pod["status"][field].as_array().into_iter().flatten())
        .find(|status| status["name"] == container)
        .and_then(|status| status["state"]["waiting"]["reason"].as_str());
    let name = object::name(pod);
    match reason {
        Some(reason) => format!("container \"{container}\" in pod \"{name}\" is waiting to start: {reason}"),
        None => format!("container \"{container}\" in pod \"{name}\" is waiting to start - no logs yet"),
    }
}

/// The container whose log is meant: the named one, or the only one.
fn container(pod: &Value, asked: Option<&str>) -> Result<String, ApiError> {
    let names = |field: &str| -> Vec<&str> {
        let containers = pod["spec"][field].as_array();
        containers.into_iter().flatten().filter_map(|container| container["name"].as_str()).collect()
    };
    let (main, init) = (names("containers"), names("initContainers"));
    let name = object::name(pod);
    match asked {
        Some(asked) if main.contains(&asked) || init.contains(&asked) => Ok(asked.to_owned()),
        Some(asked) => Err(ApiError::BadRequest(format!("container {asked} is not valid for pod {name}"))),
        None if main.len() == 1 => Ok(main[0].to_owned()),
        None => {
            let mut choose = format!(
                "a container name must be specified for pod {name}, choose one of: [{}]",
                main.join(" ")
            );
            if !init.is_empty() {
                choose.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
            }
            Err(ApiError::BadRequest(choose))
        }
    }
}
