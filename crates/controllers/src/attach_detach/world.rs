//! What is known of the API, by the questions that the controller asks, and whom a change concerns.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
use kube::ResourceExt;
use parking_lot::Mutex;
use resources::{attachment, claim, node, volume};
use runtime::{Change, Informer, Informers, Queue};

use super::Key;
use super::attach::{Standing, Users, Volume, node_of};
use super::detach::{Held, Known, is_in_use, marked, release};
use crate::bind::{ClaimKey, claims_of_pod};
use crate::protect::pod_uses;

/// The watched objects, their indexes, and what this process did that the watches don't show yet.
pub(super) struct World {
    pods: Informer<Pod>,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    nodes: Informer<Node>,
    drivers: Informer<CSIDriver>,
    attachments: Informer<VolumeAttachment>,
    index: Mutex<Index>,
}

#[derive(Default)]
struct Index {
    /// Pods that need their volumes, by claim and then by name.
    pods_by_claim: HashMap<ClaimKey, BTreeMap<String, Arc<Pod>>>,
    /// The claims of such pods, by node.
    claims_by_node: HashMap<String, BTreeMap<(String, String), Vec<ClaimKey>>>,
    /// PersistentVolumes by the name that their volume has in a node's status.
    volumes: HashMap<String, BTreeSet<String>>,
    /// Attachments by PersistentVolume.
    by_volume: HashMap<String, BTreeSet<String>>,
    /// Attachments by node.
    by_node: HashMap<String, BTreeSet<String>>,
    /// The last state of deleted nodes that had attachments.
    lost: HashMap<String, Arc<Node>>,
    /// Attachments being made, by name.
    made: HashMap<String, Made>,
    /// Attachments that were deleted, by UID.
    deleted: HashSet<String>,
    /// Since when nobody has wanted an attachment, by UID.
    unwanted: HashMap<String, Timestamp>,
}

/// An attachment that was made and not seen yet.
struct Made {
    volume: String,
    node: String,
    /// The API's answer was lost.
    doubtful: bool,
}

impl World {
    pub(super) fn new(informers: &Informers) -> World {
        World {
            pods: informers.pods(),
            claims: informers.claims(),
            volumes: informers.volumes(),
            nodes: informers.nodes(),
            drivers: informers.csi_drivers(),
            attachments: informers.attachments(),
            index: Mutex::default(),
        }
    }

    /// Ends when everything is known once.
    pub(super) fn synced(&self) -> impl Future<Output = ()> + use<> {
        let (pods, claims, volumes) = (self.pods.synced(), self.claims.synced(), self.volumes.synced());
        let (nodes, drivers, attachments) =
            (self.nodes.synced(), self.drivers.synced(), self.attachments.synced());
        async move {
            tokio::join!(pods, claims, volumes, nodes, drivers, attachments);
        }
    }

    /// Keeps the indexes, and queues what a change concerns.
    pub(super) fn follow(self: &Arc<Self>, queue: &Queue<Key>) {
        let (this, wake) = (self.clone(), queue.clone());
        self.pods.subscribe(move |change| this.pod_changed(change, &wake));
        let (this, wake) = (self.clone(), queue.clone());
        self.claims.subscribe(move |change| {
            let Change::Applied { old, new } = change else { return };
            let decides = |claim: &PersistentVolumeClaim| {
                (claim::phase(claim).to_owned(), claim::volume_name(claim).to_owned())
            };
            if old.as_ref().is_none_or(|old| decides(old) != decides(new)) {
                this.wake_claim(&ClaimKey::of(new), &wake);
            }
        });
        let (this, wake) = (self.clone(), queue.clone());
        self.volumes.subscribe(move |change| {
            let Some(name) = attachment::status_name_of(change.object()) else { return };
            let object = change.object().name_any();
            {
                let volumes = &mut this.index.lock().volumes;
                match change {
                    Change::Applied { .. } => _ = volumes.entry(name.clone()).or_default().insert(object),
                    Change::Deleted(_) => remove(volumes, &name, &object),
                }
            }
            this.wake_volume(&name, &wake);
        });
        let (this, wake) = (self.clone(), queue.clone());
        self.attachments.subscribe(move |change| this.attachment_changed(change, &wake));
        let (this, wake) = (self.clone(), queue.clone());
        self.nodes.subscribe(move |change| this.node_changed(change, &wake));
        let (this, wake) = (self.clone(), queue.clone());
        self.drivers.subscribe(move |change| {
            let driver = change.object();
            let before = match change {
                Change::Applied { old, .. } => attachment::is_required(old.as_deref()),
                Change::Deleted(last) => attachment::is_required(Some(last)),
            };
            // One that is absent counts as one that needs attaching.
            let now = matches!(change, Change::Deleted(_)) || attachment::is_required(Some(driver));
            if before != now {
                let name = driver.name_any();
                let names: Vec<String> = this.index.lock().volumes.keys().cloned().collect();
                let of_driver = names.into_iter().filter(|volume| {
                    attachment::parse_status_name(volume).is_some_and(|(driver, _)| driver == name)
                });
                of_driver.for_each(|volume| this.wake_volume(&volume, &wake));
            }
        });
    }

