//! Volume attributes classes.

use serde_json::Value;

use super::{
    fields::same,
    rules::Rules,
    storage_class::{check_parameters, check_provisioner},
    violations::Violations,
};

pub(super) const RULES: Rules = Rules { check, check_change, ..Rules::NONE };

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
