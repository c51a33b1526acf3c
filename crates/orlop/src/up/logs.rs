//! Where the API server gets container logs from: the files of the node that the pod is bound to.

use std::collections::BTreeMap;
use std::time::Duration;

use api_server::{LogError, LogOptions, LogRequest};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use jiff::Timestamp;
use node_agent::Layout;
use node_agent::logs::{self, LogsError, Query};

use super::node::Node;

/// The layouts of this process's nodes, by name.
pub(super) struct Logs(BTreeMap<String, Layout>);

impl Logs {
    pub(super) fn of(nodes: &[Node]) -> Logs {
        Logs(nodes.iter().map(|node| (node.name.clone(), Layout::new(&node.root))).collect())
    }
}

impl api_server::Logs for Logs {
    fn open(&self, request: LogRequest) -> BoxFuture<'static, Result<BoxStream<'static, Bytes>, LogError>> {
        let layout = self.0.get(&request.node).cloned();
        async move {
            let missing = || LogError::NotThere(format!("node {} is not run by this Orlop", request.node));
            let layout = layout.ok_or_else(missing)?;
            let LogRequest { namespace, pod, uid, container, options, .. } = &request;
            let lines =
                logs::open(&layout, namespace, pod, uid, container, query(options, clock::now())).await;
            Ok(lines.map_err(refusal)?.map(Bytes::from).boxed())
        }
        .boxed()
    }
}

fn query(options: &LogOptions, now: Timestamp) -> Query {
    let since = options.since_seconds.and_then(|seconds| now.checked_sub(Duration::from_secs(seconds)).ok());
    Query {
        follow: options.follow,
        previous: options.previous,
        since: options.since_time.or(since),
        timestamps: options.timestamps,
        tail: options.tail_lines.and_then(|lines| usize::try_from(lines).ok()),
        limit: options.limit_bytes,
    }
}

fn refusal(error: LogsError) -> LogError {
    match error {
        LogsError::NotStarted { .. } => LogError::NotStarted,
        LogsError::NoPrevious { .. } => LogError::NotThere(error.to_string()),
        LogsError::Read { .. } => LogError::Failed(error.to_string()),
    }
}
