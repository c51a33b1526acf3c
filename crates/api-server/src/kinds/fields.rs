//! Reading and filling in fields of objects that may lack any of them.

use serde_json::{Map, Value};

/// The text of a value; empty when it is not a string.
pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The items of a list; none when it is not a list.
pub(crate) fn items(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// The items of a list, to be filled in.
pub(super) fn items_mut(value: &mut Value) -> &mut [Value] {
    value.as_array_mut().map(Vec::as_mut_slice).unwrap_or_default()
}

/// The entries of a map; none when it is not a map.
pub(crate) fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

/// Sets the field at `path` if it is unset or empty text, making the objects on the way. A value of the wrong type on
/// the way is left for the schema to refuse.
pub(super) fn default_field(object: &mut Value, path: &[&str], default: impl Into<Value>) {
    let [parents @ .., field] = path else { return };
    let mut parent = object;
    for name in parents {
        let Value::Object(fields) = parent else { return };
        parent = fields.entry(*name).or_insert(Value::Null);
        if parent.is_null() {
            *parent = Value::Object(Map::new());
        }
    }
    let Value::Object(fields) = parent else { return };
    let unset = fields.get(*field).is_none_or(|value| value.is_null() || value == "");
    if unset {
        fields.insert((*field).to_owned(), default.into());
    }
}

/// The same for a field whose empty text is a value of its own, and a wrong one mostly.
pub(super) fn default_unset(object: &mut Value, path: &[&str], default: impl Into<Value>) {
    let pointer = format!("/{}", path.join("/"));
    if object.pointer(&pointer).is_none_or(Value::is_null) {
        default_field(object, path, default);
    }
}

/// Removes a field of an object.
pub(super) fn remove(object: &mut Value, field: &str) -> Option<Value> {
    object.as_object_mut()?.remove(field)
}

/// Whether two values mean the same to Kubernetes, which does not tell an absent field from an empty one.
pub(super) fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            let of = |map: &Map<String, Value>, key: &str| map.get(key).cloned().unwrap_or_default();
            a.keys().chain(b.keys()).all(|key| match (a.get(key), b.get(key)) {
                (Some(a), Some(b)) => same(a, b),
                _ => is_empty(&of(a, key)) && is_empty(&of(b, key)),
            })
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        _ => a == b || (is_empty(a) && is_empty(b)),
    }
}

/// The value without what [`same`] does not look at, so that values that are the same are equal.
pub(super) fn without_empty(value: &Value) -> Value {
    match value {
        empty if is_empty(empty) => Value::Null,
        Value::Object(fields) => fields
            .iter()
            .filter(|(_, value)| !is_empty(value))
            .map(|(name, value)| (name.clone(), without_empty(value)))
            .collect::<Map<_, _>>()
            .into(),
        Value::Array(items) => items.iter().map(without_empty).collect(),
        other => other.clone(),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_empty),
    }
}

/// What differs, a line for each field: `storageClassName: "a" -> "b"`.
pub(super) fn difference(old: &Value, new: &Value) -> String {
    let mut lines = Vec::new();
    differ("", old, new, &mut lines);
    lines.join("\n")
}

fn differ(path: &str, old: &Value, new: &Value, lines: &mut Vec<String>) {
    match (old, new) {
        _ if same(old, new) => {}
        (Value::Object(a), Value::Object(b)) => {
            let mut names: Vec<&String> = a.keys().chain(b.keys()).collect();
            names.sort();
            names.dedup();
            for name in names {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                differ(
                    &path,
                    a.get(name).unwrap_or(&Value::Null),
                    b.get(name).unwrap_or(&Value::Null),
                    lines,
                );
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (index, (a, b)) in a.iter().zip(b).enumerate() {
                differ(&format!("{path}[{index}]"), a, b, lines);
            }
        }
        _ => lines.push(format!("{path}: {old} -> {new}")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn absent_and_empty_are_the_same() {
        for (a, b) in [
            (json!({}), json!({"a": "", "b": [], "c": {"d": null}, "e": false})),
            (json!(null), json!({})),
            (json!({"a": [1]}), json!({"a": [1], "b": {}})),
        ] {
            assert!(same(&a, &b), "{a} {b}");
            assert_eq!(without_empty(&a), without_empty(&b));
        }
        assert!(!same(&json!({"a": 1}), &json!({})));
        assert!(!same(&json!(["a"]), &json!(["b"])));
    }

    #[test]
    fn differences_name_the_fields() {
        let old = json!({"a": {"b": 1, "c": 2}, "d": ["x"]});
        let new = json!({"a": {"b": 1, "c": 3}, "d": ["y"], "e": true});
        assert_eq!(difference(&old, &new), "a.c: 2 -> 3\nd[0]: \"x\" -> \"y\"\ne: null -> true");
    }
}
