//! JSON Patch (RFC 6902) as kube-apiserver applies it, within bounds while the object grows.
//!
//! What differs from the RFC: an absent member and null are the same to `copy`, `replace` and `test`; array indexes may
//! be negative, counted from the end; the object itself (path "") can't be replaced.

use serde::Deserialize;
use serde_json::Value;

use crate::bounds::{self, DEEPEST};

/// Bytes that the copies of one patch may have together; kube-apiserver's number.
const MOST_COPIED: usize = 3 << 20;
/// Values that one patch may look at or shift in lists, so that ten thousand operations at the head of a long list don't
/// take minutes.
const MOST_WORK: usize = 20_000_000;

/// One operation. Decoding is lax where kube-apiserver's is: what is missing is found out when it is applied.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Operation {
    #[serde(default)]
    op: String,
    #[serde(default)]
    path: String,
    #[serde(default)]
    from: String,
    #[serde(default)]
    value: Value,
}

/// Why an operation can't be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OperationError {
    #[error("{op} operation does not apply: path {path:?} does not exist")]
    Missing { op: String, path: String },
    #[error("testing value {0:?} failed")]
    TestFailed(String),
    #[error("{0:?} is no operation of a JSON patch")]
    Unknown(String),
    #[error("the copies of the patch have more than {MOST_COPIED} bytes together: make a smaller object")]
    CopiesTooMuch,
    #[error("{op} to {path:?} would nest the object more than {DEEPEST} levels deep")]
    TooDeep { op: String, path: String },
    #[error("the patch shifts and compares more than {MOST_WORK} values: send the whole object instead")]
    TooMuchWork,
}

/// The object with all operations applied, or none of them.
pub(crate) fn apply(object: &mut Value, operations: &[Operation]) -> Result<(), OperationError> {
    let mut applying = Applying::default();
    operations.iter().try_for_each(|operation| applying.one(object, operation))
}

/// What the operations so far took.
#[derive(Default)]
struct Applying {
    copied: usize,
    work: usize,
}

impl Applying {
    fn one(&mut self, object: &mut Value, operation: &Operation) -> Result<(), OperationError> {
        let Operation { op, path, from, value } = operation;
        let missing = |path: &str| OperationError::Missing { op: op.clone(), path: shortened(path) };
        let path = Pointer::of(path).ok_or_else(|| missing(path))?;
        let from = || Pointer::of(from).ok_or_else(|| missing(from));
        match op.as_str() {
            "add" => self.add(object, op, &path, value.clone()),
            "replace" => {
                self.fits(op, &path, value)?;
                let place = path.parent(object).and_then(|parent| replaceable(parent, &path.last));
                *place.ok_or_else(|| missing(path.text))? = value.clone();
                Ok(())
            }
            "remove" => self.remove(object, op, &path).map(drop),
            "move" => {
                let value = self.remove(object, op, &from()?)?;
                self.add(object, op, &path, value)
            }
            "copy" => {
                let copied = from()?;
                let value = copied.parent(object).and_then(|parent| found(parent, &copied.last));
                let value = value.ok_or_else(|| missing(copied.text))?;
                self.copied += bounds::size(value);
                if self.copied > MOST_COPIED {
                    return Err(OperationError::CopiesTooMuch);
                }
                let value = value.clone();
                self.add(object, op, &path, value)
            }
            "test" => {
                let place = path.parent(object).and_then(|parent| found(parent, &path.last));
                match place {
                    None => Err(missing(path.text)),
                    Some(found) if found == value => Ok(()),
                    Some(_) => Err(OperationError::TestFailed(shortened(path.text))),
                }
            }
            _ => Err(OperationError::Unknown(shortened(op))),
        }
    }

    fn add(
        &mut self,
        object: &mut Value,
        op: &str,
        path: &Pointer<'_>,
        value: Value,
    ) -> Result<(), OperationError> {
        self.fits(op, path, &value)?;
        let missing = || OperationError::Missing { op: op.to_owned(), path: shortened(path.text) };
        match path.parent(object).ok_or_else(missing)? {
            Value::Object(fields) => {
                fields.insert(path.last.clone(), value);
            }
            Value::Array(items) => {
                let at = match path.last.as_str() {
                    "-" => items.len(),
                    index => place(index, items.len() + 1).ok_or_else(missing)?,
                };
                self.did(items.len() - at)?;
                items.insert(at, value);
            }
            _ => return Err(missing()),
        }
        Ok(())
    }

