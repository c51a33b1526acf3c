//! What is true of volumes, claims, pods and snapshots after every single write, and what must never become so.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::ResourceExt;
use resources::group_snapshot::{self, VolumeGroupSnapshot, VolumeGroupSnapshotContent};
use resources::modification::{self, Stage};
use resources::snapshot::DeletionPolicy;
use resources::source::{self, Source, SourceKind};
use resources::{claim, finalizers, fit, snapshot, volume};
use serde_json::Value;
use tokio::time::Instant;

use crate::populator;
use crate::storage::DRIVER;

/// Volumes, claims and pods as the API server has them now. The world has one namespace.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// Volumes by name.
    pub volumes: BTreeMap<String, PersistentVolume>,
    /// Claims by name.
    pub claims: BTreeMap<String, PersistentVolumeClaim>,
    /// Pods by name.
    pub pods: BTreeMap<String, Pod>,
    /// Reclaim policies of volumes, also of those that are gone, and since when.
    pub policies: BTreeMap<String, (String, Instant)>,
    /// Volumes whose objects were deleted before the provisioner had put its finalizer on them, as where the policy was
    /// made Delete a moment earlier: their data is left to the administrator.
    pub let_go: BTreeSet<String>,
    /// What the storage made volumes be, by the driver's ids: as VolumeAttributesClasses are named.
    pub tiers: BTreeMap<String, String>,
    /// Volumes whose claims went while they were being changed: what they are like now nobody finds out.
    pub adrift: BTreeSet<String>,
    /// The driver's ids of snapshots, and of groups of such, that outlive their objects.
    pub retained_snapshots: BTreeSet<String>,
    /// Groups of snapshots that live, by the driver's ids.
    pub groups: BTreeMap<String, String>,
    /// What must not have happened.
    pub wrong: Vec<String>,
}

impl Ledger {
    /// An object is now like this, or gone, by a process's write. What is wrong with that.
    pub(crate) fn enter(&mut self, process: &str, kind: &str, name: &str, now: Option<Value>) -> Vec<String> {
        let told = self.wrong.len();
        // What is not of the form of its kind is gone for the ledger, and shows at the end.
        match kind {
            "persistentvolumes" => {
                self.volume(process, name, now.and_then(|now| serde_json::from_value(now).ok()))
            }
            "persistentvolumeclaims" => {
                self.claim(process, name, now.and_then(|now| serde_json::from_value(now).ok()))
            }
            "volumesnapshotcontents" => {
                self.content(now.and_then(|now| serde_json::from_value(now).ok()));
            }
            "volumegroupsnapshotcontents" => {
                self.group_content(now.and_then(|now| serde_json::from_value(now).ok()));
            }
            "volumegroupsnapshots" => {
                self.group(name, now.and_then(|now| serde_json::from_value(now).ok()));
            }
            _ => self.pod(process, name, now.and_then(|now| serde_json::from_value(now).ok())),
        }
        self.wrong[told..].to_vec()
    }

    /// Since when a volume's data is to be kept, if it is.
    pub fn retained(&self, volume: &str) -> Option<Instant> {
        self.policies.get(volume).filter(|(policy, _)| policy == "Retain").map(|(_, since)| *since)
    }

    /// The claim that a volume refers to by its UID, while it exists.
    pub fn claim_of(&self, volume: &PersistentVolume) -> Option<&PersistentVolumeClaim> {
        let reference = volume.spec.as_ref()?.claim_ref.as_ref()?;
        let claim = self.claims.get(reference.name.as_deref()?)?;
        (reference.uid.is_some() && claim.metadata.uid == reference.uid).then_some(claim)
    }

    /// The claim that has a volume: each refers to the other.
    pub fn owner_of(&self, volume: &PersistentVolume) -> Option<&PersistentVolumeClaim> {
        self.claim_of(volume).filter(|claim| claim::volume_name(claim) == volume.name_any())
    }

    /// Pods that have a node and use a claim.
    pub fn users_of(&self, claim: &PersistentVolumeClaim) -> Vec<&Pod> {
        let name = claim.name_any();
        let uses = |pod: &&Pod| {
            let spec = pod.spec.as_ref();
            let placed = spec.is_some_and(|spec| spec.node_name.is_some());
            placed && claims_of(pod).contains(&name) && is_own(claim, pod)
        };
        self.pods.values().filter(uses).collect()
    }

