//! Filling in a custom resource schema's `default`s.

use serde_json::Value;

use super::{Schema, node::NodeId};
use crate::bounds;

/// The defaults would make the object larger than this many bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooLarge(pub(crate) usize);

/// Fills in at most `most` bytes of defaults, counted while they are added: a list of empty maps takes a default each.
pub(super) fn apply(schema: &Schema, id: NodeId, value: &mut Value, most: usize) -> Result<(), TooLarge> {
    Filling { schema, left: most }.visit(id, value).ok_or(TooLarge(most))
}

struct Filling<'a> {
    schema: &'a Schema,
    left: usize,
}

impl Filling<'_> {
    /// `None` when there is no room left.
    fn visit(&mut self, id: NodeId, value: &mut Value) -> Option<()> {
        let node = self.schema.node(id);
        match value {
            Value::Object(fields) => {
                for (name, field) in &node.defaulted {
                    let field = self.schema.node(*field);
                    let Some(default) = &field.default else { continue };
                    // A null where none is allowed counts as unset.
                    let absent = fields.get(&**name).is_none_or(|value| value.is_null() && !field.nullable);
                    if absent {
                        self.left = self.left.checked_sub(name.len() + bounds::size(default))?;
                        fields.insert(name.to_string(), default.clone());
                    }
                }
                for (name, value) in fields {
                    if let Some(field) = node.fields.get(name.as_str()).copied().or(node.others) {
                        self.visit(field, value)?;
                    }
                }
            }
            Value::Array(items) => {
                if let Some(item) = node.items {
                    items.iter_mut().try_for_each(|value| self.visit(item, value))?;
                }
            }
            _ => {}
        }
        Some(())
    }
}
