//! Checking an object against its schema.

use std::cell::Cell;
use std::collections::HashSet;

use serde_json::{Map, Value};
use values::Quantity;

use super::{
    FieldError, MOST_ERRORS, Schema,
    lists::ListType,
    node::{Limits, Node, NodeId, Type},
};
use crate::path::Path;

/// Steps of one validation: values looked at, and what patterns and alternatives cost. A schema and an object of a
/// megabyte each can take the product of both.
const MOST_STEPS: usize = 200_000_000;

pub(super) fn validate(schema: &Schema, object: &Value) -> Vec<FieldError> {
    within(schema, object, MOST_STEPS)
}

/// What is wrong with the object, as far as it is found within so many steps.
fn within(schema: &Schema, object: &Value, most: usize) -> Vec<FieldError> {
    let steps = Cell::new(most);
    let mut errors = Vec::new();
    visit(
        &Checking { schema, most_errors: MOST_ERRORS, steps: &steps },
        schema.0.root,
        object,
        &Path::ROOT,
        &mut errors,
    );
    errors.truncate(MOST_ERRORS);
    if steps.get() == 0 {
        let detail =
            "takes too long to be validated: make the object, its patterns or its alternatives smaller";
        errors.push(FieldError::forbidden("<nil>", detail));
    }
    errors
}

/// One validation.
#[derive(Clone, Copy)]
struct Checking<'a> {
    schema: &'a Schema,
    /// With so many errors nothing is looked at any further.
    most_errors: usize,
    /// What is left of them.
    steps: &'a Cell<usize>,
}

impl Checking<'_> {
    /// Takes steps; whether there were as many left.
    fn take(&self, steps: usize) -> bool {
        let left = self.steps.get().saturating_sub(steps);
        self.steps.set(left);
        left > 0
    }
}

fn visit(checking: &Checking<'_>, id: NodeId, value: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let schema = checking.schema;
    let node = schema.node(id);
    if errors.len() >= checking.most_errors || !checking.take(1 + node.required.len()) {
        return;
    }
    if value.is_null() && node.nullable {
        return;
    }
    if let Some(expected) = mismatch(node, value) {
        errors.push(FieldError::wrong_type(&path.to_string(), value, expected));
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
        check_limits(checking, limits, value, path, errors);
    }
    match value {
        Value::Object(fields) => {
            let object = node.if_object.map_or(node, |object| schema.node(object));
            check_fields(checking, object, fields, path, errors);
        }
        Value::Array(items) => {
            if let Some(item) = node.items {
                for (index, value) in items.iter().enumerate() {
                    visit(checking, item, value, &path.index(index), errors);
                }
            }
            if !schema.is_builtin() {
                check_unique(checking, &node.list, items, path, errors);
            }
        }
        _ => {}
    }
}

fn check_fields(
    checking: &Checking<'_>,
    node: &Node,
    fields: &Map<String, Value>,
    path: &Path<'_>,
    errors: &mut Vec<FieldError>,
) {
    // Built-in types decode a missing field as empty; the rules of their kind say what must be there, and better.
    if !checking.schema.is_builtin() {
        let missing = node.required.iter().filter(|name| !fields.contains_key(&***name));
        for name in missing.take(checking.most_errors) {
            errors.push(FieldError::required(&path.field(name), ""));
        }
    }
    for (name, value) in fields {
        if let Some(field) = node.fields.get(name.as_str()).copied().or(node.others) {
            visit(checking, field, value, &path.field(name), errors);
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

fn check_unique(
    checking: &Checking<'_>,
    list: &ListType,
    items: &[Value],
    path: &Path<'_>,
    errors: &mut Vec<FieldError>,
) {
    let mut seen = HashSet::new();
    for (index, item) in items.iter().enumerate() {
        let keys = if let ListType::Map(keys) = list { keys.len() } else { 1 };
        if errors.len() >= checking.most_errors || !checking.take(keys) {
            return;
        }
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
            errors.push(FieldError::duplicate(&path.index(index), key));
        }
    }
}

fn check_limits(
    checking: &Checking<'_>,
    limits: &Limits,
    value: &Value,
    path: &Path<'_>,
    errors: &mut Vec<FieldError>,
) {
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
        if let Some(pattern) = &limits.pattern
            && checking.take(pattern.cost(text))
            && !pattern.is_match(text)
        {
            invalid(value.clone(), format!("should match '{}'", pattern.as_str()));
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
    if !limits.enumeration.allows(value) {
        errors.push(FieldError::not_among(path, value, &limits.enumeration.values));
    }
    check_junctors(checking, limits, value, path, errors);
}

fn check_maxima(limits: &Limits, value: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
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

fn check_junctors(
    checking: &Checking<'_>,
    limits: &Limits,
    value: &Value,
    path: &Path<'_>,
    errors: &mut Vec<FieldError>,
) {
    let fits = |id: NodeId| {
        let mut errors = Vec::new();
        visit(&Checking { most_errors: 1, ..*checking }, id, value, path, &mut errors);
        errors.is_empty()
    };
    let mut broken = |rule: &str| {
        errors.push(FieldError::invalid(path, value.clone(), &format!("{:?} must {rule}", path.to_string())));
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn alternatives_over_a_long_list_end_in_a_refusal() {
        let alternative = |at: usize| json!({"properties": {"spec": {"maxItems": at}}, "required": ["spec"]});
        let schema = json!({"schema": {"openAPIV3Schema": {"type": "object",
            "anyOf": (0..50).map(alternative).collect::<Vec<_>>(),
            "properties": {"spec": {"type": "array", "items": {"type": "integer"}}}}}});
        let schema = Schema::from_crd_version(&schema).expect("structural");
        let object = json!({"spec": vec![1; 1000]});
        let refused = within(&schema, &object, 1000);
        assert!(refused.iter().any(|error| error.message.contains("takes too long")), "{refused:?}");
        assert!(
            within(&schema, &object, 10_000).iter().all(|error| !error.message.contains("takes too long"))
        );
    }
}
