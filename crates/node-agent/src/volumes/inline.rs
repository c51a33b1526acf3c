//! Volumes that a pod's own manifest describes for a CSI driver (`csi` of the pod's volume): there is neither claim nor
//! PersistentVolume, the driver makes the volume when it is published, and removes it when it is taken from the pod.

use k8s_openapi::api::{core::v1::CSIVolumeSource, storage::v1::CSIDriver};
use sha2::{Digest, Sha256};

use super::{claim::ClaimedVolume, csi::CsiError};

/// The two lives that a driver's volumes may have, as its CSIDriver lists them.
pub(super) const INLINE: &str = "Ephemeral";
pub(super) const PERSISTENT: &str = "Persistent";

/// The volume that a pod describes under this name.
pub(crate) fn resolve(uid: &str, name: &str, namespace: &str, source: CSIVolumeSource) -> ClaimedVolume {
    let secret = source.node_publish_secret_ref.map(|secret| (namespace.to_owned(), secret.name));
    ClaimedVolume {
        name: name.to_owned(),
        driver: source.driver,
        handle: handle(uid, name),
        attributes: source.volume_attributes.unwrap_or_default(),
        block: false,
        inline: true,
        fs_type: source.fs_type.unwrap_or_default(),
        read_only: source.read_only.unwrap_or(false),
        access_modes: vec!["ReadWriteOnce".to_owned()],
        mount_options: Vec::new(),
        stage_secret: None,
        publish_secret: secret,
        expand_secret: None,
        group: None,
    }
}

/// The identity that the volume has for its driver: the same at every try, and as kubelet gives it.
pub(super) fn handle(uid: &str, name: &str) -> String {
    let digest = Sha256::digest(format!("{uid}{name}").as_bytes());
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("csi-{hex}")
}

/// Refuses a life that the driver's volumes don't have. A driver that says nothing has persistent ones.
pub(crate) fn check_life(driver: &str, object: Option<&CSIDriver>, inline: bool) -> Result<(), CsiError> {
    let mode = if inline { INLINE } else { PERSISTENT };
    let persistent = [PERSISTENT.to_owned()];
    let modes =
        object.and_then(|object| object.spec.volume_lifecycle_modes.as_deref()).unwrap_or(&persistent);
    if modes.iter().any(|one| one == mode) || modes.is_empty() && !inline {
        return Ok(());
    }
    let why = match object {
        Some(_) => format!("only supports {}", modes.join(", ")),
        None => "no CSIDriver object".to_owned(),
    };
    Err(CsiError::Lifecycle { driver: driver.to_owned(), mode, why })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_inline_volume_is_the_pods_own() {
        let source = json!({"driver": "d", "volumeAttributes": {"orlop.dev/size": "1Gi"}, "readOnly": true,
            "nodePublishSecretRef": {"name": "key"}});
        let source: CSIVolumeSource = serde_json::from_value(source).unwrap();
        let volume = resolve("u1", "scratch", "shop", source.clone());
        // printf u1scratch | sha256sum
        assert_eq!(volume.handle, "csi-c8c135b044e4505c2e1d97317834afdda287006a636d3f503243e6d708883cb4");
        assert_ne!(volume.handle, resolve("u2", "scratch", "shop", source).handle);
        assert_eq!(volume.publish_secret, Some(("shop".to_owned(), "key".to_owned())));
        assert!(volume.inline && volume.read_only && !volume.block);
    }

    #[test]
    fn a_driver_says_which_lives_its_volumes_have() {
        let object = |modes: Option<&[&str]>| CSIDriver {
            spec: serde_json::from_value(json!({"volumeLifecycleModes": modes})).unwrap(),
            ..CSIDriver::default()
        };
        for (object, persistent, inline) in [
            (None, true, false),
            (Some(object(None)), true, false),
            (Some(object(Some(&[]))), true, false),
            (Some(object(Some(&["Persistent"]))), true, false),
            (Some(object(Some(&["Ephemeral"]))), false, true),
            (Some(object(Some(&["Persistent", "Ephemeral"]))), true, true),
        ] {
            let lives = [false, true].map(|inline| check_life("d", object.as_ref(), inline).is_ok());
            assert_eq!(lives, [persistent, inline], "{object:?}");
        }
        let refused = check_life("d", None, true).unwrap_err().to_string();
        assert_eq!(refused, "volume mode \"Ephemeral\" not supported by driver d (no CSIDriver object)");
    }
}
