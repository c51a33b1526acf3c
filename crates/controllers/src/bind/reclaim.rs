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

#[cfg(test)]
mod tests {
    use super::super::step::Write;
    use super::super::volume::{Live, Look, sync_volume};
    use super::*;
    use resources::annotations::PROVISIONED_BY;
    use serde_json::json;

    /// The phase and the driver that a volume with policy Delete ends up with, once its claim is gone.
    fn after_release(annotations: serde_json::Value) -> (String, Option<String>) {
        let mut volume: PersistentVolume = serde_json::from_value(json!({
            "metadata": {"name": "v", "annotations": annotations},
            "spec": {
                "persistentVolumeReclaimPolicy": "Delete", "claimRef": {"namespace": "a", "name": "c", "uid": "gone"},
                "gcePersistentDisk": {"pdName": "disk"},
            },
            "status": {"phase": "Bound"},
        }))
        .expect("a volume");
        let Look::Decided(step) = sync_volume(&World::default(), &volume, Live::Read(None)) else {
            panic!("what was read decides");
        };
        for write in step.writes {
            match write {
                Write::Volume(written) | Write::VolumeStatus(written) => volume = *written,
                other => panic!("{other:?}"),
            }
        }
        (volume::phase(&volume).to_owned(), volume.annotations().get(MIGRATED_TO).cloned())
    }

    #[test]
    fn volumes_of_plugins_that_csi_drivers_took_over_are_left_to_the_drivers() {
        let table = [
            ("kubernetes.io/aws-ebs", "Released", Some("ebs.csi.aws.com")),
            ("kubernetes.io/azure-disk", "Released", Some("disk.csi.azure.com")),
            ("kubernetes.io/azure-file", "Released", Some("file.csi.azure.com")),
            ("kubernetes.io/cinder", "Released", Some("cinder.csi.openstack.org")),
            ("kubernetes.io/gce-pd", "Released", Some("pd.csi.storage.gke.io")),
            ("kubernetes.io/portworx-volume", "Released", Some("pxd.portworx.com")),
            ("kubernetes.io/vsphere-volume", "Released", Some("csi.vsphere.vmware.com")),
            ("pd.csi.storage.gke.io", "Released", None),
            // Nobody took over from this one.
            ("kubernetes.io/rbd", "Failed", None),
        ];
        for (provisioner, phase, driver) in table {
            let got = after_release(json!({PROVISIONED_BY: provisioner}));
            assert_eq!(got, (phase.to_owned(), driver.map(str::to_owned)), "{provisioner}");
        }
        // Made by hand, and marked by whoever handed it to the driver.
        let by_hand = after_release(json!({MIGRATED_TO: "pd.csi.storage.gke.io"}));
        assert_eq!(by_hand, ("Released".to_owned(), Some("pd.csi.storage.gke.io".to_owned())));
    }
}
