//! Parameters of a storage class.

use super::{LARGEST_MAP, Refusal};
use drives::BackendKind;
use std::collections::BTreeMap;

const FIELD: &str = "parameters";
const BACKEND: &str = "orlop.dev/backend";

/// Facts about the claim that provisioners add to what the class says. They change nothing, and are noted on the drive.
const METADATA: [&str; 3] =
    ["csi.storage.k8s.io/pvc/name", "csi.storage.k8s.io/pvc/namespace", "csi.storage.k8s.io/pv/name"];

/// The backend that the parameters ask for.
pub(super) fn backend(parameters: &BTreeMap<String, String>) -> Result<Option<BackendKind>, Refusal> {
    let size = parameters.iter().map(|(key, value)| key.len() + value.len()).sum();
    if size > LARGEST_MAP {
        return Err(Refusal::TooLong { field: FIELD, length: size, limit: LARGEST_MAP });
    }
    let mut backend = None;
    for (key, value) in parameters {
        match key.as_str() {
            BACKEND => {
                let kind = value.parse().map_err(|unknown: drives::UnknownBackend| Refusal::Invalid {
                    field: FIELD,
                    why: format!("{BACKEND}: {unknown}"),
                })?;
                backend = Some(kind);
            }
            key if METADATA.contains(&key) => {}
            key => {
                return Err(Refusal::Invalid {
                    field: FIELD,
                    why: format!("{key:?} is unknown; remove it (this driver knows {BACKEND})"),
                });
            }
        }
    }
    Ok(backend)
}

/// What of the parameters is noted with the volume: which claim it was made for.
pub(super) fn notes(mut parameters: BTreeMap<String, String>) -> BTreeMap<String, String> {
    parameters.retain(|key, _| METADATA.contains(&key.as_str()));
    parameters
}

/// Facts about a snapshot that snapshotters add to what the class says. They change nothing.
const SNAPSHOT_METADATA: [&str; 3] = [
    "csi.storage.k8s.io/volumesnapshot/name",
    "csi.storage.k8s.io/volumesnapshot/namespace",
    "csi.storage.k8s.io/volumesnapshotcontent/name",
];

/// Snapshots have no parameters.
pub(super) fn of_snapshot(parameters: &BTreeMap<String, String>) -> Result<(), Refusal> {
    match parameters.keys().find(|key| !SNAPSHOT_METADATA.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => Err(Refusal::Invalid {
            field: FIELD,
            why: format!("{key:?} is unknown; remove it (snapshots of this driver have no parameters)"),
        }),
    }
}

/// No parameter of this driver can be changed later.
pub(super) fn none_mutable(parameters: &BTreeMap<String, String>) -> Result<(), Refusal> {
    match parameters.keys().next() {
        None => Ok(()),
        Some(key) => Err(Refusal::Unserved {
            what: format!("the mutable parameter {key:?}"),
            instead: "volumes of this driver can't be modified; remove it (VolumeAttributesClass)",
        }),
    }
}
