//! Whether an `openAPIV3Schema` is structural: every value has a type, and nothing is specified only inside a junctor.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::patterns::Patterns;
use super::{FieldError, MOST_ERRORS};
use crate::path::Path;

const ROOT: &str = "schema.openAPIV3Schema";
/// Deeper schemas are refused, so that no walk of one can exhaust the stack.
const DEEPEST: usize = 64;

const TYPES: &[&str] = &["array", "boolean", "integer", "number", "object", "string"];
const FORBIDDEN: &[&str] =
    &["$ref", "definitions", "dependencies", "additionalItems", "patternProperties", "id"];
/// What may not appear below a junctor, because pruning and defaulting look only outside of them.
const OUTSIDE_JUNCTORS: &[(&str, &str)] = &[
    ("default", "must be undefined to be structural"),
    ("additionalProperties", "must be undefined to be structural"),
    ("nullable", "must be false to be structural"),
    ("title", "must be empty to be structural"),
    ("description", "must be empty to be structural"),
    ("type", "must be empty to be structural"),
];

/// Everything that makes `schema` not structural.
pub(super) fn check(schema: &Value, patterns: &mut Patterns) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if schema.is_null() {
        errors.push(FieldError::required(ROOT, "schemas are required"));
        return errors;
    }
    if schema["type"] != "object" {
        let field = format!("{ROOT}.type");
        match schema["type"].as_str() {
            None | Some("") => errors.push(FieldError::required(field, "must not be empty at the root")),
            Some(other) => errors.push(FieldError::invalid(field, other, "must be object at the root")),
        }
    }
    visit(schema, &Path::start(ROOT), 0, patterns, &mut errors);
    // What is not supported at all makes every other complaint moot.
    if errors.iter().any(|error| error.message.ends_with("is not supported")) {
        errors.retain(|error| error.message.ends_with("is not supported"));
    }
    errors.truncate(MOST_ERRORS);
    errors
}

fn visit(
    schema: &Value,
    path: &Path<'_>,
    depth: usize,
    patterns: &mut Patterns,
    errors: &mut Vec<FieldError>,
) {
    if errors.len() >= MOST_ERRORS {
        return;
    }
    let Some(fields) = schema.as_object() else {
        errors.push(FieldError::wrong_type(&path.to_string(), schema, "object"));
        return;
    };
    if depth > DEEPEST {
        errors.push(FieldError::forbidden(path, &format!("must not be nested deeper than {DEEPEST} levels")));
        return;
    }
    let flag = |name: &str| schema.get(name) == Some(&Value::Bool(true));
    let int_or_string = flag("x-kubernetes-int-or-string");
    let preserve = flag("x-kubernetes-preserve-unknown-fields");
    let embedded = flag("x-kubernetes-embedded-resource");

    // Beside x-kubernetes-int-or-string any type is allowed, and none counts.
    match schema.get("type").and_then(Value::as_str).filter(|ty| !ty.is_empty()) {
        Some("object") => {}
        None if embedded => errors.push(FieldError::required(
            format!("{path}.type"),
            "must be object if x-kubernetes-embedded-resource is true",
        )),
        None if !int_or_string && !preserve && depth > 0 => {
            let place = if path.ends_with("items") { "array items" } else { "object fields" };
            let detail = format!("must not be empty for specified {place}");
            errors.push(FieldError::required(format!("{path}.type"), &detail));
        }
        None => {}
        Some(ty) if !TYPES.contains(&ty) => {
            errors.push(FieldError::not_supported(format!("{path}.type"), ty, TYPES.iter().copied()));
        }
        Some("array") if !schema.get("items").is_some_and(Value::is_object) => {
            errors.push(FieldError::required(format!("{path}.items"), "must be specified"));
        }
        Some(ty) if embedded => {
            errors.push(FieldError::invalid(
                format!("{path}.type"),
                ty,
                "must be object if x-kubernetes-embedded-resource is true",
            ));
        }
        Some(_) => {}
    }
    for (set, name) in
        [(preserve, "x-kubernetes-preserve-unknown-fields"), (embedded, "x-kubernetes-embedded-resource")]
    {
        if set && int_or_string {
            let detail = "must be false if x-kubernetes-int-or-string is true";
            errors.push(FieldError::invalid(format!("{path}.{name}"), true, detail));
        }
    }
    if embedded && !preserve && !has_fields(schema) {
        errors.push(FieldError::required(
            format!("{path}.properties"),
            "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields",
        ));
    }
    for name in FORBIDDEN.iter().filter(|name| fields.contains_key(**name)) {
        errors.push(FieldError::forbidden(format!("{path}.{name}"), &format!("{name} is not supported")));
    }
    if flag("uniqueItems") {
        errors.push(FieldError::forbidden(
            format!("{path}.uniqueItems"),
            "uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
        ));
    }
    if let Some(pattern) = schema.get("pattern").and_then(Value::as_str)
        && let Err(error) = patterns.compile(pattern)
    {
        errors.push(FieldError::invalid(format!("{path}.pattern"), pattern, &error.to_string()));
    }
    check_additional(schema, path, depth, patterns, errors);
    check_list(schema, path, errors);
    check_junctors(schema, path, errors);
    if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
        for (name, property) in properties {
            visit(property, &path.entry("properties", name), depth + 1, patterns, errors);
        }
    }
    if let Some(items @ Value::Object(_)) = schema.get("items") {
        visit(items, &path.field("items"), depth + 1, patterns, errors);
    }
}

