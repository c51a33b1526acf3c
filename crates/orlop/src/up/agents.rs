//! What the API server asks of nodes: container logs, from the files of the pod's node, and the pages of its agent.

use std::collections::BTreeMap;
use std::time::Duration;

use api_server::{LogError, LogOptions, LogRequest, Page, PageError};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use jiff::Timestamp;
use node_agent::logs::{self, LogsError, Query};
use node_agent::{Layout, Stats};

use runtime::Metrics;

use super::node::Node;

/// The agents of this process's nodes.
pub(super) struct Agents {
    /// By the node's name.
    nodes: BTreeMap<String, (Layout, Stats)>,
    metrics: Metrics,
}

impl Agents {
    pub(super) fn of(nodes: &[Node], metrics: Metrics) -> Agents {
        let of = |node: &Node| (node.name.clone(), (Layout::new(&node.root), node.stats.clone()));
        Agents { nodes: nodes.iter().map(of).collect(), metrics }
    }
}

fn elsewhere(node: &str) -> String {
    format!("node {node} is not run by this Orlop")
}

impl api_server::Nodes for Agents {
    fn log(&self, request: LogRequest) -> BoxFuture<'static, Result<BoxStream<'static, Bytes>, LogError>> {
        let layout = self.nodes.get(&request.node).map(|(layout, _)| layout.clone());
        async move {
            let layout = layout.ok_or_else(|| LogError::NotThere(elsewhere(&request.node)))?;
            let LogRequest { namespace, pod, uid, container, options, .. } = &request;
            let lines =
                logs::open(&layout, namespace, pod, uid, container, query(options, clock::now())).await;
            Ok(lines.map_err(refusal)?.map(Bytes::from).boxed())
        }
        .boxed()
    }

    fn page(&self, node: &str, path: &str) -> BoxFuture<'static, Result<Page, PageError>> {
        let stats = self.nodes.get(node).map(|(_, stats)| stats.clone());
        let (node, path, metrics) = (node.to_owned(), path.to_owned(), self.metrics.clone());
        async move {
            let stats = stats.ok_or_else(|| PageError::Failed(elsewhere(&node)))?;
            match path.as_str() {
                "stats/summary" => {
                    let summary = stats.summary().await;
                    let summary = summary.map_err(|error| PageError::Failed(error.to_string()))?;
                    Ok(Page { media_type: "application/json", body: summary.to_string().into() })
                }
                "metrics" => {
                    let page = tokio::task::spawn_blocking(move || metrics.encode()).await;
                    let page = page.map_err(|panic| PageError::Failed(panic.to_string()))?;
                    Ok(Page { media_type: Metrics::MEDIA_TYPE, body: page.into() })
                }
                "healthz" if stats.is_running() => Ok(Page { media_type: "text/plain", body: "ok".into() }),
                "healthz" => Err(PageError::Failed("the node's agent is not running".to_owned())),
                other => Err(PageError::NotThere(format!(
                    "a node serves stats/summary, metrics and healthz, not {other:?}"
                ))),
            }
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
