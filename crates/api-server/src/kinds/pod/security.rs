//! Security contexts of pods and containers.

use std::collections::HashSet;

use serde_json::Value;

use super::super::{
    fields::{items, text},
    violations::Violations,
};
use crate::schema::FieldError;

/// The largest number of a user or group.
const LARGEST_ID: i64 = i32::MAX as i64;

pub(super) fn check_pod(spec: &Value, violations: &mut Violations) {
    const FIELD: &str = "spec.securityContext";
    let context = &spec["securityContext"];
    check_ids(FIELD, context, violations);
    for (index, group) in items(&context["supplementalGroups"]).iter().enumerate() {
        check_id(format!("{FIELD}.supplementalGroups[{index}]"), group, violations);
    }
    let mut names = HashSet::new();
    for (index, sysctl) in items(&context["sysctls"]).iter().enumerate() {
        let field = format!("{FIELD}.sysctls[{index}].name");
        violations.require(&field, &sysctl["name"], "");
        if !names.insert(text(&sysctl["name"])) {
            violations.add(FieldError::duplicate(field, sysctl["name"].clone()));
        }
    }
    check_seccomp(&format!("{FIELD}.seccompProfile"), &context["seccompProfile"], violations);
}

pub(super) fn check_container(field: &str, container: &Value, violations: &mut Violations) {
    let (field, context) = (format!("{field}.securityContext"), &container["securityContext"]);
    check_ids(&field, context, violations);
    if context["allowPrivilegeEscalation"] == false {
        if context["privileged"] == true {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            violations.invalid(&*field, context, detail);
        }
        let administers = |name: &Value| matches!(text(name), "SYS_ADMIN" | "CAP_SYS_ADMIN");
        if items(&context["capabilities"]["add"]).iter().any(administers) {
            let detail =
                "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            violations.invalid(&*field, context, detail);
        }
    }
    check_seccomp(&format!("{field}.seccompProfile"), &context["seccompProfile"], violations);
}

fn check_ids(field: &str, context: &Value, violations: &mut Violations) {
    for name in ["runAsUser", "runAsGroup", "fsGroup"] {
        check_id(format!("{field}.{name}"), &context[name], violations);
    }
}

fn check_id(field: String, id: &Value, violations: &mut Violations) {
    if id.as_i64().is_some_and(|id| !(0..=LARGEST_ID).contains(&id)) {
        violations.invalid(field, id, "must be between 0 and 2147483647, inclusive");
    }
}

fn check_seccomp(field: &str, profile: &Value, violations: &mut Violations) {
    if profile.is_null() {
        return;
    }
    let path = format!("{field}.localhostProfile");
    match text(&profile["type"]) {
        "Localhost" => {
            let detail = "must be set when seccomp type is Localhost";
            violations.require(path, &profile["localhostProfile"], detail);
        }
        "RuntimeDefault" | "Unconfined" => {
            if !profile["localhostProfile"].is_null() {
                let detail = "can only be set when seccomp type is Localhost";
                violations.invalid(path, profile, detail);
            }
        }
        "" => {
            let detail = "type is required when seccompProfile is set";
            violations.add(FieldError::required(format!("{field}.type"), detail));
        }
        _ => {
            let known = &["Localhost", "RuntimeDefault", "Unconfined"];
            violations.one_of(format!("{field}.type"), &profile["type"], known);
        }
    }
}
