//! From a pod's claim to the volume that is to be mounted, read live: what Kubernetes checks before it mounts.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

use resources::{affinity, annotations, finalizers};

use super::flex::FlexVolume;

/// Why a claim can't be mounted now.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum ClaimError {
    #[error("error getting PVC {0}: not found")]
    Missing(String),
    #[error("PVC {0} was not created for this pod: delete it, or rename the pod")]
    Foreign(String),
    #[error("PVC {0} is being deleted")]
    Deleting(String),
    #[error("PVC {0} is not bound")]
    Unbound(String),
    #[error("PV {volume} of PVC {claim} not found")]
    NoVolume { claim: String, volume: String },
    #[error("PV {volume} is not bound to PVC {claim}: its claimRef names another claim or none")]
    Stolen { claim: String, volume: String },
    #[error("volume {volume} has volumeMode {mode}, but is specified in {list}")]
    Mode { volume: String, mode: &'static str, list: &'static str },
    #[error(
        "PV {0} is neither a CSI volume, nor a directory of the node (local, hostPath), nor a flexVolume: other volume plugins are not served by this node agent yet"
    )]
    Plugin(String),
    #[error(
        "PV {0} is a local volume of volumeMode Block, which is not served by this node agent yet: use a directory"
    )]
    LocalBlock(String),
    #[error("PV {volume}'s node affinity does not match node {node}")]
    Affinity { volume: String, node: String },
}

/// A volume to be mounted, with what of its objects matters on a node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ClaimedVolume {
    /// Name of the PersistentVolume, or of the pod's own volume: the directory's name.
    pub(crate) name: String,
    pub(crate) driver: String,
    pub(crate) handle: String,
    pub(crate) attributes: std::collections::BTreeMap<String, String>,
    /// It is given to pods as a device.
    pub(crate) block: bool,
    /// The pod's manifest describes it: its driver makes it when it is published, and it is never staged.
    pub(crate) inline: bool,
    pub(crate) fs_type: String,
    pub(crate) read_only: bool,
    pub(crate) access_modes: Vec<String>,
    pub(crate) mount_options: Vec<String>,
    pub(crate) stage_secret: Option<(String, String)>,
    pub(crate) publish_secret: Option<(String, String)>,
    pub(crate) expand_secret: Option<(String, String)>,
    /// A group that the volume's files belong to (annotation).
    pub(crate) group: Option<i64>,
}

/// What is behind a claim.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Claimed {
    Csi(Box<ClaimedVolume>),
    Directory(ClaimedDirectory),
    Flex(FlexVolume),
}

/// A PersistentVolume that is a directory of this node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ClaimedDirectory {
    pub(crate) volume: String,
    pub(crate) path: PathBuf,
    /// The type of a hostPath; a local volume must be there.
    pub(crate) kind: String,
    /// Of the plugin `local`, whose files are given to the pod's group.
    pub(crate) local: bool,
}

/// Checks the claim; gives the name of its volume.
pub(crate) fn volume_name(name: &str, claim: Option<&PersistentVolumeClaim>) -> Result<String, ClaimError> {
    let claim = claim.ok_or_else(|| ClaimError::Missing(name.into()))?;
    let protected =
        claim.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == finalizers::CLAIM_PROTECTION);
    if claim.metadata.deletion_timestamp.is_some() && !protected {
        return Err(ClaimError::Deleting(name.into()));
    }
    let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
    let volume =
        claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).filter(|name| !name.is_empty());
    match (phase, volume) {
        (Some("Bound"), Some(volume)) => Ok(volume),
        _ => Err(ClaimError::Unbound(name.into())),
    }
}

/// Checks that a pod wants its volume as what it is, given whether containers want a device, and a mount.
pub(crate) fn check_mode(volume: &str, block: bool, (device, mount): (bool, bool)) -> Result<(), ClaimError> {
    let refused = |mode, list| Err(ClaimError::Mode { volume: volume.into(), mode, list });
    match block {
        true if mount => refused("Block", "volumeMounts"),
        false if device => refused("Filesystem", "volumeDevices"),
        _ => Ok(()),
    }
}

