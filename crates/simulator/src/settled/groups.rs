//! Groups of snapshots are whole, or can't be; they go as one.

use std::collections::BTreeSet;

use kube::ResourceExt;
use resources::group_snapshot::{self, VolumeGroupSnapshot, VolumeGroupSnapshotContent};
use resources::snapshot::{self, DeletionPolicy, VolumeSnapshot};
use resources::{claim, fit};

use super::snapshots::is_of_driver;
use crate::deeds::is_member;
use crate::storage::Held;
use crate::{Ledger, World};

/// What is stuck, lost or left over.
pub(super) async fn settled(world: &World, ledger: &Ledger, held: &Held) -> Vec<String> {
    let groups = world.list::<VolumeGroupSnapshot>().await;
    let contents = world.list::<VolumeGroupSnapshotContent>().await;
    let snapshots = world.list::<VolumeSnapshot>().await;
    let mut wrong = Vec::new();
    let mut note = |what: &str, name: &str, why: Result<(), String>| {
        if let Err(why) = why {
            wrong.push(format!("{what} {name} {why}"));
        }
    };
    for one in &groups {
        note("group", &one.name_any(), of_group(ledger, held, &contents, &snapshots, one));
    }
    for one in &contents {
        note("group content", &one.name_any(), of_content(&groups, one));
    }
    for one in snapshots.iter().filter(|one| is_member(one)) {
        note("snapshot", &one.name_any(), of_member(&groups, one));
    }
    for id in held.groups.keys() {
        let is_known = contents.iter().any(|content| group_snapshot::handle(content) == Some(id));
        note("the group", id, if is_known { Ok(()) } else { Err("is kept for nobody".to_owned()) });
    }
    wrong
}

fn of_group(
    ledger: &Ledger,
    held: &Held,
    contents: &[VolumeGroupSnapshotContent],
    snapshots: &[VolumeSnapshot],
    group: &VolumeGroupSnapshot,
) -> Result<(), String> {
    let refused = |why: &str| Err(why.to_owned());
    if group.metadata.deletion_timestamp.is_some() {
        return Err(format!("is not gone, with finalizers {:?}", group.finalizers()));
    }
    let content = contents.iter().find(|content| group_snapshot::is_bound_to(content, group));
    let is_ready = group.status.as_ref().is_some_and(|status| status.ready_to_use == Some(true));
    let Some(content) = content else {
        return match (is_ready, could_be_taken(ledger, group)) {
            (true, _) => refused("is ready without a content"),
            (_, true) => refused("could be taken, and is not begun"),
            _ => Ok(()),
        };
    };
    let volumes = content.spec.source.volume_handles.clone().unwrap_or_default();
    if !is_ready {
        return match held.are_together(&volumes) {
            true => refused("is begun, and not taken"),
            false => Ok(()),
        };
    }
    let id = group_snapshot::handle(content).unwrap_or_default();
    let taken = held.groups.get(id).ok_or("is ready, and its data gone")?;
    let sources: BTreeSet<_> = taken.iter().filter_map(|member| held.snapshots.get(member)).collect();
    if sources != volumes.iter().collect() {
        return Err(format!("has snapshots of {sources:?}, not of {volumes:?}"));
    }
    let members = snapshots.iter().filter(|one| {
        one.owner_references().iter().any(|owner| Some(&owner.uid) == group.metadata.uid.as_ref())
    });
    // One that somebody wanted to delete stays, as it is.
    let (going, staying): (Vec<_>, Vec<_>) =
        members.partition(|one| one.metadata.deletion_timestamp.is_some());
    if going.len() + staying.len() != taken.len() {
        return Err(format!("has {} snapshots of {}", going.len() + staying.len(), taken.len()));
    }
    match staying.iter().find(|one| !snapshot::is_ready(one)) {
        Some(one) => Err(format!("is ready, and its snapshot {} is not", one.name_any())),
        None => Ok(()),
    }
}

/// Whether all claims that a group is of have volumes.
fn could_be_taken(ledger: &Ledger, group: &VolumeGroupSnapshot) -> bool {
    let Some(selector) = &group.spec.source.selector else { return false };
    let chosen = ledger.claims.values().filter(|one| fit::selects(selector, one.metadata.labels.as_ref()));
    let chosen: Vec<_> = chosen.collect();
    let usable = |one: &&_| claim::phase(one) == "Bound" && is_of_driver(ledger, one);
    !chosen.is_empty() && chosen.iter().all(usable)
}

fn of_content(groups: &[VolumeGroupSnapshot], one: &VolumeGroupSnapshotContent) -> Result<(), String> {
    if one.metadata.deletion_timestamp.is_some() {
        return Err(format!("is not gone, with finalizers {:?}", one.finalizers()));
    }
    let lives = groups.iter().any(|group| group_snapshot::is_bound_to(one, group));
    match (lives, one.spec.deletion_policy) {
        (false, DeletionPolicy::Delete) => Err("has outlived its group".to_owned()),
        _ => Ok(()),
    }
}

fn of_member(groups: &[VolumeGroupSnapshot], one: &VolumeSnapshot) -> Result<(), String> {
    let has_group = |group: &VolumeGroupSnapshot| {
        one.owner_references().iter().any(|owner| Some(&owner.uid) == group.metadata.uid.as_ref())
    };
    match groups.iter().any(has_group) {
        true => Ok(()),
        false => Err(format!("has outlived its group, with finalizers {:?}", one.finalizers())),
    }
}
