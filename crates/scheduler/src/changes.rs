//! What follows from changes of the world.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, Service};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass};
use kube::ResourceExt;
use resources::pod::priority;
use resources::requests::Of;
use resources::source::{Source, SourceKind};
use resources::{VolumeSnapshot, VolumeSnapshotContent, claim, volume};
use runtime::{Change, Key};
use tokio::time::Instant;

use crate::amounts::Amounts;
use crate::place::concerns;
use crate::scheduler::{AVOID, AVOID_LONGEST, Scheduler, State, Task, promise, version};
use crate::sources;
use crate::world::{Cause, World, is_over, node_of, referred};

impl Scheduler {
    pub(crate) fn wake(&self, world: &mut World, cause: &Cause) {
        for pod in world.wake(cause) {
            self.look_at(world, pod);
        }
    }

    /// Puts a pod in the queue, before those of lower priority.
    fn look_at(&self, world: &World, pod: Key) {
        let rank = world.pod(&pod).map(|pod| priority(pod)).unwrap_or_default();
        self.queue.add_ranked(Task::Pod(pod), rank);
    }

    pub(crate) fn node_changed(&self, change: &Change<Node>) {
        let facts = |node: &Node| {
            let spec = node.spec.as_ref();
            let taints = spec.and_then(|spec| spec.taints.clone());
            let allocatable = node.status.as_ref().and_then(|status| status.allocatable.clone());
            (node.metadata.labels.clone(), taints, spec.and_then(|spec| spec.unschedulable), allocatable)
        };
        let mut state = self.state.lock();
        let world = &mut state.world;
        match change {
            Change::Applied { old, new } => {
                world.put_node(new);
                if old.as_ref().is_none_or(|old| facts(old) != facts(new)) {
                    self.wake(world, &Cause::Nodes);
                }
            }
            Change::Deleted(node) => {
                world.remove_node(&node.name_any());
                for claim in world.ledger.claims_on(&node.name_any()) {
                    self.queue.add(Task::Claim(claim));
                }
                // Pods are spread over fewer nodes now.
                self.wake(world, &Cause::Nodes);
            }
        }
    }

    pub(crate) fn namespace_changed(&self, change: &Change<Namespace>) {
        let world = &mut self.state.lock().world;
        match change {
            Change::Applied { old, new } => {
                world.namespaces.insert(new.name_any(), Arc::clone(new));
                if old.as_ref().is_none_or(|old| old.metadata.labels != new.metadata.labels) {
                    self.wake(world, &Cause::Namespaces);
                }
            }
            Change::Deleted(namespace) => _ = world.namespaces.remove(&namespace.name_any()),
        }
    }

    pub(crate) fn service_changed(&self, change: &Change<Service>) {
        let services = &mut self.state.lock().world.services;
        match change {
            Change::Applied { new, .. } => _ = services.insert(Key::of(&**new), Arc::clone(new)),
            Change::Deleted(service) => _ = services.remove(&Key::of(&**service)),
        }
    }

    pub(crate) fn stateful_set_changed(&self, change: &Change<StatefulSet>) {
        let sets = &mut self.state.lock().world.stateful_sets;
        match change {
            Change::Applied { new, .. } => _ = sets.insert(Key::of(&**new), Arc::clone(new)),
            Change::Deleted(set) => _ = sets.remove(&Key::of(&**set)),
        }
    }

    pub(crate) fn csi_node_changed(&self, change: &Change<CSINode>) {
        let world = &mut self.state.lock().world;
        match change {
            Change::Applied { new, .. } => _ = world.csi_nodes.insert(new.name_any(), Arc::clone(new)),
            Change::Deleted(node) => _ = world.csi_nodes.remove(&node.name_any()),
        }
        self.wake(world, &Cause::Nodes);
    }

    pub(crate) fn driver_changed(&self, change: &Change<CSIDriver>) {
        let world = &mut self.state.lock().world;
        match change {
            Change::Applied { new, .. } => _ = world.drivers.insert(new.name_any(), Arc::clone(new)),
            Change::Deleted(driver) => _ = world.drivers.remove(&driver.name_any()),
        }
        self.wake(world, &Cause::Nodes);
    }

    pub(crate) fn class_changed(&self, change: &Change<StorageClass>) {
        let world = &mut self.state.lock().world;
        let name = change.object().name_any();
        match change {
            Change::Applied { new, .. } => _ = world.classes.insert(name.clone(), Arc::clone(new)),
            Change::Deleted(_) => _ = world.classes.remove(&name),
        }
        self.wake(world, &Cause::Class(name));
    }

    pub(crate) fn capacity_changed(&self, change: &Change<CSIStorageCapacity>) {
        let world = &mut self.state.lock().world;
        match change {
            Change::Applied { new, .. } => world.ledger.publish(new),
            Change::Deleted(capacity) => _ = world.ledger.withdraw(capacity),
        }
        self.wake(world, &Cause::Storage(change.object().storage_class_name.clone()));
    }

    pub(crate) fn snapshot_changed(&self, change: &Change<VolumeSnapshot>) {
        let world = &mut self.state.lock().world;
        let key = Key::of(&**change.object());
        let source = sources::of_snapshot(&key.namespace, &key.name);
        match change {
            Change::Applied { new, .. } => _ = world.snapshots.insert(key, Arc::clone(new)),
            Change::Deleted(_) => _ = world.snapshots.remove(&key),
        }
        self.wake(world, &Cause::Source(source));
    }

