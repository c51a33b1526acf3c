//! Namespaces.

use serde_json::{Value, json};

use super::{
    fields::{default_field, text},
    metadata::NameRule,
    rules::Rules,
};

pub(super) const RULES: Rules = Rules { name: NameRule::Label, default, ..Rules::NONE };

/// Every namespace carries its name as a label, so that selectors can name it.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

fn default(namespace: &mut Value, old: Option<&Value>) {
    let name = text(&namespace["metadata"]["name"]).to_owned();
    if !name.is_empty() {
        default_field(namespace, &["metadata", "labels", NAME_LABEL], name);
    }
    if old.is_none() {
        default_field(namespace, &["spec", "finalizers"], json!(["kubernetes"]));
    }
    default_field(namespace, &["status", "phase"], "Active");
}
