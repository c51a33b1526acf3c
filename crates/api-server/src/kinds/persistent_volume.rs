//! Persistent volumes.

use jiff::Timestamp;
use serde_json::{Value, json};
use values::names;

use super::{
    fields::{default_field, default_unset, difference, entries, remove, same, text},
    groups,
    persistent_volume_claim::{
        UNSET, VOLUME_MODES, access_modes, capacity, check_access_modes, class, phase,
    },
    pod::HOST_PATH_TYPES,
    row::{Hooks, Row, Rules},
    violations::Violations,
};
use crate::object;
use crate::schema::FieldError;
use crate::schema::TypeSchema;
use crate::table::age;
use crate::table::column::{AGE, Column, NAME, Printer, column, wide};

static SCHEMA: TypeSchema = TypeSchema::of::<k8s_openapi::api::core::v1::PersistentVolume>();

pub(crate) static KIND: Row = Row {
    group: groups::CORE,
    kind: "PersistentVolume",
    plural: "persistentvolumes",
    short_names: &["pv"],
    namespaced: false,
    status: true,
    schema: Some(&SCHEMA),
    rules: Rules { default, check, check_change, ..Rules::NONE },
    table: Printer { columns: COLUMNS, cells },
    hooks: Hooks {
        on_create: |volume, _| {
            object::add_finalizer(volume, PROTECTION);
            Ok(())
        },
        ..Hooks::NONE
    },
    shows_deleted: true,
    ..Row::PLAIN
};

const PROTECTION: &str = "kubernetes.io/pv-protection";

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

fn default(volume: &mut Value, old: Option<&Value>) {
    default_field(volume, &["spec", "persistentVolumeReclaimPolicy"], "Retain");
    default_unset(volume, &["spec", "volumeMode"], "Filesystem");
    default_field(volume, &["status", "phase"], "Pending");
    default_phase_time(volume, old);
    for (source, field, value) in [
        ("iscsi", "iscsiInterface", json!("default")),
        ("azureDisk", "cachingMode", json!("ReadWrite")),
        ("azureDisk", "kind", json!("Shared")),
        ("azureDisk", "fsType", json!("ext4")),
        ("azureDisk", "readOnly", json!(false)),
        ("rbd", "pool", json!("rbd")),
        ("rbd", "user", json!("admin")),
        ("rbd", "keyring", json!("/etc/ceph/keyring")),
        ("scaleIO", "storageMode", json!("ThinProvisioned")),
        ("scaleIO", "fsType", json!("xfs")),
    ] {
        if volume["spec"][source].is_object() {
            default_field(volume, &["spec", source, field], value);
        }
    }
    if volume["spec"]["hostPath"].is_object() {
        default_field(volume, &["spec", "hostPath", "type"], "");
    }
    // Indexing by name leaves nulls behind.
    if let Some(spec) = volume["spec"].as_object_mut() {
        spec.retain(|_, value| !value.is_null());
    }
}

/// When the phase became what it is.
fn default_phase_time(volume: &mut Value, old: Option<&Value>) {
    const FIELD: &str = "lastPhaseTransitionTime";
    let Some(old) = old else {
        let created = volume["metadata"]["creationTimestamp"].clone();
        if !created.is_null() {
            default_field(volume, &["status", FIELD], created);
        }
        return;
    };
    let (is, was) = (&volume["status"], &old["status"]);
    if is["phase"] != was["phase"] && (is[FIELD].is_null() || is[FIELD] == was[FIELD]) {
        volume["status"][FIELD] = object::time(clock::now()).into();
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
            let secrets = entries(fields).filter(|(name, _)| name.ends_with("SecretRef"));
            // A secret for staging was never looked at.
            for (name, secret) in secrets.filter(|(name, _)| *name != "nodeStageSecretRef") {
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
                violations.add(FieldError::required("spec.nodeAffinity", detail));
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
        "iscsi" => {
            for part in ["targetPortal", "iqn"] {
                violations.require(format!("{field}.{part}"), &fields[part], "");
            }
            if fields["lun"].as_i64().is_some_and(|lun| !(0..=255).contains(&lun)) {
                violations.invalid(
                    format!("{field}.lun"),
                    &fields["lun"],
                    "must be between 0 and 255, inclusive",
                );
            }
        }
        _ => {}
    }
    if *source == "hostPath" {
        violations.one_of(format!("{field}.type"), &fields["type"], HOST_PATH_TYPES);
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
    if !old["nodeAffinity"].is_null() && !same(&new["nodeAffinity"], &old["nodeAffinity"]) {
        let detail = "field is immutable, except for updating from beta label to GA";
        violations.invalid("nodeAffinity", &new["nodeAffinity"], detail);
    }
    if !old["volumeAttributesClassName"].is_null() && new["volumeAttributesClassName"].is_null() {
        violations.forbid("spec.volumeAttributesClassName", "update from non-nil value to nil is forbidden");
    }
}

const COLUMNS: &[Column] = &[
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

fn cells(volume: &Value, now: Timestamp) -> Vec<Value> {
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
