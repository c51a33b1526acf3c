//! The volumes of pods: what each kind is, how it is set up and torn down.

pub(crate) mod atomic;
mod capability;
pub(crate) mod claim;
pub(crate) mod content;
pub(crate) mod csi;
pub(crate) mod directory;
pub(crate) mod flex;
pub(crate) mod growth;
pub(crate) mod host_path;
pub(crate) mod inline;
pub(crate) mod local;
pub(crate) mod places;
pub(crate) mod recover;
pub(crate) mod stages;
pub(crate) mod subpath;

use std::{io, path::PathBuf};

use k8s_openapi::api::core::v1::{CSIVolumeSource, Container, Pod, Volume};

use linux::Host;

use crate::{
    layout::{self, Layout},
    leftovers::Leftover,
    plan::VolumeDirectory,
    records::RecordError,
};

/// What stands behind a volume of a pod.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Source {
    /// A fresh directory, or a tmpfs.
    EmptyDir {
        memory: bool,
        size: Option<u64>,
    },
    HostPath {
        path: PathBuf,
        kind: String,
    },
    /// Files made from objects of the API.
    Content {
        plugin: &'static str,
        memory: bool,
    },
    Claim {
        name: String,
        read_only: bool,
    },
    /// A claim that belongs to the pod and is named after it.
    Ephemeral,
    /// A volume that a CSI driver makes for the pod.
    Inline(CSIVolumeSource),
    /// A volume that a driver's program mounts; its secret is in the pod's namespace.
    Flex(flex::FlexVolume),
    /// A kind that this node agent does not serve, by its name in the API.
    Unserved(String),
}

impl Source {
    /// The source of a volume of a pod.
    pub(crate) fn of(volume: &Volume) -> Source {
        if let Some(source) = &volume.empty_dir {
            let size = source
                .size_limit
                .as_ref()
                .and_then(|size| size.0.parse::<values::Quantity>().ok()?.ceil_bytes());
            return match source.medium.as_deref().unwrap_or_default() {
                "" => Source::EmptyDir { memory: false, size },
                "Memory" => Source::EmptyDir { memory: true, size },
                other => Source::Unserved(format!("emptyDir of medium {other}")),
            };
        }
        if let Some(source) = &volume.host_path {
            return Source::HostPath {
                path: PathBuf::from(&source.path),
                kind: source.type_.clone().unwrap_or_default(),
            };
        }
        if let Some(source) = &volume.persistent_volume_claim {
            return Source::Claim {
                name: source.claim_name.clone(),
                read_only: source.read_only.unwrap_or(false),
            };
        }
        if volume.ephemeral.is_some() {
            return Source::Ephemeral;
        }
        if let Some(source) = &volume.csi {
            return Source::Inline(source.clone());
        }
        if let Some(source) = &volume.flex_volume {
            return Source::Flex(flex::FlexVolume {
                driver: source.driver.clone(),
                fs_type: source.fs_type.clone().unwrap_or_default(),
                read_only: source.read_only.unwrap_or(false),
                options: source.options.clone().unwrap_or_default(),
                secret: source.secret_ref.as_ref().map(|secret| (String::new(), secret.name.clone())),
            });
        }
        if volume.config_map.is_some() {
            return Source::Content { plugin: layout::CONFIG_MAP, memory: false };
        }
        if volume.secret.is_some() {
            return Source::Content { plugin: layout::SECRET, memory: true };
        }
        if volume.downward_api.is_some() {
            return Source::Content { plugin: layout::DOWNWARD, memory: false };
        }
        if volume.projected.is_some() {
            return Source::Content { plugin: layout::PROJECTED, memory: true };
        }
        let kind = serde_json::to_value(volume)
            .ok()
            .and_then(|value| value.as_object()?.keys().find(|key| *key != "name").cloned());
        Source::Unserved(kind.unwrap_or_else(|| "volume without a source".into()))
    }
}

/// Unmounts and removes a volume that no CSI driver made. Blocks.
pub(crate) fn tear_down(
    host: &dyn Host,
    layout: &Layout,
    uid: &str,
    volume: &VolumeDirectory,
) -> Result<Option<Leftover>, VolumeError> {
    match flex::is_plugin(&volume.plugin) {
        true => flex::tear_down(host, layout, uid, volume),
        false => local::tear_down(host, layout, uid, volume).map(|()| None),
    }
}

