//! Volume attachments.

use serde_json::Value;
use values::names;

use super::{fields::default_field, fields::same, rules::Rules, violations::Violations};

pub(super) const RULES: Rules = Rules { default, check, check_change, ..Rules::NONE };

fn default(attachment: &mut Value, _: Option<&Value>) {
    default_field(attachment, &["status", "attached"], false);
}

fn check(attachment: &Value, violations: &mut Violations) {
    let spec = &attachment["spec"];
    violations.driver_name("spec.attacher", &spec["attacher"]);
    violations.require_named("spec.nodeName", &spec["nodeName"], names::dns_subdomain);
    let source = &spec["source"];
    let (inline, name) = (&source["inlineVolumeSpec"], &source["persistentVolumeName"]);
    const ONE: &str = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
    match (inline.is_null(), name.is_null()) {
        (true, true) => _ = violations.require("spec.source", &Value::Null, ONE),
        (false, false) => violations.forbid("spec.source", ONE),
        (true, false) => {
            violations.require_named("spec.source.persistentVolumeName", name, names::dns_subdomain)
        }
        (false, true) => {}
    }
}

fn check_change(new: &Value, old: &Value, violations: &mut Violations) {
    if !same(&new["spec"], &old["spec"]) {
        violations.invalid("spec", &new["spec"], "field is immutable");
    }
}
