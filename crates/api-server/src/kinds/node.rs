//! Nodes.

use serde_json::Value;
use values::names;

use super::{
    fields::{default_field, items},
    rules::Rules,
    violations::Violations,
};

pub(super) const RULES: Rules = Rules { default, check, ..Rules::NONE };

fn default(node: &mut Value, _: Option<&Value>) {
    let capacity = node["status"]["capacity"].clone();
    if capacity.is_object() {
        default_field(node, &["status", "allocatable"], capacity);
    }
}

fn check(node: &Value, violations: &mut Violations) {
    for (index, taint) in items(&node["spec"]["taints"]).iter().enumerate() {
        let field = format!("spec.taints[{index}]");
        violations.require_named(&format!("{field}.key"), &taint["key"], names::qualified_name);
        violations.named(&format!("{field}.value"), &taint["value"], names::label_value);
        let effect = format!("{field}.effect");
        if violations.require(&effect, &taint["effect"], "") {
            violations.one_of(effect, &taint["effect"], &["NoExecute", "NoSchedule", "PreferNoSchedule"]);
        }
    }
}
