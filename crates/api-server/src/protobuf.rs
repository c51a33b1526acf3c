//! Bodies in Kubernetes' protobuf encoding, as far as kubectl sends them: its `create namespace`, `create configmap`,
//! `create secret`, `create serviceaccount` and `drain` speak it, whatever the server offers.
//!
//! A message is a table of its fields. A field that is not in the table refuses the body: nothing is lost silently.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use crate::error::ApiError;

/// The media type.
pub(crate) const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

/// What every body begins with.
const MAGIC: &[u8] = b"k8s\0";

/// How a field is encoded, and what it is in JSON.
enum Kind {
    Text,
    Integer,
    Boolean,
    Texts,
    /// A map of text to text.
    TextMap,
    /// A map of text to bytes, which JSON shows as base64.
    BytesMap,
    Message(Message),
    Messages(Message),
    /// Set by the server, so that a client's value does not matter.
    Ignored,
}

/// Field numbers, names and kinds.
type Message = &'static [(u64, &'static str, Kind)];

use Kind::{Boolean, BytesMap, Ignored, Integer, Messages, Text, TextMap, Texts};

const OWNER: Message = &[
    (1, "kind", Text),
    (3, "name", Text),
    (4, "uid", Text),
    (5, "apiVersion", Text),
    (6, "controller", Boolean),
    (7, "blockOwnerDeletion", Boolean),
];
const METADATA: Message = &[
    (1, "name", Text),
    (2, "generateName", Text),
    (3, "namespace", Text),
    (4, "selfLink", Ignored),
    (5, "uid", Text),
    (6, "resourceVersion", Text),
    (7, "generation", Ignored),
    (8, "creationTimestamp", Ignored),
    (9, "deletionTimestamp", Ignored),
    (10, "deletionGracePeriodSeconds", Ignored),
    (11, "labels", TextMap),
    (12, "annotations", TextMap),
    (13, "ownerReferences", Messages(OWNER)),
    (14, "finalizers", Texts),
    (17, "managedFields", Ignored),
];
const NAMESPACE: Message = &[
    (1, "metadata", Kind::Message(METADATA)),
    (2, "spec", Kind::Message(&[(1, "finalizers", Texts)])),
    (3, "status", Ignored),
];
const CONFIG_MAP: Message = &[
    (1, "metadata", Kind::Message(METADATA)),
    (2, "data", TextMap),
    (3, "binaryData", BytesMap),
    (4, "immutable", Boolean),
];
const SECRET: Message = &[
    (1, "metadata", Kind::Message(METADATA)),
    (2, "data", BytesMap),
    (3, "type", Text),
    (4, "stringData", TextMap),
    (5, "immutable", Boolean),
];
const SERVICE_ACCOUNT: Message =
    &[(1, "metadata", Kind::Message(METADATA)), (4, "automountServiceAccountToken", Boolean)];
const DELETE_OPTIONS: Message = &[
    (1, "gracePeriodSeconds", Integer),
    (2, "preconditions", Kind::Message(&[(1, "uid", Text), (2, "resourceVersion", Text)])),
    (3, "orphanDependents", Boolean),
    (4, "propagationPolicy", Text),
    (5, "dryRun", Texts),
];
const EVICTION: Message =
    &[(1, "metadata", Kind::Message(METADATA)), (2, "deleteOptions", Kind::Message(DELETE_OPTIONS))];

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

#[derive(Debug, thiserror::Error)]
enum Unreadable {
    #[error("it is malformed")]
    Malformed,
    #[error("{0} is read as JSON only")]
    UnknownKind(String),
    #[error("field number {0} is not known")]
    UnknownField(u64),
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
    let message = match (api_version.as_str(), kind.as_str()) {
        ("v1", "Namespace") => NAMESPACE,
        ("v1", "ConfigMap") => CONFIG_MAP,
        ("v1", "Secret") => SECRET,
        ("v1", "ServiceAccount") => SERVICE_ACCOUNT,
        ("policy/v1", "Eviction") => EVICTION,
        (_, "DeleteOptions") => DELETE_OPTIONS,
        _ => return Err(Unreadable::UnknownKind(format!("{api_version} {kind}"))),
    };
    let mut fields = read(message, raw)?;
    fields.insert("apiVersion".into(), api_version.into());
    fields.insert("kind".into(), kind.into());
    Ok(Value::Object(fields))
}

