//! Marks that follow from which plugin serves a volume: migration annotations and deletion finalizers.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::ResourceExt;
use kube::core::ObjectMeta;
use resources::annotations::{BETA_STORAGE_PROVISIONER, MIGRATED_TO, PROVISIONED_BY, STORAGE_PROVISIONER};
use resources::finalizers;

use super::plugins::{IN_TREE_PREFIX, Plugins};

/// Says on a claim which CSI driver took over from its in-tree provisioner. True: something changed.
pub fn migrate_claim(plugins: &Plugins, claim: &mut PersistentVolumeClaim) -> bool {
    migrate(plugins, &mut claim.metadata, &[STORAGE_PROVISIONER, BETA_STORAGE_PROVISIONER])
}

/// Says on a volume which CSI driver took over from its in-tree provisioner. True: something changed.
pub fn migrate_volume(plugins: &Plugins, volume: &mut PersistentVolume) -> bool {
    migrate(plugins, &mut volume.metadata, &[PROVISIONED_BY])
}

fn migrate(plugins: &Plugins, meta: &mut ObjectMeta, keys: &[&str]) -> bool {
    let Some(annotations) = meta.annotations.as_mut() else { return false };
    let Some(provisioner) = keys.iter().find_map(|key| annotations.get(*key)) else { return false };
    match plugins.migrated_to(provisioner) {
        Some(driver) if annotations.get(MIGRATED_TO).map(String::as_str) == Some(driver) => false,
        Some(driver) => {
            annotations.insert(MIGRATED_TO.to_owned(), driver.to_owned());
            true
        }
        // What the hand-off wrote: the driver itself was asked in the plugin's place.
        None if annotations.get(MIGRATED_TO) == Some(provisioner) => false,
        None => annotations.remove(MIGRATED_TO).is_some(),
    }
}

/// Keeps the finalizer that lets an in-tree plugin delete its volume before the object goes. True: something changed.
pub fn deletion_finalizers(plugins: &Plugins, volume: &mut PersistentVolume) -> bool {
    let Some(provisioner) = resources::volume::provisioned_by(volume) else { return false };
    let migrated = plugins.migrated_to(provisioner).is_some();
    if !migrated && !provisioner.starts_with(IN_TREE_PREFIX) {
        return false;
    }
    let policy = volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
    let wanted = !migrated && policy == Some("Delete");
    let before = volume.finalizers().to_vec();
    let present = volume.finalizers_mut();
    if !migrated {
        present.retain(|name| name != finalizers::PROVISIONER);
    }
    if !wanted {
        present.retain(|name| name != finalizers::IN_TREE_VOLUME);
    } else if !present.iter().any(|name| name == finalizers::IN_TREE_VOLUME) {
        present.push(finalizers::IN_TREE_VOLUME.to_owned());
    }
    *present != before
}
