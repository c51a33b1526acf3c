//! Merging lists by key, and putting them in order. Places are looked up by key: going through one list for each item of
//! the other would take time by the product of their lengths.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::{Merging, PATCH, PatchError};
use crate::schema::{lists::Patch, node::Node};

/// A key's value, or a scalar, so that equal ones have equal texts.
fn text(value: &Value) -> String {
    value.to_string()
}

/// Merges the items of `patch` into `target`.
pub(super) fn merge(
    merging: &Merging,
    strategy: Patch,
    item: Option<&'static Node>,
    target: &mut Vec<Value>,
    patch: &[Value],
) -> Result<(), PatchError> {
    let Some(key) = strategy.key() else {
        let before: Vec<String> = target.iter().map(text).collect();
        let mut there: HashSet<String> = target.iter().map(text).collect();
        target.extend(patch.iter().filter(|value| there.insert(text(value))).cloned());
        arrange(target, patch, &before, None);
        return Ok(());
    };
    let before: Vec<String> = target.iter().map(|item| id(item, Some(key))).collect();
    if patch.iter().any(|value| value[PATCH] == "replace") {
        target.clear();
    }
    // Where the first item of each key is; what is deleted leaves a hole until the end.
    let mut places: HashMap<String, Vec<usize>> = HashMap::new();
    for (at, existing) in target.iter().enumerate() {
        places.entry(text(&existing[key])).or_default().push(at);
    }
    let mut deleted = HashSet::new();
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
            deleted.extend(places.remove(&text(id)).into_iter().flatten());
            continue;
        }
        let places = places.entry(text(id)).or_default();
        if let Some(existing) = places.first().and_then(|at| target.get_mut(*at)) {
            merging.value(item, existing, value)?;
        } else {
            let mut added = Value::Object(Map::new());
            merging.value(item, &mut added, value)?;
            places.push(target.len());
            target.push(added);
        }
    }
    if !deleted.is_empty() {
        let mut at = 0..;
        target.retain(|_| at.next().is_none_or(|at| !deleted.contains(&at)));
    }
    arrange(target, patch, &before, Some(key));
    Ok(())
}

/// Removes scalars from a list.
pub(super) fn delete_scalars(target: Option<&mut Value>, values: &[Value]) {
    if let Some(Value::Array(target)) = target {
        let values: HashSet<String> = values.iter().map(text).collect();
        target.retain(|value| !values.contains(&text(value)));
    }
}

/// Puts the items that `order` names into that order; the others keep their places of `before` among them.
pub(super) fn arrange(items: &mut Vec<Value>, order: &[Value], before: &[String], key: Option<&str>) {
    let order = first_places(order.iter().map(|value| id(value, key)));
    let before = first_places(before.iter().cloned());
    let (mut named, mut others) = (Vec::new(), Vec::new());
    for item in items.drain(..) {
        let id = id(&item, key);
        match order.get(&id) {
            Some(place) => named.push((*place, before.get(&id).copied(), item)),
            None => others.push((before.get(&id).copied(), item)),
        }
    }
    named.sort_by_key(|(place, _, _)| *place);
    let mut others = others.into_iter().peekable();
    for (_, was, item) in named {
        while let Some((other, _)) = others.peek() {
            match (other, was) {
                (Some(other), Some(was)) if *other < was => {
                    items.extend(others.next().map(|(_, other)| other))
                }
                _ => break,
            }
        }
        items.push(item);
    }
    items.extend(others.map(|(_, other)| other));
}

/// What tells an item from others.
pub(super) fn id(value: &Value, key: Option<&str>) -> String {
    key.map_or_else(|| text(value), |key| text(&value[key]))
}

/// Where each is found first.
fn first_places(ids: impl Iterator<Item = String>) -> HashMap<String, usize> {
    let mut places = HashMap::new();
    for (at, id) in ids.enumerate() {
        places.entry(id).or_insert(at);
    }
    places
}