    fn remove(&mut self, object: &mut Value, op: &str, path: &Pointer<'_>) -> Result<Value, OperationError> {
        let missing = || OperationError::Missing { op: op.to_owned(), path: shortened(path.text) };
        match path.parent(object).ok_or_else(missing)? {
            Value::Object(fields) => fields.remove(&path.last).ok_or_else(missing),
            Value::Array(items) => {
                let at = place(&path.last, items.len()).ok_or_else(missing)?;
                self.did(items.len() - at)?;
                Ok(items.remove(at))
            }
            _ => Err(missing()),
        }
    }

    /// Whether a value may come to stand at the path.
    fn fits(&mut self, op: &str, path: &Pointer<'_>, value: &Value) -> Result<(), OperationError> {
        let mut seen = 0;
        let deep = path.parents.len() + 1 + depth(value, &mut seen);
        self.did(seen)?;
        match deep > DEEPEST {
            true => Err(OperationError::TooDeep { op: op.to_owned(), path: shortened(path.text) }),
            false => Ok(()),
        }
    }

    fn did(&mut self, work: usize) -> Result<(), OperationError> {
        self.work += work;
        if self.work > MOST_WORK { Err(OperationError::TooMuchWork) } else { Ok(()) }
    }
}

/// The value's levels, and how many values were looked at.
fn depth(value: &Value, seen: &mut usize) -> usize {
    *seen += 1;
    match value {
        Value::Array(items) => 1 + items.iter().map(|item| depth(item, seen)).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(|item| depth(item, seen)).max().unwrap_or(0),
        _ => 0,
    }
}

/// The value at a member or index; an absent member is null.
fn found<'a>(parent: &'a Value, key: &str) -> Option<&'a Value> {
    match parent {
        Value::Object(fields) => Some(fields.get(key).unwrap_or(&Value::Null)),
        Value::Array(items) => items.get(place(key, items.len())?),
        _ => None,
    }
}

/// The place of a member, made if it is absent, or of an index.
fn replaceable<'a>(parent: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    match parent {
        Value::Object(fields) => Some(fields.entry(key).or_insert(Value::Null)),
        Value::Array(items) => {
            let at = place(key, items.len())?;
            items.get_mut(at)
        }
        _ => None,
    }
}

/// An index below `length`; negative ones count from the end.
fn place(index: &str, length: usize) -> Option<usize> {
    let index: i64 = index.parse().ok()?;
    let length = i64::try_from(length).ok()?;
    let index = if index < 0 { index + length } else { index };
    (0..length).contains(&index).then(|| usize::try_from(index).ok()).flatten()
}

/// A path's segments, of which the last names what is to be changed.
struct Pointer<'a> {
    text: &'a str,
    parents: Vec<String>,
    last: String,
}

impl<'a> Pointer<'a> {
    /// `None` without a slash. What is before the first one is not looked at, as in kube-apiserver.
    fn of(text: &'a str) -> Option<Self> {
        let mut segments: Vec<String> = text.split('/').skip(1).map(decoded).collect();
        let last = segments.pop()?;
        Some(Self { text, parents: segments, last })
    }

    /// The list or map that holds the place.
    fn parent<'v>(&self, object: &'v mut Value) -> Option<&'v mut Value> {
        self.parents.iter().try_fold(object, |value, segment| match value {
            Value::Object(fields) => fields.get_mut(segment),
            Value::Array(items) => {
                let at = place(segment, items.len())?;
                items.get_mut(at)
            }
            _ => None,
        })
    }
}

fn decoded(segment: &str) -> String {
    match segment.contains('~') {
        true => segment.replace("~1", "/").replace("~0", "~"),
        false => segment.to_owned(),
    }
}

