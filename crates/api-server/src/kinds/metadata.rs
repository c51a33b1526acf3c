//! Rules of `metadata`, the same for all kinds but for what a name may be.

use std::collections::HashSet;

use serde_json::Value;
use values::names;

use super::{
    Kind,
    fields::{entries, items, same, text},
    violations::Violations,
};
use crate::schema::FieldError;

/// All annotations of an object together.
const MOST_ANNOTATION_BYTES: usize = 256 * 1024;

/// Finalizers of built-in kinds whose names have no domain.
const STANDARD_FINALIZERS: &[&str] = &["kubernetes", "orphan", "foregroundDeletion"];

/// What objects of a kind may be named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NameRule {
    /// An RFC 1123 label.
    Label,
    /// An RFC 1123 subdomain.
    Subdomain,
}

impl NameRule {
    fn check(self, name: &str) -> Vec<String> {
        match self {
            NameRule::Label => names::dns_label(name),
            NameRule::Subdomain => names::dns_subdomain(name),
        }
    }

    /// A prefix may end in what only a full name may not end in.
    fn check_prefix(self, prefix: &str) -> Vec<String> {
        match prefix.strip_suffix('-') {
            Some(start) => self.check(&format!("{start}a")),
            None => self.check(prefix),
        }
    }
}

/// Metadata of a new object.
pub(super) fn check(kind: &Kind, rule: NameRule, metadata: &Value, violations: &mut Violations) {
    let (name, prefix) = (&metadata["name"], &metadata["generateName"]);
    if !text(prefix).is_empty() {
        for message in rule.check_prefix(text(prefix)) {
            violations.invalid("metadata.generateName", prefix, &message);
        }
    }
    if violations.require("metadata.name", name, "name or generateName is required") {
        for message in rule.check(text(name)) {
            violations.invalid("metadata.name", name, &message);
        }
    }
    let namespace = &metadata["namespace"];
    if kind.namespaced {
        violations.require_named("metadata.namespace", namespace, names::dns_label);
    } else if !text(namespace).is_empty() {
        violations.forbid("metadata.namespace", "not allowed on this type");
    }
    check_mutable(kind, metadata, &[], violations);
}

/// Metadata of a changed object.
pub(super) fn check_change(kind: &Kind, new: &Value, old: &Value, violations: &mut Violations) {
    for field in ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp"] {
        if !new[field].is_null() {
            violations.immutable(format!("metadata.{field}"), &new[field], &old[field]);
        }
    }
    if !old["deletionTimestamp"].is_null() {
        let before: HashSet<&str> = items(&old["finalizers"]).iter().map(text).collect();
        let added: Vec<&str> =
            items(&new["finalizers"]).iter().map(text).filter(|name| !before.contains(name)).collect();
        if !added.is_empty() {
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers {added:?}"
            );
            violations.forbid("metadata.finalizers", &detail);
        }
    }
    // What was stored is good; the common update touches none of it.
    if !same(&new["labels"], &old["labels"])
        || !same(&new["annotations"], &old["annotations"])
        || !same(&new["finalizers"], &old["finalizers"])
        || !same(&new["ownerReferences"], &old["ownerReferences"])
    {
        check_mutable(kind, new, items(&old["finalizers"]), violations);
    }
}

/// `known` are the finalizers that are stored, whatever their names.
fn check_mutable(kind: &Kind, metadata: &Value, known: &[Value], violations: &mut Violations) {
    let qualified =
        !kind.is_custom() && !matches!(&*kind.group, "apiextensions.k8s.io" | "coordination.k8s.io");
    check_labels("metadata.labels", &metadata["labels"], violations);
    check_annotations("metadata.annotations", &metadata["annotations"], violations);
    for (index, finalizer) in items(&metadata["finalizers"]).iter().enumerate() {
        if known.contains(finalizer) {
            continue;
        }
        violations.named("metadata.finalizers", finalizer, names::qualified_name);
        if qualified && !text(finalizer).contains('/') && !STANDARD_FINALIZERS.contains(&text(finalizer)) {
            let detail = "name is neither a standard finalizer name nor is it fully qualified";
            violations.invalid(format!("metadata.finalizers[{index}]"), finalizer, detail);
        }
    }
    check_owners(&metadata["ownerReferences"], violations);
}

/// Labels are qualified names with short values.
pub(super) fn check_labels(field: &str, labels: &Value, violations: &mut Violations) {
    for (key, value) in entries(labels) {
        violations.named(field, &Value::from(key.as_str()), names::qualified_name);
        violations.named(field, value, names::label_value);
    }
}

/// Annotations are qualified names with any value, and not too large together.
pub(super) fn check_annotations(field: &str, annotations: &Value, violations: &mut Violations) {
    let mut size = 0;
    for (key, value) in entries(annotations) {
        violations
            .named(field, &Value::from(key.as_str()), |key| names::qualified_name(&key.to_ascii_lowercase()));
        size += key.len() + text(value).len();
    }
    if size > MOST_ANNOTATION_BYTES {
        violations.add(FieldError::too_long(field, MOST_ANNOTATION_BYTES));
    }
}

fn check_owners(owners: &Value, violations: &mut Violations) {
    const FIELD: &str = "metadata.ownerReferences";
    let mut controller: Option<String> = None;
    for owner in items(owners) {
        for (field, detail) in [
            ("apiVersion", "version must not be empty"),
            ("kind", "must not be empty"),
            ("name", "must not be empty"),
            ("uid", "must not be empty"),
        ] {
            if text(&owner[field]).is_empty() {
                violations.invalid(format!("{FIELD}.{field}"), &Value::from(""), detail);
            }
        }
        if owner["apiVersion"] == "v1" && owner["kind"] == "Event" {
            violations.invalid(FIELD, owner, "/v1, Kind=Event is disallowed from being an owner");
        }
        if owner["controller"] == true {
            let this = format!("{}/{}", text(&owner["kind"]), text(&owner["name"]));
            match &controller {
                None => controller = Some(this),
                Some(first) => {
                    let detail = format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for {first} and \
                         {this}"
                    );
                    violations.invalid(FIELD, owners, &detail);
                }
            }
        }
    }
}
