//! Checking an object against its schema.

use std::collections::HashSet;

use serde_json::{Map, Value};
use values::Quantity;

use super::{
    CauseType, FieldError, Schema,
    node::{Limits, ListType, Node, NodeId, Type},
};

/// More errors than this help nobody.
const MOST_ERRORS: usize = 100;

pub(super) fn validate(schema: &Schema, object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    visit(schema, schema.0.root, object, "", &mut errors);
    errors.truncate(MOST_ERRORS);
    errors
}

fn visit(schema: &Schema, id: NodeId, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let node = schema.node(id);
    if value.is_null() && node.nullable {
        return;
    }
    if let Some(expected) = mismatch(node, value) {
        errors.push(FieldError::wrong_type(path, value, expected));
        return;
    }
    if node.ty == Type::Quantity && !is_quantity(value) {
        errors.push(FieldError::invalid(path, value.clone(), QUANTITY_SYNTAX));
    }
    if let Some(format) = &node.format
        && !has_format(format, value)
    {
        errors.push(match &**format {
            // What is not base64 may be a secret all the same.
            "byte" => FieldError::invalid(path, "<redacted>", "illegal base64 data"),
            _ => {
                let detail = format!("{path} in body must be of type {format}: {value}");
                FieldError::invalid(path, value.clone(), &detail)
            }
        });
    }
    if let Some(limits) = &node.limits {
        check_limits(schema, limits, value, path, errors);
    }
    match value {
        Value::Object(fields) => {
            let object = node.if_object.map_or(node, |object| schema.node(object));
            check_fields(schema, object, fields, path, errors);
        }
        Value::Array(items) => {
            if let Some(item) = node.items {
                for (index, value) in items.iter().enumerate() {
                    visit(schema, item, value, &format!("{path}[{index}]"), errors);
                }
            }
            if !schema.is_builtin() {
                check_unique(&node.list, items, path, errors);
            }
        }
        _ => {}
    }
}

fn check_fields(
    schema: &Schema,
    node: &Node,
    fields: &Map<String, Value>,
    path: &str,
    errors: &mut Vec<FieldError>,
) {
    let child = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    // Built-in types decode a missing field as empty; the rules of their kind say what must be there, and better.
    if !schema.is_builtin() {
        for name in node.required.iter().filter(|name| !fields.contains_key(&***name)) {
            errors.push(FieldError::required(child(name), ""));
        }
    }
    for (name, value) in fields {
        if let Some(field) = node.fields.get(name.as_str()).copied().or(node.others) {
            visit(schema, field, value, &child(name), errors);
        }
    }
}

/// The type that `value` should have but has not.
fn mismatch(node: &Node, value: &Value) -> Option<&'static str> {
    let (fits, expected) = match node.ty {
        Type::Any => (true, ""),
        Type::Object => (value.is_object(), "object"),
        Type::Array => (value.is_array(), "array"),
        Type::String => (value.is_string(), "string"),
        Type::Boolean => (value.is_boolean(), "boolean"),
        Type::Number => (value.is_number(), "number"),
        Type::Integer => (is_integer(value), "integer"),
        Type::IntOrString => (value.is_string() || is_integer(value), "integer or string"),
        Type::Quantity => (value.is_string() || value.is_number(), "quantity"),
    };
    (!fits).then_some(expected)
}

fn is_integer(value: &Value) -> bool {
    value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|number| number.fract() == 0.0)
}

/// Whether the value has the format; formats not known here say nothing.
fn has_format(format: &str, value: &Value) -> bool {
    match (format, value) {
        ("int32", Value::Number(number)) => {
            number.as_i64().is_none_or(|number| i32::try_from(number).is_ok())
        }
        ("date-time", Value::String(text)) => text.parse::<jiff::Timestamp>().is_ok(),
        ("byte", Value::String(text)) => is_base64(text),
        ("ipv4", Value::String(text)) => text.parse::<std::net::Ipv4Addr>().is_ok(),
        ("ipv6", Value::String(text)) => text.parse::<std::net::Ipv6Addr>().is_ok(),
        ("uuid", Value::String(text)) => uuid::Uuid::try_parse(text).is_ok(),
        _ => true,
    }
}

fn is_base64(text: &str) -> bool {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(text).is_ok()
}

fn check_unique(list: &ListType, items: &[Value], path: &str, errors: &mut Vec<FieldError>) {
    let mut seen = HashSet::new();
    for (index, item) in items.iter().enumerate() {
        let key = match list {
            ListType::Atomic => return,
            ListType::Set => item.clone(),
            ListType::Map(keys) => keys
                .iter()
                .filter_map(|key| Some((key.clone(), item.get(key)?.clone())))
                .collect::<Map<_, _>>()
                .into(),
        };
        if !seen.insert(key.to_string()) {
            errors.push(FieldError::duplicate(format!("{path}[{index}]"), key));
        }
    }
}

