//! Claims and volumes.

use jiff::Timestamp;
use serde_json::Value;
use values::{AccessMode, AccessModes};

use super::{
    Column, age,
    columns::{AGE, NAME, column, wide},
};
use crate::kinds::fields::{items, text};

const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
const UNSET: &str = "<unset>";

pub(super) const CLAIM_COLUMNS: &[Column] = &[
    NAME,
    column("Status", "string", "Phase of the claim."),
    column("Volume", "string", "Volume that the claim is bound to."),
    column("Capacity", "string", "Size of that volume."),
    column("Access Modes", "string", "Ways in which that volume can be mounted."),
    column("StorageClass", "string", "Storage class that the claim asks for."),
    column("VolumeAttributesClass", "string", "Volume attributes class that the claim asks for."),
    AGE,
    wide("VolumeMode", "Filesystem or block device."),
];

pub(super) const VOLUME_COLUMNS: &[Column] = &[
    NAME,
    column("Capacity", "string", "Size of the volume."),
    column("Access Modes", "string", "Ways in which the volume can be mounted."),
    column("Reclaim Policy", "string", "What happens to the volume after its claim is deleted."),
    column("Status", "string", "Phase of the volume."),
    column("Claim", "string", "Claim that the volume is bound to."),
    column("StorageClass", "string", "Storage class that the volume belongs to."),
    column("VolumeAttributesClass", "string", "Volume attributes class that the volume has."),
    column("Reason", "string", "Why the volume is in this state."),
    AGE,
    wide("VolumeMode", "Filesystem or block device."),
];

pub(super) fn claim_cells(claim: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&claim["spec"], &claim["status"]);
    let volume = text(&spec["volumeName"]);
    let (capacity, modes) = match volume {
        "" => (String::new(), String::new()),
        _ => (capacity(&status["capacity"]), access_modes(&status["accessModes"])),
    };
    vec![
        claim["metadata"]["name"].clone(),
        phase(claim).into(),
        volume.into(),
        capacity.into(),
        modes.into(),
        class(claim).into(),
        spec["volumeAttributesClassName"].as_str().unwrap_or(UNSET).into(),
        age::of(claim, now),
        spec["volumeMode"].as_str().unwrap_or(UNSET).into(),
    ]
}

pub(super) fn volume_cells(volume: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&volume["spec"], &volume["status"]);
    let claim = &spec["claimRef"];
    let claim = match claim {
        Value::Object(_) => format!("{}/{}", text(&claim["namespace"]), text(&claim["name"])),
        _ => String::new(),
    };
    vec![
        volume["metadata"]["name"].clone(),
        capacity(&spec["capacity"]).into(),
        access_modes(&spec["accessModes"]).into(),
        text(&spec["persistentVolumeReclaimPolicy"]).into(),
        phase(volume).into(),
        claim.into(),
        class(volume).into(),
        spec["volumeAttributesClassName"].as_str().unwrap_or(UNSET).into(),
        text(&status["reason"]).into(),
        age::of(volume, now),
        spec["volumeMode"].as_str().unwrap_or(UNSET).into(),
    ]
}

fn phase(object: &Value) -> &str {
    match &object["metadata"]["deletionTimestamp"] {
        Value::Null => text(&object["status"]["phase"]),
        _ => "Terminating",
    }
}

fn capacity(resources: &Value) -> String {
    resources["storage"].as_str().unwrap_or("0").to_owned()
}

fn access_modes(modes: &Value) -> String {
    items(modes)
        .iter()
        .filter_map(|mode| text(mode).parse::<AccessMode>().ok())
        .collect::<AccessModes>()
        .to_string()
}

/// The old annotation goes before the field.
fn class(object: &Value) -> &str {
    object["metadata"]["annotations"][BETA_CLASS]
        .as_str()
        .unwrap_or_else(|| text(&object["spec"]["storageClassName"]))
}
