//! What is known, filed by what the steps ask for.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use kube::ResourceExt;
use parking_lot::Mutex;
use resources::finalizers::CLAIM_AS_SNAPSHOT_SOURCE;
use resources::{
    VolumeGroupSnapshot, VolumeGroupSnapshotClass, VolumeGroupSnapshotContent, VolumeSnapshot,
    VolumeSnapshotClass, VolumeSnapshotContent, claim, fit, volume,
};
use runtime::{Context, Informer, Key};

use super::group::{self, Member};
use super::step::{Facts, content_of, needs_claim};
use super::writes::{Step, Write};

pub(super) struct Known {
    pub(super) snapshots: Informer<VolumeSnapshot>,
    pub(super) contents: Informer<VolumeSnapshotContent>,
    pub(super) classes: Informer<VolumeSnapshotClass>,
    pub(super) groups: Informer<VolumeGroupSnapshot>,
    pub(super) group_contents: Informer<VolumeGroupSnapshotContent>,
    pub(super) group_classes: Informer<VolumeGroupSnapshotClass>,
    pub(super) claims: Informer<PersistentVolumeClaim>,
    pub(super) volumes: Informer<PersistentVolume>,
    nodes: Informer<Node>,
    /// Snapshots by the claim that they are of.
    by_claim: Mutex<HashMap<Key, BTreeSet<String>>>,
    /// Volumes by driver and id.
    by_handle: Mutex<HashMap<(String, String), String>>,
}

impl Known {
    pub(super) fn new(context: &Context) -> Known {
        let informers = &context.informers;
        Known {
            snapshots: informers.of(),
            contents: informers.of(),
            classes: informers.of(),
            groups: informers.of(),
            group_contents: informers.of(),
            group_classes: informers.of(),
            claims: informers.claims(),
            volumes: informers.volumes(),
            nodes: informers.nodes(),
            by_claim: Mutex::default(),
            by_handle: Mutex::default(),
        }
    }

    pub(super) async fn synced(&self) {
        tokio::join!(
            self.snapshots.synced(),
            self.contents.synced(),
            self.classes.synced(),
            self.groups.synced(),
            self.group_contents.synced(),
            self.group_classes.synced(),
            self.claims.synced(),
            self.volumes.synced(),
            self.nodes.synced(),
        );
    }

    /// Files a snapshot under its claim, or takes it out.
    pub(super) fn file(&self, claim: &Key, snapshot: &str, is_there: bool) {
        let mut files = self.by_claim.lock();
        if is_there {
            files.entry(claim.clone()).or_default().insert(snapshot.to_owned());
        } else if let Some(file) = files.get_mut(claim) {
            file.remove(snapshot);
            if file.is_empty() {
                files.remove(claim);
            }
        }
    }

    pub(super) fn snapshots_of(&self, claim: &Key) -> BTreeSet<String> {
        self.by_claim.lock().get(claim).cloned().unwrap_or_default()
    }

    /// All that a snapshot's fate depends on; nothing if it is gone.
    pub(super) fn snapshot_facts(&self, key: &Key) -> Option<Facts> {
        let snapshot = self.snapshots.get(&key.namespace, &key.name)?;
        let claim = snapshot.spec.source.persistent_volume_claim_name.as_ref();
        let claim = claim.and_then(|name| self.claims.get(&key.namespace, name));
        let volume = claim.as_ref().and_then(|claim| self.volumes.get("", claim::volume_name(claim)));
        let volume =
            volume.filter(|volume| claim.as_ref().is_some_and(|claim| volume::is_bound_to(volume, claim)));
        let group = group::name_of(&snapshot).and_then(|name| self.groups.get(&key.namespace, &name));
        Some(Facts {
            content: self.contents.get("", &content_of(&snapshot)),
            classes: self.classes.all(),
            only_node: volume.as_ref().and_then(|volume| self.only_node(volume)),
            in_group: group.is_some_and(|group| group::has_member(&group, &snapshot)),
            claim,
            volume,
            snapshot,
        })
    }

    /// The one node that can use a volume; none if several can, or the volume does not say.
    fn only_node(&self, volume: &PersistentVolume) -> Option<String> {
        volume.spec.as_ref()?.node_affinity.as_ref()?.required.as_ref()?;
        let nodes = self.nodes.all();
        let mut fitting = nodes.iter().filter(|node| {
            let labels = node.metadata.labels.clone().unwrap_or_default();
            volume::admits_node(volume, &node.name_any(), &labels)
        });
        match (fitting.next(), fitting.next()) {
            (Some(node), None) => Some(node.name_any()),
            _ => None,
        }
    }

