//! A registered driver in the Node and CSINode objects.

use std::collections::BTreeMap;

use csi::v1::NodeGetInfoResponse;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::{CSINode, CSINodeDriver, VolumeNodeResources};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt};
use resources::{annotations, owner};

/// Why a node can't be told about its driver.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The driver said nothing useful.
    #[error("the driver {0} answered NodeGetInfo without a node id; that is an error of the driver")]
    NoId(String),
    /// The driver contradicts a label.
    #[error(
        "the driver says that the node {node} lies in {key}={topology}, but its label says {label}; correct the driver \
         or the label"
    )]
    Label {
        /// The node.
        node: String,
        /// The topology key.
        key: String,
        /// The driver's value.
        topology: String,
        /// The label's value.
        label: String,
    },
    /// The API refused or could not be reached.
    #[error("could not {action}")]
    Api {
        /// What was to be done, and with what.
        action: String,
        /// The refusal.
        source: kube::Error,
    },
}

/// Writes the node's id and topology into the Node, and the driver's entry into the CSINode. Writes nothing that is
/// there already.
pub(super) async fn announce(
    client: &Client,
    node: &str,
    driver: &str,
    facts: &NodeGetInfoResponse,
) -> Result<(), NodeError> {
    if facts.node_id.is_empty() {
        return Err(NodeError::NoId(driver.to_owned()));
    }
    let segments: BTreeMap<_, _> =
        facts.accessible_topology.iter().flat_map(|topology| topology.segments.clone()).collect();
    let nodes: Api<Node> = Api::all(client.clone());
    let mut contradiction = None;
    let written = runtime::edit(&nodes, node, |live: &mut Node| {
        contradiction = contradicting(live, &segments);
        if contradiction.is_none() {
            set_node_id(live, driver, Some(&facts.node_id));
            if !segments.is_empty() {
                live.labels_mut().extend(segments.clone());
            }
        }
    });
    let written = written.await.map_err(api(format!("label the Node {node} for the driver {driver}")))?;
    if let Some((key, topology, label)) = contradiction {
        return Err(NodeError::Label { node: node.to_owned(), key, topology, label });
    }
    let entry = CSINodeDriver {
        name: driver.to_owned(),
        node_id: facts.node_id.clone(),
        topology_keys: Some(segments.into_keys().collect::<Vec<_>>()).filter(|keys| !keys.is_empty()),
        allocatable: i32::try_from(facts.max_volumes_per_node)
            .ok()
            .filter(|count| *count > 0)
            .map(|count| VolumeNodeResources { count: Some(count) }),
    };
    let action = || format!("enter the driver {driver} into the CSINode {node}");
    let csi_nodes: Api<CSINode> = Api::all(client.clone());
    let edited =
        runtime::edit(&csi_nodes, node, |live: &mut CSINode| set_entry(live, driver, Some(entry.clone())));
    match edited.await {
        Err(kube::Error::Api(status)) if status.is_not_found() => {
            let mut new = empty(&written);
            set_entry(&mut new, driver, Some(entry));
            csi_nodes.create(&PostParams::default(), &new).await.map(drop).map_err(api(action()))
        }
        result => result.map(drop).map_err(api(action())),
    }
}

/// Removes the driver's entry and the node's id in it. Topology labels stay, because volumes may depend on them.
pub(super) async fn forget(client: &Client, node: &str, driver: &str) -> Result<(), NodeError> {
    let csi_nodes: Api<CSINode> = Api::all(client.clone());
    let removed = runtime::edit(&csi_nodes, node, |live: &mut CSINode| set_entry(live, driver, None));
    tolerate_absence(removed.await)
        .map_err(api(format!("remove the driver {driver} from the CSINode {node}")))?;
    let nodes: Api<Node> = Api::all(client.clone());
    let removed = runtime::edit(&nodes, node, |live: &mut Node| set_node_id(live, driver, None));
    tolerate_absence(removed.await).map_err(api(format!("remove the driver {driver} from the Node {node}")))
}

/// A CSINode without drivers, which goes with its Node.
fn empty(node: &Node) -> CSINode {
    CSINode {
        metadata: ObjectMeta {
            name: node.metadata.name.clone(),
            owner_references: Some(vec![owner(node)]),
            ..ObjectMeta::default()
        },
        ..CSINode::default()
    }
}

/// The first topology key whose label on the node has another value: key, driver's value, label's value.
fn contradicting(node: &Node, segments: &BTreeMap<String, String>) -> Option<(String, String, String)> {
    segments.iter().find_map(|(key, value)| {
        let label = node.labels().get(key).filter(|label| *label != value)?;
        Some((key.clone(), value.clone(), label.clone()))
    })
}

fn set_node_id(node: &mut Node, driver: &str, id: Option<&str>) {
    let present = node.annotations().get(annotations::CSI_NODE_ID).cloned();
    // A value that is no map of ours to read is started anew, as kubelet does.
    let mut ids: BTreeMap<String, String> =
        present.as_deref().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    match id {
        Some(id) => ids.insert(driver.to_owned(), id.to_owned()),
        None => ids.remove(driver),
    };
    if ids.is_empty() {
        if present.is_some() {
            node.annotations_mut().remove(annotations::CSI_NODE_ID);
        }
    } else if let Ok(text) = serde_json::to_string(&ids) {
        node.annotations_mut().insert(annotations::CSI_NODE_ID.to_owned(), text);
    }
}

fn set_entry(csi_node: &mut CSINode, driver: &str, entry: Option<CSINodeDriver>) {
    let drivers = &mut csi_node.spec.drivers;
    if entry.is_some() && drivers.iter().find(|one| one.name == driver) == entry.as_ref() {
        return;
    }
    drivers.retain(|one| one.name != driver);
    drivers.extend(entry);
}

fn api(action: String) -> impl FnOnce(kube::Error) -> NodeError {
    move |source| NodeError::Api { action, source }
}

fn tolerate_absence<T>(result: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match result {
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        result => result.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_ids_are_kept_by_driver() {
        let mut node = Node::default();
        set_node_id(&mut node, "a", Some("1"));
        set_node_id(&mut node, "b", Some("2"));
        assert_eq!(node.annotations()[annotations::CSI_NODE_ID], r#"{"a":"1","b":"2"}"#);
        set_node_id(&mut node, "a", None);
        assert_eq!(node.annotations()[annotations::CSI_NODE_ID], r#"{"b":"2"}"#);
        set_node_id(&mut node, "b", None);
        assert!(!node.annotations().contains_key(annotations::CSI_NODE_ID));
    }

    #[test]
    fn a_label_with_another_value_contradicts() {
        let mut node = Node::default();
        node.labels_mut().insert("zone".to_owned(), "a".to_owned());
        let segments = |zone: &str| BTreeMap::from([("zone".to_owned(), zone.to_owned())]);
        assert_eq!(contradicting(&node, &segments("a")), None);
        assert_eq!(contradicting(&node, &BTreeMap::from([("rack".to_owned(), "1".to_owned())])), None);
        assert_eq!(
            contradicting(&node, &segments("b")),
            Some(("zone".to_owned(), "b".to_owned(), "a".to_owned()))
        );
    }
}
