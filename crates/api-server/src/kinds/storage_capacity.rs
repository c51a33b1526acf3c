//! CSI storage capacities.

use serde_json::Value;
use values::names;

use super::{rules::Rules, violations::Violations};

pub(super) const RULES: Rules = Rules { check, check_change, ..Rules::NONE };

fn check(capacity: &Value, violations: &mut Violations) {
    violations.label_selector("nodeTopology", &capacity["nodeTopology"]);
    violations.require_named("storageClassName", &capacity["storageClassName"], names::dns_subdomain);
    violations.not_negative("capacity", &capacity["capacity"]);
}

fn check_change(new: &Value, old: &Value, violations: &mut Violations) {
    for field in ["nodeTopology", "storageClassName"] {
        violations.immutable(field, &new[field], &old[field]);
    }
}
