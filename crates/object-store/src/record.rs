//! An object as the file holds it: with a checksum of its name, revision and bytes, so that a flipped bit is found and
//! never served. Read without trusting any of it.

use std::sync::Arc;

use bytes::Bytes;

use crate::{Key, Object, Revision};

/// What stands for the bytes of an object that was found damaged: no JSON, so that nobody takes it for content.
pub(crate) const DAMAGED: &[u8] = b"damaged on the disk: its checksum does not match";

/// Bytes before the value: revision and checksum.
const HEAD: usize = 16;

/// The name of an object's record: resource, namespace and name, with a zero byte between them.
pub(crate) fn name(key: &Key) -> Vec<u8> {
    [key.resource.as_bytes(), key.namespace.as_bytes(), key.name.as_bytes()].join(&0)
}

/// The content of an object's record.
pub(crate) fn content(name: &[u8], object: &Object) -> Vec<u8> {
    let mut content = Vec::with_capacity(HEAD + object.value.len());
    content.extend(object.revision.to_le_bytes());
    content.extend(checksum(name, object.revision, &object.value).to_le_bytes());
    content.extend(&*object.value);
    content
}

/// What a record says.
pub(crate) struct Row {
    /// The object, with [`DAMAGED`] for its bytes if they don't match; none if not even its name can be read.
    pub(crate) object: Option<Object>,
    /// Whether name, revision and bytes match the checksum.
    pub(crate) whole: bool,
    /// The checksum as it stands in the record.
    pub(crate) checksum: u64,
}

/// Reads a record. `before` lends the memory of its resource and namespace, if they are the same.
pub(crate) fn read(name: &[u8], content: &[u8], before: Option<&Key>) -> Row {
    let number =
        |at: usize| content.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
    let revision: Revision = number(0).unwrap_or_default();
    let stated = number(8).unwrap_or_default();
    let value = content.get(HEAD..).unwrap_or_default();
    let whole = content.len() >= HEAD && checksum(name, revision, value) == stated;
    let value = if whole { Bytes::copy_from_slice(value) } else { Bytes::from_static(DAMAGED) };
    let object = key(name, before).map(|key| Object { key, revision, value });
    Row { whole: whole && object.is_some(), object, checksum: stated }
}

fn key(name: &[u8], before: Option<&Key>) -> Option<Key> {
    let mut parts = std::str::from_utf8(name).ok()?.splitn(3, '\0');
    let (resource, namespace, name) = (parts.next()?, parts.next()?, parts.next()?);
    let resource = shared(before.map(|key| &key.resource), resource);
    let namespace = shared(before.map(|key| &key.namespace), namespace);
    Some(Key { resource, namespace, name: name.into() })
}

/// `text`, in the memory of `before` if that is the same text.
fn shared(before: Option<&Arc<str>>, text: &str) -> Arc<str> {
    before.filter(|before| &***before == text).cloned().unwrap_or_else(|| text.into())
}

/// The checksum of a record.
pub(crate) fn checksum(name: &[u8], revision: Revision, value: &[u8]) -> u64 {
    let mut sum = Sum::default();
    sum.bytes(name);
    sum.word(revision);
    sum.bytes(value);
    sum.0
}

/// A checksum of words.
pub(crate) fn checksum_of(words: &[u64]) -> u64 {
    let mut sum = Sum::default();
    words.iter().for_each(|word| sum.word(*word));
    sum.0
}

/// A sum whose every step can be undone: a change within one word always changes it, any other change all but surely.
struct Sum(u64);

impl Default for Sum {
    fn default() -> Sum {
        Sum(0x6F72_6C6F_7021_5F37)
    }
}

impl Sum {
    fn word(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
        self.0 ^= self.0 >> 32;
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.word(bytes.len() as u64);
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.word(u64::from_le_bytes(word));
        }
    }
}

/// How many records there are and what their checksums add up to: a record that is missing, or an older one in its
/// place, is found by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Census {
    pub(crate) records: u64,
    pub(crate) sum: u64,
}

impl Census {
    pub(crate) fn add(&mut self, checksum: u64) {
        self.records = self.records.wrapping_add(1);
        self.sum = self.sum.wrapping_add(checksum);
    }

    pub(crate) fn remove(&mut self, checksum: u64) {
        self.records = self.records.wrapping_sub(1);
        self.sum = self.sum.wrapping_sub(checksum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_of_a_record_is_found() {
        let object = Object {
            key: Key::new("pods", "default", "a"),
            revision: 7,
            value: b"some value".as_slice().into(),
        };
        let (name, content) = (name(&object.key), content(&name(&object.key), &object));
        let row = read(&name, &content, None);
        assert!(row.whole && row.object.as_ref() == Some(&object));
        for at in 0..(name.len() + content.len()) * 8 {
            let (mut name, mut content) = (name.clone(), content.clone());
            match name.get_mut(at / 8) {
                Some(byte) => *byte ^= 1 << (at % 8),
                None => content[at / 8 - name.len()] ^= 1 << (at % 8),
            }
            let row = read(&name, &content, None);
            assert!(!row.whole, "bit {at}");
            assert!(row.object.is_none_or(|object| *object.value == *DAMAGED), "bit {at}");
        }
        for length in 0..content.len() {
            assert!(!read(&name, &content[..length], None).whole, "cut at {length}");
        }
    }
}
