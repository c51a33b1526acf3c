//! Finalizers that keep volume objects until their keeper has let go. Names are wire format.

/// On a claim: a pod may use it. Put on by the API server or, late, by the protection controller; taken off by the
/// protection controller when the claim is being deleted and no pod uses it.
pub const CLAIM_PROTECTION: &str = "kubernetes.io/pvc-protection";
/// On a volume: it may be bound. Taken off by the protection controller when the volume is being deleted and is not
/// bound.
pub const VOLUME_PROTECTION: &str = "kubernetes.io/pv-protection";
/// On a VolumeAttributesClass: a claim or volume may use it.
pub const ATTRIBUTES_CLASS_PROTECTION: &str = "kubernetes.io/vac-protection";
/// On a volume of an in-tree plugin with policy Delete: its storage is not deleted yet.
pub const IN_TREE_VOLUME: &str = "kubernetes.io/pv-controller";
/// On a volume of a CSI driver with policy Delete: its storage is not deleted yet. Put on and taken off by the
/// provisioner. It makes a volume whose object is deleted before its claim give its storage back.
pub const PROVISIONER: &str = "external-provisioner.volume.kubernetes.io/finalizer";
/// On a claim that is being cloned.
pub const CLONE_SOURCE: &str = "provisioner.storage.kubernetes.io/cloning-protection";
/// On a snapshot that a volume is being made from.
pub const SNAPSHOT_SOURCE: &str = "provisioner.storage.kubernetes.io/volumesnapshot-as-source-protection";
/// On a claim for which a volume is being made: there may be a volume that no object names yet. Ours; put on before
/// the driver is asked, taken off when a volume object exists or the driver finally refused.
pub const PROVISIONING: &str = "orlop.dev/provisioning";

/// On a VolumeSnapshot: it may be the source of a claim. Taken off when it is being deleted and no claim waits for it.
pub const SNAPSHOT_AS_SOURCE: &str = "snapshot.storage.kubernetes.io/volumesnapshot-as-source-protection";
/// On a VolumeSnapshot whose content goes with it: stays until the content is gone.
pub const SNAPSHOT_BOUND: &str = "snapshot.storage.kubernetes.io/volumesnapshot-bound-protection";
/// On a VolumeSnapshot that was taken as one of a group: stays until the group is gone.
pub const SNAPSHOT_IN_GROUP: &str = "snapshot.storage.kubernetes.io/volumesnapshot-in-group-protection";
/// On a bound VolumeSnapshotContent: its snapshot is not deleted, or not known to be retained.
pub const SNAPSHOT_CONTENT: &str = "snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection";
/// On a claim of which a snapshot is being taken.
pub const CLAIM_AS_SNAPSHOT_SOURCE: &str = "snapshot.storage.kubernetes.io/pvc-as-source-protection";
/// On a VolumeGroupSnapshot: stays until its content is gone or retained.
pub const GROUP_BOUND: &str = "groupsnapshot.storage.kubernetes.io/volumegroupsnapshot-bound-protection";
/// On a bound VolumeGroupSnapshotContent: as [`SNAPSHOT_CONTENT`].
pub const GROUP_CONTENT: &str =
    "groupsnapshot.storage.kubernetes.io/volumegroupsnapshotcontent-bound-protection";

/// The finalizer of a driver's attacher, on volumes and attachments: every character outside letters, digits and "-"
/// becomes "-", and a name that then ends in "-" gets an "X".
pub fn attacher(driver: &str) -> String {
    let mut name: String =
        driver.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '-' }).collect();
    if name.ends_with('-') {
        name.push('X');
    }
    format!("external-attacher/{name}")
}

#[cfg(test)]
mod tests {
    use super::attacher;

    #[test]
    fn attacher_finalizers_are_valid_names() {
        for (driver, finalizer) in [
            ("orlop.dev", "external-attacher/orlop-dev"),
            ("csi.example.com_", "external-attacher/csi-example-com-X"),
            ("plain-name", "external-attacher/plain-name"),
        ] {
            assert_eq!(attacher(driver), finalizer);
        }
    }
}
