//! CSI nodes.

use std::collections::HashSet;

use jiff::Timestamp;
use serde_json::{Value, json};
use values::names;

use super::{
    fields::{default_field, items, same, text},
    groups,
    row::{Row, Rules},
    violations::Violations,
};
use crate::schema::FieldError;
use crate::schema::TypeSchema;
use crate::table::age;
use crate::table::column::{AGE, Column, NAME, Printer, column, name};

static SCHEMA: TypeSchema = TypeSchema::of::<k8s_openapi::api::storage::v1::CSINode>();

pub(crate) static KIND: Row = Row {
    group: groups::STORAGE,
    kind: "CSINode",
    plural: "csinodes",
    namespaced: false,
    schema: Some(&SCHEMA),
    rules: Rules { default, check, check_change, ..Rules::NONE },
    table: Printer { columns: COLUMNS, cells },
    shows_deleted: true,
    ..Row::PLAIN
};

const LONGEST_NODE_ID: usize = 256;

fn default(node: &mut Value, _: Option<&Value>) {
    default_field(node, &["spec", "drivers"], json!([]));
}

fn check(node: &Value, violations: &mut Violations) {
    let mut drivers = HashSet::new();
    for (index, driver) in items(&node["spec"]["drivers"]).iter().enumerate() {
        let field = format!("spec.drivers[{index}]");
        violations.driver_name(&format!("{field}.name"), &driver["name"]);
        violations.require(format!("{field}.nodeID"), &driver["nodeID"], "");
        if text(&driver["nodeID"]).len() > LONGEST_NODE_ID {
            let detail = format!("must be {LONGEST_NODE_ID} characters or less");
            violations.invalid(format!("{field}.nodeID"), &driver["nodeID"], &detail);
        }
        violations.not_negative(format!("{field}.allocatable.count"), &driver["allocatable"]["count"]);
        if !drivers.insert(text(&driver["name"])) {
            violations.add(FieldError::duplicate(format!("{field}.name"), driver["name"].clone()));
        }
        let mut keys = HashSet::new();
        for key in items(&driver["topologyKeys"]) {
            violations.require_named(&field, key, names::qualified_name);
            if !keys.insert(text(key)) {
                violations.add(FieldError::duplicate(&*field, key.clone()));
            }
        }
    }
}

/// A driver's entry may go and come, but only its allocatable count may change.
fn check_change(new: &Value, old: &Value, violations: &mut Violations) {
    let fixed = |driver: &Value| {
        let mut driver = driver.clone();
        driver["allocatable"] = Value::Null;
        driver
    };
    for old in items(&old["spec"]["drivers"]) {
        for new in items(&new["spec"]["drivers"]).iter().filter(|new| new["name"] == old["name"]) {
            if !same(&fixed(new), &fixed(old)) {
                violations.invalid("spec.drivers", new, "field is immutable");
            }
        }
    }
}

const COLUMNS: &[Column] =
    &[NAME, column("Drivers", "integer", "Number of drivers registered on the node."), AGE];

fn cells(node: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(node), items(&node["spec"]["drivers"]).len().into(), age::of(node, now)]
}