    fn volume(&mut self, process: &str, name: &str, now: Option<PersistentVolume>) {
        let before = self.volumes.get(name).cloned();
        if let Some(owner) = before.as_ref().and_then(|before| self.owner_of(before)) {
            let owner = owner.name_any();
            match &now {
                None if claim::is_bind_completed(&self.claims[&owner]) => {
                    self.wrong.push(format!("{process} removed volume {name} while claim {owner} has it"));
                }
                None => {}
                Some(now) => {
                    let same = |volume: &PersistentVolume| {
                        volume.spec.as_ref().and_then(|spec| spec.claim_ref.clone()?.uid)
                    };
                    if before.as_ref().and_then(same) != same(now) && process != "user" {
                        self.wrong.push(format!("{process} took volume {name} away from claim {owner}"));
                    }
                }
            }
        }
        if let Some(now) = &now
            && volume::phase(now) == "Released"
            && before.as_ref().is_none_or(|before| volume::phase(before) != "Released")
            && let Some(claim) = self.claim_of(now)
            && (claim::volume_name(claim).is_empty() || claim::volume_name(claim) == name)
        {
            let claim = claim.name_any();
            self.wrong.push(format!("{process} released volume {name} while claim {claim} lives"));
        }
        let said = |volume: &PersistentVolume| fit::attributes_class_of_volume(volume).to_owned();
        if let Some(now) = &now
            && before.as_ref().map(said).unwrap_or_default() != said(now)
            && process != "user"
            && let Err(why) = self.is_made_so(now, &said(now))
        {
            self.wrong.push(format!("{process} wrote that volume {name} is what it is not: {why}"));
        }
        let retained = self.retained(name).is_some();
        if now.is_none()
            && retained
            && before.as_ref().is_some_and(|before| before.metadata.deletion_timestamp.is_none())
            && process != "user"
        {
            self.wrong.push(format!("{process} deleted volume {name}, which is to be retained"));
        }
        match now {
            Some(now) => {
                let policy = volume::reclaim_policy(&now);
                if self.policies.get(name).is_none_or(|(before, _)| before != policy) {
                    self.policies.insert(name.to_owned(), (policy.to_owned(), Instant::now()));
                }
                let goes = |volume: &PersistentVolume| volume.metadata.deletion_timestamp.is_some();
                let is_held = now.finalizers().iter().any(|name| name == finalizers::PROVISIONER);
                if goes(&now) && !is_held && !before.as_ref().is_some_and(goes) {
                    self.let_go.insert(name.to_owned());
                }
                self.volumes.insert(name.to_owned(), now);
            }
            None => _ = self.volumes.remove(name),
        }
    }

    fn claim(&mut self, process: &str, name: &str, now: Option<PersistentVolumeClaim>) {
        let before = self.claims.get(name).cloned();
        if let (Some(before), None) = (&before, &now) {
            let users: Vec<_> = self.users_of(before).iter().map(|pod| pod.name_any()).collect();
            if !users.is_empty() && process != "user" {
                self.wrong.push(format!("{process} removed claim {name}, which pods {users:?} use"));
            }
        }
        if let (Some(before), "controllers") = (&before, process) {
            let began = before.metadata.deletion_timestamp.is_none();
            let goes = now.as_ref().is_none_or(|now| now.metadata.deletion_timestamp.is_some());
            let lives = self.pods.values().any(|pod| {
                before.owner_references().iter().any(|owner| Some(&owner.uid) == pod.metadata.uid.as_ref())
            });
            if began && goes && (lives || before.owner_references().is_empty()) {
                self.wrong.push(format!("{process} deleted claim {name}, which it had no reason to"));
            }
        }
        let goes = |claim: &PersistentVolumeClaim| claim.metadata.deletion_timestamp.is_some();
        let changing = |claim: &&PersistentVolumeClaim| {
            modification::under_way(claim).is_some_and(|(stage, _)| stage == Stage::InProgress)
        };
        if now.as_ref().is_none_or(goes)
            && let Some(claim) = before.iter().chain(&now).find(changing)
        {
            self.adrift.insert(claim::volume_name(claim).to_owned());
        }
        if let Some(now) = &now
            && before.as_ref().map(modification::current).unwrap_or_default() != modification::current(now)
            && let Some(volume) = self.volumes.get(claim::volume_name(now))
            && !modification::current(now).is_empty()
            && let Err(why) = self.is_made_so(volume, modification::current(now))
        {
            self.wrong.push(format!("{process} wrote that claim {name} has what it has not: {why}"));
        }
        let completes = |claim: &PersistentVolumeClaim| claim::is_bind_completed(claim);
        if let Some(now) = now.as_ref().filter(|now| completes(now))
            && !before
                .as_ref()
                .is_some_and(|before| before.metadata.uid == now.metadata.uid && completes(before))
            && let Some(volume) = self.volumes.get(claim::volume_name(now))
            && !volume::is_bound_to(volume, now)
        {
            let volume = volume.name_any();
            self.wrong
                .push(format!("{process} bound claim {name} to volume {volume}, which is not the claim's"));
        }
        match now {
            Some(now) => _ = self.claims.insert(name.to_owned(), now),
            None => _ = self.claims.remove(name),
        }
        self.nobody_shares();
    }

