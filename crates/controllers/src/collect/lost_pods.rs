//! Pods of nodes that are no more: nobody is left who could end them.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, Preconditions};
use kube::{Api, ResourceExt};
use runtime::{Change, Context, Next, Queue};

/// How long a node must be missing before its pods are given up: it may be registering.
const QUARANTINE: Duration = Duration::from_secs(40);

/// When to look again after somebody else's write came first; its news usually arrive sooner.
const AFTER_CONFLICT: Duration = Duration::from_millis(100);

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|node| !node.is_empty())
}

/// Deletes pods of vanished nodes until the context is shut down.
pub async fn run(context: Context) {
    let queue = Queue::<String>::new("lost-pods", &context.metrics);
    let (nodes, pods) = (context.informers.nodes(), context.informers.pods());
    nodes.subscribe({
        let queue = queue.clone();
        move |change| {
            if let Change::Deleted(node) = change {
                queue.add_after(node.name_any(), QUARANTINE);
            }
        }
    });
    if context
        .shutdown
        .run_until_cancelled(async { tokio::join!(nodes.synced(), pods.synced()) })
        .await
        .is_none()
    {
        return;
    }
    pods.subscribe({
        let (queue, nodes) = (queue.clone(), nodes.clone());
        move |change| {
            if let Change::Applied { old: None, new } = change
                && let Some(node) = node_of(new).filter(|node| nodes.get("", node).is_none())
            {
                queue.add_after(node.to_owned(), QUARANTINE);
            }
        }
    });
    runtime::work(queue, 1, context.shutdown.clone(), |node| {
        let lost: Vec<_> = pods.all().into_iter().filter(|pod| node_of(pod) == Some(node.as_str())).collect();
        let is_back = nodes.get("", &node).is_some();
        let client = context.client.clone();
        async move {
            if lost.is_empty() || is_back || Api::<Node>::all(client.clone()).get_opt(&node).await?.is_some()
            {
                return Ok::<_, kube::Error>(Next::Done);
            }
            let mut next = Next::Done;
            for pod in lost {
                tracing::info!(
                    pod = pod.name_any(),
                    namespace = pod.namespace(),
                    node,
                    "deleting a pod whose node is gone"
                );
                let api = Api::<Pod>::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
                let preconditions = Preconditions { uid: pod.uid(), resource_version: None };
                let now = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() }
                    .grace_period(0);
                match api.delete(&pod.name_any(), &now).await {
                    Err(kube::Error::Api(status)) if status.is_not_found() => {}
                    // Another pod of that name, or the same one changed: its news tell which.
                    Err(kube::Error::Api(status)) if status.is_conflict() => {
                        next = Next::After(AFTER_CONFLICT)
                    }
                    result => drop(result?),
                }
            }
            Ok(next)
        }
    })
    .await;
}
