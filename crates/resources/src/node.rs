//! Nodes.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition};
use kube::ResourceExt;

use crate::annotations;

/// The taint by which an administrator says that a node is off and will stay so.
pub const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// Whether the node says that it works.
pub fn is_ready(node: &Node) -> bool {
    ready(node).is_some_and(|condition| condition.status == "True")
}

/// Whether the node can be counted upon for work: Kubernetes hears from it (its lease is renewed, or Ready turns
/// Unknown), and nobody has put it out of service. One of which nothing was said yet can be.
pub fn is_live(node: &Node) -> bool {
    !is_out_of_service(node) && ready(node).is_none_or(|condition| condition.status == "True")
}

/// Since when the node has not been ready, where it says so.
pub fn unready_since(node: &Node) -> Option<Timestamp> {
    let condition = ready(node).filter(|condition| condition.status != "True")?;
    condition.last_transition_time.as_ref().map(|time| time.0)
}

fn ready(node: &Node) -> Option<&NodeCondition> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == "Ready")
}

/// Whether the node was put out of service, whatever the taint's effect.
pub fn is_out_of_service(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    taints.iter().any(|taint| taint.key == OUT_OF_SERVICE)
}

/// Whether the attach-detach controller takes care of the node's volumes.
pub fn is_attach_managed(node: &Node) -> bool {
    node.annotations().contains_key(annotations::CONTROLLER_MANAGED_ATTACH)
}

/// The volumes that the node may have mounted, by [`crate::attachment::status_name`].
pub fn volumes_in_use(node: &Node) -> &[String] {
    node.status.as_ref().and_then(|status| status.volumes_in_use.as_deref()).unwrap_or_default()
}

/// The volumes that are attached, as the attach-detach controller reports them to the node.
pub fn volumes_attached(node: &Node) -> impl Iterator<Item = &str> {
    let attached = node.status.as_ref().and_then(|status| status.volumes_attached.as_deref());
    attached.unwrap_or_default().iter().map(|volume| volume.name.as_str())
}