    /// An empty volume of this name is made: a claim that a populator fills gets none.
    pub(crate) fn nobody_fills(&mut self, volume: &str) {
        let is_for = |claim: &&PersistentVolumeClaim| claim.uid().is_some_and(|uid| volume.ends_with(&uid));
        if let Some(claim) = self.claims.values().find(is_for)
            && matches!(source::of(claim), Some(Source { kind: SourceKind::Other { .. }, .. }))
        {
            let claim = claim.name_any();
            self.wrong.push(format!("an empty volume is made for claim {claim}, which a populator fills"));
        }
    }

    /// Whether a volume is of this tier, as far as it is known what it is like.
    ///
    /// # Errors
    /// What it is like.
    pub fn is_made_so(&self, volume: &PersistentVolume, tier: &str) -> Result<(), String> {
        let name = volume.name_any();
        let is_known = volume::provisioned_by(volume) == Some(DRIVER) && !self.adrift.contains(&name);
        match self.tiers.get(&name).filter(|made| is_known && **made != tier) {
            Some(made) => Err(format!("the storage made volume {name} {made:?}, not {tier:?}")),
            None => Ok(()),
        }
    }

    /// No two claims have one volume. The populator's own are told later that they gave theirs away.
    fn nobody_shares(&mut self) {
        let mut owners = BTreeMap::new();
        let has = |claim: &&PersistentVolumeClaim| {
            claim::is_bind_completed(claim) && claim::phase(claim) == "Bound" && !populator::is_own(claim)
        };
        for claim in self.claims.values().filter(has) {
            if let Some(other) = owners.insert(claim::volume_name(claim), claim.name_any()) {
                let (volume, claim) = (claim::volume_name(claim), claim.name_any());
                self.wrong.push(format!("claims {other} and {claim} both have volume {volume}"));
            }
        }
    }

    fn pod(&mut self, process: &str, name: &str, now: Option<Pod>) {
        let placed = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
        let before = self.pods.get(name).and_then(placed);
        if let Some(pod) = &now
            && let Some(node) = placed(pod).filter(|_| before.is_none() && process != "user")
        {
            for claim in claims_of(pod) {
                if let Err(why) = self.usable(&claim, &node) {
                    self.wrong.push(format!("{process} sent pod {name} to {node}, but claim {claim} {why}"));
                }
            }
        }
        match now {
            Some(now) => _ = self.pods.insert(name.to_owned(), now),
            None => _ = self.pods.remove(name),
        }
    }

    fn content(&mut self, now: Option<snapshot::VolumeSnapshotContent>) {
        let Some(now) = now else { return };
        self.keep_as_told(snapshot::handle(&now), now.spec.deletion_policy);
    }

    fn group_content(&mut self, now: Option<VolumeGroupSnapshotContent>) {
        let Some(now) = now else { return };
        self.keep_as_told(group_snapshot::handle(&now), now.spec.deletion_policy);
    }

    fn keep_as_told(&mut self, id: Option<&str>, policy: DeletionPolicy) {
        match (id, policy) {
            (None, _) => {}
            (Some(id), DeletionPolicy::Retain) => _ = self.retained_snapshots.insert(id.to_owned()),
            (Some(id), DeletionPolicy::Delete) => _ = self.retained_snapshots.remove(id),
        }
    }

    fn group(&mut self, name: &str, now: Option<VolumeGroupSnapshot>) {
        self.groups.retain(|_, group| group != name);
        if let Some(uid) =
            now.filter(|now| now.metadata.deletion_timestamp.is_none()).and_then(|now| now.metadata.uid)
        {
            self.groups.insert(group_snapshot::name_for(&uid), name.to_owned());
        }
    }

    /// Whether a pod on this node can use the claim.
    fn usable(&self, claim: &str, node: &str) -> Result<(), String> {
        let claim = self.claims.get(claim).ok_or("is not there")?;
        let volume = self.volumes.get(claim::volume_name(claim)).ok_or("has no volume")?;
        if !volume::is_bound_to(volume, claim) {
            return Err(format!("is not bound to {}", volume.name_any()));
        }
        let labels = [("kubernetes.io/hostname".to_owned(), node.to_owned())].into();
        match volume::admits_node(volume, node, &labels) {
            true => Ok(()),
            false => Err(format!("has volume {}, which is elsewhere", volume.name_any())),
        }
    }
}

/// The names of the claims that a pod uses.
pub(crate) fn claims_of(pod: &Pod) -> Vec<String> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| claim::of_volume(pod, volume)).collect()
}

/// Whether a claim that a pod names or would have made is the pod's to use.
fn is_own(claim: &PersistentVolumeClaim, pod: &Pod) -> bool {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let mut named = volumes.filter_map(|volume| volume.persistent_volume_claim.as_ref());
    named.any(|source| source.claim_name == claim.name_any())
        || claim.owner_references().iter().any(|owner| Some(&owner.uid) == pod.metadata.uid.as_ref())
}
