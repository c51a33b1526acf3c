//! Snapshots are taken, or can't be; what was deleted is gone, and what is to be kept is kept.

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::ResourceExt;
use resources::snapshot::{self, DeletionPolicy, VolumeSnapshot, VolumeSnapshotContent};
use resources::{claim, volume};

use crate::deeds::is_member;
use crate::storage::{DRIVER, Held};
use crate::{Ledger, World};

/// What is stuck, lost or left over.
pub(super) async fn settled(world: &World, ledger: &Ledger, held: &Held) -> Vec<String> {
    let snapshots = world.list::<VolumeSnapshot>().await;
    let contents = world.list::<VolumeSnapshotContent>().await;
    let mut wrong = Vec::new();
    let mut note = |what: &str, name: String, why: Result<(), &str>| {
        if let Err(why) = why {
            wrong.push(format!("{what} {name} {why}"));
        }
    };
    for one in snapshots.iter().filter(|one| !is_member(one)) {
        note("snapshot", one.name_any(), of_snapshot(ledger, &contents, held, one));
    }
    for one in &contents {
        note("content", one.name_any(), of_content(&snapshots, one));
    }
    for claim in ledger.claims.values() {
        note("claim", claim.name_any(), of_claim(ledger, &snapshots, claim));
    }
    for id in held.snapshots.keys() {
        // Of a group, the group is known.
        let is_known = contents.iter().any(|content| snapshot::handle(content) == Some(id))
            || held.groups.values().any(|members| members.contains(id));
        note("the snapshot", id.clone(), if is_known { Ok(()) } else { Err("is kept for nobody") });
    }
    wrong
}

fn of_snapshot(
    ledger: &Ledger,
    contents: &[VolumeSnapshotContent],
    held: &Held,
    one: &VolumeSnapshot,
) -> Result<(), &'static str> {
    if one.metadata.deletion_timestamp.is_some() {
        return Err("is not gone");
    }
    let bound = snapshot::bound_content(one);
    let content = contents.iter().find(|content| bound == Some(content.name_any().as_str()));
    if snapshot::is_ready(one) {
        let id = content.and_then(snapshot::handle).ok_or("is ready without a content")?;
        return if held.snapshots.contains_key(id) { Ok(()) } else { Err("is ready, and its data gone") };
    }
    let source = one.spec.source.persistent_volume_claim_name.as_deref().unwrap_or_default();
    match ledger.claims.get(source) {
        Some(claim) if claim.metadata.deletion_timestamp.is_some() => Ok(()),
        Some(claim) if claim::phase(claim) == "Bound" && content.is_none() => {
            match is_of_driver(ledger, claim) {
                true => Err("could be taken, and is not begun"),
                false => Ok(()),
            }
        }
        // The volume may have gone after the content was made.
        _ if content.is_some_and(|content| {
            content.spec.source.volume_handle.as_ref().is_some_and(|id| held.volumes.contains_key(id))
        }) =>
        {
            Err("is begun, and not taken")
        }
        _ => Ok(()),
    }
}

pub(super) fn is_of_driver(ledger: &Ledger, claim: &PersistentVolumeClaim) -> bool {
    ledger.volumes.get(claim::volume_name(claim)).is_some_and(|volume| {
        let csi = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref());
        csi.is_some_and(|csi| csi.driver == DRIVER) && volume::is_bound_to(volume, claim)
    })
}

fn of_content(snapshots: &[VolumeSnapshot], one: &VolumeSnapshotContent) -> Result<(), &'static str> {
    if one.metadata.deletion_timestamp.is_some() {
        return Err("is not gone");
    }
    let lives = snapshots.iter().any(|snapshot| snapshot::is_bound_to(one, snapshot));
    match (lives, &one.spec.deletion_policy) {
        (false, DeletionPolicy::Delete) => Err("has outlived its snapshot"),
        _ => Ok(()),
    }
}

/// A claim of a driver's class that is to be made from a snapshot that is there.
fn of_claim(
    ledger: &Ledger,
    snapshots: &[VolumeSnapshot],
    one: &PersistentVolumeClaim,
) -> Result<(), &'static str> {
    let source = one.spec.as_ref().and_then(|spec| spec.data_source.as_ref());
    let at_once = ["fast", "kept"].contains(&claim::class(one));
    let Some(source) = source.filter(|_| at_once && claim::phase(one) == "Pending") else { return Ok(()) };
    match source.kind.as_str() {
        "VolumeSnapshot"
            if snapshots.iter().any(|snapshot| {
                snapshot.name_any() == source.name
                    && snapshot::is_ready(snapshot)
                    && snapshot.metadata.deletion_timestamp.is_none()
                    && of_filesystem(ledger, snapshot)
            }) =>
        {
            Err("is Pending, though its snapshot is ready")
        }
        _ => Ok(()),
    }
}

/// Whether the snapshot's claim, if it is still there, is not a block volume: what is made must be of the same mode.
fn of_filesystem(ledger: &Ledger, snapshot: &VolumeSnapshot) -> bool {
    let source = snapshot.spec.source.persistent_volume_claim_name.as_deref().unwrap_or_default();
    ledger.claims.get(source).is_some_and(|claim| claim::volume_mode(claim) != "Block")
}
