//! What the server asks of nodes: the logs of containers, and pages about the node itself.

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

/// A page that a node agent serves, as kubelet does on its own port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Its media type.
    pub media_type: &'static str,
    /// What it says.
    pub body: Bytes,
}

/// Why a page can't be shown.
#[derive(Debug, thiserror::Error)]
pub enum PageError {
    /// The node serves no such page; the message says which there are.
    #[error("{0}")]
    NotThere(String),
    /// The node can't be asked, or failed to answer.
    #[error("{0}")]
    Failed(String),
}

/// The node agents, as far as the server can ask them.
pub trait Nodes: Send + Sync + 'static {
    /// Opens one container's log: a stream of bytes that ends where the log ends, unless it is followed.
    fn log(&self, request: LogRequest) -> BoxFuture<'static, Result<BoxStream<'static, Bytes>, LogError>>;
    /// A page of a node, by its path without a slash before it, such as `stats/summary`.
    fn page(&self, node: &str, path: &str) -> BoxFuture<'static, Result<Page, PageError>>;
}