/// A text for a message; nobody needs all of a long one.
fn shortened(text: &str) -> String {
    text.chars().take(256).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn patched(object: Value, patch: Value) -> Result<Value, OperationError> {
        let operations: Vec<Operation> = serde_json::from_value(patch).unwrap();
        let mut object = object;
        apply(&mut object, &operations).map(|()| object)
    }

    #[test]
    fn operations_are_applied_as_kube_apiserver_does() {
        let object = || json!({"a": {"b": "1"}, "l": [1, 2, 3], "n": null, "x/y": {"~": 1}});
        let with = |changes: Value| {
            let mut object = object();
            for (name, value) in changes.as_object().unwrap() {
                object[name] = value.clone();
            }
            Some(object)
        };
        for (patch, expected) in [
            (json!([]), Some(object())),
            (json!([{"op": "add", "path": "/a/c", "value": 2}]), with(json!({"a": {"b": "1", "c": 2}}))),
            (json!([{"op": "add", "path": "/l/-", "value": 4}]), with(json!({"l": [1, 2, 3, 4]}))),
            (json!([{"op": "add", "path": "/l/1", "value": 4}]), with(json!({"l": [1, 4, 2, 3]}))),
            (json!([{"op": "add", "path": "/l/3", "value": 4}]), with(json!({"l": [1, 2, 3, 4]}))),
            (json!([{"op": "add", "path": "/l/-4", "value": 4}]), with(json!({"l": [4, 1, 2, 3]}))),
            (json!([{"op": "add", "path": "/l/-5", "value": 4}]), None),
            (json!([{"op": "add", "path": "/l/4", "value": 4}]), None),
            (json!([{"op": "add", "path": "/l/x", "value": 4}]), None),
            (json!([{"op": "add", "path": "/missing/c", "value": 4}]), None),
            (json!([{"op": "add", "path": "", "value": {}}]), None),
            (json!([{"op": "add", "path": "/a"}]), with(json!({"a": null}))),
            (json!([{"op": "replace", "path": "/new", "value": 1}]), with(json!({"new": 1}))),
            (json!([{"op": "replace", "path": "/l/01", "value": 7}]), with(json!({"l": [1, 7, 3]}))),
            (json!([{"op": "replace", "path": "/l/+1", "value": 7}]), with(json!({"l": [1, 7, 3]}))),
            (json!([{"op": "replace", "path": "/l/3", "value": 7}]), None),
            (json!([{"op": "replace", "path": "/l/-", "value": 7}]), None),
            (json!([{"op": "remove", "path": "/l/-1"}]), with(json!({"l": [1, 2]}))),
            (json!([{"op": "remove", "path": "/l/3"}]), None),
            (json!([{"op": "remove", "path": "/missing"}]), None),
            (json!([{"op": "remove", "path": "/x~1y/~0"}]), with(json!({"x/y": {}}))),
            (json!([{"op": "move", "from": "/a", "path": "/l/0"}]), {
                let mut moved = with(json!({"l": [{"b": "1"}, 1, 2, 3]})).unwrap();
                moved.as_object_mut().unwrap().remove("a");
                Some(moved)
            }),
            (json!([{"op": "copy", "from": "/a", "path": "/c"}]), with(json!({"c": {"b": "1"}}))),
            (json!([{"op": "copy", "from": "/missing", "path": "/c"}]), with(json!({"c": null}))),
            (json!([{"op": "copy", "from": "/l/9", "path": "/c"}]), None),
            (json!([{"op": "test", "path": "/a/b", "value": "1"}]), Some(object())),
            (json!([{"op": "test", "path": "/l/0", "value": 1.0}]), None),
            (json!([{"op": "test", "path": "/missing", "value": null}]), Some(object())),
            (json!([{"op": "test", "path": "/missing/more", "value": null}]), None),
            (json!([{"op": "test", "path": "a/l", "value": [1, 2, 3]}]), Some(object())),
            (json!([{"op": "turn", "path": "/a"}]), None),
        ] {
            assert_eq!(patched(object(), patch.clone()).ok(), expected, "{patch}");
        }
    }

    #[test]
    fn copies_are_bounded_while_they_grow() {
        let seed = json!({"op": "add", "path": "/x", "value": {"y": "z".repeat(1000)}});
        let doubling = (0..22).map(|at| json!({"op": "copy", "from": "/x", "path": format!("/x/c{at}")}));
        let bomb = Value::Array(std::iter::once(seed).chain(doubling).collect());
        assert_eq!(patched(json!({}), bomb), Err(OperationError::CopiesTooMuch));
    }

    #[test]
    fn depth_is_bounded_whatever_makes_it() {
        let copies: Vec<Value> =
            (0..150).map(|_| json!({"op": "copy", "from": "/x", "path": "/x/a"})).collect();
        let moves: Vec<Value> = (0..150)
            .flat_map(|_| {
                [
                    json!({"op": "add", "path": "/y", "value": {}}),
                    json!({"op": "move", "from": "/x", "path": "/y/x"}),
                    json!({"op": "move", "from": "/y", "path": "/x"}),
                ]
            })
            .collect();
        let adds: Vec<Value> = (1..150)
            .map(|levels| json!({"op": "add", "path": format!("/x{}", "/a".repeat(levels)), "value": {}}))
            .collect();
        for patch in [copies, moves, adds] {
            let refused = patched(json!({"x": {}}), Value::Array(patch));
            assert!(matches!(refused, Err(OperationError::TooDeep { .. })), "{refused:?}");
        }
    }

    #[test]
    fn shifting_a_long_list_again_and_again_is_bounded() {
        let list = Value::Array(vec![Value::from(0); 100_000]);
        for op in ["add", "remove"] {
            let heads: Vec<Value> =
                (0..9_999).map(|_| json!({"op": op, "path": "/l/0", "value": 1})).collect();
            let refused = patched(json!({"l": list}), Value::Array(heads));
            assert_eq!(refused, Err(OperationError::TooMuchWork), "{op}");
        }
    }
}
