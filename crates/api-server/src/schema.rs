//! Structural schemas of built-in kinds and of CustomResourceDefinitions.

use serde_json::Value;

/// The structural schema of one version of a kind; cheap to clone.
#[derive(Debug, Clone)]
pub struct Schema;

impl Schema {
    /// The schema of a built-in kind (by its `kind`).
    pub fn builtin(_kind: &str) -> Option<&'static Schema> {
        None
    }

    /// The schema of one entry of a CustomResourceDefinition's `spec.versions`, or why it is not structural.
    pub fn from_crd_version(_version: &Value) -> Result<Schema, Vec<FieldError>> {
        Ok(Schema)
    }

    /// Removes unknown fields and names them in Kubernetes' wording: `unknown field "spec.foo"`.
    pub fn prune(&self, _object: &mut Value) -> Vec<String> {
        Vec::new()
    }

    /// Fills in the schema's defaults.
    pub fn apply_defaults(&self, _object: &mut Value) {}

    /// What in the object contradicts the schema.
    pub fn validate(&self, _object: &Value) -> Vec<FieldError> {
        Vec::new()
    }
}

/// Why one field was refused: a cause of an `Invalid` Status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// Dotted path of the field.
    pub field: String,
    /// Machine-readable reason.
    pub reason: CauseType,
    /// Kubernetes' words, without the path.
    pub message: String,
}

/// `metav1.CauseType` values of refused fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CauseType {
    /// The value is malformed.
    FieldValueInvalid,
    /// The field must be set.
    FieldValueRequired,
    /// The value is not one of the allowed ones.
    FieldValueNotSupported,
    /// The field may not be set, or not changed.
    FieldValueForbidden,
    /// The value occurs twice.
    FieldValueDuplicate,
    /// The value is too long.
    FieldValueTooLong,
    /// The list has too many items.
    FieldValueTooMany,
    /// The value has the wrong type.
    FieldValueTypeInvalid,
}

impl CauseType {
    /// The value on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            CauseType::FieldValueInvalid => "FieldValueInvalid",
            CauseType::FieldValueRequired => "FieldValueRequired",
            CauseType::FieldValueNotSupported => "FieldValueNotSupported",
            CauseType::FieldValueForbidden => "FieldValueForbidden",
            CauseType::FieldValueDuplicate => "FieldValueDuplicate",
            CauseType::FieldValueTooLong => "FieldValueTooLong",
            CauseType::FieldValueTooMany => "FieldValueTooMany",
            CauseType::FieldValueTypeInvalid => "FieldValueTypeInvalid",
        }
    }
}
