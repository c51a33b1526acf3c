//! Pods.

mod admission;
mod binding;
mod change;
mod containers;
mod defaults;
mod deletion;
pub(crate) mod log;
mod placement;
mod probes;
mod quality;
mod security;
mod table;
mod volumes;

use serde_json::Value;

pub(super) use volumes::HOST_PATH_TYPES;

use super::{
    fields::{items, text},
    groups,
    row::{Act, Field, Hooks, Row, Rules, Subresource},
    violations::Violations,
};
use crate::schema::TypeSchema;
use crate::table::column::Printer;

static SCHEMA: TypeSchema = TypeSchema::of::<k8s_openapi::api::core::v1::Pod>();

pub(crate) static KIND: Row = Row {
    group: groups::CORE,
    kind: "Pod",
    plural: "pods",
    short_names: &["po"],
    categories: &["all"],
    status: true,
    schema: Some(&SCHEMA),
    rules: Rules {
        default: defaults::default,
        check,
        check_new,
        check_change: change::check,
        warnings: |pod| values::unserved::of("spec", &pod["spec"]),
        ..Rules::NONE
    },
    table: Printer { columns: table::COLUMNS, cells: table::cells },
    fields: &[
        Field::at("spec.nodeName"),
        Field::at("spec.restartPolicy"),
        Field::at("spec.schedulerName"),
        Field::at("spec.serviceAccountName"),
        Field::flag("spec.hostNetwork"),
        Field::at("status.phase"),
        Field::at("status.podIP"),
        Field::at("status.nominatedNodeName"),
    ],
    subresources: &[
        Subresource {
            name: "binding",
            kind: Some("Binding"),
            group: None,
            verbs: &["create"],
            act: Act::Change { check: binding::check, make: binding::bind },
        },
        Subresource {
            name: "eviction",
            kind: Some("Eviction"),
            group: Some("policy"),
            verbs: &["create"],
            act: Act::Evict,
        },
        Subresource { name: "log", kind: None, group: None, verbs: &["get"], act: Act::Log },
    ],
    unserved: &["exec", "attach", "portforward", "proxy", "ephemeralcontainers", "resize"],
    hooks: Hooks {
        on_create: admission::on_create,
        on_update: admission::on_update,
        grace: deletion::grace,
        ended: deletion::ended,
        ..Hooks::NONE
    },
    generations: true,
    shows_deleted: true,
    ..Row::PLAIN
};

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
fn check_new(pod: &Value, violations: &mut Violations) {
    if !items(&pod["spec"]["ephemeralContainers"]).is_empty() {
        violations.forbid("spec.ephemeralContainers", "cannot be set on create");
    }
}
