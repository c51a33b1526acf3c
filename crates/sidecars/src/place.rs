//! Where a driver can be reached from, and which of its volumes this node takes care of.

use std::collections::HashSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::CSINode;
use parking_lot::Mutex;
use resources::claim;
use runtime::{Change, Context, Informer, Key, Queue};
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
    fn is_drawn(&self, volume: &PersistentVolume) -> bool {
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

/// What another node takes care of: drawn for again when nodes come or go.
#[derive(Default)]
pub(crate) struct Lost(Mutex<HashSet<Key>>);

impl Lost {
    /// Whether this node takes care of a volume that is here, or else another one does and `key` is lost.
    pub(crate) fn is_ours(&self, place: &Place, key: &Key, volume: &PersistentVolume) -> bool {
        // Before the draw: a change of nodes during it must bring the key back.
        self.0.lock().insert(key.clone());
        let is_ours = place.is_drawn(volume);
        if is_ours {
            self.0.lock().remove(key);
        }
        is_ours
    }

    /// There is nothing any more to be taken care of.
    pub(crate) fn forget(&self, key: &Key) {
        self.0.lock().remove(key);
    }

    /// Queues all that is lost, to be drawn for again.
    pub(crate) fn queue(&self, queue: &Queue<Key>) {
        self.0.lock().drain().for_each(|key| queue.add(key));
    }
}

/// This node's share of a driver's bound volumes: of the nodes that can use a volume, one works for its claim.
pub(crate) struct Share {
    place: Place,
    pub(crate) claims: Informer<PersistentVolumeClaim>,
    pub(crate) volumes: Informer<PersistentVolume>,
    /// Claims.
    lost: Lost,
}

impl Share {
    pub(crate) fn new(context: &Context, driver: &Driver, node: &str) -> Share {
        Share {
            place: Place::new(context, driver, node),
            claims: context.informers.claims(),
            volumes: context.informers.volumes(),
            lost: Lost::default(),
        }
    }

    /// Returns when all that the draw goes by has been listed.
    pub(crate) async fn synced(&self) {
        let (nodes, csi_nodes) = (&self.place.nodes, &self.place.csi_nodes);
        tokio::join!(self.claims.synced(), self.volumes.synced(), nodes.synced(), csi_nodes.synced());
    }

    /// Has `look` called for the claim of each volume that comes: a volume may be seen after its claim.
    pub(crate) fn on_volume(&self, look: impl Fn(&PersistentVolumeClaim) + Send + Sync + 'static) {
        let claims = self.claims.clone();
        self.volumes.subscribe(move |change| {
            let Change::Applied { old: None, new: volume } = change else { return };
            let claim = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
            let key = claim.and_then(|one| one.namespace.as_deref().zip(one.name.as_deref()));
            if let Some(claim) = key.and_then(|(namespace, name)| claims.get(namespace, name)) {
                look(&claim);
            }
        });
    }

    /// Has the claims of other nodes queued again when nodes come or go.
    pub(crate) fn draw_again(self: &Arc<Self>, queue: &Queue<Key>) {
        let this = self.clone();
        self.claims.subscribe(move |change| {
            if let Change::Deleted(claim) = change {
                this.lost.forget(&Key::of(claim.as_ref()));
            }
        });
        let (this, queue) = (self.clone(), queue.clone());
        self.place.csi_nodes.subscribe(move |_| this.lost.queue(&queue));
    }

    /// The volume that the claim is bound to, if it is this driver's and can be used here.
    pub(crate) fn volume_of(&self, claim: &PersistentVolumeClaim) -> Option<Arc<PersistentVolume>> {
        let volume = self.volumes.get("", claim::volume_name(claim))?;
        let driver = volume.spec.as_ref()?.csi.as_ref().map(|csi| csi.driver.as_str());
        (driver == Some(&self.place.driver) && self.place.has(&volume)).then_some(volume)
    }

    /// Whether this node takes care of a volume that is here.
    pub(crate) fn is_ours(&self, key: &Key, volume: &PersistentVolume) -> bool {
        self.lost.is_ours(&self.place, key, volume)
    }
}