    /// Lets a claim go that no snapshot needs any more.
    pub(super) fn claim_step(&self, key: &Key) -> Option<Step> {
        let claim = self.claims.get(&key.namespace, &key.name)?;
        if !claim.finalizers().iter().any(|name| name == CLAIM_AS_SNAPSHOT_SOURCE) {
            return None;
        }
        let is_going = claim.metadata.deletion_timestamp.is_some();
        let is_needed = self.snapshots_of(key).iter().any(|name| {
            let Some(snapshot) = self.snapshots.get(&key.namespace, name) else { return false };
            let content = self.contents.get("", &content_of(&snapshot));
            needs_claim(&snapshot, content.as_deref(), is_going)
        });
        if is_needed {
            return None;
        }
        let mut released = PersistentVolumeClaim::clone(&claim);
        released.finalizers_mut().retain(|name| name != CLAIM_AS_SNAPSHOT_SOURCE);
        Some(Step::write(Write::Claim(Box::new(released))))
    }

    /// All that a group's fate depends on; nothing if it is gone.
    pub(super) fn group_facts(&self, key: &Key) -> Option<group::Facts> {
        let group = self.groups.get(&key.namespace, &key.name)?;
        let content = self.group_contents.get("", &group::content_of(&group));
        let selected = group.spec.source.selector.as_ref().filter(|_| content.is_none()).map(|selector| {
            let claims = self.claims.in_namespace(&key.namespace).into_iter();
            let chosen = claims.filter(|claim| fit::selects(selector, claim.metadata.labels.as_ref()));
            let with_volume = chosen.map(|claim| {
                let volume = self.volumes.get("", claim::volume_name(&claim));
                let volume = volume.filter(|volume| volume::is_bound_to(volume, &claim));
                (claim, volume)
            });
            with_volume.collect::<Vec<_>>()
        });
        let selected = selected.unwrap_or_default();
        let volumes = selected.iter().filter_map(|(_, volume)| volume.as_ref());
        let only_nodes = volumes.filter_map(|volume| self.only_node(volume)).collect();
        let infos =
            content.as_ref().and_then(|content| content.status.as_ref()?.volume_snapshot_info_list.as_ref());
        let members = infos.into_iter().flatten().map(|info| {
            let name = group::member_name(&group, info);
            let volume = info.volume_handle.as_deref().and_then(|handle| {
                let driver = content.as_ref().map(|content| content.spec.driver.as_str()).unwrap_or_default();
                self.volume_by_handle(driver, handle)
            });
            Member {
                info: info.clone(),
                snapshot: self.snapshots.get(&key.namespace, &name),
                content: self.contents.get("", &group::member_content_name(&group, info)),
                only_node: volume.as_ref().and_then(|volume| self.only_node(volume)),
                volume,
            }
        });
        Some(group::Facts {
            members: members.collect(),
            classes: self.group_classes.all(),
            selected,
            only_nodes,
            content,
            group,
        })
    }

    /// Files a volume under its id, or takes it out.
    pub(super) fn file_volume(&self, volume: &PersistentVolume, is_there: bool) {
        let Some(csi) = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref()) else { return };
        let id = (csi.driver.clone(), csi.volume_handle.clone());
        let mut files = self.by_handle.lock();
        if is_there {
            files.insert(id, volume.name_any());
        } else if files.get(&id) == Some(&volume.name_any()) {
            files.remove(&id);
        }
    }

    fn volume_by_handle(&self, driver: &str, handle: &str) -> Option<Arc<PersistentVolume>> {
        let name = self.by_handle.lock().get(&(driver.to_owned(), handle.to_owned())).cloned()?;
        self.volumes.get("", &name)
    }

    /// The group that a snapshot was taken with.
    pub(super) fn group_of(&self, key: &Key) -> Option<Key> {
        let name = group::name_of(&*self.snapshots.get(&key.namespace, &key.name)?)?;
        Some(Key { namespace: key.namespace.clone(), name })
    }

    /// Groups of a namespace that have no content yet: a claim may have been what they lack.
    pub(super) fn groups_waiting_in(&self, namespace: &str) -> Vec<Key> {
        let groups = self.groups.in_namespace(namespace).into_iter();
        let waiting = groups.filter(|group| self.group_contents.get("", &group::content_of(group)).is_none());
        waiting.map(|group| Key::of(&*group)).collect()
    }
}
