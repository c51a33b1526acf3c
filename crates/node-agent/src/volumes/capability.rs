//! What a driver is asked to make of a volume for a pod.

use csi::v1::{
    VolumeCapability,
    volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume, access_mode::Mode},
};
use k8s_openapi::api::storage::v1::CSIDriver;

use super::claim::ClaimedVolume;

/// How the volume is wanted of its driver.
pub(super) fn of(
    volume: &ClaimedVolume,
    single_node_multi_writer: bool,
    group: Option<u32>,
) -> VolumeCapability {
    let mount = || MountVolume {
        fs_type: volume.fs_type.clone(),
        mount_flags: volume.mount_options.clone(),
        volume_mount_group: group.map(|group| group.to_string()).unwrap_or_default(),
    };
    VolumeCapability {
        access_type: Some(match volume.block {
            true => AccessType::Block(BlockVolume {}),
            false => AccessType::Mount(mount()),
        }),
        access_mode: Some(AccessMode {
            mode: access_mode(volume.access_modes.first().map(String::as_str), single_node_multi_writer)
                as i32,
        }),
    }
}

/// The CSI access mode of a PersistentVolume's first access mode, as kubelet maps it.
fn access_mode(mode: Option<&str>, single_node_multi_writer: bool) -> Mode {
    match (mode, single_node_multi_writer) {
        (Some("ReadWriteOnce"), true) => Mode::SingleNodeMultiWriter,
        (Some("ReadWriteOncePod"), true) => Mode::SingleNodeSingleWriter,
        (Some("ReadWriteOnce" | "ReadWriteOncePod"), false) => Mode::SingleNodeWriter,
        (Some("ReadOnlyMany"), _) => Mode::MultiNodeReaderOnly,
        (Some("ReadWriteMany"), _) => Mode::MultiNodeMultiWriter,
        _ => Mode::Unknown,
    }
}

/// Whether the volume's files are to be given to the pod's fsGroup.
pub(super) fn fs_group_applies(volume: &ClaimedVolume, object: Option<&CSIDriver>, read_only: bool) -> bool {
    if read_only || volume.read_only || volume.block {
        return false;
    }
    let policy = object.and_then(|object| object.spec.fs_group_policy.as_deref());
    match policy.unwrap_or("ReadWriteOnceWithFSType") {
        "None" => false,
        "File" => true,
        _ => {
            let once = ["ReadWriteOnce", "ReadWriteOncePod"];
            !volume.fs_type.is_empty() && volume.access_modes.iter().any(|mode| once.contains(&mode.as_str()))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn access_modes_are_mapped_as_kubelet_does() {
        for (mode, capable, expected) in [
            ("ReadWriteOnce", false, Mode::SingleNodeWriter),
            ("ReadWriteOnce", true, Mode::SingleNodeMultiWriter),
            ("ReadWriteOncePod", false, Mode::SingleNodeWriter),
            ("ReadWriteOncePod", true, Mode::SingleNodeSingleWriter),
            ("ReadOnlyMany", true, Mode::MultiNodeReaderOnly),
            ("ReadWriteMany", false, Mode::MultiNodeMultiWriter),
            ("Strange", false, Mode::Unknown),
        ] {
            assert_eq!(access_mode(Some(mode), capable), expected, "{mode} {capable}");
        }
    }

    #[test]
    fn fs_group_follows_the_drivers_policy() {
        let volume = |fs_type: &str, mode: &str| ClaimedVolume {
            name: "pv".into(),
            driver: "d".into(),
            handle: "h".into(),
            attributes: BTreeMap::new(),
            block: false,
            inline: false,
            fs_type: fs_type.into(),
            read_only: false,
            access_modes: vec![mode.into()],
            mount_options: vec![],
            stage_secret: None,
            publish_secret: None,
            expand_secret: None,
            group: None,
        };
        let driver = |policy: &str| {
            let mut driver = CSIDriver::default();
            driver.spec.fs_group_policy = Some(policy.into());
            driver
        };
        for (policy, fs_type, mode, read_only, expected) in [
            (None, "ext4", "ReadWriteOnce", false, true),
            (None, "", "ReadWriteOnce", false, false),
            (None, "ext4", "ReadWriteMany", false, false),
            (Some("ReadWriteOnceWithFSType"), "ext4", "ReadWriteOncePod", false, true),
            (Some("File"), "", "ReadWriteMany", false, true),
            (Some("File"), "", "ReadWriteMany", true, false),
            (Some("None"), "ext4", "ReadWriteOnce", false, false),
        ] {
            let object = policy.map(driver);
            assert_eq!(
                fs_group_applies(&volume(fs_type, mode), object.as_ref(), read_only),
                expected,
                "{policy:?}"
            );
        }
    }
}