    fn pod_changed(&self, change: &Change<Pod>, queue: &Queue<Key>) {
        let pod = change.object();
        let is = match change {
            Change::Applied { new, .. } => node_of(new),
            Change::Deleted(_) => None,
        };
        let (claims, key) = (claims_of_pod(pod), (pod.namespace().unwrap_or_default(), pod.name_any()));
        let changed = {
            let mut index = self.index.lock();
            // As it was filed: the last state of a deleted pod may be one in which it needs no volumes any more, which
            // was never announced before.
            let filed = claims.iter().find_map(|claim| index.pods_by_claim.get(claim)?.get(&key.1)).cloned();
            let was = filed.as_deref().and_then(node_of);
            for claim in claims.iter().filter(|_| was.is_some() || is.is_some()) {
                let pods = index.pods_by_claim.entry(claim.clone()).or_default();
                match is {
                    Some(_) => _ = pods.insert(key.1.clone(), pod.clone()),
                    None => _ = pods.remove(&key.1),
                }
                if pods.is_empty() {
                    index.pods_by_claim.remove(claim);
                }
            }
            if let Some(node) = was.filter(|node| is != Some(*node))
                && let Some(pods) = index.claims_by_node.get_mut(node)
            {
                pods.remove(&key);
                if pods.is_empty() {
                    index.claims_by_node.remove(node);
                }
            }
            if let Some(node) = is.filter(|_| !claims.is_empty()) {
                index.claims_by_node.entry(node.to_owned()).or_default().insert(key, claims.clone());
            }
            was != is
        };
        if changed {
            claims.iter().for_each(|claim| self.wake_claim(claim, queue));
        }
    }

    fn attachment_changed(&self, change: &Change<VolumeAttachment>, queue: &Queue<Key>) {
        let object = change.object();
        let (name, node) = (object.name_any(), object.spec.node_name.clone());
        {
            let mut index = self.index.lock();
            index.made.remove(&name);
            let volume = attachment::volume(object).unwrap_or_default().to_owned();
            match change {
                Change::Applied { .. } => {
                    index.by_volume.entry(volume).or_default().insert(name.clone());
                    index.by_node.entry(node.clone()).or_default().insert(name);
                }
                Change::Deleted(_) => {
                    remove(&mut index.by_volume, &volume, &name);
                    remove(&mut index.by_node, &node, &name);
                    let uid = object.uid().unwrap_or_default();
                    index.deleted.remove(&uid);
                    index.unwanted.remove(&uid);
                    if !index.by_node.contains_key(&node) {
                        index.lost.remove(&node);
                    }
                }
            }
        }
        queue.add(Key::Node(node));
        if let Some(volume) = self.status_name(object) {
            queue.add(Key::Volume(volume));
        }
    }

    fn node_changed(&self, change: &Change<Node>, queue: &Queue<Key>) {
        let name = change.object().name_any();
        let (old, new) = match change {
            Change::Applied { old, new } => (old.as_ref(), Some(new)),
            Change::Deleted(last) => (Some(last), None),
        };
        let trusted = |node: &Arc<Node>| {
            (node::is_attach_managed(node), node::is_ready(node), node::is_out_of_service(node))
        };
        let says = |node: &Arc<Node>| {
            let attached: Vec<String> = node::volumes_attached(node).map(str::to_owned).collect();
            (node::volumes_in_use(node).to_vec(), attached)
        };
        let matters = old.map(trusted) != new.map(trusted);
        let affected: Vec<String> = {
            let mut index = self.index.lock();
            match change {
                Change::Applied { .. } => _ = index.lost.remove(&name),
                Change::Deleted(last) if index.by_node.contains_key(&name) => {
                    index.lost.insert(name.clone(), last.clone());
                }
                Change::Deleted(_) => {}
            }
            let attached = index.by_node.get(&name).into_iter().flatten();
            let attached = attached.filter_map(|one| self.attachments.get("", one));
            let attached: Vec<_> = attached.filter_map(|one| self.status_name(&one)).collect();
            let claims = index.claims_by_node.get(&name).into_iter().flat_map(BTreeMap::values).flatten();
            let wanted = claims.filter_map(|claim| self.volume_of(claim));
            let wanted = wanted.filter_map(|volume| attachment::status_name_of(&volume));
            if matters { attached.into_iter().chain(wanted).collect() } else { Vec::new() }
        };
        if matters || old.map(says) != new.map(says) {
            queue.add(Key::Node(name));
        }
        affected.into_iter().for_each(|volume| queue.add(Key::Volume(volume)));
    }