fn read(message: Message, mut input: &[u8]) -> Result<Map<String, Value>, Unreadable> {
    let mut fields = Map::new();
    while let Some((number, wire)) = next(&mut input)? {
        let (_, name, kind) =
            message.iter().find(|field| field.0 == number).ok_or(Unreadable::UnknownField(number))?;
        let value = match kind {
            Ignored => continue,
            Text => match text(wire)? {
                // Kubernetes writes unset texts as empty ones.
                empty if empty.is_empty() => continue,
                text => text.into(),
            },
            Integer => number_of(wire)?.cast_signed().into(),
            Boolean => (number_of(wire)? != 0).into(),
            Kind::Message(message) => Value::Object(read(message, bytes(wire)?)?),
            Texts => {
                push(&mut fields, name, text(wire)?.into());
                continue;
            }
            Messages(message) => {
                push(&mut fields, name, Value::Object(read(message, bytes(wire)?)?));
                continue;
            }
            TextMap | BytesMap => {
                let (key, value) = entry(bytes(wire)?, matches!(kind, BytesMap))?;
                if let Value::Object(map) = fields.entry(*name).or_insert_with(|| Map::new().into()) {
                    map.insert(key, value.into());
                }
                continue;
            }
        };
        fields.insert((*name).to_owned(), value);
    }
    Ok(fields)
}

fn push(fields: &mut Map<String, Value>, name: &str, value: Value) {
    if let Value::Array(list) = fields.entry(name).or_insert_with(|| Value::Array(Vec::new())) {
        list.push(value);
    }
}

fn entry(mut input: &[u8], as_base64: bool) -> Result<(String, String), Unreadable> {
    let (mut key, mut value) = (String::new(), String::new());
    while let Some((number, wire)) = next(&mut input)? {
        match number {
            1 => key = text(wire)?,
            2 if as_base64 => value = STANDARD.encode(bytes(wire)?),
            2 => value = text(wire)?,
            _ => return Err(Unreadable::UnknownField(number)),
        }
    }
    Ok((key, value))
}

/// A field's content; fixed-width fields do not occur.
enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

fn number_of(wire: Wire<'_>) -> Result<u64, Unreadable> {
    match wire {
        Wire::Number(number) => Ok(number),
        Wire::Bytes(_) => Err(Unreadable::Malformed),
    }
}

fn bytes(wire: Wire<'_>) -> Result<&[u8], Unreadable> {
    match wire {
        Wire::Bytes(bytes) => Ok(bytes),
        Wire::Number(_) => Err(Unreadable::Malformed),
    }
}

fn text(wire: Wire<'_>) -> Result<String, Unreadable> {
    String::from_utf8(bytes(wire)?.to_vec()).map_err(|_| Unreadable::Malformed)
}

/// The next field: its number and content.
fn next<'a>(input: &mut &'a [u8]) -> Result<Option<(u64, Wire<'a>)>, Unreadable> {
    if input.is_empty() {
        return Ok(None);
    }
    let tag = varint(input)?;
    let wire = match tag & 7 {
        0 => Wire::Number(varint(input)?),
        2 => {
            let length = usize::try_from(varint(input)?).map_err(|_| Unreadable::Malformed)?;
            let (bytes, rest) = input.split_at_checked(length).ok_or(Unreadable::Malformed)?;
            *input = rest;
            Wire::Bytes(bytes)
        }
        _ => return Err(Unreadable::Malformed),
    };
    Ok(Some((tag >> 3, wire)))
}

fn varint(input: &mut &[u8]) -> Result<u64, Unreadable> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = input.split_first().ok_or(Unreadable::Malformed)?;
        *input = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Unreadable::Malformed)
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
