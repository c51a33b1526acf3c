//! The wire format: a message is a table of its fields.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

/// How a field is encoded, and what it is in JSON.
pub(crate) enum Encoding {
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

/// Field numbers, names and encodings.
pub(crate) type Message = &'static [(u64, &'static str, Encoding)];

use Encoding::{Boolean, BytesMap, Ignored, Integer, Messages, Text, TextMap, Texts};

const OWNER: Message = &[
    (1, "kind", Text),
    (3, "name", Text),
    (4, "uid", Text),
    (5, "apiVersion", Text),
    (6, "controller", Boolean),
    (7, "blockOwnerDeletion", Boolean),
];
/// `ObjectMeta`.
pub(crate) const METADATA: Message = &[
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
/// Why bytes can't be read as a message.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreadable {
    #[error("it is malformed")]
    Malformed,
    #[error("{0} is read as JSON only")]
    UnknownKind(String),
    #[error("field number {0} is not known")]
    UnknownField(u64),
}

/// The fields of a message as JSON.
pub(super) fn read(message: Message, mut input: &[u8]) -> Result<Map<String, Value>, Unreadable> {
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
            Encoding::Message(message) => Value::Object(read(message, bytes(wire)?)?),
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
pub(super) enum Wire<'a> {
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

pub(super) fn text(wire: Wire<'_>) -> Result<String, Unreadable> {
    String::from_utf8(bytes(wire)?.to_vec()).map_err(|_| Unreadable::Malformed)
}

/// The next field: its number and content.
pub(super) fn next<'a>(input: &mut &'a [u8]) -> Result<Option<(u64, Wire<'a>)>, Unreadable> {
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
