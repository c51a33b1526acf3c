//! Filling in a custom resource schema's `default`s.

use serde_json::Value;

use super::{Schema, node::NodeId};

pub(super) fn apply(schema: &Schema, id: NodeId, value: &mut Value) {
    let node = schema.node(id);
    match value {
        Value::Object(fields) => {
            for (name, field) in &node.fields {
                let field = schema.node(*field);
                let Some(default) = &field.default else { continue };
                // A null where none is allowed counts as unset.
                let absent = fields.get(&**name).is_none_or(|value| value.is_null() && !field.nullable);
                if absent {
                    fields.insert(name.to_string(), default.clone());
                }
            }
            for (name, value) in fields {
                if let Some(field) = node.fields.get(name.as_str()).copied().or(node.others) {
                    apply(schema, field, value);
                }
            }
        }
        Value::Array(items) => {
            if let Some(item) = node.items {
                items.iter_mut().for_each(|value| apply(schema, item, value));
            }
        }
        _ => {}
    }
}
