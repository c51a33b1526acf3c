//! Persistent volumes.

use serde_json::{Value, json};
use values::names;

use super::{
    fields::{default_field, difference, entries, remove, same, text},
    persistent_volume_claim::{VOLUME_MODES, check_access_modes},
    rules::Rules,
    violations::Violations,
};
use crate::schema::FieldError;

pub(super) const RULES: Rules = Rules { default, check, check_change, ..Rules::NONE };

/// Fields of the spec that are a volume source; a volume has exactly one.
const SOURCES: &[&str] = &[
    "awsElasticBlockStore",
    "azureDisk",
    "azureFile",
    "cephfs",
    "cinder",
    "csi",
    "fc",
    "flexVolume",
    "flocker",
    "gcePersistentDisk",
    "glusterfs",
    "hostPath",
    "iscsi",
    "local",
    "nfs",
    "photonPersistentDisk",
    "portworxVolume",
    "quobyte",
    "rbd",
    "scaleIO",
    "storageos",
    "vsphereVolume",
];

fn default(volume: &mut Value, _: Option<&Value>) {
    default_field(volume, &["spec", "persistentVolumeReclaimPolicy"], "Retain");
    default_field(volume, &["spec", "volumeMode"], "Filesystem");
    default_field(volume, &["status", "phase"], "Pending");
    if volume["spec"]["hostPath"].is_object() {
        default_field(volume, &["spec", "hostPath", "type"], "");
    }
    if !volume["spec"]["claimRef"].is_null() {
        for (field, value) in [("kind", "PersistentVolumeClaim"), ("apiVersion", "v1")] {
            default_field(volume, &["spec", "claimRef", field], value);
        }
    }
}

fn check(volume: &Value, violations: &mut Violations) {
    let spec = &volume["spec"];
    violations.require("spec.accessModes", &spec["accessModes"], "");
    check_access_modes(&spec["accessModes"], violations);
    violations.require("spec.capacity", &spec["capacity"], "");
    if spec["capacity"]["storage"].is_null() || entries(&spec["capacity"]).count() > 1 {
        violations.add(FieldError::not_supported("spec.capacity", spec["capacity"].clone(), ["storage"]));
    }
    for (resource, quantity) in entries(&spec["capacity"]) {
        violations.positive(format!("spec.capacity[{resource}]"), quantity);
    }
    let policy = &spec["persistentVolumeReclaimPolicy"];
    violations.one_of("spec.persistentVolumeReclaimPolicy", policy, &["Delete", "Recycle", "Retain"]);
    if !spec["nodeAffinity"].is_null() {
        match &spec["nodeAffinity"]["required"] {
            Value::Null => violations.add(FieldError::required(
                "spec.nodeAffinity.required",
                "must specify required node constraints",
            )),
            required => violations.node_selector("spec.nodeAffinity.required", required),
        }
    }
    check_source(spec, violations);
    if !text(&spec["storageClassName"]).is_empty() {
        violations.named("spec.storageClassName", &spec["storageClassName"], names::dns_subdomain);
    }
    violations.one_of("spec.volumeMode", &spec["volumeMode"], VOLUME_MODES);
    if let Some(class) = spec["volumeAttributesClassName"].as_str() {
        if class.is_empty() {
            violations
                .add(FieldError::required("spec.volumeAttributesClassName", "an empty string is disallowed"));
        }
        if spec["csi"].is_null() {
            let detail = "has to be specified when using volumeAttributesClassName";
            violations.add(FieldError::required("spec.csi", detail));
        }
    }
}

fn check_source(spec: &Value, violations: &mut Violations) {
    let mut sources = SOURCES.iter().filter(|name| !spec[**name].is_null());
    let Some(source) = sources.next() else {
        violations.add(FieldError::required("spec", "must specify a volume type"));
        return;
    };
    for name in sources {
        violations.forbid(format!("spec.{name}"), "may not specify more than 1 volume type");
    }
    let (field, fields) = (format!("spec.{source}"), &spec[*source]);
    match *source {
        "csi" => {
            violations.driver_name("spec.csi.driver", &fields["driver"]);
            violations.require("spec.csi.volumeHandle", &fields["volumeHandle"], "");
            for (name, secret) in entries(fields).filter(|(name, _)| name.ends_with("SecretRef")) {
                for part in ["name", "namespace"] {
                    violations.require(format!("{field}.{name}.{part}"), &secret[part], "");
                }
            }
        }
        "local" | "hostPath" => {
            let path = format!("{field}.path");
            violations.require(&path, &fields["path"], "");
            violations.no_backsteps(path, &fields["path"]);
            if *source == "local" && spec["nodeAffinity"].is_null() {
                let detail = "Local volume requires node affinity";
                violations.add(FieldError::required("spec.local.nodeAffinity", detail));
            }
            if text(&fields["path"]).trim_end_matches('/').is_empty()
                && !text(&fields["path"]).is_empty()
                && spec["persistentVolumeReclaimPolicy"] == "Recycle"
            {
                let detail = "may not be 'recycle' for a hostPath mount of '/'";
                violations.forbid("spec.persistentVolumeReclaimPolicy", detail);
            }
        }
        "nfs" => {
            violations.require("spec.nfs.server", &fields["server"], "");
            violations.require("spec.nfs.path", &fields["path"], "");
            if !text(&fields["path"]).starts_with('/') {
                violations.invalid("spec.nfs.path", &fields["path"], "must be an absolute path");
            }
        }
        _ => {}
    }
}

fn check_change(new: &Value, old: &Value, violations: &mut Violations) {
    let (new, old) = (&new["spec"], &old["spec"]);
    let source = |spec: &Value| {
        let mut source = json!({});
        for name in SOURCES.iter().filter(|name| !spec[**name].is_null()) {
            source[*name] = spec[*name].clone();
        }
        source
    };
    let (mut new_source, old_source) = (source(new), source(old));
    // The secret for expansion may be named later, once.
    if old["csi"].is_object() && old["csi"]["controllerExpandSecretRef"].is_null() {
        remove(&mut new_source["csi"], "controllerExpandSecretRef");
    }
    if !same(&new_source, &old_source) {
        let changes = difference(&old_source, &new_source);
        let detail = format!("spec.persistentvolumesource is immutable after creation\n{changes}");
        violations.forbid("spec.persistentvolumesource", &detail);
    }
    violations.immutable("volumeMode", &new["volumeMode"], &old["volumeMode"]);
    if !old["nodeAffinity"].is_null() {
        violations.immutable("nodeAffinity", &new["nodeAffinity"], &old["nodeAffinity"]);
    }
    if !old["volumeAttributesClassName"].is_null() && new["volumeAttributesClassName"].is_null() {
        violations.forbid("spec.volumeAttributesClassName", "update from non-nil value to nil is forbidden");
    }
}
