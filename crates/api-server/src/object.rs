//! Objects as JSON: their metadata, and the bytes that the store keeps.
//!
//! Stored bytes always begin with `{"apiVersion":"…","kind":"…","metadata":{"resourceVersion":"…"`, so that the
//! revision is spliced in by the store's writer without serialising there, and so that another served version of a
//! custom kind is a new head in front of the same bytes.

use bytes::Bytes;
use jiff::Timestamp;
use object_store::{Encode, Revision};
use serde_json::{Map, Value, json};

/// `metadata` of an object, empty if it has none.
pub(crate) fn metadata(object: &Value) -> &Map<String, Value> {
    static EMPTY: std::sync::LazyLock<Map<String, Value>> = std::sync::LazyLock::new(Map::new);
    object.get("metadata").and_then(Value::as_object).unwrap_or(&EMPTY)
}

/// `metadata` of an object, made if it has none.
pub(crate) fn metadata_mut(object: &mut Value) -> &mut Map<String, Value> {
    if !object.get("metadata").is_some_and(Value::is_object) {
        object["metadata"] = json!({});
    }
    match &mut object["metadata"] {
        Value::Object(metadata) => metadata,
        _ => unreachable!("metadata was just made an object"),
    }
}

/// A string of the metadata; absent, null and empty are the same.
pub(crate) fn meta_str<'a>(object: &'a Value, field: &str) -> &'a str {
    metadata(object).get(field).and_then(Value::as_str).unwrap_or("")
}

pub(crate) fn name(object: &Value) -> &str {
    meta_str(object, "name")
}

pub(crate) fn is_deleting(object: &Value) -> bool {
    !meta_str(object, "deletionTimestamp").is_empty()
}

/// `metadata.finalizers`.
pub(crate) fn finalizers(object: &Value) -> impl Iterator<Item = &str> {
    metadata(object)
        .get("finalizers")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
}

/// Adds a finalizer unless it is there.
pub(crate) fn add_finalizer(object: &mut Value, finalizer: &str) {
    if finalizers(object).any(|present| present == finalizer) {
        return;
    }
    match metadata_mut(object).entry("finalizers").or_insert_with(|| json!([])) {
        Value::Array(list) => list.push(finalizer.into()),
        other => *other = json!([finalizer]),
    }
}

/// Removes a finalizer if it is there.
pub(crate) fn remove_finalizer(object: &mut Value, finalizer: &str) {
    if finalizers(object).all(|present| present != finalizer) {
        return;
    }
    let metadata = metadata_mut(object);
    if let Some(Value::Array(list)) = metadata.get_mut("finalizers") {
        list.retain(|present| present != finalizer);
        if list.is_empty() {
            metadata.remove("finalizers");
        }
    }
}

/// A time as Kubernetes writes it: whole seconds, UTC.
pub(crate) fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Kubernetes' words for an object that is not the one that was meant.
pub(crate) fn wrong_uid(asked: &str, found: &str) -> String {
    format!("Precondition failed: UID in precondition: {asked}, UID in object meta: {found}")
}

/// Stored bytes that are no JSON.
#[derive(Debug, thiserror::Error)]
#[error("a stored object is not JSON: {0}")]
pub(crate) struct NotJson(#[from] serde_json::Error);

/// Stored bytes as JSON.
pub(crate) fn decode(bytes: &[u8]) -> Result<Value, NotJson> {
    Ok(serde_json::from_slice(bytes)?)
}

/// The object's bytes, waiting for the revision of the write.
pub(crate) fn encode(object: &Value) -> Encode {
    let parts = Parts::of(object);
    Box::new(move |revision| parts.join(revision))
}

/// The object's bytes as they would be stored at `revision`.
pub(crate) fn encode_at(object: &Value, revision: Revision) -> Bytes {
    Parts::of(object).join(revision)
}

struct Parts {
    head: String,
    tail: Vec<u8>,
}

impl Parts {
    fn of(object: &Value) -> Self {
        let text = |field| object.get(field).and_then(Value::as_str).unwrap_or("");
        let head = format!(
            "{{\"apiVersion\":{},\"kind\":{},\"metadata\":{{\"resourceVersion\":\"",
            json!(text("apiVersion")),
            json!(text("kind"))
        );
        let mut tail = b"\"".to_vec();
        push_fields(&mut tail, metadata(object), &["resourceVersion"]);
        tail.push(b'}');
        if let Some(fields) = object.as_object() {
            push_fields(&mut tail, fields, &["apiVersion", "kind", "metadata"]);
        }
        tail.push(b'}');
        Self { head, tail }
    }

    fn join(&self, revision: Revision) -> Bytes {
        let revision = revision.to_string();
        let mut bytes = Vec::with_capacity(self.head.len() + revision.len() + self.tail.len());
        bytes.extend_from_slice(self.head.as_bytes());
        bytes.extend_from_slice(revision.as_bytes());
        bytes.extend_from_slice(&self.tail);
        bytes.into()
    }
}

/// Appends `,"key":value` for every field but those in `except`.
fn push_fields(out: &mut Vec<u8>, fields: &Map<String, Value>, except: &[&str]) {
    for (key, value) in fields.iter().filter(|(key, _)| !except.contains(&key.as_str())) {
        out.push(b',');
        out.extend_from_slice(json!(key).to_string().as_bytes());
        out.push(b':');
        out.extend_from_slice(value.to_string().as_bytes());
    }
}

/// Stored bytes under another `apiVersion` of the same kind; the same bytes if they carry it already.
pub(crate) fn with_api_version(bytes: &Bytes, api_version: &str) -> Bytes {
    const HEAD: &[u8] = b"{\"apiVersion\":\"";
    let Some(rest) = bytes.strip_prefix(HEAD) else { return bytes.clone() };
    let Some(end) = rest.iter().position(|byte| *byte == b'"') else { return bytes.clone() };
    if &rest[..end] == api_version.as_bytes() {
        return bytes.clone();
    }
    let mut out = HEAD.to_vec();
    out.extend_from_slice(api_version.as_bytes());
    out.extend_from_slice(&rest[end..]);
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_carry_their_revision_and_version() {
        let object = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "a\"b", "resourceVersion": "3"},
            "spec": {"x": 1}});
        let bytes = encode_at(&object, 17);
        let back = decode(&bytes).unwrap();
        assert_eq!(back["metadata"], json!({"name": "a\"b", "resourceVersion": "17"}));
        assert_eq!(back["spec"], json!({"x": 1}));
        let other = with_api_version(&bytes, "g/v2");
        assert_eq!(decode(&other).unwrap()["apiVersion"], "g/v2");
        assert_eq!(with_api_version(&bytes, "v1"), bytes);
    }

    #[test]
    fn finalizers_come_and_go() {
        let mut object = json!({"metadata": {}});
        add_finalizer(&mut object, "a");
        add_finalizer(&mut object, "a");
        assert_eq!(finalizers(&object).collect::<Vec<_>>(), ["a"]);
        remove_finalizer(&mut object, "a");
        assert_eq!(object, json!({"metadata": {}}));
    }
}
