//! What may change in a pod: next to nothing.

use std::collections::HashSet;

use serde_json::Value;

use super::super::{
    fields::{difference, entries, items, same, text, without_empty},
    violations::Violations,
};
use crate::schema::FieldError;

const MUTABLE: &str = "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,\
                       `spec.tolerations` (only additions to existing tolerations),\
                       `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

pub(super) fn check(new: &Value, old: &Value, violations: &mut Violations) {
    let (new, old) = (&new["spec"], &old["spec"]);
    if new == old {
        return;
    }
    for list in ["containers", "initContainers"] {
        if items(&new[list]).len() != items(&old[list]).len() {
            violations.forbid(format!("spec.{list}"), "pod updates may not add or remove containers");
            return;
        }
    }
    check_deadline(new, old, violations);
    check_tolerations(new, old, violations);
    check_gates(new, old, violations);

    // What may change is made equal, then nothing may differ.
    let mut allowed = new.clone();
    for list in ["containers", "initContainers"] {
        for (index, container) in items(&old[list]).iter().enumerate() {
            allowed[list][index]["image"] = container["image"].clone();
        }
    }
    for field in ["activeDeadlineSeconds", "tolerations", "schedulingGates"] {
        allowed[field] = old[field].clone();
    }
    if !items(&old["schedulingGates"]).is_empty() {
        let kept = entries(&old["nodeSelector"]).all(|(key, value)| &new["nodeSelector"][key] == value);
        if kept {
            allowed["nodeSelector"] = old["nodeSelector"].clone();
        }
    }
    if !same(&allowed, old) {
        let detail =
            format!("pod updates may not change fields other than {MUTABLE}\n{}", difference(old, &allowed));
        violations.forbid("spec", &detail);
    }
}

fn check_deadline(new: &Value, old: &Value, violations: &mut Violations) {
    const FIELD: &str = "spec.activeDeadlineSeconds";
    let (is, was) = (&new["activeDeadlineSeconds"], &old["activeDeadlineSeconds"]);
    match (is.as_i64(), was.as_i64()) {
        (Some(is_seconds), Some(was)) if is_seconds > was => {
            violations.invalid(FIELD, is, "must be less than or equal to previous value");
        }
        (None, Some(_)) => {
            violations.invalid(FIELD, is, "must not update from a positive integer to nil value")
        }
        _ => {}
    }
}

fn check_tolerations(new: &Value, old: &Value, violations: &mut Violations) {
    let fixed = |toleration: &Value| {
        let mut toleration = toleration.clone();
        toleration["tolerationSeconds"] = Value::Null;
        without_empty(&toleration).to_string()
    };
    let kept: HashSet<String> = items(&new["tolerations"]).iter().map(fixed).collect();
    for toleration in items(&old["tolerations"]) {
        if !kept.contains(&fixed(toleration)) {
            let detail = "existing toleration can not be modified except its tolerationSeconds";
            violations.forbid("spec.tolerations", detail);
            return;
        }
    }
}

fn check_gates(new: &Value, old: &Value, violations: &mut Violations) {
    let before: HashSet<String> = items(&old["schedulingGates"]).iter().map(Value::to_string).collect();
    let added: Vec<&str> = items(&new["schedulingGates"])
        .iter()
        .filter(|gate| !before.contains(&gate.to_string()))
        .map(|gate| text(&gate["name"]))
        .collect();
    if !added.is_empty() {
        let detail =
            format!("only deletion is allowed, but found new scheduling gates '{}'", added.join(","));
        violations.add(FieldError::forbidden("spec.schedulingGates", &detail));
    }
}
