//! What is written on a drive about itself and its volumes. Records carry a format version: a newer one is refused and
//! nothing on that drive is touched.

use std::{collections::BTreeMap, path::PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{
    AccessType, BackendKind, DriveId, Origin, SnapshotId, Throttle, allocate::GRAIN, backend::QuotaKey,
};

/// The format that this version writes. Format 1 knew no block volumes, and formats 1 and 2 had no sums; their records
/// are read as they are, and written anew when their drive is opened.
pub(crate) const FORMAT: u32 = 3;
/// From this format on each record carries a sum of its content.
const SUMMED: u32 = 3;
const SUM: &str = "sum";

/// `.orlop/drive.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DriveRecord {
    pub(crate) format: u32,
    pub(crate) id: DriveId,
    pub(crate) backend: BackendKind,
    pub(crate) created: Timestamp,
    /// The device that it was made on, for people who look for it.
    pub(crate) device: DeviceFacts,
}

/// `.orlop/labels.json`: what people choose drives for volumes by.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Labels {
    pub(crate) format: u32,
    pub(crate) labels: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DeviceFacts {
    pub(crate) path: PathBuf,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) model: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) serial: Option<String>,
}

/// `.orlop/volumes/<key>.json`, of a volume or of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct VolumeRecord {
    pub(crate) format: u32,
    /// Name of the volume's directory.
    pub(crate) key: String,
    pub(crate) name: String,
    pub(crate) size: u64,
    /// What it shows its users, or for a snapshot what its volume showed.
    #[serde(default)]
    pub(crate) access: AccessType,
    pub(crate) phase: Phase,
    pub(crate) created: Timestamp,
    /// What the kernel counts the volume by, where it is not to be read from the volume itself (any more).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) quota: Option<QuotaKey>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) parameters: BTreeMap<String, String>,
    /// For people and for rebuilding what refers to the volume; means nothing here.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) notes: BTreeMap<String, String>,
    /// What it was filled with when it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) origin: Option<Origin>,
    /// For a snapshot, the size that its volume had then; none for a volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) restore_size: Option<u64>,
    /// Volumes of one group lie on different drives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) spread: Option<String>,
    /// The snapshots that it was taken together with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) group: Option<GroupRecord>,
    /// How fast its users may be.
    #[serde(default, skip_serializing_if = "Throttle::is_unlimited")]
    pub(crate) throttle: Throttle,
    /// It goes with its user.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) ephemeral: bool,
}

/// Snapshots that were taken together. Each of them carries this, and none counts unless all are complete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct GroupRecord {
    pub(crate) id: SnapshotId,
    pub(crate) name: String,
    pub(crate) members: Vec<SnapshotId>,
}

impl VolumeRecord {
    /// Of an empty volume that is to be made.
    pub(crate) fn intended(key: String, name: &str, size: u64) -> Self {
        Self {
            format: FORMAT,
            key,
            name: name.to_owned(),
            size,
            access: AccessType::Mount,
            phase: Phase::Creating,
            created: clock::now(),
            quota: None,
            parameters: BTreeMap::new(),
            notes: BTreeMap::new(),
            origin: None,
            restore_size: None,
            spread: None,
            group: None,
            throttle: Throttle::default(),
            ephemeral: false,
        }
    }

    /// A snapshot is kept as a volume is, and never mounted.
    pub(crate) fn is_snapshot(&self) -> bool {
        self.restore_size.is_some()
    }

    /// Whether it is a block volume, for which space is set aside.
    pub(crate) fn is_block(&self) -> bool {
        self.access == AccessType::Block && !self.is_snapshot()
    }

    /// Whether it is a block volume whose bytes are those of a file.
    pub(crate) fn is_in_file(&self) -> bool {
        self.is_block() && self.quota != Some(QuotaKey::Device)
    }

    /// Bytes that it takes of its drive, which the kernel holds it to. A block volume has all its bytes for its user:
    /// what the file system notes about them comes on top, most when every other block was written.
    pub(crate) fn held(&self) -> u64 {
        match self.is_in_file() {
            true => with_notes(self.size),
            false => self.size,
        }
    }
}

const NOTES_SHARE: u64 = 32;
const LEAST_NOTES: u64 = 4 << 20;

/// What a block volume of this size takes of its drive.
pub(crate) fn with_notes(size: u64) -> u64 {
    size.saturating_add(size.div_ceil(NOTES_SHARE)).saturating_add(LEAST_NOTES)
}

/// The largest block volume that takes no more than this.
pub(crate) fn without_notes(held: u64) -> u64 {
    let size =
        u128::from(held.saturating_sub(LEAST_NOTES)) * u128::from(NOTES_SHARE) / u128::from(NOTES_SHARE + 1);
    // No larger than it was.
    u64::try_from(size).unwrap_or(u64::MAX) / GRAIN * GRAIN
}

/// How far a volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Phase {
    /// Intended, never announced.
    Creating,
    /// Announced.
    Ready,
    /// To be gone.
    Deleting,
}

impl Phase {
    /// The name, as in records.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Ready => "ready",
            Self::Deleting => "deleting",
        }
    }
}

/// A record that can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("it is of format {found}, and this version of orlop knows up to {FORMAT}; use the newer version")]
    Newer { found: u32 },
    #[error("it is damaged: {0}")]
    Damaged(String),
}