fn check_additional(
    schema: &Value,
    path: &Path<'_>,
    depth: usize,
    patterns: &mut Patterns,
    errors: &mut Vec<FieldError>,
) {
    let Some(additional) = schema.get("additionalProperties") else { return };
    let field = &path.field("additionalProperties");
    if has_fields(schema) && additional != &Value::Bool(true) {
        errors.push(FieldError::forbidden(field, "additionalProperties and properties are mutual exclusive"));
    } else if depth == 0 {
        errors.push(FieldError::forbidden(field, "must not be used at the root"));
    } else if additional.is_object() {
        visit(additional, field, depth + 1, patterns, errors);
    }
}

fn has_fields(schema: &Value) -> bool {
    schema["properties"].as_object().is_some_and(|fields| !fields.is_empty())
}

fn check_list(schema: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let Some(list_type) = schema.get("x-kubernetes-list-type").and_then(Value::as_str) else { return };
    let keys = schema.get("x-kubernetes-list-map-keys").and_then(Value::as_array);
    let item = &schema["items"];
    if schema["type"] != "array" {
        let field = format!("{path}.type");
        errors.push(FieldError::invalid(
            field,
            schema["type"].clone(),
            "must be array if x-kubernetes-list-type is specified",
        ));
    }
    match list_type {
        "atomic" | "set" => {}
        "map" => {
            if keys.is_none_or(Vec::is_empty) {
                errors.push(FieldError::required(
                    format!("{path}.x-kubernetes-list-map-keys"),
                    "must not be empty if x-kubernetes-list-type is map",
                ));
            }
            let required: HashSet<&str> =
                item["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            for (index, key) in keys.into_iter().flatten().enumerate() {
                if errors.len() >= MOST_ERRORS {
                    return;
                }
                let name = key.as_str().unwrap_or_default();
                let property = &item["properties"][name];
                let required = required.contains(name);
                if property.is_null() {
                    errors.push(FieldError::invalid(
                        format!("{path}.x-kubernetes-list-map-keys[{index}]"),
                        name,
                        "entries must all be names of item properties",
                    ));
                } else if !required && property.get("default").is_none() {
                    errors.push(FieldError::required(
                        format!("{path}.items.properties[{name}].default"),
                        "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property",
                    ));
                }
            }
        }
        other => {
            let field = format!("{path}.x-kubernetes-list-type");
            errors.push(FieldError::not_supported(field, other, ["atomic", "map", "set"]));
        }
    }
}

fn check_junctors(schema: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    for junctor in ["allOf", "anyOf", "oneOf"] {
        for (index, inner) in schema[junctor].as_array().into_iter().flatten().enumerate() {
            let path = path.item(junctor, index);
            // The two places where types may stand below a junctor: `anyOf: [integer, string]`, alone or as the first
            // of an `allOf`.
            let first_of_all = junctor == "allOf" && index == 0 && is_int_or_string(&inner["anyOf"]);
            match junctor == "anyOf" && is_int_or_string(&schema[junctor]) {
                true => {}
                false if first_of_all => {
                    let mut rest = inner.clone();
                    rest.as_object_mut().map(|fields| fields.remove("anyOf"));
                    check_inner(&rest, schema, &path, 0, errors);
                }
                false => check_inner(inner, schema, &path, 0, errors),
            }
        }
    }
    if let Some(inner) = schema.get("not") {
        check_inner(inner, schema, &path.field("not"), 0, errors);
    }
}

/// `[{type: integer}, {type: string}]` and nothing else.
fn is_int_or_string(any_of: &Value) -> bool {
    *any_of == json!([{"type": "integer"}, {"type": "string"}])
}

/// A schema below a junctor may only restrict what the schema outside specifies.
fn check_inner(inner: &Value, outer: &Value, path: &Path<'_>, depth: usize, errors: &mut Vec<FieldError>) {
    let Some(fields) = inner.as_object() else {
        errors.push(FieldError::wrong_type(&path.to_string(), inner, "object"));
        return;
    };
    if errors.len() >= MOST_ERRORS {
        return;
    }
    if depth > DEEPEST {
        errors.push(FieldError::forbidden(path, &format!("must not be nested deeper than {DEEPEST} levels")));
        return;
    }
    for (name, detail) in OUTSIDE_JUNCTORS {
        // What says nothing is no matter.
        let says = fields.get(*name).is_some_and(|value| {
            !matches!(value, Value::Null | Value::Bool(false)) && value.as_str() != Some("")
        });
        if says {
            errors.push(FieldError::forbidden(format!("{path}.{name}"), detail));
        }
    }
    for (name, property) in inner["properties"].as_object().into_iter().flatten() {
        let path = &path.entry("properties", name);
        match outer["properties"].get(name).or(outer.get("additionalProperties")) {
            Some(outer) => check_inner(property, outer, path, depth + 1, errors),
            None => errors.push(FieldError::required(path, "must be specified outside of the junctor")),
        }
    }
    if let Some(items) = inner.get("items") {
        check_inner(items, &outer["items"], &path.field("items"), depth + 1, errors);
    }
    for junctor in ["allOf", "anyOf", "oneOf"] {
        for (index, nested) in inner[junctor].as_array().into_iter().flatten().enumerate() {
            check_inner(nested, outer, &path.item(junctor, index), depth + 1, errors);
        }
    }
    if let Some(nested) = inner.get("not") {
        check_inner(nested, outer, &path.field("not"), depth + 1, errors);
    }
}
