//! Strategic merge patches of built-in kinds: merge patches that know which lists are maps by key.
//!
//! A patch may carry directives: `$patch` (`delete`, `replace`, `merge`) in an object or a keyed list's item,
//! `$retainKeys` in an object, and beside a list field `$deleteFromPrimitiveList/FIELD` and `$setElementOrder/FIELD`.

mod lists;

use std::collections::HashSet;

use serde_json::{Map, Value};

use crate::kinds::Kind;
use crate::schema::{
    Schema,
    node::{Node, NodeId},
};

const PATCH: &str = "$patch";
const RETAIN: &str = "$retainKeys";
const DELETE: &str = "$deleteFromPrimitiveList/";
const ORDER: &str = "$setElementOrder/";

/// Why a strategic merge patch can't be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// A directive is malformed.
    #[error("invalid strategic merge patch: {0}")]
    Directive(String),
    /// An item of a keyed list lacks its key.
    #[error("invalid strategic merge patch: map: {item} does not contain declared merge key: {key}")]
    NoKey {
        /// The item.
        item: Value,
        /// The list's merge key.
        key: &'static str,
    },
    /// The kind is not built in; use a JSON merge patch.
    #[error(
        "strategic merge patches are not supported for {0}, use a merge patch (application/merge-patch+json)"
    )]
    UnknownKind(String),
}

/// The object of built-in `kind` that `patch` makes of `target`.
///
/// # Errors
/// The patch is malformed; see [`PatchError`].
pub fn apply(kind: &Kind, target: &Value, patch: &Value) -> Result<Value, PatchError> {
    let unknown = || PatchError::UnknownKind(kind.kind.to_string());
    let schema = kind.row.schema.ok_or_else(unknown)?.get();
    let merging = Merging { schema };
    let mut merged = target.clone();
    merging.value(Some(schema.root()), &mut merged, patch)?;
    Ok(merged)
}

/// A walk down the schema; a value that the schema does not know merges like a map of anything.
#[derive(Clone, Copy)]
struct Merging {
    schema: &'static Schema,
}

impl Merging {
    fn node(&self, id: Option<NodeId>) -> Option<&'static Node> {
        id.map(|id| self.schema.node(id))
    }

    fn field(&self, node: Option<&'static Node>, name: &str) -> Option<&'static Node> {
        let node = node?;
        let node = self.node(node.if_object).unwrap_or(node);
        self.node(node.fields.get(name).copied().or(node.others))
    }

    /// Merges `patch` into the value at `node`.
    fn value(
        &self,
        node: Option<&'static Node>,
        target: &mut Value,
        patch: &Value,
    ) -> Result<(), PatchError> {
        match patch {
            Value::Object(patch) => {
                if !target.is_object() {
                    *target = Value::Object(Map::new());
                }
                match target {
                    Value::Object(target) => self.object(node, target, patch),
                    _ => Ok(()),
                }
            }
            Value::Array(patch) => match node.and_then(|node| node.patch) {
                Some(strategy) => {
                    if !target.is_array() {
                        *target = Value::Array(Vec::new());
                    }
                    match target {
                        Value::Array(target) => {
                            let item = node.and_then(|node| self.node(node.items));
                            lists::merge(self, strategy, item, target, patch)
                        }
                        _ => Ok(()),
                    }
                }
                None => {
                    *target = Value::Array(patch.clone());
                    Ok(())
                }
            },
            scalar => {
                *target = scalar.clone();
                Ok(())
            }
        }
    }

    fn object(
        &self,
        node: Option<&'static Node>,
        target: &mut Map<String, Value>,
        patch: &Map<String, Value>,
    ) -> Result<(), PatchError> {
        match patch.get(PATCH).map(Value::as_str) {
            None | Some(Some("merge")) => {}
            Some(Some("delete")) => {
                target.clear();
                return Ok(());
            }
            Some(Some("replace")) => target.clear(),
            Some(_) => return Err(PatchError::Directive(format!("unknown {PATCH}: {}", patch[PATCH]))),
        }
        if let Some(kept) = patch.get(RETAIN) {
            retain(target, patch, kept)?;
        }
        let key_of = |field: &str| {
            self.field(node, field).and_then(|node| node.patch).and_then(|strategy| strategy.key())
        };
        let before: Vec<Vec<String>> = orders(patch)
            .map(|(field, _)| {
                let items = target.get(field).and_then(Value::as_array);
                items.into_iter().flatten().map(|item| lists::id(item, key_of(field))).collect()
            })
            .collect();
        for (name, value) in patch {
            if let Some(field) = name.strip_prefix(DELETE) {
                lists::delete_scalars(target.get_mut(field), list(name, value)?);
            } else if name.starts_with('$') {
                // Handled around this loop.
            } else if value.is_null() {
                target.remove(name);
            } else {
                let mut merged = target.get_mut(name).map(Value::take).unwrap_or_default();
                self.value(self.field(node, name), &mut merged, value)?;
                let deleted = value.get(PATCH).is_some_and(|directive| directive == "delete");
                if deleted && merged == Value::Object(Map::new()) {
                    target.remove(name);
                } else {
                    target.insert(name.clone(), merged);
                }
            }
        }
        for ((field, order), before) in orders(patch).zip(&before) {
            let order = list(field, order)?;
            if let Some(Value::Array(items)) = target.get_mut(field) {
                lists::arrange(items, order, before, key_of(field));
            }
        }
        Ok(())
    }
}

/// The fields with a wanted order.
fn orders(patch: &Map<String, Value>) -> impl Iterator<Item = (&str, &Value)> {
    patch.iter().filter_map(|(name, order)| Some((name.strip_prefix(ORDER)?, order)))
}

/// Drops what `$retainKeys` does not name: how a union's member is replaced by another.
fn retain(
    target: &mut Map<String, Value>,
    patch: &Map<String, Value>,
    kept: &Value,
) -> Result<(), PatchError> {
    let kept: HashSet<&str> = list(RETAIN, kept)?.iter().filter_map(Value::as_str).collect();
    let unnamed = |name: &&String| !name.starts_with('$') && !kept.contains(name.as_str());
    if let Some((name, _)) = patch.iter().find(|(name, value)| !value.is_null() && unnamed(name)) {
        return Err(PatchError::Directive(format!("{RETAIN} does not name the patched field {name:?}")));
    }
    target.retain(|name, _| kept.contains(name.as_str()));
    Ok(())
}

fn list<'a>(directive: &str, value: &'a Value) -> Result<&'a [Value], PatchError> {
    match value {
        Value::Array(items) => Ok(items),
        _ => Err(PatchError::Directive(format!("{directive} must be a list"))),
    }
}

#[cfg(test)]
mod tests;
