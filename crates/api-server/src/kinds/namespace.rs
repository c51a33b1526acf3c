//! Namespaces.

use serde_json::Value;

use super::{fields::default_field, metadata::NameRule, rules::Rules};

pub(super) const RULES: Rules = Rules { name: NameRule::Label, default, ..Rules::NONE };

fn default(namespace: &mut Value, _: Option<&Value>) {
    default_field(namespace, &["status", "phase"], "Active");
}