/// Checks the volume against its claim and the node.
pub(crate) fn resolve(
    claim: &PersistentVolumeClaim,
    volume: Option<&PersistentVolume>,
    name: &str,
    node: &str,
    labels: &std::collections::BTreeMap<String, String>,
) -> Result<Claimed, ClaimError> {
    let claim_name = claim.metadata.name.clone().unwrap_or_default();
    let volume =
        volume.ok_or_else(|| ClaimError::NoVolume { claim: claim_name.clone(), volume: name.into() })?;
    let spec = volume.spec.clone().unwrap_or_default();
    if spec.claim_ref.as_ref().and_then(|reference| reference.uid.as_ref()) != claim.metadata.uid.as_ref() {
        return Err(ClaimError::Stolen { claim: claim_name, volume: name.into() });
    }
    let required = spec.node_affinity.as_ref().and_then(|affinity| affinity.required.as_ref());
    if required.is_some_and(|required| !affinity::admits(required, node, labels)) {
        return Err(ClaimError::Affinity { volume: name.into(), node: node.into() });
    }
    let directory = |path: String, kind: Option<String>, local| {
        let kind = kind.unwrap_or_default();
        Claimed::Directory(ClaimedDirectory { volume: name.into(), path: path.into(), kind, local })
    };
    let is_block = spec.volume_mode.as_deref() == Some("Block");
    if let Some(flex) = spec.flex_volume {
        let claims = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()?.namespace.clone());
        let secret = flex.secret_ref.and_then(|secret| Some((secret.namespace.or(claims)?, secret.name?)));
        return Ok(Claimed::Flex(FlexVolume {
            driver: flex.driver,
            fs_type: flex.fs_type.unwrap_or_default(),
            read_only: flex.read_only.unwrap_or(false),
            options: flex.options.unwrap_or_default(),
            secret,
        }));
    }
    let csi = match (spec.csi, spec.local, spec.host_path) {
        (Some(csi), _, _) => csi,
        (_, Some(_), _) if is_block => return Err(ClaimError::LocalBlock(name.into())),
        (_, Some(local), _) => return Ok(directory(local.path, Some("Directory".into()), true)),
        (_, _, Some(host)) => return Ok(directory(host.path, host.type_, false)),
        _ => return Err(ClaimError::Plugin(name.into())),
    };
    let annotation = |key: &str| volume.metadata.annotations.as_ref().and_then(|map| map.get(key));
    let secret = |reference: Option<k8s_openapi::api::core::v1::SecretReference>| {
        reference.and_then(|secret| Some((secret.namespace?, secret.name?)))
    };
    let mut mount_options: Vec<String> = annotation(annotations::BETA_MOUNT_OPTIONS)
        .map(|list| list.split(',').map(|option| option.trim().to_owned()).collect())
        .unwrap_or_default();
    mount_options.extend(spec.mount_options.unwrap_or_default());
    mount_options.retain(|option| !option.is_empty());
    mount_options.dedup();
    Ok(Claimed::Csi(Box::new(ClaimedVolume {
        name: name.into(),
        driver: csi.driver,
        handle: csi.volume_handle,
        attributes: csi.volume_attributes.unwrap_or_default(),
        block: is_block,
        inline: false,
        fs_type: csi.fs_type.unwrap_or_default(),
        read_only: csi.read_only.unwrap_or(false),
        access_modes: spec.access_modes.unwrap_or_default(),
        mount_options,
        stage_secret: secret(csi.node_stage_secret_ref),
        publish_secret: secret(csi.node_publish_secret_ref),
        expand_secret: secret(csi.node_expand_secret_ref),
        group: annotation(annotations::VOLUME_GID).and_then(|text| text.parse().ok()),
    })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn claim(patch: Value) -> PersistentVolumeClaim {
        let mut value = json!({"metadata": {"name": "data", "uid": "c1"},
            "spec": {"volumeName": "pv"}, "status": {"phase": "Bound"}});
        json_patch_merge(&mut value, &patch);
        serde_json::from_value(value).unwrap()
    }

    fn volume(patch: Value) -> PersistentVolume {
        let mut value = json!({"metadata": {"name": "pv"}, "spec": {
            "claimRef": {"uid": "c1"}, "accessModes": ["ReadWriteOnce"],
            "csi": {"driver": "orlop.dev", "volumeHandle": "h"}}});
        json_patch_merge(&mut value, &patch);
        serde_json::from_value(value).unwrap()
    }

    fn json_patch_merge(target: &mut Value, patch: &Value) {
        if let (Value::Object(target), Value::Object(patch)) = (&mut *target, patch) {
            for (key, value) in patch {
                json_patch_merge(target.entry(key).or_insert(Value::Null), value);
            }
        } else {
            *target = patch.clone();
        }
    }

    #[test]
    fn claims_are_mounted_only_when_bound_and_wanted() {
        let deleting = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
        let protected = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z",
                               "finalizers": ["kubernetes.io/pvc-protection"]}});
        assert_eq!(volume_name("data", None), Err(ClaimError::Missing("data".into())));
        for (patch, expected) in [
            (json!({}), Ok("pv".to_owned())),
            (json!({"status": {"phase": "Pending"}}), Err(ClaimError::Unbound("data".into()))),
            (json!({"spec": {"volumeName": ""}}), Err(ClaimError::Unbound("data".into()))),
            (deleting, Err(ClaimError::Deleting("data".into()))),
            (protected, Ok("pv".to_owned())),
        ] {
            assert_eq!(volume_name("data", Some(&claim(patch.clone()))), expected, "{patch}");
        }
    }

    #[test]
    fn a_volume_is_used_as_what_it_is() {
        for (block, uses, expected) in [
            (true, (true, false), Ok(())),
            (false, (false, true), Ok(())),
            (true, (false, true), Err("volume disk has volumeMode Block, but is specified in volumeMounts")),
            (true, (true, true), Err("volume disk has volumeMode Block, but is specified in volumeMounts")),
            (
                false,
                (true, false),
                Err("volume disk has volumeMode Filesystem, but is specified in volumeDevices"),
            ),
        ] {
            let said = check_mode("disk", block, uses).map_err(|error| error.to_string());
            assert_eq!(said, expected.map_err(str::to_owned), "{block} {uses:?}");
        }
    }

    #[test]
    fn volumes_are_mounted_only_for_their_claim_here() {
        let labels = std::collections::BTreeMap::new();
        let of = |patch: Value| {
            resolve(&claim(json!({})), Some(&volume(patch)), "pv", "n1", &labels).map(|volume| match volume {
                Claimed::Csi(volume) => volume.mount_options,
                Claimed::Directory(directory) => {
                    vec![format!("{} {} {}", directory.path.display(), directory.kind, directory.local)]
                }
                Claimed::Flex(flex) => vec![format!("{} {:?}", flex.driver, flex.secret)],
            })
        };
        let stolen = ClaimError::Stolen { claim: "data".into(), volume: "pv".into() };
        assert_eq!(of(json!({"spec": {"mountOptions": ["noatime"]}})), Ok(vec!["noatime".to_owned()]));
        assert_eq!(of(json!({"spec": {"claimRef": {"uid": "c2"}}})), Err(stolen.clone()));
        assert_eq!(of(json!({"spec": {"claimRef": null}})), Err(stolen));
        assert_eq!(of(json!({"spec": {"csi": null}})), Err(ClaimError::Plugin("pv".into())));
        let found = |text: &str| Ok(vec![text.to_owned()]);
        assert_eq!(of(json!({"spec": {"csi": null, "local": {"path": "/d"}}})), found("/d Directory true"));
        assert_eq!(of(json!({"spec": {"csi": null, "hostPath": {"path": "/h"}}})), found("/h  false"));
        let flex = json!({"driver": "v/d", "secretRef": {"name": "s"}});
        let claimed = json!({"uid": "c1", "namespace": "team"});
        assert_eq!(
            of(json!({"spec": {"csi": null, "flexVolume": flex, "claimRef": claimed}})),
            found("v/d Some((\"team\", \"s\"))")
        );
        assert_eq!(
            of(json!({"spec": {"csi": null, "local": {"path": "/d"}, "volumeMode": "Block"}})),
            Err(ClaimError::LocalBlock("pv".into()))
        );
        assert_eq!(
            of(json!({"spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": []}}}})),
            Err(ClaimError::Affinity { volume: "pv".into(), node: "n1".into() })
        );
    }
}
