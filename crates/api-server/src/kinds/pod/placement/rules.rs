//! Where a pod may and would like to run.

use std::collections::HashSet;

use serde_json::Value;

use super::super::super::{
    fields::{items, text},
    violations::Violations,
};
use crate::schema::FieldError;

pub(in super::super) fn check(spec: &Value, violations: &mut Violations) {
    let affinity = &spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    if !affinity.is_null() {
        let field = "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution";
        violations.node_selector(field, affinity);
    }
    for of in ["nodeAffinity", "podAffinity", "podAntiAffinity"] {
        const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
        for (index, term) in items(&spec["affinity"][of][PREFERRED]).iter().enumerate() {
            let weight = &term["weight"];
            if !weight.as_i64().is_some_and(|weight| (1..=100).contains(&weight)) {
                let field = format!("spec.affinity.{of}.{PREFERRED}[{index}].weight");
                violations.invalid(field, weight, "must be in the range 1-100");
            }
        }
    }
    check_tolerations(items(&spec["tolerations"]), violations);
    check_spread(items(&spec["topologySpreadConstraints"]), violations);
    if !items(&spec["schedulingGates"]).is_empty() && !text(&spec["nodeName"]).is_empty() {
        violations.forbid("spec.nodeName", "cannot be set until all schedulingGates have been cleared");
    }
}

fn check_tolerations(tolerations: &[Value], violations: &mut Violations) {
    for (index, toleration) in tolerations.iter().enumerate() {
        let field = format!("spec.tolerations[{index}]");
        let (key, operator) = (text(&toleration["key"]), text(&toleration["operator"]));
        if key.is_empty() && operator != "Exists" {
            let detail =
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            violations.invalid(format!("{field}.operator"), &toleration["operator"], detail);
        }
        if !toleration["tolerationSeconds"].is_null() && toleration["effect"] != "NoExecute" {
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            violations.invalid(format!("{field}.effect"), &toleration["effect"], detail);
        }
        if operator == "Exists" && !text(&toleration["value"]).is_empty() {
            let detail = "value must be empty when `operator` is 'Exists'";
            violations.invalid(format!("{field}.operator"), toleration, detail);
        }
        if !operator.is_empty() {
            violations.one_of(format!("{field}.operator"), &toleration["operator"], &["Equal", "Exists"]);
        }
        if !text(&toleration["effect"]).is_empty() {
            let effects = &["NoSchedule", "PreferNoSchedule", "NoExecute"];
            violations.one_of(format!("{field}.effect"), &toleration["effect"], effects);
        }
    }
}

fn check_spread(constraints: &[Value], violations: &mut Violations) {
    let mut seen = HashSet::new();
    for (index, constraint) in constraints.iter().enumerate() {
        let field = format!("spec.topologySpreadConstraints[{index}]");
        let skew = &constraint["maxSkew"];
        if skew.as_i64().unwrap_or(0) <= 0 {
            violations.invalid(format!("{field}.maxSkew"), skew, "must be greater than 0");
        }
        violations.require(format!("{field}.topologyKey"), &constraint["topologyKey"], "can not be empty");
        let action = &constraint["whenUnsatisfiable"];
        violations.one_of(format!("{field}.whenUnsatisfiable"), action, &["DoNotSchedule", "ScheduleAnyway"]);
        for policy in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            violations.one_of(format!("{field}.{policy}"), &constraint[policy], &["Honor", "Ignore"]);
        }
        let pair = format!("{{{}, {}}}", text(&constraint["topologyKey"]), text(action));
        if !seen.insert(pair.clone()) {
            // Kubernetes names the earlier one.
            let earlier = constraints.iter().position(|other| {
                other["topologyKey"] == constraint["topologyKey"] && other["whenUnsatisfiable"] == *action
            });
            let field = format!(
                "spec.topologySpreadConstraints[{}].{{topologyKey, whenUnsatisfiable}}",
                earlier.unwrap_or(index)
            );
            violations.add(FieldError::duplicate(field, pair));
        }
    }
}
