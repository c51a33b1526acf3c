//! Config maps.

use jiff::Timestamp;
use serde_json::Value;
use values::names;

use super::{
    fields::{entries, same, text},
    groups,
    row::{Row, Rules},
    violations::Violations,
};
use crate::protobuf::wire::{
    Encoding::{self, Boolean, BytesMap, TextMap},
    METADATA, Message,
};
use crate::schema::FieldError;
use crate::schema::TypeSchema;
use crate::table::age;
use crate::table::column::{AGE, Column, NAME, Printer, column, name};

static SCHEMA: TypeSchema = TypeSchema::of::<k8s_openapi::api::core::v1::ConfigMap>();

pub(crate) static KIND: Row = Row {
    group: groups::CORE,
    kind: "ConfigMap",
    plural: "configmaps",
    short_names: &["cm"],
    schema: Some(&SCHEMA),
    rules: Rules { check, check_change, ..Rules::NONE },
    table: Printer { columns: COLUMNS, cells },
    protobuf: Some(PROTOBUF),
    ..Row::PLAIN
};

/// The keys and values of a config map or secret together.
pub(super) const MOST_BYTES: usize = 1024 * 1024;

fn check(map: &Value, violations: &mut Violations) {
    let mut size = 0;
    for (key, value) in entries(&map["data"]) {
        let field = format!("data[{key}]");
        violations.named(&field, &Value::from(key.as_str()), names::config_key);
        if !map["binaryData"][key].is_null() {
            violations.invalid(&field, &Value::from(key.as_str()), "duplicate of key present in binaryData");
        }
        size += text(value).len();
    }
    for (key, value) in entries(&map["binaryData"]) {
        violations.named(&format!("binaryData[{key}]"), &Value::from(key.as_str()), names::config_key);
        size += decoded_length(value);
    }
    if size > MOST_BYTES {
        violations.add(FieldError::too_long("", MOST_BYTES));
    }
}

fn check_change(new: &Value, old: &Value, violations: &mut Violations) {
    check_frozen(&["data", "binaryData"], new, old, violations);
}

/// Once `immutable` is set, neither it nor the data can change.
pub(super) fn check_frozen(fields: &[&str], new: &Value, old: &Value, violations: &mut Violations) {
    const DETAIL: &str = "field is immutable when `immutable` is set";
    if old["immutable"] != true {
        return;
    }
    if new["immutable"] != true {
        violations.forbid("immutable", DETAIL);
    }
    for field in fields {
        if !same(&new[field], &old[field]) {
            violations.forbid(*field, DETAIL);
        }
    }
}

/// Bytes that base64 text stands for.
pub(super) fn decoded_length(value: &Value) -> usize {
    let text = text(value);
    text.len() / 4 * 3 - text.bytes().rev().take_while(|byte| *byte == b'=').count().min(text.len() / 4 * 3)
}

const COLUMNS: &[Column] = &[NAME, column("Data", "string", "Number of keys."), AGE];

fn cells(map: &Value, now: Timestamp) -> Vec<Value> {
    let keys = entries(&map["data"]).count() + entries(&map["binaryData"]).count();
    vec![name(map), keys.into(), age::of(map, now)]
}

const PROTOBUF: Message = &[
    (1, "metadata", Encoding::Message(METADATA)),
    (2, "data", TextMap),
    (3, "binaryData", BytesMap),
    (4, "immutable", Boolean),
];
