//! Beside an answer to GetCapacity, in its metadata: why nothing can be made. The standard has no field for it.

use tonic::metadata::{BinaryMetadataValue, MetadataMap};

const KEY: &str = "orlop-why-none-bin";
/// Bytes that are read of it.
const MOST: usize = 1024;

/// Says why there is no capacity.
pub fn tell_why_none(metadata: &mut MetadataMap, why: &str) {
    metadata.insert_bin(KEY, BinaryMetadataValue::from_bytes(why.as_bytes()));
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
        for (said, heard) in [("kein Gerät", true), (&"x".repeat(MOST), true), (&"x".repeat(MOST + 1), false)]
        {
            let mut metadata = MetadataMap::new();
            assert_eq!(why_none(&metadata), None);
            tell_why_none(&mut metadata, said);
            assert_eq!(why_none(&metadata).as_deref(), heard.then_some(said));
        }
    }
}
