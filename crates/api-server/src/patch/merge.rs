//! Merge patches (RFC 7386).

use serde_json::{Map, Value};

/// Applies a merge patch (RFC 7386). A null removes a field; those in lists stay, those in maps in lists go.
pub(crate) fn apply(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = without_nulls(patch);
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else { return };
    for (name, value) in patch {
        match value {
            Value::Null => {
                target.remove(name);
            }
            Value::Object(_) => apply(target.entry(name).or_insert(Value::Null), value),
            _ => {
                target.insert(name.clone(), without_nulls(value));
            }
        }
    }
}

/// The value of a patch that has nothing to be merged with.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Array(items) => items.iter().map(without_nulls).collect(),
        Value::Object(fields) => fields
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| (name.clone(), without_nulls(value)))
            .collect::<Map<_, _>>()
            .into(),
        scalar => scalar.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn merge_patches_drop_nulls_of_maps_and_keep_those_of_lists() {
        for (target, patch, expected) in [
            (
                json!({"a": 1, "b": {"c": 2}}),
                json!({"a": null, "b": {"d": 3}}),
                json!({"b": {"c": 2, "d": 3}}),
            ),
            (json!({"a": [1]}), json!({"a": [null, {"x": null, "y": 1}]}), json!({"a": [null, {"y": 1}]})),
            (json!({"a": 1}), json!({"a": {"b": {"c": null, "d": 1}}}), json!({"a": {"b": {"d": 1}}})),
        ] {
            let mut merged = target;
            apply(&mut merged, &patch);
            assert_eq!(merged, expected);
        }
    }
}
