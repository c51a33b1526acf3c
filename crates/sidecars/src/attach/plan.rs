//! What to do about an attachment, and with which request: pure.

use std::collections::BTreeMap;

use csi::v1::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use csi::v1::{ControllerPublishVolumeRequest, VolumeCapability};
use k8s_openapi::api::core::v1::{CSIPersistentVolumeSource, PersistentVolume, PersistentVolumeSpec};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::ResourceExt;
use resources::attachment;

use crate::provision::{RequestError, request};

/// What to do about an attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// It is as it should be, or not this driver's.
    Nothing,
    /// The driver has nothing to attach: say that it is attached.
    Confirm,
    /// Have the driver attach the volume.
    Publish,
    /// Have the driver detach the volume.
    Unpublish,
    /// It is being deleted, and the driver has nothing to detach.
    Release,
}

/// Decides about an attachment. One that the driver `doubted` is published again.
///
/// One that is being deleted is unpublished even if it was never attached: the driver may have been asked. Without the
/// finalizer it was not.
pub(super) fn plan(
    object: &VolumeAttachment,
    driver: &str,
    finalizer: &str,
    publishes: bool,
    doubted: bool,
) -> Plan {
    let held = object.finalizers().iter().any(|name| name == finalizer);
    let going = object.metadata.deletion_timestamp.is_some();
    match (going, held, publishes) {
        _ if object.spec.attacher != driver => Plan::Nothing,
        (true, false, _) => Plan::Nothing,
        (true, true, true) => Plan::Unpublish,
        (true, true, false) => Plan::Release,
        (false, ..) if attachment::is_attached(object) && !doubted => Plan::Nothing,
        (false, _, true) => Plan::Publish,
        (false, _, false) => Plan::Confirm,
    }
}

/// Why the object of a volume can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnfitVolume {
    /// It is not there.
    #[error("the PersistentVolume {0} is not found; if it was deleted by mistake, create it again")]
    Missing(String),
    /// It is going.
    #[error("the PersistentVolume {0} is being deleted")]
    Deleting(String),
    /// It is of another kind.
    #[error("the PersistentVolume {0} is not a CSI volume of the driver {1}")]
    Foreign(String, String),
    /// Its access modes.
    #[error(transparent)]
    Request(#[from] RequestError),
}

/// A volume as the driver knows it.
pub(super) struct Target<'a> {
    pub(super) spec: &'a PersistentVolumeSpec,
    pub(super) csi: &'a CSIPersistentVolumeSource,
}

/// The volume of an attachment; of one for an inline volume, as the attachment has it.
pub(super) fn target<'a>(
    object: &'a VolumeAttachment,
    volume: Option<&'a PersistentVolume>,
    driver: &str,
) -> Result<Target<'a>, UnfitVolume> {
    let source = &object.spec.source;
    let name = source.persistent_volume_name.clone().unwrap_or_else(|| "(inline)".to_owned());
    let spec = match &source.inline_volume_spec {
        Some(spec) => Some(spec),
        None => volume.ok_or_else(|| UnfitVolume::Missing(name.clone()))?.spec.as_ref(),
    };
    let target = spec.and_then(|spec| Some(Target { spec, csi: spec.csi.as_ref()? }));
    target
        .filter(|target| target.csi.driver == driver)
        .ok_or_else(|| UnfitVolume::Foreign(name, driver.to_owned()))
}

/// What the driver can, as far as requests depend on it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ability {
    /// It publishes read-only.
    pub(super) read_only: bool,
    /// It tells single-node writers apart.
    pub(super) single_node_multi_writer: bool,
}

/// The request to attach a volume to the node with this id.
pub(super) fn publish(
    target: &Target<'_>,
    node_id: &str,
    ability: Ability,
    secrets: BTreeMap<String, String>,
) -> Result<ControllerPublishVolumeRequest, UnfitVolume> {
    let (spec, csi) = (target.spec, target.csi);
    let modes = spec.access_modes.as_deref().unwrap_or_default();
    let mode = request::access_mode(modes, ability.single_node_multi_writer)?;
    let access_type = if spec.volume_mode.as_deref() == Some("Block") {
        AccessType::Block(BlockVolume {})
    } else {
        AccessType::Mount(MountVolume {
            fs_type: csi.fs_type.clone().unwrap_or_default(),
            mount_flags: spec.mount_options.clone().unwrap_or_default(),
            volume_mount_group: String::new(),
        })
    };
    Ok(ControllerPublishVolumeRequest {
        volume_id: csi.volume_handle.clone(),
        node_id: node_id.to_owned(),
        volume_capability: Some(VolumeCapability {
            access_mode: Some(AccessMode { mode: mode as i32 }),
            access_type: Some(access_type),
        }),
        readonly: ability.read_only && csi.read_only == Some(true),
        secrets,
        volume_context: csi.volume_attributes.clone().unwrap_or_default(),
    })
}

/// Refuses to attach a volume that is going.
pub(super) fn is_staying(volume: Option<&PersistentVolume>) -> Result<(), UnfitVolume> {
    match volume.filter(|volume| volume.metadata.deletion_timestamp.is_some()) {
        Some(volume) => Err(UnfitVolume::Deleting(volume.name_any())),
        None => Ok(()),
    }
}

