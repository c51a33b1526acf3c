//! Bodies in Kubernetes' protobuf encoding, as far as kubectl sends them: its `create namespace`, `create configmap`,
//! `create secret`, `create serviceaccount` and `drain` speak it, whatever the server offers.
//!
//! A message is a table of its fields. A field that is not in the table refuses the body: nothing is lost silently.

pub(crate) mod wire;

use serde_json::Value;
use wire::Encoding::{Boolean, Integer, Text, Texts};
use wire::{Encoding, METADATA, Message, Unreadable, Wire, next, read, text};

use crate::error::ApiError;
use crate::kinds;

/// The media type.
pub(crate) const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

/// What every body begins with.
const MAGIC: &[u8] = b"k8s\0";

const DELETE_OPTIONS: Message = &[
    (1, "gracePeriodSeconds", Integer),
    (2, "preconditions", Encoding::Message(&[(1, "uid", Text), (2, "resourceVersion", Text)])),
    (3, "orphanDependents", Boolean),
    (4, "propagationPolicy", Text),
    (5, "dryRun", Texts),
];
const EVICTION: Message =
    &[(1, "metadata", Encoding::Message(METADATA)), (2, "deleteOptions", Encoding::Message(DELETE_OPTIONS))];

/// What is sent and is no object of a kind that is served. Options come in many versions.
const OTHERS: &[(Option<&str>, &str, Message)] =
    &[(Some("policy/v1"), "Eviction", EVICTION), (None, "DeleteOptions", DELETE_OPTIONS)];

/// The body as JSON.
pub(crate) fn decode(body: &[u8]) -> Result<Value, ApiError> {
    object(body).map_err(|why| {
        let text = format!("the protobuf body can't be read ({why}); send application/json");
        match why {
            Unreadable::UnknownKind(_) | Unreadable::UnknownField(_) => ApiError::UnsupportedMediaType(text),
            Unreadable::Malformed => ApiError::BadRequest(text),
        }
    })
}

fn object(body: &[u8]) -> Result<Value, Unreadable> {
    let mut input = body.strip_prefix(MAGIC).ok_or(Unreadable::Malformed)?;
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    while let Some((number, wire)) = next(&mut input)? {
        match (number, wire) {
            (1, Wire::Bytes(mut types)) => {
                while let Some((number, wire)) = next(&mut types)? {
                    match number {
                        1 => api_version = text(wire)?,
                        2 => kind = text(wire)?,
                        _ => return Err(Unreadable::UnknownField(number)),
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let message = kinds::named(&api_version, &kind)
        .and_then(|row| row.protobuf)
        .or_else(|| other(&api_version, &kind))
        .ok_or_else(|| Unreadable::UnknownKind(format!("{api_version} {kind}")))?;
    let mut fields = read(message, raw)?;
    fields.insert("apiVersion".into(), api_version.into());
    fields.insert("kind".into(), kind.into());
    Ok(Value::Object(fields))
}

fn other(api_version: &str, kind: &str) -> Option<Message> {
    let is =
        |version: Option<&str>, name: &str| name == kind && version.is_none_or(|only| only == api_version);
    OTHERS.iter().find(|(version, name, _)| is(*version, name)).map(|(_, _, message)| *message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A length-delimited field.
    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, u8::try_from(content.len()).unwrap()], content].concat()
    }

    fn body(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let types = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), field(1, &types), field(2, raw), field(3, b""), field(4, b"")].concat()
    }

    #[test]
    fn a_secret_is_read() {
        let labels = field(11, &[field(1, b"a"), field(2, b"")].concat());
        let metadata = [field(1, b"s"), field(2, b""), labels, field(8, b"")].concat();
        let data = [field(1, b"key"), field(2, b"\xff")].concat();
        let raw = [field(1, &metadata), field(2, &data), field(3, b"Opaque"), vec![5 << 3, 1]].concat();
        let expected = json!({"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "immutable": true,
            "metadata": {"name": "s", "labels": {"a": ""}}, "data": {"key": "/w=="}});
        assert_eq!(decode(&body("v1", "Secret", &raw)).unwrap(), expected);
    }

    #[test]
    fn what_is_not_known_is_refused() {
        let unknown = decode(&body("v1", "Pod", b""));
        assert!(matches!(unknown, Err(ApiError::UnsupportedMediaType(_))), "{unknown:?}");
        let field_9 = decode(&body("v1", "ConfigMap", &field(9, b"x")));
        assert!(matches!(field_9, Err(ApiError::UnsupportedMediaType(_))), "{field_9:?}");
        let whole = body("v1", "ConfigMap", &field(1, &field(1, b"name")));
        for cut in 0..whole.len() {
            // A shorter body may be a smaller object, but never a panic.
            let _ = decode(&whole[..cut]);
        }
        assert!(matches!(decode(b"{}"), Err(ApiError::BadRequest(_))));
    }
}