    /// Queues the volume that a claim is bound to.
    fn wake_claim(&self, claim: &ClaimKey, queue: &Queue<Key>) {
        if let Some(name) = self.volume_of(claim).and_then(|volume| attachment::status_name_of(&volume)) {
            self.wake_volume(&name, queue);
        }
    }

    /// Queues a volume, and the nodes that it is attached to.
    fn wake_volume(&self, name: &str, queue: &Queue<Key>) {
        for attachment in self.attachments_of(name) {
            queue.add(Key::Node(attachment.spec.node_name.clone()));
        }
        queue.add(Key::Volume(name.to_owned()));
    }

    fn volume_of(&self, claim: &ClaimKey) -> Option<Arc<PersistentVolume>> {
        let claim = self.claims.get(&claim.namespace, &claim.name)?;
        self.volumes.get("", claim::volume_name(&claim))
    }

    /// The name that an attachment's volume has in a node's status, if the volume is known.
    fn status_name(&self, object: &VolumeAttachment) -> Option<String> {
        attachment::status_name_of(&*self.volumes.get("", attachment::volume(object)?)?)
    }

    fn attachments_of(&self, volume: &str) -> Vec<Arc<VolumeAttachment>> {
        let index = self.index.lock();
        let volumes = index.volumes.get(volume).into_iter().flatten();
        let names = volumes.filter_map(|volume| index.by_volume.get(volume)).flatten();
        names.filter_map(|name| self.attachments.get("", name)).collect()
    }

    /// The PersistentVolumes of a volume; mostly one.
    fn objects_of(&self, volume: &str) -> Vec<Arc<PersistentVolume>> {
        let names: Vec<String> =
            self.index.lock().volumes.get(volume).into_iter().flatten().cloned().collect();
        names.iter().filter_map(|name| self.volumes.get("", name)).collect()
    }

