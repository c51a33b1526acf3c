//! Events.

use serde_json::Value;

use super::{fields::text, rules::Rules, violations::Violations};

pub(super) const RULES: Rules = Rules { check, ..Rules::NONE };

/// An event lives in the namespace of what it is about; those of cluster-scoped objects live in `default` or
/// `kube-system`.
fn check(event: &Value, violations: &mut Violations) {
    let namespace = text(&event["metadata"]["namespace"]);
    let about = &event["involvedObject"]["namespace"];
    let fits = match text(about) {
        "" => matches!(namespace, "default" | "kube-system"),
        about => about == namespace,
    };
    if !fits {
        violations.invalid(
            "involvedObject.namespace",
            &Value::from(text(about)),
            "does not match event.namespace",
        );
    }
}
