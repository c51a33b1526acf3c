//! Defaults and rules of any kind, as its row has them.

use serde_json::Value;

use super::{kind::Kind, metadata, violations::Violations};
use crate::schema::FieldError;

/// Fills in what Kubernetes fills in when an object is created (`old` is `None`) or replaced, except what only the
/// request knows (uid, timestamps, namespace).
///
/// On creation the caller has already dropped a client's `.status` where the kind has a status subresource; this
/// writes the initial one (claim and volume `Pending`, pod `Pending` with its QoS class, namespace `Active`).
pub fn default_object(kind: &Kind, object: &mut Value, old: Option<&Value>) {
    (kind.row.rules.default)(object, old);
}

/// Every rule that `object` breaks as a new object of `kind`, metadata included (custom kinds: metadata
/// only, and what Kubernetes' snapshot API demands of its own).
pub fn validate_create(kind: &Kind, object: &Value) -> Vec<FieldError> {
    let rules = &kind.row.rules;
    let mut violations = Violations::default();
    metadata::check(kind, rules.name, &object["metadata"], &mut violations);
    (rules.check)(object, &mut violations);
    (rules.check_new)(object, &mut violations);
    violations.into_vec()
}

/// Every rule that replacing `old` by `new` breaks, metadata and immutable fields included. Good for the status
/// subresource too: the caller has carried over what that one can't change.
pub fn validate_update(kind: &Kind, new: &Value, old: &Value) -> Vec<FieldError> {
    let rules = &kind.row.rules;
    let mut violations = Violations::default();
    metadata::check_change(kind, &new["metadata"], &old["metadata"], &mut violations);
    let mut broken = Violations::default();
    (rules.check)(new, &mut broken);
    let mut broken = broken.into_vec();
    if !broken.is_empty() {
        // A rule that is newer than what is stored keeps nobody from changing everything else.
        let mut before = Violations::default();
        (rules.check)(old, &mut before);
        let before = before.into_vec();
        broken.retain(|error| !before.contains(error));
    }
    broken.into_iter().for_each(|error| violations.add(error));
    (rules.check_change)(new, old, &mut violations);
    violations.into_vec()
}

/// What a client should know of an object that was accepted all the same.
pub fn warnings(kind: &Kind, object: &Value) -> Vec<String> {
    (kind.row.rules.warnings)(object)
}
