//! Persistent volume claims.

use jiff::Timestamp;
use serde_json::{Value, json};
use values::{AccessMode, AccessModes, Quantity, names};

use super::{
    fields::{default_field, default_unset, difference, entries, items, remove, same, text},
    groups,
    row::{Cluster, Hooks, Row, Rules},
    storage_class,
    violations::{Violations, quantity},
};
use crate::object;
use crate::schema::FieldError;
use crate::schema::TypeSchema;
use crate::table::age;
use crate::table::column::{AGE, Column, NAME, Printer, column, wide};

static SCHEMA: TypeSchema = TypeSchema::of::<k8s_openapi::api::core::v1::PersistentVolumeClaim>();

pub(crate) static KIND: Row = Row {
    group: groups::CORE,
    kind: "PersistentVolumeClaim",
    plural: "persistentvolumeclaims",
    short_names: &["pvc"],
    status: true,
    schema: Some(&SCHEMA),
    rules: Rules { default, check, check_change, ..Rules::NONE },
    table: Printer { columns: COLUMNS, cells },
    hooks: Hooks { on_create, created, on_update, ..Hooks::NONE },
    shows_deleted: true,
    ..Row::PLAIN
};

const PROTECTION: &str = "kubernetes.io/pvc-protection";
pub(super) const UNSET: &str = "<unset>";
const ACCESS_MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
pub(super) const VOLUME_MODES: &[&str] = &["Block", "Filesystem"];
const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

fn default(claim: &mut Value, old: Option<&Value>) {
    default_spec(&mut claim["spec"], old.is_none());
    default_field(claim, &["status", "phase"], "Pending");
}

/// Defaults of a claim's spec, also within a pod's ephemeral volume.
pub(super) fn default_spec(spec: &mut Value, new: bool) {
    default_unset(spec, &["volumeMode"], "Filesystem");
    if !spec.is_object() {
        return;
    }
    // The old field only ever named claims and snapshots; anything else in it is dropped, not refused.
    if new && !spec["dataSource"].is_null() && !is_claim_or_snapshot(&spec["dataSource"]) {
        remove(spec, "dataSource");
    }
    let (source, reference) = (&spec["dataSource"], &spec["dataSourceRef"]);
    match (source.is_null(), reference.is_null()) {
        (false, true) => spec["dataSourceRef"] = source.clone(),
        (true, false) if text(&reference["namespace"]).is_empty() => {
            let mut copy = reference.clone();
            remove(&mut copy, "namespace");
            spec["dataSource"] = copy;
        }
        _ => {}
    }
    // Indexing by name leaves nulls behind.
    for field in ["dataSource", "dataSourceRef"] {
        if spec[field].is_null() {
            remove(spec, field);
        }
    }
}

fn is_claim_or_snapshot(source: &Value) -> bool {
    matches!(
        (text(&source["apiGroup"]), text(&source["kind"])),
        ("", "PersistentVolumeClaim") | ("snapshot.storage.k8s.io", "VolumeSnapshot")
    )
}

fn check(claim: &Value, violations: &mut Violations) {
    check_spec(&claim["spec"], violations);
}

/// Rules of a claim's spec; fields are named from `spec`.
pub(super) fn check_spec(spec: &Value, violations: &mut Violations) {
    violations.require("spec.accessModes", &spec["accessModes"], "at least 1 access mode is required");
    violations.label_selector("spec.selector", &spec["selector"]);
    check_access_modes(&spec["accessModes"], violations);
    let size = &spec["resources"]["requests"]["storage"];
    if violations.require("spec.resources[storage]", size, "") {
        violations.positive("spec.resources[storage]", size);
    }
    for field in ["storageClassName", "volumeAttributesClassName"] {
        if !text(&spec[field]).is_empty() {
            violations.named(&format!("spec.{field}"), &spec[field], names::dns_subdomain);
        }
    }
    violations.one_of("spec.volumeMode", &spec["volumeMode"], VOLUME_MODES);
    check_data_sources(spec, violations);
}

