//! The table of built-in kinds and the rules a row names.

use std::borrow::Cow;

use serde_json::Value;

use crate::schema::FieldError;

/// A kind that the server serves: a row of [`BUILTIN`], or one version of a CustomResourceDefinition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kind {
    /// API group; empty for the core group.
    pub group: Cow<'static, str>,
    /// API version, such as `v1`.
    pub version: Cow<'static, str>,
    /// `kind` of an object.
    pub kind: Cow<'static, str>,
    /// `kind` of a list of objects.
    pub list_kind: Cow<'static, str>,
    /// Resource name in paths, such as `pods`.
    pub plural: Cow<'static, str>,
    /// Singular name, such as `pod`.
    pub singular: Cow<'static, str>,
    /// Abbreviations that kubectl accepts.
    pub short_names: Cow<'static, [Cow<'static, str>]>,
    /// Groups of resources (`all`) that the kind belongs to.
    pub categories: Cow<'static, [Cow<'static, str>]>,
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// Whether the kind has a `status` subresource.
    pub status: bool,
}

/// The kinds that are always served.
pub static BUILTIN: &[Kind] = &[];

/// Fills in what Kubernetes fills in when it stores an object of a built-in kind; `old` is the stored object on updates.
pub fn default_object(_kind: &Kind, _object: &mut Value, _old: Option<&Value>) {}

/// What is wrong with a new object, metadata included (custom kinds: metadata only).
pub fn validate_create(_kind: &Kind, _object: &Value) -> Vec<FieldError> {
    Vec::new()
}

/// What is wrong with the change from `old` to `new`, metadata and immutable fields included.
pub fn validate_update(_kind: &Kind, _new: &Value, _old: &Value) -> Vec<FieldError> {
    Vec::new()
}
