//! Where a driver can be reached from, and which of its volumes this node takes care of.

use std::collections::HashSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::CSINode;
use kube::ResourceExt;
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

    /// Whether this node takes care of what has the UID: of this one and the others with the driver that can reach it,
    /// everybody draws the same one.
    pub(crate) fn is_drawn(&self, uid: Option<&str>, can_reach: impl Fn(&str) -> bool) -> bool {
        let others = self.others();
        let able =
            others.iter().map(String::as_str).filter(|node| can_reach(node)).chain([self.node.as_str()]);
        self.draw(uid, able) == Some(&self.node)
    }

    /// The node that takes care of what has the UID: one that lives, if any of them does.
    pub(crate) fn draw<'a>(
        &self,
        uid: Option<&str>,
        nodes: impl Iterator<Item = &'a str> + Clone,
    ) -> Option<&'a str> {
        let uid = uid.unwrap_or_default();
        let live = nodes.clone().filter(|node| self.is_live(node));
        owner::draw(uid, live).or_else(|| owner::draw(uid, nodes))
    }

    /// The other nodes that the driver is on.
    pub(crate) fn others(&self) -> Vec<String> {
        let has_driver = |node: &CSINode| node.spec.drivers.iter().any(|driver| driver.name == self.driver);
        let nodes = self.csi_nodes.all().into_iter().filter(|node| has_driver(node));
        nodes.map(|node| node.name_any()).filter(|name| *name != self.node).collect()
    }

    /// What is offered in topology segments that only nodes lie in which don't live.
    pub(crate) fn is_dead(&self) -> impl Fn(&Segments) -> bool {
        let (live, dead): (Vec<_>, Vec<_>) =
            self.others().into_iter().chain([self.node.clone()]).partition(|node| self.is_live(node));
        // Mostly all live: nothing is looked at then.
        let labels = |names: Vec<String>| -> Vec<_> {
            names
                .iter()
                .map(|name| self.nodes.get("", name).and_then(|node| node.metadata.labels.clone()))
                .collect()
        };
        let (live, dead) = if dead.is_empty() { Default::default() } else { (labels(live), labels(dead)) };
        move |segments| {
            let lies = |labels: &Option<Segments>| {
                let labels = labels.as_ref();
                segments.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
            };
            dead.iter().any(lies) && !live.iter().any(lies)
        }
    }

    fn is_live(&self, name: &str) -> bool {
        self.nodes.get("", name).is_some_and(|node| resources::node::is_live(&node))
    }

    /// Returns when all that a draw goes by has been listed.
    pub(crate) async fn synced(&self) {
        tokio::join!(self.nodes.synced(), self.csi_nodes.synced());
    }

    /// Has `act` called when a draw may end otherwise: the driver comes to a node or goes, a node dies or returns, or is
    /// found elsewhere.
    pub(crate) fn on_change(&self, act: impl Fn() + Clone + Send + Sync + 'static) {
        let (driver, again) = (self.driver.clone(), act.clone());
        self.csi_nodes.subscribe(move |change| {
            let entry = |node: &CSINode| node.spec.drivers.iter().find(|one| one.name == driver).cloned();
            if differs(change, entry) {
                again();
            }
        });
        self.nodes.subscribe(move |change| {
            if differs(change, |node| Some((resources::node::is_live(node), node.metadata.labels.clone()))) {
                act();
            }
        });
    }
}

/// Whether what matters of an object has changed.
fn differs<K, T: PartialEq>(change: &Change<K>, matters: impl Fn(&K) -> Option<T>) -> bool {
    match change {
        Change::Applied { old, new } => old.as_deref().and_then(&matters) != matters(new),
        Change::Deleted(last) => matters(last).is_some(),
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
        let is_ours = place.is_drawn(volume.metadata.uid.as_deref(), |node| place.admits(volume, node));
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
        tokio::join!(self.claims.synced(), self.volumes.synced(), self.place.synced());
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
        self.place.on_change(move || this.lost.queue(&queue));
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