/// How far an expansion is, where that changes.
fn check_expansion(new: &Value, old: &Value, violations: &mut Violations) {
    const STATUSES: &str = "status.allocatedResourceStatus";
    const KNOWN: &[&str] = &[
        "ControllerResizeInProgress",
        "ControllerResizeInfeasible",
        "NodeResizePending",
        "NodeResizeInProgress",
        "NodeResizeInfeasible",
    ];
    let (statuses, sizes) =
        (&new["status"]["allocatedResourceStatuses"], &new["status"]["allocatedResources"]);
    if *statuses != old["status"]["allocatedResourceStatuses"] {
        for (resource, status) in entries(statuses) {
            check_resource(STATUSES, resource, violations);
            if !KNOWN.contains(&text(status)) {
                violations.add(FieldError::not_supported(STATUSES, resource.as_str(), KNOWN.iter().copied()));
            }
        }
    }
    if *sizes != old["status"]["allocatedResources"] {
        for (resource, size) in entries(sizes) {
            check_resource("status.allocatedResources", resource, violations);
            violations.not_negative(format!("status.allocatedResources[{resource}]"), size);
        }
    }
}

/// A claim has storage, and what others call by their own domain.
fn check_resource(field: &str, name: &str, violations: &mut Violations) {
    for message in names::qualified_name(name) {
        violations.invalid(field, &Value::from(name), &message);
    }
    let is_native = !name.contains('/') || name.contains("kubernetes.io/");
    if is_native && name != "storage" {
        violations.add(FieldError::not_supported(field, name, ["storage"]));
    }
}

/// Access modes are known, and the exclusive one stands alone.
pub(super) fn check_access_modes(modes: &Value, violations: &mut Violations) {
    for mode in items(modes) {
        violations.one_of("spec.accessModes", mode, ACCESS_MODES);
    }
    let exclusive = |mode: &Value| mode == "ReadWriteOncePod";
    let other = |mode: &Value| !exclusive(mode) && ACCESS_MODES.contains(&text(mode));
    if items(modes).iter().any(exclusive) && items(modes).iter().any(other) {
        violations.forbid("spec.accessModes", "may not use ReadWriteOncePod with other access modes");
    }
}

fn check_data_sources(spec: &Value, violations: &mut Violations) {
    for field in ["dataSource", "dataSourceRef"] {
        let source = &spec[field];
        if source.is_null() {
            continue;
        }
        violations.require(format!("spec.{field}.name"), &source["name"], "");
        violations.require(format!("spec.{field}.kind"), &source["kind"], "");
        match text(&source["apiGroup"]) {
            "" if source["kind"] != "PersistentVolumeClaim" => violations.invalid(
                format!("spec.{field}"),
                &source["kind"],
                "must be 'PersistentVolumeClaim' when referencing the default apiGroup",
            ),
            "" => {}
            _ => {
                violations.named(&format!("spec.{field}.apiGroup"), &source["apiGroup"], names::dns_subdomain)
            }
        }
    }
    let (source, reference) = (&spec["dataSource"], &spec["dataSourceRef"]);
    if source.is_null() || reference.is_null() {
        return;
    }
    if !text(&reference["namespace"]).is_empty() {
        let detail = "may not be specified when dataSourceRef.namespace is specified";
        violations.invalid("spec", &json!("spec.dataSource"), detail);
    } else if ["apiGroup", "kind", "name"].iter().any(|part| text(&source[*part]) != text(&reference[*part]))
    {
        violations.invalid("spec", &json!("spec.dataSource"), "must match dataSourceRef");
    }
}

fn check_change(new: &Value, old: &Value, violations: &mut Violations) {
    check_expansion(new, old, violations);
    let bound = old["status"]["phase"] == "Bound";
    let (was, is) = (&old["spec"], &new["spec"]);
    // What may change is made equal, then nothing may differ.
    let mut allowed = was.clone();
    if text(&was["volumeName"]).is_empty() {
        allowed["volumeName"] = is["volumeName"].clone();
    }
    if was["storageClassName"].is_null() && may_set_class(old, &is["storageClassName"]) {
        allowed["storageClassName"] = is["storageClassName"].clone();
    }
    if bound {
        allowed["resources"]["requests"]["storage"] = is["resources"]["requests"]["storage"].clone();
        allowed["volumeAttributesClassName"] = is["volumeAttributesClassName"].clone();
    }
    // An empty class name is a class (none), not an absent one.
    let class_differs = allowed["storageClassName"] != is["storageClassName"];
    if class_differs || !same(&allowed, is) {
        let detail = format!(
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n{}",
            difference(&allowed, is)
        );
        violations.forbid("spec", &detail);
    }
    violations.immutable(
        "metadata",
        &new["metadata"]["annotations"][BETA_CLASS],
        &old["metadata"]["annotations"][BETA_CLASS],
    );
    check_shrink(new, old, violations);
    violations.immutable("volumeMode", &is["volumeMode"], &was["volumeMode"]);
    if !old["status"]["currentVolumeAttributesClassName"].is_null() {
        const DETAIL: &str = "is forbidden when status.currentVolumeAttributesClassName is not nil";
        match is["volumeAttributesClassName"].as_str() {
            None => violations.forbid("spec.volumeAttributesClassName", &format!("update to nil {DETAIL}")),
            Some("") => violations
                .forbid("spec.volumeAttributesClassName", &format!("update to empty string {DETAIL}")),
            Some(_) => {}
        }
    }
}

