//! Volume attributes classes.

use jiff::Timestamp;
use serde_json::Value;

use super::{
    fields::{same, text},
    groups,
    row::{Hooks, Row, Rules},
    storage_class::{check_parameters, check_provisioner},
    violations::Violations,
};
use crate::object;
use crate::schema::TypeSchema;
use crate::table::age;
use crate::table::column::{AGE, Column, NAME, Printer, column, name};

static SCHEMA: TypeSchema = TypeSchema::of::<k8s_openapi::api::storage::v1::VolumeAttributesClass>();

pub(crate) static KIND: Row = Row {
    group: groups::STORAGE,
    kind: "VolumeAttributesClass",
    plural: "volumeattributesclasses",
    short_names: &["vac"],
    namespaced: false,
    schema: Some(&SCHEMA),
    rules: Rules { check, check_change, ..Rules::NONE },
    table: Printer { columns: COLUMNS, cells },
    hooks: Hooks {
        on_create: |class, _| {
            object::add_finalizer(class, PROTECTION);
            Ok(())
        },
        ..Hooks::NONE
    },
    ..Row::PLAIN
};

const PROTECTION: &str = "kubernetes.io/vac-protection";

fn check(class: &Value, violations: &mut Violations) {
    check_provisioner("driverName", &class["driverName"], violations);
    violations.require("parameters", &class["parameters"], "must contain at least one key/value pair");
    check_parameters(&class["parameters"], violations);
}

fn check_change(new: &Value, old: &Value, violations: &mut Violations) {
    for field in ["driverName", "parameters"] {
        if !same(&new[field], &old[field]) {
            violations.forbid(field, &format!("updates to {field} are forbidden."));
        }
    }
}

const COLUMNS: &[Column] = &[NAME, column("DriverName", "string", "Driver that knows the attributes."), AGE];

fn cells(class: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(class), text(&class["driverName"]).into(), age::of(class, now)]
}
