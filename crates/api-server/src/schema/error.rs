//! What is wrong with a field, in the words and codes of `metav1.StatusCause`.

use std::fmt;

use serde_json::Value;

/// Why one field was refused: a cause of an `Invalid` Status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// Path of the field, such as `spec.accessModes` or `spec.containers[0].name`.
    pub field: String,
    /// Machine-readable reason.
    pub reason: CauseType,
    /// Kubernetes' words, without the path: `Required value`, `Invalid value: "x": must be …`.
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
    /// What the value refers to is not there.
    FieldValueNotFound,
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
            CauseType::FieldValueNotFound => "FieldValueNotFound",
        }
    }
}

impl FieldError {
    fn new(field: impl Into<String>, reason: CauseType, message: String) -> FieldError {
        FieldError { field: field.into(), reason, message: shortened(message) }
    }

    /// `Required value`, with an explanation when there is one.
    pub fn required(field: impl Into<String>, detail: &str) -> FieldError {
        Self::new(field, CauseType::FieldValueRequired, with_detail("Required value".into(), detail))
    }

    /// `Invalid value: VALUE: detail`.
    pub fn invalid(field: impl Into<String>, value: impl Into<Value>, detail: &str) -> FieldError {
        let message = with_detail(format!("Invalid value: {}", value.into()), detail);
        Self::new(field, CauseType::FieldValueInvalid, message)
    }

    /// `Unsupported value: VALUE: supported values: "a", "b"`.
    pub fn not_supported<'a>(
        field: impl Into<String>,
        value: impl Into<Value>,
        supported: impl IntoIterator<Item = &'a str>,
    ) -> FieldError {
        let supported: Vec<String> = supported.into_iter().map(|value| format!("{value:?}")).collect();
        let message =
            format!("Unsupported value: {}: supported values: {}", value.into(), supported.join(", "));
        Self::new(field, CauseType::FieldValueNotSupported, message)
    }

    /// The same for values of any type.
    pub(super) fn not_among(field: impl Into<String>, value: &Value, supported: &[Value]) -> FieldError {
        let mut texts = Vec::new();
        let mut length = 0;
        for value in supported {
            let text = value.to_string();
            length += text.len();
            texts.push(text);
            if length > MOST_TEXT {
                break;
            }
        }
        let message = format!("Unsupported value: {value}: supported values: {}", texts.join(", "));
        Self::new(field, CauseType::FieldValueNotSupported, message)
    }

    /// `Forbidden: detail`.
    pub fn forbidden(field: impl Into<String>, detail: &str) -> FieldError {
        Self::new(field, CauseType::FieldValueForbidden, with_detail("Forbidden".into(), detail))
    }

    /// `Duplicate value: VALUE`.
    pub fn duplicate(field: impl Into<String>, value: impl Into<Value>) -> FieldError {
        Self::new(field, CauseType::FieldValueDuplicate, format!("Duplicate value: {}", value.into()))
    }

    /// `Too long: may not be more than N bytes`.
    pub fn too_long(field: impl Into<String>, most: usize) -> FieldError {
        let message = format!("Too long: may not be more than {most} bytes");
        Self::new(field, CauseType::FieldValueTooLong, message)
    }

    /// `Too many: COUNT: must have at most N items`.
    pub fn too_many(field: impl Into<String>, count: usize, most: usize) -> FieldError {
        let message = format!("Too many: {count}: must have at most {most} items");
        Self::new(field, CauseType::FieldValueTooMany, message)
    }

    /// `Not found: VALUE`.
    pub fn not_found(field: impl Into<String>, value: impl Into<Value>) -> FieldError {
        Self::new(field, CauseType::FieldValueNotFound, format!("Not found: {}", value.into()))
    }

    /// `FIELD in body must be of type EXPECTED: "FOUND"`.
    pub fn wrong_type(field: &str, found: &Value, expected: &str) -> FieldError {
        let found = json_type(found);
        let detail = format!("{field} in body must be of type {expected}: {found:?}");
        let message = with_detail(format!("Invalid value: {found:?}"), &detail);
        Self::new(field, CauseType::FieldValueTypeInvalid, message)
    }

    /// The same error, of a field below `parent`.
    #[must_use]
    pub fn below(mut self, parent: &str) -> FieldError {
        self.field = if self.field.is_empty() {
            parent.to_owned()
        } else if self.field.starts_with('[') {
            format!("{parent}{}", self.field)
        } else {
            format!("{parent}.{}", self.field)
        };
        self
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// Bytes of a message.
const MOST_TEXT: usize = 8 << 10;

/// A message may quote a value of a megabyte, and an answer has a hundred of them.
fn shortened(mut message: String) -> String {
    if message.len() > MOST_TEXT {
        message.truncate(message.floor_char_boundary(MOST_TEXT));
        message.push('…');
    }
    message
}

fn with_detail(message: String, detail: &str) -> String {
    if detail.is_empty() { message } else { format!("{message}: {detail}") }
}

/// The name of a value's JSON type as OpenAPI validation messages use it.
pub(crate) fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}
