//! Leases.

use serde_json::Value;

use super::{rules::Rules, violations::Violations};

pub(super) const RULES: Rules = Rules { check, ..Rules::NONE };

fn check(lease: &Value, violations: &mut Violations) {
    let spec = &lease["spec"];
    if spec["leaseDurationSeconds"].as_i64().is_some_and(|seconds| seconds <= 0) {
        violations.invalid(
            "spec.leaseDurationSeconds",
            &spec["leaseDurationSeconds"],
            "must be greater than 0",
        );
    }
    violations.not_negative("spec.leaseTransitions", &spec["leaseTransitions"]);
}
