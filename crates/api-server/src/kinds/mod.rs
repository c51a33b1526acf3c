//! The table of kinds, and what each kind's objects must look like.
//!
//! A kind is a row. Built-in kinds are [`BUILTIN`]; a custom resource definition adds rows of the same type at run
//! time. Everything here is a pure function over JSON.

mod builtin;
mod config_map;
mod csi_driver;
mod csi_node;
mod custom_resource_definition;
mod event;
pub(crate) mod fields;
mod lease;
mod metadata;
mod namespace;
mod node;
mod persistent_volume;
mod persistent_volume_claim;
mod pod;
mod rules;
mod secret;
mod service;
mod snapshot;
mod stateful_set;
mod storage_capacity;
mod storage_class;
mod violations;
mod volume_attachment;
mod volume_attributes_class;

use std::borrow::Cow;

use serde_json::Value;

pub use builtin::BUILTIN;

use fields::items;
use violations::Violations;

use crate::schema::{FieldError, has_unevaluated_rules};

type Text = Cow<'static, str>;
type Texts = Cow<'static, [Text]>;

/// One served kind: its names, scope and abilities, as discovery shows them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kind {
    /// API group; empty for the core group.
    pub group: Text,
    /// API version, such as `v1`.
    pub version: Text,
    /// Kind of one object, such as `Pod`.
    pub kind: Text,
    /// Kind of a list of them, such as `PodList`.
    pub list_kind: Text,
    /// Resource name in URLs, such as `pods`.
    pub plural: Text,
    /// Singular name, such as `pod`.
    pub singular: Text,
    /// Short names that kubectl accepts, such as `po`.
    pub short_names: Texts,
    /// Groups of kinds that kubectl accepts, such as `all`.
    pub categories: Texts,
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// Whether there is a `status` subresource, so that the main resource can't change `.status`.
    pub status: bool,
}

const VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
/// Namespaces can't be deleted as a collection.
const NAMESPACE_VERBS: &[&str] = &["create", "delete", "get", "list", "patch", "update", "watch"];

impl Kind {
    /// `v1` or `storage.k8s.io/v1`: what objects carry as `apiVersion`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_string()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// Verbs as discovery lists them.
    pub fn verbs(&self) -> &'static [&'static str] {
        if self.is_builtin("Namespace") { NAMESPACE_VERBS } else { VERBS }
    }

    /// Whether `metadata.generation` counts changes outside metadata and status.
    pub fn counts_generations(&self) -> bool {
        self.is_custom() || matches!(&*self.kind, "CustomResourceDefinition" | "Pod" | "StatefulSet")
    }

    /// Whether there is a `scale` subresource, by which `spec.replicas` is read and set.
    pub fn scales(&self) -> bool {
        self.is_builtin("StatefulSet")
    }

    /// Whether this row comes from a custom resource definition.
    pub fn is_custom(&self) -> bool {
        !BUILTIN.iter().any(|row| row.group == self.group && row.kind == self.kind)
    }

    fn is_builtin(&self, kind: &str) -> bool {
        self.kind == kind && !self.is_custom()
    }

    /// `pods` or `storageclasses.storage.k8s.io`: the name that the store keeps objects under, and that messages use.
    pub fn resource(&self) -> String {
        if self.group.is_empty() {
            self.plural.to_string()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }
}

/// Fills in what Kubernetes fills in when an object is created (`old` is `None`) or replaced, except what only the
/// request knows (uid, timestamps, namespace).
///
/// On creation the caller has already dropped a client's `.status` where the kind has a status subresource; this
/// writes the initial one (claim and volume `Pending`, pod `Pending` with its QoS class, namespace `Active`).
pub fn default_object(kind: &Kind, object: &mut Value, old: Option<&Value>) {
    (rules::of(kind).default)(object, old);
}

/// Every rule that `object` breaks as a new object of `kind`, metadata included (custom kinds: metadata
/// only, and what Kubernetes' snapshot API demands of its own).
pub fn validate_create(kind: &Kind, object: &Value) -> Vec<FieldError> {
    let rules = rules::of(kind);
    let mut violations = Violations::default();
    metadata::check(kind, rules.name, &object["metadata"], &mut violations);
    (rules.check)(object, &mut violations);
    if kind.is_builtin("Pod") {
        pod::check_new(object, &mut violations);
    }
    violations.into_vec()
}

/// Every rule that replacing `old` by `new` breaks, metadata and immutable fields included. Good for the status
/// subresource too: the caller has carried over what that one can't change.
pub fn validate_update(kind: &Kind, new: &Value, old: &Value) -> Vec<FieldError> {
    let rules = rules::of(kind);
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
    let mut warnings = Vec::new();
    if kind.is_builtin("CustomResourceDefinition") {
        for version in items(&object["spec"]["versions"]) {
            if has_unevaluated_rules(&version["schema"]["openAPIV3Schema"]) {
                warnings.push(format!(
                    "version {}: x-kubernetes-validations (CEL rules) are stored but not evaluated by this server",
                    version["name"]
                ));
            }
        }
    }
    if kind.is_builtin("Service") {
        warnings.push(service::NOT_SERVED.to_owned());
    }
    if kind.is_builtin("Pod") {
        warnings.extend(values::unserved::of("spec", &object["spec"]));
    }
    if kind.is_builtin("StatefulSet") {
        warnings.extend(values::unserved::of("spec.template.spec", &object["spec"]["template"]["spec"]));
    }
    warnings
}

#[cfg(test)]
mod tests;