fn check_limits(schema: &Schema, limits: &Limits, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let mut invalid = |value: Value, rule: String| {
        errors.push(FieldError::invalid(path, value, &format!("{path} in body {rule}")));
    };
    if let Some(number) = value.as_f64() {
        if let Some((minimum, exclusive)) = limits.minimum
            && (number < minimum || exclusive && number == minimum)
        {
            let or_equal = if exclusive { "" } else { " or equal to" };
            invalid(value.clone(), format!("should be greater than{or_equal} {minimum}"));
        }
        if let Some((maximum, exclusive)) = limits.maximum
            && (number > maximum || exclusive && number == maximum)
        {
            let or_equal = if exclusive { "" } else { " or equal to" };
            invalid(value.clone(), format!("should be less than{or_equal} {maximum}"));
        }
        if let Some(factor) = limits.multiple_of
            && (number / factor).fract() != 0.0
        {
            invalid(value.clone(), format!("should be a multiple of {factor}"));
        }
    }
    if let Some(text) = value.as_str() {
        let length = text.chars().count();
        if let Some(least) = limits.min_length.filter(|least| length < *least) {
            invalid(value.clone(), format!("should be at least {least} chars long"));
        }
        if let Some(pattern) = limits.pattern.as_ref().filter(|pattern| !pattern.is_match(text)) {
            invalid(value.clone(), format!("should match '{pattern}'"));
        }
    }
    if let Some(items) = value.as_array() {
        if let Some(least) = limits.min_items.filter(|least| items.len() < *least) {
            invalid(items.len().into(), format!("should have at least {least} items"));
        }
        let mut seen = HashSet::new();
        if limits.unique_items && !items.iter().all(|item| seen.insert(item.to_string())) {
            invalid(value.clone(), "shouldn't contain duplicates".into());
        }
    }
    if let Some(fields) = value.as_object()
        && let Some(least) = limits.min_properties.filter(|least| fields.len() < *least)
    {
        invalid(fields.len().into(), format!("should have at least {least} properties"));
    }
    check_maxima(limits, value, path, errors);
    if !limits.enumeration.is_empty() && !limits.enumeration.contains(value) {
        let supported: Vec<String> = limits.enumeration.iter().map(Value::to_string).collect();
        errors.push(FieldError {
            field: path.to_owned(),
            reason: CauseType::FieldValueNotSupported,
            message: format!("Unsupported value: {value}: supported values: {}", supported.join(", ")),
        });
    }
    check_junctors(schema, limits, value, path, errors);
}

fn check_maxima(limits: &Limits, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    match value {
        Value::String(text) => {
            if let Some(most) = limits.max_length.filter(|most| text.chars().count() > *most) {
                errors.push(FieldError::too_long(path, most));
            }
        }
        Value::Array(items) => {
            if let Some(most) = limits.max_items.filter(|most| items.len() > *most) {
                errors.push(FieldError::too_many(path, items.len(), most));
            }
        }
        Value::Object(fields) => {
            if let Some(most) = limits.max_properties.filter(|most| fields.len() > *most) {
                errors.push(FieldError::too_many(path, fields.len(), most));
            }
        }
        _ => {}
    }
}

fn check_junctors(schema: &Schema, limits: &Limits, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let fits = |id: NodeId| {
        let mut errors = Vec::new();
        visit(schema, id, value, path, &mut errors);
        errors.is_empty()
    };
    let mut broken = |rule: &str| {
        errors.push(FieldError::invalid(path, value.clone(), &format!("{path:?} must {rule}")));
    };
    if !limits.all_of.iter().all(|id| fits(*id)) {
        broken("validate all the schemas (allOf)");
    }
    if !limits.any_of.is_empty() && !limits.any_of.iter().any(|id| fits(*id)) {
        broken("validate at least one schema (anyOf)");
    }
    match limits.one_of.iter().filter(|id| fits(**id)).count() {
        _ if limits.one_of.is_empty() => {}
        1 => {}
        0 => broken("validate one and only one schema (oneOf). Found none valid"),
        count => {
            broken(&format!("validate one and only one schema (oneOf). Found {count} valid alternatives"))
        }
    }
    if limits.not.is_some_and(fits) {
        broken("not validate the schema (not)");
    }
}

fn is_quantity(value: &Value) -> bool {
    match value {
        Value::String(text) => text.parse::<Quantity>().is_ok(),
        _ => true,
    }
}

const QUANTITY_SYNTAX: &str =
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