/// Reads a record, its format first: the rest of a newer one may mean something else.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, RecordError> {
    let damaged = |error: serde_json::Error| RecordError::Damaged(error.to_string());
    let mut record: Value = serde_json::from_slice(bytes).map_err(damaged)?;
    let sum = record.as_object_mut().and_then(|record| record.remove(SUM));
    let right = sum.as_ref().map(|sum| sum.as_str() == Some(&sum_of(&record)));
    // Also of a format that it may not have.
    if right == Some(false) {
        return Err(RecordError::Damaged("its content has another sum than was written with it".to_owned()));
    }
    match format_in(&record) {
        None => Err(RecordError::Damaged("it says no format".to_owned())),
        Some(found) if found > FORMAT => Err(RecordError::Newer { found }),
        Some(SUMMED..) if right.is_none() => Err(RecordError::Damaged("it has no sum".to_owned())),
        Some(_) => serde_json::from_value(record).map_err(damaged),
    }
}

/// The format of a record that can be read.
pub(crate) fn format_of(bytes: &[u8]) -> Option<u32> {
    format_in(&serde_json::from_slice(bytes).ok()?)
}

fn format_in(record: &Value) -> Option<u32> {
    record.get("format")?.as_u64().map(|format| u32::try_from(format).unwrap_or(u32::MAX))
}

fn sum_of(record: &Value) -> String {
    let digest = Sha256::digest(record.to_string().as_bytes());
    digest[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of a record with its sum, ending in a newline for people who print it.
pub(crate) fn render(record: &impl Serialize) -> Vec<u8> {
    // Maps with text keys, numbers and text can always be written as JSON.
    let mut record = serde_json::to_value(record).unwrap_or_default();
    let sum = sum_of(&record);
    if let Some(record) = record.as_object_mut() {
        record.insert(SUM.to_owned(), sum.into());
    }
    let mut bytes = serde_json::to_vec_pretty(&record).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUME: &str = r#"{"format":1,"key":"pvc-1","name":"pvc-1","size":4096,"phase":"ready",
        "created":"2026-01-02T03:04:05Z","quota":{"subvolume":256},"parameters":{"a":"b"}}"#;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let record: VolumeRecord = parse(VOLUME.as_bytes()).expect("format 1");
        assert_eq!(
            (record.size, record.phase, record.quota),
            (4096, Phase::Ready, Some(QuotaKey::Subvolume(256)))
        );
        assert_eq!(parse::<VolumeRecord>(&render(&record)).expect("its own"), record);
    }

    #[test]
    fn a_block_volume_takes_more_of_its_drive_than_its_size() {
        let mount: VolumeRecord = parse(VOLUME.as_bytes()).expect("format 1");
        let block = VolumeRecord { access: AccessType::Block, size: 1 << 30, ..mount.clone() };
        assert_eq!((mount.access, mount.held()), (AccessType::Mount, 4096));
        assert_eq!(block.held(), (1 << 30) + (32 << 20) + (4 << 20));
        let snapshot = VolumeRecord { restore_size: Some(1 << 30), size: 5, ..block };
        assert_eq!((snapshot.held(), snapshot.is_block()), (5, false));
        for free in [0, 1 << 20, (1 << 30) - 1, 1 << 30, 123_456_789_012] {
            let size = without_notes(free);
            assert!(
                size == 0 || with_notes(size) <= free && with_notes(size + 2 * GRAIN) > free,
                "{free}: {size}"
            );
        }
    }

    #[test]
    fn a_newer_record_is_refused_before_the_rest_is_looked_at() {
        let refused = parse::<VolumeRecord>(br#"{"format":7,"unheard":"of"}"#).expect_err("newer");
        assert!(refused.to_string().contains("format 7"), "{refused}");
        for damaged in ["", "{", "[]", r#"{"format":1}"#, r#"{"format":-1}"#] {
            let refused = parse::<VolumeRecord>(damaged.as_bytes()).expect_err(damaged);
            assert!(matches!(refused, RecordError::Damaged(_)), "{refused}");
        }
    }

    /// Files as each version wrote them, of a drive and of a volume.
    #[test]
    fn records_of_every_format_are_read() {
        let file = |format: u32, name: &str| {
            let at = concat!(env!("CARGO_MANIFEST_DIR"), "/formats");
            std::fs::read(format!("{at}/{format}/{name}.json")).expect("a file of each format")
        };
        for format in 1..=FORMAT {
            let drive: DriveRecord = parse(&file(format, "drive")).expect("a drive");
            assert_eq!((drive.format, drive.backend), (format, BackendKind::Btrfs));
            let volume: VolumeRecord = parse(&file(format, "volume")).expect("a volume");
            assert_eq!((volume.format, volume.size, volume.phase), (format, 67_108_864, Phase::Ready));
            assert_eq!(volume.access, if format > 1 { AccessType::Block } else { AccessType::Mount });
            assert_eq!(volume.name, "pvc-1");
        }
        assert_eq!(
            render(&parse::<VolumeRecord>(&file(FORMAT, "volume")).expect("it")),
            file(FORMAT, "volume")
        );
    }

    #[test]
    fn no_flipped_bit_of_a_record_goes_unnoticed() {
        let record: VolumeRecord = parse(VOLUME.as_bytes()).expect("format 1");
        let bytes = render(&VolumeRecord { format: FORMAT, ..record.clone() });
        let whole: VolumeRecord = parse(&bytes).expect("its own");
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            match parse::<VolumeRecord>(&flipped) {
                Err(RecordError::Damaged(_)) => {}
                Ok(found) => assert_eq!(found, whole, "bit {bit} is in a space between words"),
                Err(error) => panic!("bit {bit}: {error}"),
            }
        }
    }
}
