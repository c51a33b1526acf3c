//! What the scheduler knows, filed by what a placement asks for.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Bound;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, StorageClass};
use kube::ResourceExt;
use resources::source::Source;
use resources::{VolumeSnapshot, VolumeSnapshotContent};
use resources::{claim, class, fit, volume};
use runtime::Key;
use values::Quantity;

use crate::capacity::Ledger;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// A change that may give a pod its chance.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// A node came, or changed what decides over pods.
    Nodes,
    /// A class came or changed.
    Class(String),
    /// Free volumes of a class, or space to make some, came or changed.
    Storage(String),
    /// A pod went, and its volumes with it.
    Pods,
    /// A snapshot or a claim changed that other claims are to be filled from.
    Source(Source),
}

/// Everything that placements rest upon.
#[derive(Default)]
pub struct World {
    /// The nodes.
    pub nodes: BTreeMap<String, Arc<Node>>,
    /// The node that was chosen last.
    pub chosen_last: String,
    /// Which drivers serve a node, and how many volumes each takes.
    pub csi_nodes: HashMap<String, Arc<CSINode>>,
    /// CSI drivers.
    pub drivers: HashMap<String, Arc<CSIDriver>>,
    /// Storage classes.
    pub classes: HashMap<String, Arc<StorageClass>>,
    /// Snapshots.
    pub snapshots: HashMap<Key, Arc<VolumeSnapshot>>,
    /// What stands for the drivers' part of them.
    pub contents: HashMap<String, Arc<VolumeSnapshotContent>>,
    /// Free storage and what is promised of it.
    pub ledger: Ledger,
    volumes: HashMap<String, Arc<PersistentVolume>>,
    free: HashMap<String, BTreeSet<(Option<Quantity>, String)>>,
    referring: HashMap<Key, BTreeSet<String>>,
    claims: HashMap<Key, Arc<PersistentVolumeClaim>>,
    pods: HashMap<Key, Arc<Pod>>,
    users: HashMap<Key, BTreeSet<Key>>,
    on_node: HashMap<String, HashSet<Key>>,
    /// Nodes of pods that were bound but which the watch doesn't show yet.
    assumed: HashMap<Key, String>,
    /// Volumes given to a claim whose writes the watch doesn't show yet.
    given: HashMap<String, Key>,
    parked: HashMap<Cause, BTreeSet<Key>>,
}

/// The node that a pod was given.
pub(crate) fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|node| !node.is_empty())
}

/// A claim that a pod uses, by name, and whether it is made for the pod.
pub(crate) fn claims_of(pod: &Pod) -> Vec<(Key, bool)> {
    let namespace = pod.namespace().unwrap_or_default();
    let key = |name| Key { namespace: namespace.clone(), name };
    let mut claims: Vec<(Key, bool)> = Vec::new();
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        let found = match (&volume.persistent_volume_claim, &volume.ephemeral) {
            (Some(source), _) => (key(source.claim_name.clone()), false),
            (None, Some(_)) => (key(format!("{}-{}", pod.name_any(), volume.name)), true),
            _ => continue,
        };
        if !claims.contains(&found) {
            claims.push(found);
        }
    }
    claims
}

fn is_free(volume: &PersistentVolume) -> bool {
    volume.spec.as_ref().is_some_and(|spec| spec.claim_ref.is_none()) && volume::phase(volume) == "Available"
}

/// The claim that a volume refers to.
pub(crate) fn referred(volume: &PersistentVolume) -> Option<Key> {
    let reference = volume.spec.as_ref()?.claim_ref.as_ref()?;
    Some(Key { namespace: reference.namespace.clone()?, name: reference.name.clone()? })
}

impl World {
    /// All nodes, beginning after the one that was chosen last.
    pub fn nodes_in_turn(&self) -> impl Iterator<Item = (&String, &Arc<Node>)> {
        let last = self.chosen_last.as_str();
        let after = self.nodes.range::<str, _>((Bound::Excluded(last), Bound::Unbounded));
        after.chain(self.nodes.range::<str, _>((Bound::Unbounded, Bound::Included(last))))
    }

    /// The volume of that name.
    pub fn volume(&self, name: &str) -> Option<&Arc<PersistentVolume>> {
        self.volumes.get(name)
    }

    /// Files a volume, unless a newer version is known.
    pub fn put_volume(&mut self, volume: &Arc<PersistentVolume>) {
        let name = volume.name_any();
        if self.volumes.get(&name).is_some_and(|known| is_older(&volume.metadata, &known.metadata)) {
            return;
        }
        self.remove_volume(&name);
        if let Some(claim) = referred(volume) {
            self.given.remove(&name);
            self.ledger.made(&claim);
            self.referring.entry(claim).or_default().insert(name.clone());
        } else if is_free(volume) {
            let entry = (fit::capacity(volume), name.clone());
            self.free.entry(volume::class(volume).to_owned()).or_default().insert(entry);
        }
        self.volumes.insert(name, Arc::clone(volume));
    }

    /// Forgets a volume.
    pub fn remove_volume(&mut self, name: &str) {
        let Some(volume) = self.volumes.remove(name) else { return };
        if let Some(claim) = referred(&volume) {
            if let Some(names) = self.referring.get_mut(&claim) {
                names.remove(name);
                if names.is_empty() {
                    self.referring.remove(&claim);
                }
            }
        } else if let Some(free) = self.free.get_mut(volume::class(&volume)) {
            free.remove(&(fit::capacity(&volume), name.to_owned()));
        }
    }

    /// Volumes that refer to a claim.
    pub fn referring_to(&self, claim: &Key) -> impl Iterator<Item = &Arc<PersistentVolume>> {
        self.referring.get(claim).into_iter().flatten().filter_map(|name| self.volumes.get(name))
    }

