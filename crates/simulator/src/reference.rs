//! Which volumes a claim may have: the rules once more, written down without indexes and without a look at the
//! controllers' code, to compare it with.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use serde_json::Value;

/// An object as JSON: the rules read fields, whatever types say.
fn json(object: &impl serde::Serialize) -> Value {
    serde_json::to_value(object).unwrap_or_default()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Whole gibibytes or mebibytes, as the tests write them, in bytes.
fn bytes(quantity: &Value) -> u64 {
    let quantity = text(quantity);
    let number = |digits: &str, unit: u64| digits.parse::<u64>().unwrap_or_default() * unit;
    match (quantity.strip_suffix("Gi"), quantity.strip_suffix("Mi")) {
        (Some(digits), _) => number(digits, 1 << 30),
        (_, Some(digits)) => number(digits, 1 << 20),
        _ => number(quantity, 1),
    }
}

fn modes(value: &Value) -> BTreeSet<&str> {
    value.as_array().into_iter().flatten().map(text).collect()
}

/// The bytes that a volume has.
pub fn capacity(volume: &PersistentVolume) -> u64 {
    bytes(&json(volume)["spec"]["capacity"]["storage"])
}

/// Whether a claim could be bound to a volume by its spec, whoever has the volume now.
pub fn fits(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let (claim, volume) = (json(claim), json(volume));
    let (wants, has) = (&claim["spec"], &volume["spec"]);
    let mode = |spec: &Value| spec["volumeMode"].as_str().unwrap_or("Filesystem").to_owned();
    text(&wants["storageClassName"]) == text(&has["storageClassName"])
        && text(&wants["volumeAttributesClassName"]) == text(&has["volumeAttributesClassName"])
        && mode(wants) == mode(has)
        && modes(&wants["accessModes"]).is_subset(&modes(&has["accessModes"]))
        && bytes(&wants["resources"]["requests"]["storage"]) <= bytes(&has["capacity"]["storage"])
        && volume["metadata"]["deletionTimestamp"].is_null()
}

/// Whether a claim's selector takes a volume. It does not count for a volume that the claim names.
pub fn selected(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let (claim, volume) = (json(claim), json(volume));
    let labels = &volume["metadata"]["labels"];
    let Some(wanted) = claim["spec"]["selector"]["matchLabels"].as_object() else { return true };
    wanted.iter().all(|(key, value)| labels[key] == *value)
}

/// Whether a volume is kept for a claim by name, and not for another claim of that name.
pub fn reserved_for(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let (claim, volume) = (json(claim), json(volume));
    let (meta, reference) = (&claim["metadata"], &volume["spec"]["claimRef"]);
    reference.is_object()
        && reference["name"] == meta["name"]
        && reference["namespace"] == meta["namespace"]
        && (text(&reference["uid"]).is_empty() || reference["uid"] == meta["uid"])
}

/// Whether nobody has a volume, and the binder said so.
pub fn is_free(volume: &PersistentVolume) -> bool {
    let volume = json(volume);
    volume["spec"]["claimRef"].is_null() && volume["status"]["phase"] == "Available"
}

/// The names of the volumes of which a claim of a class that binds at once may get any: a reserved one if there is any,
/// else one with the fewest access modes, the smallest of those that have the same.
pub fn candidates<'a>(claim: &PersistentVolumeClaim, volumes: &'a [PersistentVolume]) -> BTreeSet<&'a str> {
    fn name(volume: &PersistentVolume) -> &str {
        volume.metadata.name.as_deref().unwrap_or_default()
    }
    let fitting = || volumes.iter().filter(|volume| fits(claim, volume));
    let reserved: BTreeSet<_> = fitting().filter(|volume| reserved_for(claim, volume)).map(name).collect();
    if !reserved.is_empty() {
        return reserved;
    }
    let free: Vec<_> = fitting().filter(|volume| is_free(volume) && selected(claim, volume)).collect();
    fn set(volume: &PersistentVolume) -> BTreeSet<String> {
        modes(&json(volume)["spec"]["accessModes"]).into_iter().map(str::to_owned).collect()
    }
    let fewest = free.iter().map(|volume| set(volume).len()).min();
    let smallest = |volume: &PersistentVolume| {
        let alike = free.iter().filter(|other| set(other) == set(volume));
        alike.map(|other| capacity(other)).min() == Some(capacity(volume))
    };
    free.iter()
        .filter(|volume| Some(set(volume).len()) == fewest && smallest(volume))
        .map(|volume| name(volume))
        .collect()
}
