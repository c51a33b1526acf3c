//! Pods.

mod change;
mod containers;
mod defaults;
mod placement;
mod probes;
mod quality;
mod security;
mod volumes;

use serde_json::Value;

pub(super) use volumes::HOST_PATH_TYPES;

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
    for field in ["hostname", "subdomain"] {
        let value = &spec[field];
        if !text(value).is_empty() {
            if text(value).contains('.') {
                violations.invalid(format!("spec.{field}"), value, "must not contain dots");
            } else {
                violations.named(&format!("spec.{field}"), value, values::names::dns_label);
            }
        }
    }
    placement::check(spec, violations);
    security::check_pod(spec, violations);
}

/// What only a new pod may not have.
pub(super) fn check_new(pod: &Value, violations: &mut Violations) {
    if !items(&pod["spec"]["ephemeralContainers"]).is_empty() {
        violations.forbid("spec.ephemeralContainers", "cannot be set on create");
    }
}
