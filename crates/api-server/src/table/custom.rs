//! Columns that a custom resource definition asks for.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{age, json_path::JsonPath};
use crate::kinds::fields::{items, text};

/// One column of a custom kind.
pub(super) struct Column {
    definition: Value,
    ty: String,
    path: Option<JsonPath>,
}

/// The name, then what is asked for; without that, the age.
pub(super) fn columns(additional: Option<&Value>) -> Vec<Column> {
    let additional = additional.map(items).unwrap_or_default();
    let name = json!({"name": "Name", "type": "string", "format": "name", "jsonPath": ".metadata.name"});
    let age = json!({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"});
    let rest = if additional.is_empty() { vec![age] } else { additional.to_vec() };
    std::iter::once(name).chain(rest).map(|column| Column::new(&column)).collect()
}

impl Column {
    fn new(column: &Value) -> Column {
        Column {
            definition: json!({
                "name": column["name"],
                "type": column["type"],
                "format": text(&column["format"]),
                "description": text(&column["description"]),
                "priority": column["priority"].as_i64().unwrap_or(0),
            }),
            ty: text(&column["type"]).to_owned(),
            path: JsonPath::parse(text(&column["jsonPath"])).ok(),
        }
    }

    pub(super) fn definition(&self) -> Value {
        self.definition.clone()
    }

    /// The cell of an object; null when the path leads nowhere or to the wrong type.
    pub(super) fn cell(&self, object: &Value, now: Timestamp) -> Value {
        let Some(value) = self.path.as_ref().and_then(|path| path.first(object)) else { return Value::Null };
        match (self.ty.as_str(), value) {
            ("string", Value::String(_)) => value.clone(),
            ("string", other) => other.to_string().into(),
            ("date", Value::String(_)) => age::since(value, now).into(),
            ("integer", Value::Number(number)) => {
                #[expect(
                    clippy::cast_possible_truncation,
                    reason = "a fraction is cut off, as Kubernetes does"
                )]
                let integer = number.as_i64().or_else(|| number.as_f64().map(|number| number as i64));
                integer.into()
            }
            ("number", Value::Number(_)) | ("boolean", Value::Bool(_)) => value.clone(),
            _ => Value::Null,
        }
    }
}
