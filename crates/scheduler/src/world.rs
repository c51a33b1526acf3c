//! What the scheduler knows, filed by what a placement asks for.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, Service};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, StorageClass};
use kube::ResourceExt;
use resources::source::Source;
use resources::{VolumeSnapshot, VolumeSnapshotContent};
use resources::{claim, class, fit, volume};
use runtime::Key;
use values::Quantity;

use crate::capacity::Ledger;
use crate::nodes::Nodes;
use crate::placed::PlacedPods;
use crate::terms;

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
    /// A pod went, with its volumes, or takes less of its node, or changed what rules select by.
    Pods,
    /// A pod that rules may select came to a node.
    Arrivals,
    /// A namespace changed the labels that rules select by.
    Namespaces,
    /// A snapshot or a claim changed that other claims are to be filled from.
    Source(Source),
}

/// Where a pod counts before the watch shows it there.
struct Assumed {
    node: String,
    /// It is being bound: nothing is to be decided about it.
    is_bound: bool,
}

/// Everything that placements rest upon.
#[derive(Default)]
pub struct World {
    /// Namespaces, whose labels rules of pods may select by.
    pub namespaces: HashMap<String, Arc<Namespace>>,
    /// Services, whose pods are spread where nothing else is asked.
    pub services: BTreeMap<Key, Arc<Service>>,
    /// Stateful sets, whose pods are spread likewise.
    pub stateful_sets: HashMap<Key, Arc<StatefulSet>>,
    pub(crate) nodes: Nodes,
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
    pub(crate) placed: PlacedPods,
    /// Nodes of pods that have none yet but count there.
    assumed: HashMap<Key, Assumed>,
    /// Volumes given to a claim whose writes the watch doesn't show yet.
    given: HashMap<String, Key>,
    /// Pods by what they wait for, and what they wait for by pod.
    parked: HashMap<Cause, BTreeSet<Key>>,
    parked_by: HashMap<Key, Vec<Cause>>,
}

/// The label by which every namespace carries its name.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// The node that a pod was given.
pub(crate) fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|node| !node.is_empty())
}

