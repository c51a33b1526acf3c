//! Annotations that the volume controllers of Kubernetes write and read. Keys are wire format.

/// On a claim, "yes": both directions of its binding have been written once. Only presence counts.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// On a volume or claim, "yes": a controller, not the user, set the reference to the other; says how to undo it.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// On a volume, the driver that made it; without it nobody deletes the storage.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// On a volume or claim, the CSI driver that took over from an in-tree plugin.
pub const MIGRATED_TO: &str = "pv.kubernetes.io/migrated-to";
/// On a claim, the driver that shall make a volume for it: the binder's word to the provisioner.
pub const STORAGE_PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
/// The older name of [`STORAGE_PROVISIONER`]; always written together with it.
pub const BETA_STORAGE_PROVISIONER: &str = "volume.beta.kubernetes.io/storage-provisioner";
/// On a claim, the node that the scheduler chose for its first pod; removed to have it choose again.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// On a volume or claim, its class; where present, even empty, it wins over the field.
pub const BETA_STORAGE_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
/// On a volume, its size before an expansion that the node has not finished.
pub const PRE_RESIZE_CAPACITY: &str = "volume.alpha.kubernetes.io/pre-resize-capacity";
/// On a claim, the driver that shall expand it, when it took over from an in-tree plugin.
pub const STORAGE_RESIZER: &str = "volume.kubernetes.io/storage-resizer";
/// On a claim, "true": its expansion needs nothing from the node.
pub const NODE_EXPANSION_NOT_REQUIRED: &str = "volume.kubernetes.io/node-expansion-not-required";
/// On a volume, the name of the secret for DeleteVolume.
pub const DELETION_SECRET_NAME: &str = "volume.kubernetes.io/provisioner-deletion-secret-name";
/// On a volume, the namespace of the secret for DeleteVolume.
pub const DELETION_SECRET_NAMESPACE: &str = "volume.kubernetes.io/provisioner-deletion-secret-namespace";
/// On a volume, the name of the secret for ControllerModifyVolume.
pub const MODIFY_SECRET_NAME: &str = "volume.kubernetes.io/controller-modify-secret-name";
/// On a volume, the namespace of the secret for ControllerModifyVolume.
pub const MODIFY_SECRET_NAMESPACE: &str = "volume.kubernetes.io/controller-modify-secret-namespace";
/// On a node, "true": its volumes are attached by the attach-detach controller.
pub const CONTROLLER_MANAGED_ATTACH: &str = "volumes.kubernetes.io/controller-managed-attach-detach";
/// On a node, a JSON map from CSI driver to the node's id in that driver.
pub const CSI_NODE_ID: &str = "csi.volume.kubernetes.io/nodeid";
/// On a VolumeAttachment, the node's id in the driver, for a detach after the CSINode went away.
pub const ATTACHMENT_NODE_ID: &str = "csi.alpha.kubernetes.io/node-id";
/// On a VolumeAttachment that nobody wants, of a node that can't be asked to unmount: since when. Ours; it makes the
/// wait for a forced detach outlast restarts.
pub const DETACH_WANTED: &str = "orlop.dev/detach-wanted";
/// On a class, "true": claims that name no class get this one.
pub const IS_DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
/// The older name of [`IS_DEFAULT_CLASS`].
pub const BETA_IS_DEFAULT_CLASS: &str = "storageclass.beta.kubernetes.io/is-default-class";
/// On a volume, a group id that pods using it get in addition.
pub const VOLUME_GID: &str = "pv.beta.kubernetes.io/gid";
/// On a volume, mount options separated by commas, merged with those of its spec.
pub const BETA_MOUNT_OPTIONS: &str = "volume.beta.kubernetes.io/mount-options";
/// On a claim for which a volume is being made, `<driver>/<node>`: whose provisioner there is at it. Ours; written and
/// removed together with the finalizer [`crate::finalizers::PROVISIONING`].
pub const PROVISIONING: &str = "orlop.dev/provisioning";
/// On a claim with [`PROVISIONING`], what its volume is being filled with: `snapshot/<id>` or `volume/<id>`, ids as the
/// driver gave them. Ours; it lets CreateVolume be repeated word by word when the source's objects are gone.
pub const PROVISIONING_SOURCE: &str = "orlop.dev/provisioning-source";
/// On a claim with [`PROVISIONING`], the StorageClass that its volume is being made by, as JSON. Ours; it lets CreateVolume be
/// repeated when the class is gone.
pub const PROVISIONING_CLASS: &str = "orlop.dev/provisioning-class";

/// On a snapshot's content: its VolumeSnapshot is being deleted, so the snapshot may go, as the deletion policy says.
pub const SNAPSHOT_BEING_DELETED: &str = "snapshot.storage.kubernetes.io/volumesnapshot-being-deleted";
/// On a snapshot's content, "yes": the driver was asked for the snapshot and has not finally answered.
pub const SNAPSHOT_BEING_CREATED: &str = "snapshot.storage.kubernetes.io/volumesnapshot-being-created";
/// On a snapshot's content, the name of the secret for calls about the snapshot.
pub const SNAPSHOT_SECRET_NAME: &str = "snapshot.storage.kubernetes.io/deletion-secret-name";
/// On a snapshot's content, the namespace of the secret for calls about the snapshot.
pub const SNAPSHOT_SECRET_NAMESPACE: &str = "snapshot.storage.kubernetes.io/deletion-secret-namespace";
/// On a VolumeSnapshotClass, "true": snapshots of its driver's volumes that name no class get this one.
pub const IS_DEFAULT_SNAPSHOT_CLASS: &str = "snapshot.storage.kubernetes.io/is-default-class";
/// On a snapshot's content, "true": volumes of the other volume mode may be made from it.
pub const ALLOW_MODE_CHANGE: &str = "snapshot.storage.kubernetes.io/allow-volume-mode-change";
/// On a group's content: as [`SNAPSHOT_BEING_DELETED`].
pub const GROUP_BEING_DELETED: &str = "groupsnapshot.storage.kubernetes.io/volumegroupsnapshot-being-deleted";
/// On a group's content: as [`SNAPSHOT_BEING_CREATED`].
pub const GROUP_BEING_CREATED: &str = "groupsnapshot.storage.kubernetes.io/volumegroupsnapshot-being-created";
/// On a group's content, the name of the secret for calls about the group.
pub const GROUP_SECRET_NAME: &str = "groupsnapshot.storage.kubernetes.io/deletion-secret-name";
/// On a group's content, the namespace of the secret for calls about the group.
pub const GROUP_SECRET_NAMESPACE: &str = "groupsnapshot.storage.kubernetes.io/deletion-secret-namespace";
/// On a VolumeGroupSnapshotClass: as [`IS_DEFAULT_SNAPSHOT_CLASS`].
pub const IS_DEFAULT_GROUP_CLASS: &str = "groupsnapshot.storage.kubernetes.io/is-default-class";
/// On the content of a snapshot that was taken as one of a group, the group's id: the driver is not asked for it alone.
pub const GROUP_HANDLE: &str = "groupsnapshot.storage.k8s.io/volumeGroupSnapshotHandle";

/// On a CSIStorageCapacity: why nothing can be made of its class there.
pub const NO_CAPACITY: &str = "orlop.dev/no-capacity";
