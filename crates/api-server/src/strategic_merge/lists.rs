//! Merging lists by key, and putting them in order.

use serde_json::{Map, Value};

use super::{Merging, PATCH, PatchError};
use crate::schema::{lists::Patch, node::Node};

/// Merges the items of `patch` into `target`.
pub(super) fn merge(
    merging: &Merging,
    strategy: Patch,
    item: Option<&'static Node>,
    target: &mut Vec<Value>,
    patch: &[Value],
) -> Result<(), PatchError> {
    let Some(key) = strategy.key() else {
        for value in patch {
            if !target.contains(value) {
                target.push(value.clone());
            }
        }
        return Ok(());
    };
    if patch.iter().any(|value| value[PATCH] == "replace") {
        target.clear();
    }
    for value in patch {
        let directive = &value[PATCH];
        if directive == "replace" && value.as_object().is_some_and(|fields| fields.len() == 1) {
            continue;
        }
        let id = &value[key];
        if id.is_null() {
            return Err(PatchError::NoKey { item: value.clone(), key });
        }
        if directive == "delete" {
            target.retain(|existing| &existing[key] != id);
            continue;
        }
        match target.iter_mut().find(|existing| &existing[key] == id) {
            Some(existing) => merging.value(item, existing, value)?,
            None => {
                let mut added = Value::Object(Map::new());
                merging.value(item, &mut added, value)?;
                target.push(added);
            }
        }
    }
    Ok(())
}

/// Removes scalars from a list.
pub(super) fn delete_scalars(target: Option<&mut Value>, values: &[Value]) {
    if let Some(Value::Array(target)) = target {
        target.retain(|value| !values.contains(value));
    }
}

/// Puts the items that `order` names into that order; the others keep their places of `before` among them.
pub(super) fn arrange(items: &mut Vec<Value>, order: &[Value], before: &[Value], key: Option<&str>) {
    let id = |value: &Value| key.map_or_else(|| value.clone(), |key| value[key].clone());
    let place = |list: &[Value], item: &Value| list.iter().position(|value| id(value) == id(item));
    let (mut named, others): (Vec<Value>, Vec<Value>) =
        items.drain(..).partition(|item| place(order, item).is_some());
    named.sort_by_key(|item| place(order, item));
    let mut others = others.into_iter().peekable();
    for item in named {
        while let Some(other) = others.peek() {
            match (place(before, other), place(before, &item)) {
                (Some(other), Some(item)) if other < item => items.extend(others.next()),
                _ => break,
            }
        }
        items.push(item);
    }
    items.extend(others);
}