/// Whether all of a pod's containers have ended for good.
pub(crate) fn is_over(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// A claim that a pod uses, by name, and whether it is made for the pod.
pub(crate) fn claims_of(pod: &Pod) -> Vec<(Key, bool)> {
    let namespace = pod.namespace().unwrap_or_default();
    let key = |name| Key { namespace: namespace.clone(), name };
    let mut claims: Vec<(Key, bool)> = Vec::new();
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        let Some(name) = claim::of_volume(pod, volume) else { continue };
        let found = (key(name), volume.persistent_volume_claim.is_none());
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
    /// Files a node.
    pub fn put_node(&mut self, node: &Arc<Node>) {
        self.nodes.put(node);
    }

    /// Forgets a node.
    pub fn remove_node(&mut self, name: &str) {
        self.nodes.remove(name);
    }

    /// The services in a namespace.
    pub(crate) fn services_of(&self, namespace: &str) -> impl Iterator<Item = &Arc<Service>> {
        let first = Key { namespace: namespace.to_owned(), name: String::new() };
        let from = self.services.range(first..).map(|(key, service)| (&key.namespace, service));
        from.take_while(move |(found, _)| *found == namespace).map(|(_, service)| service)
    }

    /// The labels of a namespace; of one that isn't known those that every namespace has.
    pub(crate) fn namespace_labels(&self, name: &str) -> Arc<Labels> {
        let known = self.namespaces.get(name).and_then(|namespace| namespace.metadata.labels.clone());
        Arc::new(known.unwrap_or_else(|| [(NAMESPACE_NAME.to_owned(), name.to_owned())].into()))
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

    /// Files a pod. One that is over has left its node.
    pub fn put_pod(&mut self, pod: &Arc<Pod>) {
        let key = Key::of(&**pod);
        match node_of(pod) {
            Some(_) if is_over(pod) => {
                self.assumed.remove(&key);
                self.placed.remove(&key);
            }
            Some(node) => {
                self.assumed.remove(&key);
                self.placed.insert(&key, pod, node);
            }
            None => {
                if let Some(assumed) = self.assumed.get(&key) {
                    self.placed.insert(&key, pod, &assumed.node);
                }
            }
        }
        for (claim, _) in claims_of(pod) {
            self.users.entry(claim).or_default().insert(key.clone());
        }
        self.pods.insert(key, Arc::clone(pod));
    }

    /// Forgets a pod.
    pub fn remove_pod(&mut self, pod: &Pod) {
        let key = Key::of(pod);
        self.assumed.remove(&key);
        self.placed.remove(&key);
        for (claim, _) in claims_of(pod) {
            if let Some(users) = self.users.get_mut(&claim) {
                users.remove(&key);
                if users.is_empty() {
                    self.users.remove(&claim);
                }
            }
        }
        self.pods.remove(&key);
        self.unpark(&key);
    }

    /// The pods that use a claim.
    pub fn users_of(&self, claim: &Key) -> impl Iterator<Item = &Key> {
        self.users.get(claim).into_iter().flatten()
    }

    /// The pods on a node, those included that were bound to it a moment ago.
    pub(crate) fn pods_on(&self, node: &str) -> impl ExactSizeIterator<Item = &Key> {
        self.placed.usage(node).pods.iter()
    }

    /// Whether a pod counts on a node.
    pub(crate) fn is_placed(&self, pod: &Key) -> bool {
        self.placed.get(pod).is_some()
    }

    /// Whether a pod counts on a node that it was not bound to yet.
    pub(crate) fn is_assumed(&self, pod: &Key) -> bool {
        self.assumed.contains_key(pod)
    }

    /// Whether a pod has a node, or is being bound to one.
    pub(crate) fn is_bound(&self, pod: &Key) -> bool {
        self.assumed.get(pod).map_or_else(|| self.is_placed(pod), |assumed| assumed.is_bound)
    }

    /// Counts a pod on the node that was chosen for it, while its volumes are made there, or it is bound.
    pub(crate) fn assume(&mut self, pod: &Key, node: &str, is_bound: bool) {
        let Some(known) = self.pods.get(pod) else { return };
        self.assumed.insert(pod.clone(), Assumed { node: node.to_owned(), is_bound });
        self.placed.insert(pod, known, node);
    }

    /// Undoes [`Self::assume`].
    pub(crate) fn unassume(&mut self, pod: &Key) {
        if self.assumed.remove(pod).is_some() {
            self.placed.remove(pod);
        }
    }

    /// Lets a pod wait until one of the causes occurs.
    pub(crate) fn park(&mut self, pod: &Key, causes: impl IntoIterator<Item = Cause>) {
        self.unpark(pod);
        let causes: Vec<Cause> = causes.into_iter().collect();
        for cause in &causes {
            self.parked.entry(cause.clone()).or_default().insert(pod.clone());
        }
        self.parked_by.insert(pod.clone(), causes);
    }

    /// The pods that waited for a cause. They wait no more.
    pub(crate) fn wake(&mut self, cause: &Cause) -> BTreeSet<Key> {
        let pods = self.parked.remove(cause).unwrap_or_default();
        pods.iter().for_each(|pod| self.unpark(pod));
        pods
    }

    /// Those of the pods that wait for an arrival to which this one matters. They wait no more.
    pub(crate) fn wake_by_arrival(&mut self, pod: &Pod) -> Vec<Key> {
        let Some(waiting) = self.parked.get(&Cause::Arrivals) else { return Vec::new() };
        let namespace = self.namespace_labels(pod.metadata.namespace.as_deref().unwrap_or_default());
        let asks =
            |key: &&Key| self.pods.get(*key).is_some_and(|one| terms::asks_about(one, pod, &namespace));
        let pods: Vec<Key> = waiting.iter().filter(asks).cloned().collect();
        pods.iter().for_each(|pod| self.unpark(pod));
        pods
    }

    /// A pod waits no more.
    fn unpark(&mut self, pod: &Key) {
        for cause in self.parked_by.remove(pod).unwrap_or_default() {
            if let Some(pods) = self.parked.get_mut(&cause) {
                pods.remove(pod);
                if pods.is_empty() {
                    self.parked.remove(&cause);
                }
            }
        }
    }
}

/// Whether a version is older than the one known; own writes are filed before the watch shows them.
fn is_older(new: &kube::core::ObjectMeta, known: &kube::core::ObjectMeta) -> bool {
    let version = |meta: &kube::core::ObjectMeta| meta.resource_version.as_ref()?.parse::<u64>().ok();
    matches!((version(new), version(known)), (Some(new), Some(known)) if new < known)
}
