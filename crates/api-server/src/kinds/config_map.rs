//! Config maps.

use serde_json::Value;
use values::names;

use super::{
    fields::{entries, same, text},
    rules::Rules,
    violations::Violations,
};
use crate::schema::FieldError;

pub(super) const RULES: Rules = Rules { check, check_change, ..Rules::NONE };

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
