//! When everything answers: every node is Ready and has our driver registered, with its capacity published.

use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::CSINode;
use resources::orlop::class_of;
use runtime::Context;
use tokio::sync::Notify;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for all of `nodes`.
pub(super) async fn wait(context: &Context, driver: driver::Name, nodes: &[&str]) -> anyhow::Result<()> {
    let changed = Arc::new(Notify::new());
    let informers = &context.informers;
    let (objects, csi_nodes, capacities) = (informers.nodes(), informers.csi_nodes(), informers.capacities());
    objects.subscribe(wake(&changed));
    csi_nodes.subscribe(wake(&changed));
    capacities.subscribe(wake(&changed));
    let missing = || -> Vec<String> {
        let published = capacities.all();
        let published = published
            .iter()
            .filter(|capacity| capacity.storage_class_name == class_of(driver.as_str()))
            .count();
        let unready = nodes.iter().filter(|name| {
            !objects.get("", name).is_some_and(|node| is_ready(&node))
                || !csi_nodes.get("", name).is_some_and(|node| has_driver(&node, driver))
        });
        let unready = unready.map(|name| format!("node {name} is not ready"));
        let unpublished =
            (published < nodes.len()).then(|| "not every node's capacity is published".to_owned());
        unready.chain(unpublished).collect()
    };
    let all = async {
        while !missing().is_empty() {
            changed.notified().await;
        }
    };
    if timeout(PATIENCE, all).await.is_err() {
        bail!("after {} s {}; the log says more", PATIENCE.as_secs(), missing().join(", "));
    }
    Ok(())
}

fn wake<K>(changed: &Arc<Notify>) -> impl Fn(&runtime::Change<K>) + Send + Sync + 'static {
    let changed = changed.clone();
    move |_| changed.notify_one()
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn has_driver(node: &CSINode, driver: driver::Name) -> bool {
    node.spec.drivers.iter().any(|it| it.name == driver.as_str())
}
