//! Objects as the cases write them, to and from Kubernetes' form.

use controllers::bind::Notice;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

const MODES: [(&str, &str); 4] = [
    ("RWO", "ReadWriteOnce"),
    ("ROX", "ReadOnlyMany"),
    ("RWX", "ReadWriteMany"),
    ("RWOP", "ReadWriteOncePod"),
];

/// An access mode in Kubernetes' words.
pub(super) fn mode(short: &str) -> String {
    MODES.iter().find(|(name, _)| *name == short).map_or(short, |(_, long)| long).to_owned()
}

fn modes(value: &Value) -> Value {
    value.as_array().map_or(Value::Null, |all| all.iter().filter_map(Value::as_str).map(mode).collect())
}

fn shorten(modes: Option<&[String]>) -> Value {
    let short = |long: &String| {
        MODES.iter().find(|(_, name)| name == long).map_or(long.as_str(), |(name, _)| name).to_owned()
    };
    modes.map_or(Value::Null, |all| all.iter().map(short).collect())
}

/// Without what is absent or empty, as the objects themselves leave it out.
fn prune(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept =
                map.into_iter().map(|(key, value)| (key, prune(value))).filter(|(_, value)| !value.is_null());
            Value::Object(kept.collect())
        }
        other => other,
    }
}

fn object<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(prune(value)).expect("a case's object has Kubernetes' form")
}

fn affinity(value: &Value) -> Value {
    let Some(required) = value.get("required") else { return Value::Null };
    let terms = required["terms"].as_array().map(|terms| {
        let rule = |rule: &Value| json!({"key": rule["key"], "operator": rule["op"], "values": rule["values"]});
        let term = |term: &Value| json!({"matchExpressions": term.as_array().into_iter().flatten().map(rule).collect::<Vec<_>>()});
        terms.iter().map(term).collect::<Vec<_>>()
    });
    json!({"required": terms.map(|terms| json!({"nodeSelectorTerms": terms}))})
}

pub(super) fn volume(case: &Value) -> PersistentVolume {
    let reference = case["claim_ref"].as_object().map(|reference| {
        json!({
            "kind": "PersistentVolumeClaim", "apiVersion": "v1", "namespace": reference["namespace"],
            "name": reference["name"], "uid": reference["uid"].as_str().filter(|uid| !uid.is_empty()),
        })
    });
    let driver = case["source"].as_str().and_then(|source| source.strip_prefix("csi:"));
    object(json!({
        "metadata": {
            "name": case["name"], "labels": case["labels"], "annotations": case["annotations"],
            "finalizers": case["finalizers"],
            "deletionTimestamp": (case["deleting"] == true).then_some("2026-01-01T00:00:00Z"),
        },
        "spec": {
            "capacity": case["capacity"].as_str().map(|size| json!({"storage": size})),
            "accessModes": modes(&case["access_modes"]),
            "storageClassName": case["storage_class"],
            "volumeMode": case["volume_mode"],
            "persistentVolumeReclaimPolicy": case["reclaim"],
            "claimRef": reference,
            "nodeAffinity": affinity(&case["node_affinity"]),
            "volumeAttributesClassName": case["vac"],
            "csi": driver.map(|driver| json!({"driver": driver, "volumeHandle": "handle"})),
        },
        "status": {"phase": case["phase"].as_str().filter(|phase| !phase.is_empty())},
    }))
}

pub(super) fn claim(case: &Value) -> PersistentVolumeClaim {
    let status = &case["status"];
    object(json!({
        "metadata": {
            "namespace": case["namespace"], "name": case["name"], "uid": case["uid"],
            "annotations": case["annotations"], "labels": case["labels"],
        },
        "spec": {
            "resources": case["request"].as_str().map(|size| json!({"requests": {"storage": size}})),
            "accessModes": modes(&case["access_modes"]),
            "storageClassName": case["storage_class"],
            "volumeMode": case["volume_mode"],
            "volumeName": case["volume_name"].as_str().filter(|name| !name.is_empty()),
            "volumeAttributesClassName": case["vac"],
            "selector": case["selector"].as_object().map(|labels| json!({"matchLabels": labels})),
        },
        "status": {
            "phase": status["phase"],
            "accessModes": modes(&status["access_modes"]),
            "capacity": status["capacity"].as_str().map(|size| json!({"storage": size})),
            "currentVolumeAttributesClassName": status["vac"],
        },
    }))
}

pub(super) fn class(case: &Value) -> StorageClass {
    let default =
        (case["default"] == true).then(|| json!({resources::annotations::IS_DEFAULT_CLASS: "true"}));
    let created = case["created_unix"].as_i64().unwrap_or_default();
    let created = k8s_openapi::jiff::Timestamp::from_second(created).unwrap().to_string();
    object(json!({
        "metadata": {"name": case["name"], "annotations": default, "creationTimestamp": created},
        "provisioner": case["provisioner"].as_str().unwrap_or_default(),
        "parameters": case["parameters"],
        "volumeBindingMode": case["binding"],
        "reclaimPolicy": case["reclaim"],
        "mountOptions": case["mount_options"],
    }))
}

