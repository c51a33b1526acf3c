//! What becomes of a volume whose claim is gone.

use k8s_openapi::api::core::v1::PersistentVolume;
use kube::ResourceExt;
use resources::annotations::MIGRATED_TO;
use resources::volume;

use super::claim::is_terminated;
use super::plugins::IN_TREE_PREFIX;
use super::step::{Operation, Step, volume_reference};
use super::world::{ClaimKey, World};

/// Acts upon the reclaim policy of a released volume. Retain means retain.
pub(super) fn reclaim(step: &mut Step, world: &World, volume: &mut PersistentVolume) {
    if volume.annotations().contains_key(MIGRATED_TO) {
        return;
    }
    match volume::reclaim_policy(volume) {
        "Retain" => {}
        "Recycle" => recycle(step, world, volume),
        "Delete" => delete(step, world, volume),
        _ => {
            let message = "Volume has unrecognized PersistentVolumeReclaimPolicy";
            failed(step, volume, "VolumeUnknownReclaimPolicy", message);
        }
    }
}

/// Marks a volume Failed, with an event if it wasn't yet.
pub(super) fn failed(step: &mut Step, volume: &mut PersistentVolume, reason: &'static str, message: &str) {
    if step.volume_phase(volume, "Failed", message) {
        step.warning(volume_reference(volume), reason, message);
    }
}

fn recycle(step: &mut Step, world: &World, volume: &mut PersistentVolume) {
    let users: Vec<_> = ClaimKey::referred(volume)
        .filter(|key| world.claim(key).is_none())
        .into_iter()
        .flat_map(|key| {
            world
                .pods_of(&key)
                .filter(|pod| !is_terminated(pod))
                .map(|pod| pod.name_any())
                .collect::<Vec<_>>()
        })
        .collect();
    if !users.is_empty() {
        let message = format!("Volume is used by pods: {}", users.join(","));
        return step.normal(volume_reference(volume), "VolumeFailedRecycle", message);
    }
    match world.plugins.of_source(volume) {
        Some(plugin) => step.operation = Some(Operation::Recycle(plugin.clone(), Box::new(volume.clone()))),
        None => failed(step, volume, "VolumeFailedRecycle", "No recycler plugin found for the volume!"),
    }
}

fn delete(step: &mut Step, world: &World, volume: &mut PersistentVolume) {
    let by_csi = volume.spec.as_ref().is_some_and(|spec| spec.csi.is_some());
    let plugin = match volume::provisioned_by(volume) {
        Some(name) => match world.plugins.named(name) {
            // Its provisioner deletes what it made.
            None if !name.starts_with(IN_TREE_PREFIX) => return,
            plugin => plugin,
        },
        None if by_csi => return,
        None => world.plugins.of_source(volume),
    };
    match plugin {
        Some(plugin) => step.operation = Some(Operation::Delete(plugin.clone(), Box::new(volume.clone()))),
        None => {
            let name = volume.name_any();
            let message =
                format!("error getting deleter volume plugin for volume {name:?}: no volume plugin matched");
            failed(step, volume, "VolumeFailedDelete", &message);
        }
    }
}