/// A class may be given once to a claim that has none; if its annotation names one, only that.
fn may_set_class(old: &Value, class: &Value) -> bool {
    let annotation = &old["metadata"]["annotations"][BETA_CLASS];
    !class.is_null() && (annotation.is_null() || annotation == class)
}

/// A request may go down again after a failed expansion, but not to what the volume already has.
fn check_shrink(new: &Value, old: &Value, violations: &mut Violations) {
    const FIELD: &str = "spec.resources.requests.storage";
    let request = |claim: &Value| quantity(&claim["spec"]["resources"]["requests"]["storage"]);
    let (Some(was), Some(is)) = (request(old), request(new)) else { return };
    if is < was {
        match quantity(&old["status"]["capacity"]["storage"]) {
            Some(capacity) if is <= capacity => {
                violations.add(FieldError::forbidden(FIELD, "field can not be less than status.capacity"));
            }
            _ => {}
        }
    }
}

fn on_create(claim: &mut Value, cluster: &dyn Cluster) -> Result<(), String> {
    object::add_finalizer(claim, PROTECTION);
    let names_class = claim.pointer("/spec/storageClassName").is_some_and(|class| !class.is_null())
        || claim.pointer("/metadata/annotations").is_some_and(|all| all.get(BETA_CLASS).is_some());
    if !names_class && let Some(class) = storage_class::default_of(&cluster.list(&storage_class::KIND)) {
        claim["spec"]["storageClassName"] = class.into();
    }
    Ok(())
}

/// By its UID a claim is followed through the logs of all that work on it.
fn created(claim: &Value) {
    let text = |field| object::meta_str(claim, field);
    tracing::info!(claim = text("uid"), namespace = text("namespace"), name = text("name"), "claim created");
}

/// A claim grows only when it is bound, and its class allows it.
fn on_update(new: &mut Value, old: &Value, cluster: &dyn Cluster) -> Result<(), String> {
    let size =
        |claim: &Value| claim["spec"]["resources"]["requests"]["storage"].as_str()?.parse::<Quantity>().ok();
    if size(new) <= size(old) {
        return Ok(());
    }
    if old["status"]["phase"] != "Bound" {
        return Err("Only bound persistent volume claims can be expanded".to_owned());
    }
    let name = class(new);
    let allows = name == class(old)
        && cluster
            .get(&storage_class::KIND, "", name)
            .is_some_and(|class| class["allowVolumeExpansion"] == true);
    if allows {
        return Ok(());
    }
    Err("only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support \
         resize"
        .to_owned())
}

const COLUMNS: &[Column] = &[
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

fn cells(claim: &Value, now: Timestamp) -> Vec<Value> {
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

pub(super) fn phase(object: &Value) -> &str {
    match &object["metadata"]["deletionTimestamp"] {
        Value::Null => text(&object["status"]["phase"]),
        _ => "Terminating",
    }
}

pub(super) fn capacity(resources: &Value) -> String {
    resources["storage"].as_str().unwrap_or("0").to_owned()
}

pub(super) fn access_modes(modes: &Value) -> String {
    items(modes)
        .iter()
        .filter_map(|mode| text(mode).parse::<AccessMode>().ok())
        .collect::<AccessModes>()
        .to_string()
}

/// The class that a claim or volume names: the old annotation goes before the field.
pub(super) fn class(object: &Value) -> &str {
    object["metadata"]["annotations"][BETA_CLASS]
        .as_str()
        .unwrap_or_else(|| text(&object["spec"]["storageClassName"]))
}
