//! Removing what the schema does not know.

use serde_json::Value;
use values::Quantity;

use super::{
    MOST_ERRORS, Schema,
    node::{Node, NodeId, Type},
};
use crate::path::Path;

pub(super) fn prune(schema: &Schema, object: &mut Value) -> Vec<String> {
    let mut pruning = Pruning { schema, unknown: Vec::new() };
    pruning.visit(schema.0.root, object, &Path::ROOT, schema.is_builtin());
    pruning.unknown
}

struct Pruning<'a> {
    schema: &'a Schema,
    unknown: Vec<String>,
}

impl Pruning<'_> {
    /// `decoded` is set where Kubernetes decodes into a type, which treats a null field as unset.
    fn visit(&mut self, id: NodeId, value: &mut Value, path: &Path<'_>, decoded: bool) {
        let schema = self.schema;
        let node = schema.node(id);
        if node.ty == Type::Quantity {
            canonical_quantity(value);
        }
        match value {
            Value::Object(_) if let Some(object) = node.if_object => self.visit(object, value, path, decoded),
            Value::Object(fields) => {
                fields.retain(|name, value| {
                    let child = path.field(name);
                    if let Some(field) = node.fields.get(name.as_str()) {
                        if decoded && value.is_null() {
                            return false;
                        }
                        // Metadata is decoded in every kind.
                        let decoded = decoded || (path.is_root() && name == "metadata");
                        self.visit(*field, value, &child, decoded);
                        let required = node.required.iter().any(|required| **required == **name);
                        !decoded || required || !is_left_out(schema.node(*field), value)
                    } else if let Some(others) = node.others {
                        // No text decodes as empty text.
                        if decoded && value.is_null() && schema.node(others).ty == Type::String {
                            *value = Value::from("");
                        }
                        self.visit(others, value, &child, decoded);
                        true
                    } else if keeps_unknown(node) {
                        true
                    } else {
                        if self.unknown.len() < MOST_ERRORS {
                            self.unknown.push(format!("unknown field {:?}", child.to_string()));
                        }
                        false
                    }
                });
            }
            Value::Array(items) => {
                if let Some(item) = node.items {
                    for (index, value) in items.iter_mut().enumerate() {
                        self.visit(item, value, &path.index(index), decoded);
                    }
                }
            }
            _ => {}
        }
    }
}

/// Whether Kubernetes writes such a value by leaving it out: an empty list, or a map without entries.
fn is_left_out(node: &Node, value: &Value) -> bool {
    match value {
        Value::Array(items) => items.is_empty() && node.ty == Type::Array,
        Value::Object(fields) => fields.is_empty() && node.fields.is_empty() && node.others.is_some(),
        _ => false,
    }
}

/// A node that is not of type object can't hold one; validation says so, with all that is wrong still there to see.
fn keeps_unknown(node: &Node) -> bool {
    node.preserve || !matches!(node.ty, Type::Object | Type::Any)
}

fn canonical_quantity(value: &mut Value) {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return,
    };
    if let Ok(quantity) = text.parse::<Quantity>() {
        *value = Value::String(quantity.to_string());
    }
}
