//! Beside an answer to GetCapacity, in its metadata: why nothing can be made. The standard has no field for it.

use tonic::metadata::{BinaryMetadataValue, MetadataMap};

const KEY: &str = "orlop-why-none-bin";
/// Bytes of a reason that are told on.
const MOST: usize = 1024;

/// As much of a reason as is told on: people read it, and objects keep it.
pub fn brief(why: &str) -> &str {
    &why[..why.floor_char_boundary(MOST)]
}

/// Says why there is no capacity.
pub fn tell_why_none(metadata: &mut MetadataMap, why: &str) {
    metadata.insert_bin(KEY, BinaryMetadataValue::from_bytes(brief(why).as_bytes()));
}

/// What a driver said; `None` if it says nothing, or nothing that can be read.
pub fn why_none(metadata: &MetadataMap) -> Option<String> {
    let bytes = metadata.get_bin(KEY)?.to_bytes().ok().filter(|bytes| bytes.len() <= MOST)?;
    String::from_utf8(bytes.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_heard_within_bounds() {
        let (whole, long) = ("x".repeat(MOST), format!("{}\u{e4}\u{e4}", "x".repeat(MOST - 1)));
        for (said, heard) in
            [("kein Ger\u{e4}t", "kein Ger\u{e4}t"), (&whole, &whole), (&long, &long[..MOST - 1])]
        {
            let mut metadata = MetadataMap::new();
            assert_eq!(why_none(&metadata), None);
            tell_why_none(&mut metadata, said);
            assert_eq!(why_none(&metadata).as_deref(), Some(heard));
        }
        // Whatever another driver says under that name.
        let mut metadata = MetadataMap::new();
        for said in [vec![b'x'; MOST + 1], vec![0xff, 0xfe]] {
            metadata.insert_bin(KEY, BinaryMetadataValue::from_bytes(&said));
            assert_eq!(why_none(&metadata), None);
        }
    }
}
