//! The objects by which a cluster knows our own driver.

use k8s_openapi::api::storage::v1::{CSIDriver, CSIDriverSpec, StorageClass};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::{VolumeSnapshotClass, annotations};

/// The name of our CSI driver.
pub const DRIVER: &str = "orlop.dev";
/// The name of the StorageClass that a fresh installation has.
pub const STORAGE_CLASS: &str = "orlop";
/// The name of the VolumeSnapshotClass that a fresh installation has.
pub const SNAPSHOT_CLASS: &str = "orlop";

/// The name of the StorageClass for our driver under a name: under another's it is called like that driver, as that
/// one's class was.
pub fn class_of(driver: &str) -> &str {
    if driver == DRIVER { STORAGE_CLASS } else { driver }
}

/// The default StorageClass: volumes are made where their first pod goes, can grow, and are deleted with their claim.
pub fn storage_class(driver: &str) -> StorageClass {
    StorageClass {
        metadata: ObjectMeta {
            name: Some(class_of(driver).to_owned()),
            annotations: Some([(annotations::IS_DEFAULT_CLASS.to_owned(), "true".to_owned())].into()),
            ..ObjectMeta::default()
        },
        provisioner: driver.to_owned(),
        volume_binding_mode: Some("WaitForFirstConsumer".to_owned()),
        reclaim_policy: Some("Delete".to_owned()),
        allow_volume_expansion: Some(true),
        ..StorageClass::default()
    }
}

/// The default class for snapshots of our volumes: they are deleted with their objects.
pub fn snapshot_class() -> VolumeSnapshotClass {
    let mut class = VolumeSnapshotClass::new(SNAPSHOT_CLASS, DRIVER);
    class.metadata.annotations =
        Some([(annotations::IS_DEFAULT_SNAPSHOT_CLASS.to_owned(), "true".to_owned())].into());
    class
}

/// The driver's traits: nothing to attach, pod details wanted (they tell ephemeral volumes), capacity published, ownership of a volume set by
/// the node agent as the pod's fsGroup says.
pub fn csi_driver(name: &str) -> CSIDriver {
    CSIDriver {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        spec: CSIDriverSpec {
            attach_required: Some(false),
            pod_info_on_mount: Some(true),
            requires_republish: Some(false),
            se_linux_mount: Some(true),
            storage_capacity: Some(true),
            fs_group_policy: Some("File".to_owned()),
            volume_lifecycle_modes: Some(vec!["Persistent".to_owned(), "Ephemeral".to_owned()]),
            ..CSIDriverSpec::default()
        },
    }
}