pub(super) fn pod(case: &Value) -> Pod {
    let source = json!({"name": "data", "persistentVolumeClaim": {"claimName": case["claim"]}});
    object(json!({
        "metadata": {"namespace": "ns", "name": case["name"]},
        "spec": {"containers": [], "volumes": [source]},
        "status": {"phase": case["phase"]},
    }))
}

/// A volume's facts in the cases' form, for comparison.
pub(super) fn volume_facts(volume: &PersistentVolume) -> Value {
    let spec = volume.spec.clone().unwrap_or_default();
    let status = volume.status.clone().unwrap_or_default();
    normal_volume(&json!({
        "name": volume.name_any(),
        "capacity": spec.capacity.as_ref().and_then(|all| all.get("storage")),
        "access_modes": shorten(spec.access_modes.as_deref()),
        "storage_class": spec.storage_class_name,
        "volume_mode": spec.volume_mode,
        "reclaim": spec.persistent_volume_reclaim_policy,
        "phase": status.phase,
        "claim_ref": spec.claim_ref.map(|reference| {
            json!({"namespace": reference.namespace, "name": reference.name, "uid": reference.uid.unwrap_or_default()})
        }),
        "annotations": volume.annotations(),
        "finalizers": volume.finalizers(),
        "labels": volume.labels(),
        "source": spec.csi.map(|csi| format!("csi:{}", csi.driver)),
        "vac": spec.volume_attributes_class_name,
        "status_message": status.message,
    }))
}

/// A claim's facts in the cases' form, for comparison.
pub(super) fn claim_facts(claim: &PersistentVolumeClaim) -> Value {
    let spec = claim.spec.clone().unwrap_or_default();
    let status = claim.status.clone().unwrap_or_default();
    let mut facts = normal_claim(&json!({
        "namespace": claim.namespace(),
        "name": claim.name_any(),
        "uid": claim.uid(),
        "request": spec.resources.and_then(|all| all.requests?.get("storage").cloned()),
        "access_modes": shorten(spec.access_modes.as_deref()),
        "volume_mode": spec.volume_mode,
        "volume_name": spec.volume_name,
        "annotations": claim.annotations(),
        "vac": spec.volume_attributes_class_name,
        "selector": spec.selector.and_then(|selector| selector.match_labels),
        "status": {
            "phase": status.phase,
            "access_modes": shorten(status.access_modes.as_deref()),
            "capacity": status.capacity.as_ref().and_then(|all| all.get("storage")),
            "vac": status.current_volume_attributes_class_name,
        },
    }));
    // Here absent and empty are two things.
    facts["storage_class"] = json!(spec.storage_class_name);
    facts
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(all) => all.is_empty(),
        Value::Object(all) => all.is_empty(),
        _ => false,
    }
}

fn without_empty(value: &Value, keys: &[&str]) -> Map<String, Value> {
    let kept = keys.iter().filter(|key| !is_empty(&value[**key]));
    kept.map(|key| ((*key).to_owned(), value[*key].clone())).collect()
}

pub(super) fn normal_volume(value: &Value) -> Value {
    let mut facts = without_empty(
        value,
        &[
            "name",
            "capacity",
            "access_modes",
            "storage_class",
            "reclaim",
            "phase",
            "claim_ref",
            "annotations",
            "finalizers",
            "labels",
            "source",
            "vac",
        ],
    );
    facts.insert("volume_mode".to_owned(), json!(value["volume_mode"].as_str().unwrap_or("Filesystem")));
    facts.insert("has_message".to_owned(), json!(!is_empty(&value["status_message"])));
    Value::Object(facts)
}

pub(super) fn normal_claim(value: &Value) -> Value {
    let mut facts = without_empty(
        value,
        &[
            "namespace",
            "name",
            "uid",
            "request",
            "access_modes",
            "volume_name",
            "annotations",
            "vac",
            "selector",
        ],
    );
    facts.insert("volume_mode".to_owned(), json!(value["volume_mode"].as_str().unwrap_or("Filesystem")));
    facts.insert("storage_class".to_owned(), value["storage_class"].clone());
    let status = without_empty(&value["status"], &["phase", "access_modes", "capacity", "vac"]);
    facts.insert("status".to_owned(), Value::Object(status));
    Value::Object(facts)
}

pub(super) fn event_facts(notice: &Notice) -> Value {
    let on = if notice.about.kind.as_deref() == Some("PersistentVolume") { "volume" } else { "claim" };
    json!({"type": if notice.warning { "Warning" } else { "Normal" }, "reason": notice.reason, "on": on})
}
