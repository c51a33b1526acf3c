//! Objects as `meta.k8s.io/v1` Tables, the way `kubectl get` prints them.

use serde_json::{Value, json};

use crate::kinds::Kind;

/// What of each object goes into its row (`includeObject`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IncludeObject {
    /// Nothing.
    None,
    /// Its metadata (the default).
    #[default]
    Metadata,
    /// The whole object.
    Object,
}

/// A Table of objects of one kind (no list metadata); `crd_columns` are a custom kind's `additionalPrinterColumns`.
pub fn render(
    _kind: &Kind,
    _objects: &[Value],
    _crd_columns: Option<&Value>,
    _include_object: IncludeObject,
    _now: jiff::Timestamp,
) -> Value {
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {}, "columnDefinitions": [], "rows": []})
}
