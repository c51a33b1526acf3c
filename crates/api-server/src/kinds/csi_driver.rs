//! CSI drivers.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::{
    fields::{default_field, items, text},
    rules::Rules,
    violations::Violations,
};
use crate::schema::FieldError;

pub(super) const RULES: Rules = Rules { default, check, check_change, ..Rules::NONE };

fn default(driver: &mut Value, _: Option<&Value>) {
    default_field(driver, &["spec", "attachRequired"], true);
    default_field(driver, &["spec", "podInfoOnMount"], false);
    default_field(driver, &["spec", "storageCapacity"], false);
    default_field(driver, &["spec", "fsGroupPolicy"], "ReadWriteOnceWithFSType");
    default_field(driver, &["spec", "requiresRepublish"], false);
    default_field(driver, &["spec", "seLinuxMount"], false);
    if items(&driver["spec"]["volumeLifecycleModes"]).is_empty() && driver["spec"].is_object() {
        driver["spec"]["volumeLifecycleModes"] = json!(["Persistent"]);
    }
}

fn check(driver: &Value, violations: &mut Violations) {
    let spec = &driver["spec"];
    violations.one_of(
        "spec.fsGroupPolicy",
        &spec["fsGroupPolicy"],
        &["File", "None", "ReadWriteOnceWithFSType"],
    );
    for mode in items(&spec["volumeLifecycleModes"]) {
        violations.one_of("spec.volumeLifecycleModes", mode, &["Persistent", "Ephemeral"]);
    }
    let period = &spec["nodeAllocatableUpdatePeriodSeconds"];
    if period.as_i64().is_some_and(|seconds| seconds < 10) {
        let detail = "must be greater than or equal to 10 seconds";
        violations.invalid("spec.nodeAllocatableUpdatePeriodSeconds", period, detail);
    }
    let mut audiences = HashSet::new();
    for (index, request) in items(&spec["tokenRequests"]).iter().enumerate() {
        let field = format!("spec.tokenRequests[{index}]");
        let audience = text(&request["audience"]);
        if !audiences.insert(audience) {
            violations.add(FieldError::duplicate(format!("{field}.audience"), audience));
        }
        if request["expirationSeconds"].as_i64().is_some_and(|seconds| seconds < 600) {
            let detail = "may not specify a duration less than 10 minutes";
            violations.invalid(format!("{field}.expirationSeconds"), &request["expirationSeconds"], detail);
        }
    }
}

fn check_change(new: &Value, old: &Value, violations: &mut Violations) {
    for (field, path) in
        [("attachRequired", "spec.attachedRequired"), ("volumeLifecycleModes", "spec.volumeLifecycleModes")]
    {
        violations.immutable(path, &new["spec"][field], &old["spec"][field]);
    }
}
