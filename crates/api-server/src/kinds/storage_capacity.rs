//! CSI storage capacities.

use jiff::Timestamp;
use serde_json::Value;
use values::names;

use super::{
    fields::text,
    groups,
    row::{Row, Rules},
    violations::Violations,
};
use crate::schema::TypeSchema;
use crate::table::column::{Column, NAME, Printer, column, name};

static SCHEMA: TypeSchema = TypeSchema::of::<k8s_openapi::api::storage::v1::CSIStorageCapacity>();

pub(crate) static KIND: Row = Row {
    group: groups::STORAGE,
    kind: "CSIStorageCapacity",
    plural: "csistoragecapacities",
    schema: Some(&SCHEMA),
    rules: Rules { check, check_change, ..Rules::NONE },
    table: Printer { columns: COLUMNS, cells },
    ..Row::PLAIN
};

fn check(capacity: &Value, violations: &mut Violations) {
    violations.label_selector("nodeTopology", &capacity["nodeTopology"]);
    violations.require_named("storageClassName", &capacity["storageClassName"], names::dns_subdomain);
    violations.not_negative("capacity", &capacity["capacity"]);
}

fn check_change(new: &Value, old: &Value, violations: &mut Violations) {
    for field in ["nodeTopology", "storageClassName"] {
        violations.immutable(field, &new[field], &old[field]);
    }
}

const COLUMNS: &[Column] = &[
    NAME,
    column("StorageClassName", "string", "Storage class that the capacity is for."),
    column("Capacity", "string", "Space that the driver reports for the topology segment."),
];

fn cells(capacity: &Value, _: Timestamp) -> Vec<Value> {
    let space = capacity["capacity"].as_str().unwrap_or("<unset>");
    vec![name(capacity), text(&capacity["storageClassName"]).into(), space.into()]
}
