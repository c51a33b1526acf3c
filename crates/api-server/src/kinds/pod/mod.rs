//! Pods.

mod change;
mod containers;
mod defaults;
mod placement;
mod quality;
mod volumes;

use serde_json::Value;

use super::{
    fields::{items, text},
    rules::Rules,
    violations::Violations,
};

pub(super) const RULES: Rules =
    Rules { default: defaults::default, check, check_change: change::check, ..Rules::NONE };

const RESTART_POLICIES: &[&str] = &["Always", "OnFailure", "Never"];
const DNS_POLICIES: &[&str] = &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];

/// Defaults of a pod template.
pub(super) fn default_template(template: &mut Value) {
    if let Some(spec) = template.get_mut("spec").filter(|spec| spec.is_object()) {
        defaults::default_spec(spec);
    }
}

/// Rules of a pod template at `field`, labels and annotations included.
pub(super) fn check_template(field: &str, template: &Value, violations: &mut Violations) {
    let mut inner = Violations::default();
    check(template, &mut inner);
    for error in inner.into_vec() {
        violations.add(error.below(field));
    }
    let metadata = &template["metadata"];
    super::metadata::check_labels(&format!("{field}.labels"), &metadata["labels"], violations);
    super::metadata::check_annotations(&format!("{field}.annotations"), &metadata["annotations"], violations);
}

fn check(pod: &Value, violations: &mut Violations) {
    let spec = &pod["spec"];
    let volumes = volumes::check(pod, violations);
    containers::check(spec, &volumes, violations);
    violations.one_of("spec.restartPolicy", &spec["restartPolicy"], RESTART_POLICIES);
    violations.one_of("spec.dnsPolicy", &spec["dnsPolicy"], DNS_POLICIES);
    violations.not_negative("spec.terminationGracePeriodSeconds", &spec["terminationGracePeriodSeconds"]);
    let deadline = &spec["activeDeadlineSeconds"];
    if deadline.as_i64().is_some_and(|seconds| !(1..=i64::from(i32::MAX)).contains(&seconds)) {
        violations.invalid(
            "spec.activeDeadlineSeconds",
            deadline,
            "must be between 1 and 2147483647, inclusive",
        );
    }
    for field in ["nodeName", "serviceAccountName"] {
        if !text(&spec[field]).is_empty() {
            violations.named(&format!("spec.{field}"), &spec[field], values::names::dns_subdomain);
        }
    }
    let affinity = &spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    if !affinity.is_null() {
        let field = "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution";
        violations.node_selector(field, affinity);
    }
    check_tolerations(items(&spec["tolerations"]), violations);
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
