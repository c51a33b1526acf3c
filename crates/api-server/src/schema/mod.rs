//! Structural schemas: what fields an object may have, of which type, and what a custom resource's values may be.
//!
//! A schema is a flat list of [`node::Node`]s. Those of built-in kinds are derived from the JSON schemas of
//! `k8s-openapi`'s types plus the list keys in [`lists`], each when its kind is first used; those of custom resources
//! come from `openAPIV3Schema`. `x-kubernetes-validations` (CEL) is accepted and not evaluated.

mod builtin;
mod defaults;
mod error;
mod go_syntax;
pub(crate) mod lists;
pub(crate) mod node;
mod patterns;
mod prune;
mod structural;
mod validate;

use std::sync::Arc;

use serde_json::Value;

pub(crate) use builtin::{TypeSchema, object_meta};
pub(crate) use defaults::TooLarge;
pub use error::{CauseType, FieldError};
use node::{Node, NodeId};
pub(crate) use patterns::Patterns;

/// More errors than this help nobody.
const MOST_ERRORS: usize = 100;

/// The structural schema of one version of a kind; cheap to clone.
#[derive(Debug, Clone)]
pub struct Schema(Arc<Document>);

#[derive(Debug)]
struct Document {
    nodes: Vec<Node>,
    root: NodeId,
    /// The custom resource's `openAPIV3Schema`; `None` for built-in kinds, whose JSON schema is rendered when asked.
    custom: Option<Value>,
}

impl Schema {
    /// The schema of one entry of a CustomResourceDefinition's `spec.versions`.
    ///
    /// # Errors
    /// Why it is not structural; fields are relative to the entry (`schema.openAPIV3Schema…`).
    pub fn from_crd_version(version: &Value) -> Result<Schema, Vec<FieldError>> {
        Schema::of_version(version, &mut Patterns::default())
    }

    /// The same, for a definition whose versions share the bounds of their patterns.
    pub(crate) fn of_version(version: &Value, patterns: &mut Patterns) -> Result<Schema, Vec<FieldError>> {
        let raw = &version["schema"]["openAPIV3Schema"];
        let errors = structural::check(raw, patterns);
        if !errors.is_empty() {
            return Err(errors);
        }
        let (nodes, root) = node::custom(raw, builtin::object_meta(), patterns);
        Ok(Schema(Arc::new(Document { nodes, root, custom: Some(raw.clone()) })))
    }

    /// Removes unknown fields and names them in Kubernetes' wording: `unknown field "spec.foo"`.
    ///
    /// For built-in kinds this does what else decoding does: a field set to null counts as unset, and quantities get
    /// their canonical form.
    pub fn prune(&self, object: &mut Value) -> Vec<String> {
        prune::prune(self, object)
    }

    /// Fills in the schema's defaults, unless they have more than `most` bytes together.
    pub(crate) fn apply_defaults(&self, object: &mut Value, most: usize) -> Result<(), TooLarge> {
        defaults::apply(self, self.0.root, object, most)
    }

    /// What in the object contradicts the schema.
    pub fn validate(&self, object: &Value) -> Vec<FieldError> {
        validate::validate(self, object)
    }

    /// How many places of an object the schema speaks of.
    pub(crate) fn places(&self) -> usize {
        self.0.nodes.len()
    }

    pub(crate) fn is_builtin(&self) -> bool {
        self.0.custom.is_none()
    }

    /// A custom resource's `openAPIV3Schema`.
    pub(crate) fn custom(&self) -> Option<&Value> {
        self.0.custom.as_ref()
    }

    pub(crate) fn root(&self) -> &Node {
        self.node(self.0.root)
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.0.nodes[id.0]
    }
}

/// Whether an `openAPIV3Schema` carries CEL rules, which are accepted but not evaluated.
pub(crate) fn has_unevaluated_rules(schema: &Value) -> bool {
    match schema {
        Value::Object(fields) => {
            fields.get("x-kubernetes-validations").is_some_and(Value::is_array)
                || fields.values().any(has_unevaluated_rules)
        }
        Value::Array(items) => items.iter().any(has_unevaluated_rules),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
