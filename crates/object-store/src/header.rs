//! The head of the store's file: magic, format version, and whether the file was completely made. It lies before the
//! database, so that a newer format is recognised, and refused, before anything is changed.

use std::io;

use redb::StorageBackend;

use crate::OpenError;
use crate::device::Device;

/// Bytes before the database; keeps its pages aligned.
pub(crate) const LENGTH: u64 = 4096;
const MAGIC: &[u8; 12] = b"orlop-store\n";
/// The newest format that this program reads and writes.
pub(crate) const FORMAT: u32 = 2;
/// The oldest format that this program reads.
const OLDEST: u32 = 1;

/// How far the making of a file got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The file is empty.
    Absent = 0,
    /// The database in it is being made; nothing was ever acknowledged from it.
    Making = 1,
    /// The database is there.
    Complete = 2,
    /// The database is there, in an older format. Never written.
    Older = 3,
}

impl Stage {
    /// Reads the header; refuses what is not a store and what is newer.
    pub(crate) fn read(device: &Device<impl StorageBackend>) -> Result<Stage, OpenError> {
        let failed = |error: io::Error| OpenError::Disk(error.into());
        let length = device.len().map_err(failed)?;
        let mut bytes = [0; 17];
        let present = length.min(bytes.len() as u64) as usize;
        device.read(0, &mut bytes[..present]).map_err(failed)?;
        let (magic, rest) = bytes.split_at(MAGIC.len());
        // The header is durable before anything follows it. So a short file without one was being made.
        if magic != MAGIC {
            return match length {
                0..=LENGTH if bytes.iter().all(|byte| *byte == 0) => Ok(Stage::Absent),
                _ => Err(OpenError::Corrupt { reason: "the file does not begin as a store does".into() }),
            };
        }
        match (u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]), rest[4]) {
            (OLDEST..=FORMAT, 1) => Ok(Stage::Making),
            (OLDEST..=FORMAT, 2) if length <= LENGTH => {
                Err(OpenError::Corrupt { reason: "nothing follows its head".into() })
            }
            (FORMAT, 2) => Ok(Stage::Complete),
            (OLDEST..FORMAT, 2) => Ok(Stage::Older),
            (found, _) if found > FORMAT => Err(OpenError::NewerFormat { found, known: FORMAT }),
            (found, stage) => {
                Err(OpenError::Corrupt { reason: format!("format {found} in stage {stage} is not known") })
            }
        }
    }

    /// Writes the header durably.
    pub(crate) fn write(self, device: &Device<impl StorageBackend>) -> io::Result<()> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(FORMAT.to_le_bytes());
        bytes.push(self as u8);
        if device.len()? < LENGTH {
            device.set_len(LENGTH)?;
        }
        device.write(0, &bytes)?;
        device.sync_data()
    }
}