/// Whether a volume that is being deleted can be let go.
pub(super) fn can_let_go(
    volume: &PersistentVolume,
    driver: &str,
    finalizer: &str,
    attachments: usize,
) -> bool {
    let ours =
        volume.spec.as_ref().and_then(|spec| spec.csi.as_ref()).is_some_and(|csi| csi.driver == driver);
    ours && attachments == 0
        && volume.metadata.deletion_timestamp.is_some()
        && volume.finalizers().iter().any(|name| name == finalizer)
}

#[cfg(test)]
mod tests {
    use csi::v1::volume_capability::access_mode::Mode;
    use serde_json::{Value, json};

    use super::*;

    const DRIVER: &str = "d.example.com";
    const OURS: &str = "external-attacher/d-example-com";

    fn attachment(change: Value) -> VolumeAttachment {
        let mut object = json!({"metadata": {"name": "csi-1"}, "status": {"attached": false},
            "spec": {"attacher": DRIVER, "nodeName": "n1", "source": {"persistentVolumeName": "pv"}}});
        for (key, value) in change.as_object().into_iter().flatten() {
            object[key]
                .as_object_mut()
                .expect("an object")
                .extend(value.as_object().expect("an object").clone());
        }
        serde_json::from_value(object).expect("an attachment")
    }

    #[test]
    fn what_to_do_follows_from_the_attachment() {
        let going = "2026-01-01T00:00:00Z";
        for (change, publishes, doubted, expected) in [
            (json!({}), true, false, Plan::Publish),
            (json!({}), false, false, Plan::Confirm),
            (json!({"spec": {"attacher": "other"}}), true, false, Plan::Nothing),
            (json!({"status": {"attached": true}}), true, false, Plan::Nothing),
            (json!({"status": {"attached": true}}), true, true, Plan::Publish),
            (json!({"metadata": {"deletionTimestamp": going}}), true, false, Plan::Nothing),
            (
                json!({"metadata": {"deletionTimestamp": going, "finalizers": [OURS]}}),
                true,
                false,
                Plan::Unpublish,
            ),
            (
                json!({"metadata": {"deletionTimestamp": going, "finalizers": [OURS]}}),
                false,
                false,
                Plan::Release,
            ),
            (
                json!({"metadata": {"deletionTimestamp": going, "finalizers": [OURS]}, "status": {"attached": true}}),
                true,
                false,
                Plan::Unpublish,
            ),
            (
                json!({"metadata": {"deletionTimestamp": going, "finalizers": ["x/y"]}}),
                true,
                false,
                Plan::Nothing,
            ),
        ] {
            assert_eq!(
                plan(&attachment(change.clone()), DRIVER, OURS, publishes, doubted),
                expected,
                "{change}"
            );
        }
    }

    #[test]
    fn requests_follow_from_the_volume() {
        let volume: PersistentVolume = serde_json::from_value(json!({
            "metadata": {"name": "pv"},
            "spec": {"accessModes": ["ReadWriteOnce"], "mountOptions": ["noatime"], "csi": {
                "driver": DRIVER, "volumeHandle": "v1", "fsType": "xfs", "readOnly": true,
                "volumeAttributes": {"colour": "blue"}}},
        }))
        .expect("a volume");
        let object = attachment(json!({}));
        let of = |ability| {
            let target = target(&object, Some(&volume), DRIVER).expect("ours");
            publish(&target, "id-1", ability, BTreeMap::new()).expect("valid")
        };
        let plain = of(Ability::default());
        assert_eq!((plain.volume_id.as_str(), plain.node_id.as_str(), plain.readonly), ("v1", "id-1", false));
        assert_eq!(plain.volume_context["colour"], "blue");
        let capability = plain.volume_capability.expect("one");
        assert_eq!(capability.access_mode, Some(AccessMode { mode: Mode::SingleNodeWriter as i32 }));
        assert!(matches!(capability.access_type, Some(AccessType::Mount(mount))
            if mount.fs_type == "xfs" && mount.mount_flags == ["noatime"]));
        let able = of(Ability { read_only: true, single_node_multi_writer: true });
        assert!(able.readonly);

        let unfit = |object: &VolumeAttachment, volume| target(object, volume, DRIVER).err();
        assert_eq!(unfit(&object, None), Some(UnfitVolume::Missing("pv".to_owned())));
        let mut other = volume.clone();
        other.spec.as_mut().and_then(|spec| spec.csi.as_mut()).expect("csi").driver = "other".to_owned();
        assert!(matches!(unfit(&object, Some(&other)), Some(UnfitVolume::Foreign(..))));
        let inline = json!({"spec": {"source": {"inlineVolumeSpec": volume.spec}}});
        assert_eq!(unfit(&attachment(inline), None), None);
    }

    #[test]
    fn a_volume_goes_when_it_is_deleted_and_nowhere_attached() {
        let volume = |finalizers: &[&str], going: bool| -> PersistentVolume {
            let at = going.then_some("2026-01-01T00:00:00Z");
            serde_json::from_value(json!({
                "metadata": {"finalizers": finalizers, "deletionTimestamp": at},
                "spec": {"csi": {"driver": DRIVER, "volumeHandle": "v"}},
            }))
            .expect("a volume")
        };
        for (volume, attachments, expected) in [
            (volume(&[OURS], true), 0, true),
            (volume(&[OURS], true), 1, false),
            (volume(&[OURS], false), 0, false),
            (volume(&["x/y"], true), 0, false),
        ] {
            assert_eq!(can_let_go(&volume, DRIVER, OURS, attachments), expected, "{volume:?}");
        }
        assert!(is_staying(Some(&volume(&[], true))).is_err());
        assert!(is_staying(Some(&volume(&[], false))).is_ok());
    }
}