    /// The pods that use one of a volume's objects, if it has to be attached.
    fn users_of(&self, object: &PersistentVolume) -> Vec<Arc<Pod>> {
        let none = Vec::new;
        let Some(csi) = object.spec.as_ref().and_then(|spec| spec.csi.as_ref()) else { return none() };
        if !attachment::is_required(self.drivers.get("", &csi.driver).as_deref()) {
            return none();
        }
        let Some(key) = ClaimKey::referred(object) else { return none() };
        let Some(claim) = self.claims.get(&key.namespace, &key.name) else { return none() };
        let uid = object.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()?.uid.as_deref());
        let bound = claim::phase(&claim) == "Bound"
            && claim::volume_name(&claim) == object.name_any()
            && volume::is_bound_to(object, &claim)
            && uid.is_some_and(|uid| !uid.is_empty());
        if !bound {
            return none();
        }
        let index = self.index.lock();
        let pods = index.pods_by_claim.get(&key).into_iter().flat_map(BTreeMap::values);
        pods.filter(|pod| pod_uses(pod, &claim)).cloned().collect()
    }

    /// A volume on all its nodes, and an object of it; none if there is no object any more.
    pub(super) fn volume(&self, name: &str, now: Timestamp) -> Option<(Arc<PersistentVolume>, Volume)> {
        let objects = self.objects_of(name);
        let object = objects.first()?.clone();
        let mut view = Volume {
            shared: object.spec.as_ref().is_some_and(attachment::may_be_shared),
            ..Volume::default()
        };
        for pod in objects.iter().flat_map(|object| self.users_of(object)) {
            let node = node_of(&pod).unwrap_or_default().to_owned();
            let attachable = || self.nodes.get("", &node).is_some_and(|node| node::is_attach_managed(&node));
            let users = view
                .users
                .entry(node.clone())
                .or_insert_with(|| Users { pods: Vec::new(), attachable: attachable() });
            users.pods.push(pod);
        }
        for attachment in self.attachments_of(name) {
            let node = attachment.spec.node_name.clone();
            let going = attachment.metadata.deletion_timestamp.is_some();
            let release = (!view.users.contains_key(&node) && !going).then(|| {
                self.with_node(&node, |known| {
                    let in_use = is_in_use(known, &attachment, Some(name));
                    release(known, in_use, self.unwanted_since(&attachment, now), now)
                })
            });
            view.attachments.insert(node, Standing { attachment: Some(attachment), release });
        }
        for made in self.index.lock().made.values().filter(|made| made.volume == name) {
            let standing = Standing { attachment: None, release: None };
            view.attachments.entry(made.node.clone()).or_insert(standing);
        }
        Some((object, view))
    }

    /// The attachments of a node, but for those that were just deleted.
    pub(super) fn held(&self, node: &str, now: Timestamp) -> Vec<Held> {
        let attachments: Vec<_> = {
            let index = self.index.lock();
            let names = index.by_node.get(node).into_iter().flatten();
            let objects = names.filter_map(|name| self.attachments.get("", name));
            objects
                .filter(|one| !index.deleted.contains(one.metadata.uid.as_deref().unwrap_or_default()))
                .collect()
        };
        let held = attachments.into_iter().map(|attachment| {
            let volume = self.status_name(&attachment);
            let wanted = volume.as_ref().is_some_and(|volume| self.is_wanted(volume, node));
            let since = match wanted {
                true => {
                    self.index.lock().unwanted.remove(attachment.metadata.uid.as_deref().unwrap_or_default());
                    now
                }
                false => self.unwanted_since(&attachment, now),
            };
            Held { attachment, volume, wanted, since }
        });
        held.collect()
    }

    /// Whether pods of the node want the attachment.
    pub(super) fn still_wanted(&self, object: &VolumeAttachment) -> bool {
        self.status_name(object).is_some_and(|volume| self.is_wanted(&volume, &object.spec.node_name))
    }

    fn is_wanted(&self, volume: &str, node: &str) -> bool {
        let mut users = self.objects_of(volume).into_iter().flat_map(|object| self.users_of(&object));
        users.any(|pod| node_of(&pod) == Some(node))
    }

    fn unwanted_since(&self, attachment: &VolumeAttachment, now: Timestamp) -> Timestamp {
        let uid = attachment.uid().unwrap_or_default();
        marked(attachment).unwrap_or_else(|| *self.index.lock().unwanted.entry(uid).or_insert(now))
    }

    /// Calls `then` with what is known of a node.
    pub(super) fn with_node<T>(&self, name: &str, then: impl FnOnce(Known<'_>) -> T) -> T {
        match self.nodes.get("", name) {
            Some(node) => then(Known::Present(&node)),
            None => {
                let last = self.index.lock().lost.get(name).cloned();
                then(Known::Gone(last.as_deref()))
            }
        }
    }

    /// The attachments that were attached when everything became known: their pods were told by whoever was here.
    pub(super) fn attached(&self) -> Vec<(String, String)> {
        let all = self.attachments.all();
        let attached = all.iter().filter(|one| attachment::is_attached(one));
        attached.filter_map(|one| Some((self.status_name(one)?, one.spec.node_name.clone()))).collect()
    }

    /// Notes that an attachment is about to be made.
    pub(super) fn making(&self, name: &str, volume: &str, node: &str) {
        let made = Made { volume: volume.to_owned(), node: node.to_owned(), doubtful: false };
        self.index.lock().made.insert(name.to_owned(), made);
    }

    /// Notes that it was not made.
    pub(super) fn not_made(&self, name: &str) {
        self.index.lock().made.remove(name);
    }

    /// Notes that nobody knows whether it was made.
    pub(super) fn doubt(&self, name: &str) {
        if let Some(made) = self.index.lock().made.get_mut(name) {
            made.doubtful = true;
        }
    }

    /// The attachments of a volume of which nobody knows whether they were made.
    pub(super) fn doubtful(&self, volume: &str) -> Vec<String> {
        let index = self.index.lock();
        let doubtful = index.made.iter().filter(|(_, made)| made.doubtful && made.volume == volume);
        doubtful.map(|(name, _)| name.clone()).collect()
    }

    /// Notes that an attachment was deleted, so that it is not deleted again before the watch says so.
    pub(super) fn deleted(&self, object: &VolumeAttachment) {
        let uid = object.uid().unwrap_or_default();
        self.index.lock().deleted.insert(uid.clone());
        let known = self.attachments.get("", &object.name_any());
        if known.is_none_or(|known| known.metadata.uid.as_ref() != Some(&uid)) {
            self.index.lock().deleted.remove(&uid);
        }
    }
}

fn remove(sets: &mut HashMap<String, BTreeSet<String>>, key: &str, value: &str) {
    if let Some(set) = sets.get_mut(key) {
        set.remove(value);
        if set.is_empty() {
            sets.remove(key);
        }
    }
}
