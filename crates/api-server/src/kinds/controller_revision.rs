//! Controller revisions, which keep the history of sets.

use jiff::Timestamp;
use serde_json::Value;

use super::{
    fields::{items, text},
    groups,
    row::{Row, Rules},
    violations::Violations,
};
use crate::schema::FieldError;
use crate::schema::TypeSchema;
use crate::table::age;
use crate::table::column::{AGE, Column, NAME, Printer, column};

static SCHEMA: TypeSchema = TypeSchema::of::<k8s_openapi::api::apps::v1::ControllerRevision>();

pub(crate) static KIND: Row = Row {
    group: groups::APPS,
    kind: "ControllerRevision",
    plural: "controllerrevisions",
    schema: Some(&SCHEMA),
    rules: Rules { check, check_change, ..Rules::NONE },
    table: Printer { columns: COLUMNS, cells },
    ..Row::PLAIN
};

fn check(revision: &Value, violations: &mut Violations) {
    violations.not_negative("revision", &revision["revision"]);
    match &revision["data"] {
        Value::Null => violations.add(FieldError::required("data", "data is mandatory")),
        Value::Object(_) => {}
        _ => violations.add(FieldError::required("data", "data must be a valid JSON object")),
    }
}

fn check_change(new: &Value, old: &Value, violations: &mut Violations) {
    violations.immutable("data", &new["data"], &old["data"]);
}

const NONE: &str = "<none>";

const COLUMNS: &[Column] = &[
    NAME,
    column("Controller", "string", "Object whose history this is part of."),
    column("Revision", "integer", "Place in that history."),
    AGE,
];

fn cells(revision: &Value, now: Timestamp) -> Vec<Value> {
    let owners = items(&revision["metadata"]["ownerReferences"]);
    let controller = owners.iter().find(|owner| owner["controller"] == true).map_or_else(
        || NONE.to_owned(),
        |owner| {
            let kind = text(&owner["kind"]).to_lowercase();
            let group = text(&owner["apiVersion"]).split_once('/').map(|(group, _)| format!(".{group}"));
            format!("{kind}{}/{}", group.unwrap_or_default(), text(&owner["name"]))
        },
    );
    let number = revision["revision"].as_i64().unwrap_or(0);
    vec![revision["metadata"]["name"].clone(), controller.into(), number.into(), age::of(revision, now)]
}
