use k8s_openapi::api::core::v1::{Node, PersistentVolume};
use runtime::{Context, Informer};
use values::Segments;

use crate::Driver;

/// Where a driver on this node can be reached from: the node, and the topology segments that it lies in.
pub(crate) struct Place {
    pub(crate) node: String,
    pub(crate) segments: Segments,
    nodes: Informer<Node>,
}

impl Place {
    pub(crate) fn new(context: &Context, driver: &Driver, node: &str) -> Place {
        let nodes = context.informers.nodes();
        Place { node: node.to_owned(), segments: driver.segments(), nodes }
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
}
