//! What users do about snapshots of several claims at one moment.

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::ResourceExt;
use resources::claim;
use resources::group_snapshot::{self, VolumeGroupSnapshot, VolumeGroupSnapshotContent};
use resources::snapshot::{self, VolumeSnapshot};
use serde_json::json;

use crate::{Dice, World, populator};

fn name(dice: &mut Dice) -> String {
    format!("g{}", dice.below(2))
}

/// Labels two claims, most often such as have volumes, and takes a group of all that have the label.
pub(super) async fn take(world: &World, dice: &mut Dice) {
    let (name, policy) = (name(dice), dice.pick(&["groups", "groups", "kept-groups"]));
    let any = dice.in_a_thousand(200);
    let mut all = world.list::<PersistentVolumeClaim>().await;
    all.retain(|claim| !populator::is_own(claim));
    let chosen: Vec<_> = all.iter().filter(|one| any || claim::phase(one) == "Bound").collect();
    for _ in 0..chosen.len().min(2) {
        let claim = chosen[dice.below(chosen.len() as u64) as usize].name_any();
        world.network.note(format_args!("user: claim {claim} is to be in group {name}"));
        let label = json!({"metadata": {"labels": {"group": name}}});
        world.patch::<PersistentVolumeClaim>(&claim, label).await;
    }
    world.network.note(format_args!("user: group {name} of class {policy}"));
    let group = json!({
        "apiVersion": group_snapshot::GROUP.to_owned() + "/v1", "kind": "VolumeGroupSnapshot",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"volumeGroupSnapshotClassName": policy, "source": {"selector": {"matchLabels": {"group": name}}}},
    });
    world.create::<VolumeGroupSnapshot>(group).await;
}

pub(super) async fn delete(world: &World, dice: &mut Dice) {
    let name = name(dice);
    world.network.note(format_args!("user: no group {name}"));
    world.delete::<VolumeGroupSnapshot>(&name).await;
}

/// Makes a claim from a snapshot of a group, or tries to delete one alone.
pub(super) async fn use_member(world: &World, dice: &mut Dice) {
    let all = world.list::<VolumeSnapshot>().await;
    let members: Vec<String> = all.iter().filter(|one| is_member(one)).map(ResourceExt::name_any).collect();
    if members.is_empty() {
        return;
    }
    let member = &members[dice.below(members.len() as u64) as usize];
    if dice.in_a_thousand(300) {
        world.network.note(format_args!("user: no snapshot {member}, which is of a group"));
        world.delete::<VolumeSnapshot>(member).await;
        return;
    }
    let claim = json!({
        "metadata": {"name": format!("c{}", dice.below(5)), "namespace": "default"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "3Gi"}},
            "storageClassName": dice.pick(&["fast", "kept", "late"]),
            "dataSource": {"apiGroup": snapshot::GROUP, "kind": "VolumeSnapshot", "name": member}},
    });
    world.network.note(format_args!("user: claim {} from {member}", claim["metadata"]["name"]));
    world.create::<PersistentVolumeClaim>(claim).await;
}

/// Whether a snapshot was taken with others.
pub(crate) fn is_member(one: &VolumeSnapshot) -> bool {
    one.owner_references().iter().any(|owner| owner.kind == "VolumeGroupSnapshot")
}

impl World {
    /// Users take back the groups that nobody can take: they would be tried every few minutes. What is kept of one that
    /// was taken back before goes, too.
    pub(crate) async fn give_up_groups(&self) {
        let held = self.storage.held();
        for content in self.list::<VolumeGroupSnapshotContent>().await {
            let volumes = content.spec.source.volume_handles.clone().unwrap_or_default();
            let name = content.spec.volume_group_snapshot_ref.name.clone().unwrap_or_default();
            let is_taken = group_snapshot::handle(&content).is_some_and(|id| held.groups.contains_key(id));
            if !is_taken && !held.are_together(&volumes) {
                self.network.note(format_args!("user: no group {name}, which nobody can take"));
                self.delete::<VolumeGroupSnapshot>(&name).await;
                self.delete::<VolumeGroupSnapshotContent>(&content.name_any()).await;
            }
        }
    }
}
