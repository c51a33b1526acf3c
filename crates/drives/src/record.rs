//! What is written on a drive about itself and its volumes. Records carry a format version: a newer one is refused and
//! nothing on that drive is touched.

use std::{collections::BTreeMap, path::PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{BackendKind, DriveId, Origin, backend::QuotaKey};

/// The format that this version writes.
pub(crate) const FORMAT: u32 = 1;

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
}

impl VolumeRecord {
    /// A snapshot is kept as a volume is, and never mounted.
    pub(crate) fn is_snapshot(&self) -> bool {
        self.restore_size.is_some()
    }
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

/// A record that can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("it is of format {found}, and this version of orlop knows up to {FORMAT}; use the newer version")]
    Newer { found: u32 },
    #[error("it is damaged: {0}; restore it from a backup or remove the drive")]
    Damaged(#[from] serde_json::Error),
}

/// Reads a record, its format first: the rest of a newer one may mean something else.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, RecordError> {
    #[derive(Deserialize)]
    struct Versioned {
        format: u32,
    }
    let Versioned { format } = serde_json::from_slice(bytes)?;
    if format > FORMAT {
        return Err(RecordError::Newer { found: format });
    }
    Ok(serde_json::from_slice(bytes)?)
}

/// The bytes of a record, ending in a newline for people who print it.
pub(crate) fn render(record: &impl Serialize) -> Vec<u8> {
    // Maps with text keys, numbers and text can always be written as JSON.
    let mut bytes = serde_json::to_vec_pretty(record).unwrap_or_default();
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
    fn a_newer_record_is_refused_before_the_rest_is_looked_at() {
        let refused = parse::<VolumeRecord>(br#"{"format":7,"unheard":"of"}"#).expect_err("newer");
        assert!(refused.to_string().contains("format 7"), "{refused}");
        for damaged in ["", "{", "[]", r#"{"format":1}"#, r#"{"format":-1}"#] {
            let refused = parse::<VolumeRecord>(damaged.as_bytes()).expect_err(damaged);
            assert!(matches!(refused, RecordError::Damaged(_)), "{refused}");
        }
    }
}