    /// Free volumes of a class of at least a size, smallest first.
    pub fn free(&self, class: &str, size: Option<Quantity>) -> impl Iterator<Item = &Arc<PersistentVolume>> {
        let free = self
            .free
            .get(class)
            .into_iter()
            .flat_map(move |free| free.range((size.clone(), String::new())..));
        free.filter_map(|(_, name)| self.volumes.get(name))
    }

    /// Whether a volume was given to a claim other than this one.
    pub fn is_given(&self, volume: &str, claim: &Key) -> bool {
        self.given.get(volume).is_some_and(|owner| owner != claim)
    }

    /// Gives a volume to a claim until the watch shows it, or [`Self::take_back`].
    pub fn give(&mut self, volume: &str, claim: &Key) {
        self.given.insert(volume.to_owned(), claim.clone());
    }

    /// A volume could not be given after all.
    pub fn take_back(&mut self, volume: &str) {
        self.given.remove(volume);
    }

    /// The claim of that name.
    pub fn claim(&self, key: &Key) -> Option<&Arc<PersistentVolumeClaim>> {
        self.claims.get(key)
    }

    /// Files a claim, unless a newer version is known. False: it was.
    pub fn put_claim(&mut self, claim: &Arc<PersistentVolumeClaim>) -> bool {
        let key = Key::of(&**claim);
        if self.claims.get(&key).is_some_and(|known| is_older(&claim.metadata, &known.metadata)) {
            return false;
        }
        self.claims.insert(key, Arc::clone(claim));
        true
    }

    /// Forgets a claim and what it was promised.
    pub fn remove_claim(&mut self, key: &Key) {
        self.claims.remove(key);
        self.ledger.settle(key);
        self.given.retain(|_, owner| owner != key);
    }

    /// The classes whose volumes a driver makes.
    pub fn classes_of(&self, driver: &str) -> Vec<String> {
        self.classes
            .values()
            .filter(|class| class.provisioner == driver)
            .map(|class| class.name_any())
            .collect()
    }

    /// Whether a claim waits for a node before it gets a volume: its class says so.
    pub fn is_delayed(&self, claim: &PersistentVolumeClaim) -> bool {
        self.classes.get(claim::class(claim)).is_some_and(|class| class::waits_for_consumer(class))
    }

    /// The pod of that name.
    pub fn pod(&self, key: &Key) -> Option<&Arc<Pod>> {
        self.pods.get(key)
    }

    /// Files a pod.
    pub fn put_pod(&mut self, pod: &Arc<Pod>) {
        let key = Key::of(&**pod);
        if let Some(node) = node_of(pod) {
            self.unassume(&key);
            self.on_node.entry(node.to_owned()).or_default().insert(key.clone());
        }
        for (claim, _) in claims_of(pod) {
            self.users.entry(claim).or_default().insert(key.clone());
        }
        self.pods.insert(key, Arc::clone(pod));
    }

    /// Forgets a pod.
    pub fn remove_pod(&mut self, pod: &Pod) {
        let key = Key::of(pod);
        self.unassume(&key);
        if let Some(pods) = node_of(pod).and_then(|node| self.on_node.get_mut(node)) {
            pods.remove(&key);
        }
        for (claim, _) in claims_of(pod) {
            if let Some(users) = self.users.get_mut(&claim) {
                users.remove(&key);
                if users.is_empty() {
                    self.users.remove(&claim);
                }
            }
        }
        self.pods.remove(&key);
    }

    /// The pods that use a claim.
    pub fn users_of(&self, claim: &Key) -> impl Iterator<Item = &Key> {
        self.users.get(claim).into_iter().flatten()
    }

    /// The pods on a node, those included that were bound to it a moment ago.
    pub fn pods_on(&self, node: &str) -> impl ExactSizeIterator<Item = &Key> {
        static NONE: std::sync::LazyLock<HashSet<Key>> = std::sync::LazyLock::new(HashSet::new);
        self.on_node.get(node).unwrap_or(&NONE).iter()
    }

    /// Whether a pod has a node, or was bound to one a moment ago.
    pub fn is_placed(&self, pod: &Key) -> bool {
        self.assumed.contains_key(pod) || self.pods.get(pod).is_some_and(|pod| node_of(pod).is_some())
    }

    /// Counts a pod on a node before the watch shows it there.
    pub fn assume(&mut self, pod: &Key, node: &str) {
        self.assumed.insert(pod.clone(), node.to_owned());
        self.on_node.entry(node.to_owned()).or_default().insert(pod.clone());
    }

    /// Undoes [`Self::assume`].
    pub fn unassume(&mut self, pod: &Key) {
        if let Some(pods) = self.assumed.remove(pod).and_then(|node| self.on_node.get_mut(&node)) {
            pods.remove(pod);
        }
    }

    /// Lets a pod wait until one of the causes occurs.
    pub fn park(&mut self, pod: &Key, causes: impl IntoIterator<Item = Cause>) {
        for cause in causes {
            self.parked.entry(cause).or_default().insert(pod.clone());
        }
    }

    /// The pods that waited for a cause.
    pub fn wake(&mut self, cause: &Cause) -> BTreeSet<Key> {
        self.parked.remove(cause).unwrap_or_default()
    }
}

/// Whether a version is older than the one known; own writes are filed before the watch shows them.
fn is_older(new: &kube::core::ObjectMeta, known: &kube::core::ObjectMeta) -> bool {
    let version = |meta: &kube::core::ObjectMeta| meta.resource_version.as_ref()?.parse::<u64>().ok();
    matches!((version(new), version(known)), (Some(new), Some(known)) if new < known)
}
