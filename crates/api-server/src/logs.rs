//! Where the logs of containers come from.

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;

use crate::request::LogOptions;

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
