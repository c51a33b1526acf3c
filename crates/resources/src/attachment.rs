//! VolumeAttachments: which volumes are to be attached to which nodes.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeSpec};
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment, VolumeError};
use sha2::{Digest, Sha256};

const NAME_PREFIX: &str = "csi-";
const STATUS_PREFIX: &str = "kubernetes.io/csi/";

/// The name of the VolumeAttachment of a CSI volume on a node: the same from whoever computes it.
pub fn name(handle: &str, driver: &str, node: &str) -> String {
    let digest = Sha256::digest(format!("{handle}{driver}{node}").as_bytes());
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{NAME_PREFIX}{hex}")
}

/// Whether a name has the form of [`name`]. Attachments that people make by hand have others.
pub fn is_computed(name: &str) -> bool {
    let digits = name.strip_prefix(NAME_PREFIX).unwrap_or_default().as_bytes();
    digits.len() == 64 && digits.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
}

/// The name of a CSI volume in `volumesInUse` and `volumesAttached` of a Node's status.
pub fn status_name(driver: &str, handle: &str) -> String {
    format!("{STATUS_PREFIX}{driver}^{handle}")
}

/// Driver and handle in a name by [`status_name`].
pub fn parse_status_name(name: &str) -> Option<(&str, &str)> {
    name.strip_prefix(STATUS_PREFIX)?.split_once('^')
}

/// The [`status_name`] of a CSI volume's object.
pub fn status_name_of(volume: &PersistentVolume) -> Option<String> {
    let csi = volume.spec.as_ref()?.csi.as_ref()?;
    Some(status_name(&csi.driver, &csi.volume_handle))
}

/// Whether volumes of a driver must be attached before they are mounted; so they must if nothing says otherwise.
pub fn is_required(driver: Option<&CSIDriver>) -> bool {
    driver.and_then(|driver| driver.spec.attach_required).unwrap_or(true)
}

/// The PersistentVolume that shall be attached; none for a volume that a pod defines inline.
pub fn volume(attachment: &VolumeAttachment) -> Option<&str> {
    attachment.spec.source.persistent_volume_name.as_deref()
}

/// Whether the attacher says that the volume is attached.
pub fn is_attached(attachment: &VolumeAttachment) -> bool {
    attachment.status.as_ref().is_some_and(|status| status.attached)
}

/// The failure of an attachment whose node has no room for another volume: RESOURCE_EXHAUSTED, says the driver.
pub fn out_of_room(attachment: &VolumeAttachment) -> Option<&VolumeError> {
    const RESOURCE_EXHAUSTED: i32 = 8;
    let error = attachment.status.as_ref()?.attach_error.as_ref()?;
    (error.error_code == Some(RESOURCE_EXHAUSTED)).then_some(error)
}

/// Whether a volume may be attached to several nodes: it has a mode for many nodes, or none at all.
pub fn may_be_shared(volume: &PersistentVolumeSpec) -> bool {
    let modes = volume.access_modes.as_deref().unwrap_or_default();
    modes.is_empty() || modes.iter().any(|mode| matches!(mode.as_str(), "ReadWriteMany" | "ReadOnlyMany"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_kubernetes_computes() {
        let name = name("vol-1", "csi.example.com", "n1");
        assert_eq!(name, "csi-7f0cbc9a847afb6d66cd7c8a07cd6430de4c5dec35de8924cff09a5c92d56128");
        assert!(is_computed(&name));
        for other in ["csi-12", "mine", &name[..67], &format!("{name}0"), &name.to_uppercase()] {
            assert!(!is_computed(other), "{other}");
        }
        let status = status_name("csi.example.com", "a^b");
        assert_eq!(status, "kubernetes.io/csi/csi.example.com^a^b");
        assert_eq!(parse_status_name(&status), Some(("csi.example.com", "a^b")));
        assert_eq!(parse_status_name("kubernetes.io/nfs/x"), None);
    }

    #[test]
    fn volumes_are_exclusive_unless_a_mode_is_for_many_nodes() {
        for (modes, shared) in [
            (vec![], true),
            (vec!["ReadWriteOnce"], false),
            (vec!["ReadWriteOncePod"], false),
            (vec!["ReadWriteOnce", "ReadOnlyMany"], true),
            (vec!["ReadWriteMany"], true),
        ] {
            let modes = modes.into_iter().map(str::to_owned).collect();
            let spec = PersistentVolumeSpec { access_modes: Some(modes), ..PersistentVolumeSpec::default() };
            assert_eq!(may_be_shared(&spec), shared, "{spec:?}");
        }
    }
}
