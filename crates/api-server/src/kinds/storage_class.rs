//! Storage classes.

use std::collections::HashSet;

use serde_json::Value;
use values::names;

use super::{
    fields::{default_unset, entries, items, text},
    rules::Rules,
    violations::Violations,
};
use crate::schema::FieldError;

pub(super) const RULES: Rules = Rules { default, check, check_change, ..Rules::NONE };

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