/// The volumes of the pod that a container mounts; others are not set up.
pub(crate) fn used(pod: &Pod) -> Vec<&Volume> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let containers = || spec.init_containers.iter().flatten().chain(&spec.containers);
    let names = |container: &Container| -> Vec<String> {
        let mounts = container.volume_mounts.iter().flatten().map(|mount| mount.name.clone());
        mounts.chain(container.volume_devices.iter().flatten().map(|device| device.name.clone())).collect()
    };
    let names: std::collections::BTreeSet<String> = containers().flat_map(names).collect();
    spec.volumes.iter().flatten().filter(|volume| names.contains(&volume.name)).collect()
}

/// Whether a container gets the volume of this name as a device, and whether one gets it mounted.
pub(crate) fn uses(pod: &Pod, volume: &str) -> (bool, bool) {
    let spec = pod.spec.as_ref();
    let containers =
        || spec.into_iter().flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers));
    let mut devices = containers().flat_map(|container| container.volume_devices.iter().flatten());
    let mut mounts = containers().flat_map(|container| container.volume_mounts.iter().flatten());
    (devices.any(|device| device.name == volume), mounts.any(|mount| mount.name == volume))
}

/// Whether the pod mounts the claim read-only only. Volumes of a pod that name the same claim are one mount, which a
/// single volume that may be written makes writable; containers get it as their volume says.
pub(crate) fn reads_only(pod: &Pod, claim: &str) -> bool {
    used(pod).into_iter().all(|volume| match Source::of(volume) {
        Source::Claim { name, read_only } => read_only || name != claim,
        _ => true,
    })
}

/// Why a volume is not there yet, or not gone yet. The text goes into the pod's event.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    #[error(
        "volumes of kind {0} are not served by this node agent yet; it serves emptyDir, hostPath, configMap, secret, downwardAPI, projected, persistentVolumeClaim, ephemeral, csi and flexVolume"
    )]
    Unserved(String),
    #[error("subPath \"{path}\" can't be mounted: {why}")]
    SubPath { path: String, why: String },
    #[error("{0}")]
    HostPath(String),
    #[error(transparent)]
    Flex(#[from] flex::FlexError),
    #[error(transparent)]
    Content(#[from] content::ContentError),
    #[error(transparent)]
    Claim(#[from] claim::ClaimError),
    #[error(transparent)]
    Csi(#[from] csi::CsiError),
    #[error("NodeExpandVolume failed: {0}")]
    Growth(#[source] Box<VolumeError>),
    #[error("cannot {action}: {}", linux::in_words(source))]
    Files { action: &'static str, source: io::Error },
    #[error(transparent)]
    Host(#[from] linux::Error),
    #[error("the API server was asked in vain: {}", runtime::explain(.0))]
    Api(#[from] kube::Error),
    #[error("the secret {namespace}/{name} can't be handed to the driver: {source}")]
    Secret { namespace: String, name: String, source: resources::secret::NotText },
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("{0}")]
    Leftover(String),
    #[error("{0} took longer than a minute: a device or file system may hang, see the kernel's log")]
    Stuck(&'static str),
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_volume_may_be_wanted_as_a_device_mounted_or_both() {
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [
            {"name": "a", "volumeDevices": [{"name": "disk", "devicePath": "/dev/disk"}, {"name": "both", "devicePath": "/d"}]},
            {"name": "b", "volumeMounts": [{"name": "files", "mountPath": "/a"}, {"name": "both", "mountPath": "/b"}]}]}}))
        .unwrap();
        for (volume, expected) in [
            ("disk", (true, false)),
            ("files", (false, true)),
            ("both", (true, true)),
            ("none", (false, false)),
        ] {
            assert_eq!(uses(&pod, volume), expected, "{volume}");
        }
    }

    #[test]
    fn a_claim_is_read_only_when_all_its_volumes_are() {
        let volume = |name: &str, claim: &str, read_only: bool| json!({"name": name, "persistentVolumeClaim": {"claimName": claim, "readOnly": read_only}});
        for (volumes, expected) in [
            (vec![volume("a", "data", true)], true),
            (vec![volume("a", "data", false)], false),
            (vec![volume("a", "data", true), volume("b", "data", false)], false),
            (vec![volume("a", "data", true), volume("b", "other", false)], true),
            (vec![volume("a", "data", true), volume("unused", "data", false)], true),
        ] {
            let pod: Pod = serde_json::from_value(json!({"spec": {"volumes": volumes, "containers": [{
                "name": "c", "volumeMounts": [{"name": "a", "mountPath": "/a"}, {"name": "b", "mountPath": "/b"}]}]}}))
            .unwrap();
            assert_eq!(reads_only(&pod, "data"), expected, "{volumes:?}");
        }
    }
}
