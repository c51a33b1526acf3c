use k8s_openapi::api::core::v1::{Node, PersistentVolume};
use k8s_openapi::api::storage::v1::CSINode;
use runtime::{Context, Informer};
use values::Segments;

use crate::Driver;
use crate::provision::owner;

/// Where a driver on this node can be reached from: the node, and the topology segments that it lies in.
pub(crate) struct Place {
    pub(crate) node: String,
    pub(crate) segments: Segments,
    driver: String,
    nodes: Informer<Node>,
    csi_nodes: Informer<CSINode>,
}

impl Place {
    pub(crate) fn new(context: &Context, driver: &Driver, node: &str) -> Place {
        Place {
            node: node.to_owned(),
            segments: driver.segments(),
            driver: driver.name().to_owned(),
            nodes: context.informers.nodes(),
            csi_nodes: context.informers.csi_nodes(),
        }
    }

    /// Whether a volume can be used, and so be changed and deleted, here. The driver's own word for where it is counts
    /// beside the node's labels, which go with the Node object.
    pub(crate) fn has(&self, volume: &PersistentVolume) -> bool {
        let node = self.nodes.get("", &self.node);
        let mut labels = node.and_then(|node| node.metadata.labels.clone()).unwrap_or_default();
        labels.extend(self.segments.clone());
        resources::volume::admits_node(volume, &self.node, &labels)
    }

    /// Whether a volume can be used on another node.
    pub(crate) fn admits(&self, volume: &PersistentVolume, node: &str) -> bool {
        let object = self.nodes.get("", node);
        let labels = object.and_then(|node| node.metadata.labels.clone()).unwrap_or_default();
        resources::volume::admits_node(volume, node, &labels)
    }

    /// Whether this node takes care of a volume that is here: of all nodes that have the driver and can use the volume,
    /// everybody draws the same one.
    pub(crate) fn is_drawn(&self, volume: &PersistentVolume) -> bool {
        let has_driver = |node: &CSINode| node.spec.drivers.iter().any(|driver| driver.name == self.driver);
        let here = self.node.as_str();
        let nodes = self.csi_nodes.all();
        let others = nodes.iter().filter(|node| has_driver(node)).filter_map(|node| {
            let name = node.metadata.name.as_deref()?;
            (name != here && self.admits(volume, name)).then_some(name)
        });
        let uid = volume.metadata.uid.as_deref().unwrap_or_default();
        owner::draw(uid, others.chain([here])) == Some(here)
    }
}
