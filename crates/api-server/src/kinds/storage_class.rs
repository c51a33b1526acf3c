//! Storage classes.

use std::cmp::Reverse;
use std::collections::HashSet;

use jiff::Timestamp;
use serde_json::Value;
use values::names;

use super::{
    fields::{default_unset, entries, items, text},
    groups,
    row::{Row, Rules},
    violations::Violations,
};
use crate::object;
use crate::schema::FieldError;
use crate::schema::TypeSchema;
use crate::table::age;
use crate::table::column::{AGE, Column, NAME, Printer, column, flag};

static SCHEMA: TypeSchema = TypeSchema::of::<k8s_openapi::api::storage::v1::StorageClass>();

pub(crate) static KIND: Row = Row {
    group: groups::STORAGE,
    kind: "StorageClass",
    plural: "storageclasses",
    short_names: &["sc"],
    namespaced: false,
    schema: Some(&SCHEMA),
    rules: Rules { default, check, check_change, ..Rules::NONE },
    table: Printer { columns: COLUMNS, cells },
    shows_deleted: true,
    ..Row::PLAIN
};

const MOST_PARAMETERS: usize = 512;
const MOST_PARAMETER_BYTES: usize = 256 * 1024;

fn default(class: &mut Value, _: Option<&Value>) {
    default_unset(class, &["reclaimPolicy"], "Delete");
    default_unset(class, &["volumeBindingMode"], "Immediate");
}

fn check(class: &Value, violations: &mut Violations) {
    check_provisioner("provisioner", &class["provisioner"], violations);
    check_parameters(&class["parameters"], violations);
    violations.one_of("reclaimPolicy", &class["reclaimPolicy"], &["Delete", "Retain"]);
    violations.one_of(
        "volumeBindingMode",
        &class["volumeBindingMode"],
        &["Immediate", "WaitForFirstConsumer"],
    );
    check_topologies(items(&class["allowedTopologies"]), violations);
}

fn check_change(new: &Value, old: &Value, violations: &mut Violations) {
    for field in ["parameters", "provisioner", "reclaimPolicy", "volumeBindingMode"] {
        violations.immutable(field, &new[field], &old[field]);
    }
}

/// A provisioner is a qualified name in any case.
pub(super) fn check_provisioner(field: &str, value: &Value, violations: &mut Violations) {
    violations.require_named(field, value, |name| names::qualified_name(&name.to_lowercase()));
}

/// Parameters are bounded in number and size.
pub(super) fn check_parameters(parameters: &Value, violations: &mut Violations) {
    if entries(parameters).count() > MOST_PARAMETERS {
        violations.add(FieldError::too_long("parameters", MOST_PARAMETERS));
    }
    let mut size = 0;
    for (key, value) in entries(parameters) {
        if key.is_empty() {
            violations.invalid("parameters", &Value::from(""), "field can not be empty.");
        }
        size += key.len() + text(value).len();
    }
    if size > MOST_PARAMETER_BYTES {
        violations.add(FieldError::too_long("parameters", MOST_PARAMETER_BYTES));
    }
}

fn check_topologies(terms: &[Value], violations: &mut Violations) {
    let mut seen_terms = HashSet::new();
    for (index, term) in terms.iter().enumerate() {
        let field = format!("allowedTopologies[{index}].matchLabelExpressions");
        let mut keys = HashSet::new();
        for (at, expression) in items(&term["matchLabelExpressions"]).iter().enumerate() {
            let field = format!("{field}[{at}]");
            violations.named(&format!("{field}.key"), &expression["key"], names::qualified_name);
            violations.require(format!("{field}.values"), &expression["values"], "");
            let mut values = HashSet::new();
            for (at, value) in items(&expression["values"]).iter().enumerate() {
                if !values.insert(text(value)) {
                    violations.add(FieldError::duplicate(format!("{field}.values[{at}]"), value.clone()));
                }
            }
            if !keys.insert(text(&expression["key"])) {
                violations.add(FieldError::duplicate(format!("{field}.key"), expression["key"].clone()));
            }
        }
        if !seen_terms.insert(term.to_string()) {
            violations.add(FieldError::duplicate(field, ""));
        }
    }
}

/// The name of the default class, the newest if there are several, then the one that comes first.
pub(super) fn default_of(classes: &[Value]) -> Option<&str> {
    classes
        .iter()
        .filter(|class| is_default(class))
        .map(|class| (Reverse(object::meta_str(class, "creationTimestamp")), object::name(class)))
        .min()
        .map(|(_, name)| name)
}

fn is_default(class: &Value) -> bool {
    let annotations = &class["metadata"]["annotations"];
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"]
        .iter()
        .any(|name| annotations[*name] == "true")
}

const COLUMNS: &[Column] = &[
    NAME,
    column("Provisioner", "string", "Driver that provisions volumes of this class."),
    column("ReclaimPolicy", "string", "What happens to a volume after its claim is deleted."),
    column("VolumeBindingMode", "string", "When claims are bound and volumes provisioned."),
    column("AllowVolumeExpansion", "string", "Whether claims may grow."),
    AGE,
];

fn cells(class: &Value, now: Timestamp) -> Vec<Value> {
    let name = text(&class["metadata"]["name"]);
    let name = if is_default(class) { format!("{name} (default)") } else { name.to_owned() };
    vec![
        name.into(),
        text(&class["provisioner"]).into(),
        class["reclaimPolicy"].as_str().unwrap_or("Delete").into(),
        class["volumeBindingMode"].as_str().unwrap_or("Immediate").into(),
        flag(&class["allowVolumeExpansion"], false),
        age::of(class, now),
    ]
}