    pub(crate) fn content_changed(&self, change: &Change<VolumeSnapshotContent>) {
        let world = &mut self.state.lock().world;
        let content = change.object();
        match change {
            Change::Applied { new, .. } => _ = world.contents.insert(new.name_any(), Arc::clone(new)),
            Change::Deleted(_) => _ = world.contents.remove(&content.name_any()),
        }
        let reference = &content.spec.volume_snapshot_ref;
        if let (Some(namespace), Some(name)) = (&reference.namespace, &reference.name) {
            self.wake(world, &Cause::Source(sources::of_snapshot(namespace, name)));
        }
    }

    pub(crate) fn volume_changed(&self, change: &Change<PersistentVolume>) {
        let world = &mut self.state.lock().world;
        match change {
            Change::Applied { old, new } => {
                world.put_volume(new);
                match referred(new) {
                    None => self.wake(world, &Cause::Storage(volume::class(new).to_owned())),
                    // The claim's news may have come first, and its pods waited for this.
                    Some(claim) if old.as_ref().is_none_or(|old| old.spec != new.spec) => {
                        let users = world.users_of(&claim);
                        for pod in users.filter(|pod| world.pod(pod).is_some_and(|pod| concerns(pod))) {
                            self.look_at(world, pod.clone());
                        }
                        let Key { namespace, name } = claim;
                        self.wake(world, &Cause::Source(Source { kind: SourceKind::Claim, namespace, name }));
                    }
                    Some(_) => {}
                }
            }
            Change::Deleted(volume) => world.remove_volume(&volume.name_any()),
        }
    }

    pub(crate) fn claim_changed(&self, change: &Change<PersistentVolumeClaim>) {
        let mut state = self.state.lock();
        let key = Key::of(&**change.object());
        match change {
            Change::Applied { new, .. } => {
                if !state.world.put_claim(new) {
                    return;
                }
                self.follow_promise(&mut state, &key, new);
            }
            Change::Deleted(_) => state.world.remove_claim(&key),
        }
        let Key { namespace, name } = key.clone();
        self.wake(&mut state.world, &Cause::Source(Source { kind: SourceKind::Claim, namespace, name }));
        let users = state.world.users_of(&key);
        for pod in users.filter(|pod| state.world.pod(pod).is_some_and(|pod| concerns(pod))) {
            self.look_at(&state.world, pod.clone());
        }
    }

    /// Keeps what a claim was promised in step with what the claim says.
    pub(crate) fn follow_promise(&self, state: &mut State, key: &Key, claim: &PersistentVolumeClaim) {
        if !claim::volume_name(claim).is_empty() {
            state.world.ledger.made(key);
            return;
        }
        let version = version(claim.metadata.resource_version.as_deref());
        match claim::selected_node(claim) {
            Some(node) => {
                if state.world.ledger.get(key).is_none_or(|promise| promise.node != node) {
                    promise(&mut state.world, key, claim, node, None);
                    state.world.ledger.written(key, version);
                }
                if !state.world.nodes.contains(node) {
                    self.queue.add(Task::Claim(key.clone()));
                }
            }
            None => {
                let written = state.world.ledger.get(key).and_then(|promise| promise.written);
                if written.is_some_and(|written| version.is_some_and(|version| version > written)) {
                    self.provisioning_failed(state, key);
                }
            }
        }
    }

    /// The provisioner took the chosen node off the claim: another one, for a while.
    pub(crate) fn provisioning_failed(&self, state: &mut State, claim: &Key) {
        let Some(promise) = state.world.ledger.settle(claim) else { return };
        let users = state.world.users_of(claim).cloned().collect::<Vec<_>>();
        for pod in users {
            let nodes = state.avoid.entry(pod.clone()).or_default();
            let before = nodes.get(&promise.node).map(|(_, pause)| *pause);
            let pause = before.map_or(AVOID, |pause| (pause * 2).min(AVOID_LONGEST));
            nodes.insert(promise.node.clone(), (Instant::now() + pause, pause));
            self.look_at(&state.world, pod);
        }
    }

    pub(crate) fn pod_changed(&self, change: &Change<Pod>) {
        let mut state = self.state.lock();
        let key = Key::of(&**change.object());
        match change {
            Change::Applied { old, new } => {
                state.world.put_pod(new);
                if let Some(old) = old.as_ref().filter(|old| node_of(old).is_some()) {
                    if makes_way(old, new) {
                        self.wake(&mut state.world, &Cause::Pods);
                    }
                } else if node_of(new).is_some() {
                    for pod in state.world.wake_by_arrival(new) {
                        self.look_at(&state.world, pod);
                    }
                }
                let same =
                    old.as_ref().is_some_and(|old| old.spec == new.spec && concerns(old) == concerns(new));
                if !same && concerns(new) {
                    self.look_at(&state.world, key);
                }
            }
            Change::Deleted(pod) => {
                state.world.remove_pod(pod);
                state.avoid.remove(&key);
                state.told.remove(&key);
                state.contended.remove(&key);
                state.since.remove(&key);
                self.wake(&mut state.world, &Cause::Pods);
            }
        }
    }
}

/// Whether a pod on a node takes less of it now, or counts less for rules of others.
fn makes_way(old: &Pod, new: &Pod) -> bool {
    let less = |before: bool, now: bool| now && !before;
    let goes = |pod: &Pod| pod.metadata.deletion_timestamp.is_some();
    less(is_over(old), is_over(new))
        || less(goes(old), goes(new))
        || old.metadata.labels != new.metadata.labels
        || Amounts::of_pod(old, Of::Node) != Amounts::of_pod(new, Of::Node)
}
