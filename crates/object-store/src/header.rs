//! The head of the store's file: magic, format version, and whether the file was completely made. It lies before the
//! database, so that a newer format is recognised, and refused, before anything is changed.

use std::io;
use std::ops::Bound;
use std::sync::Arc;

use redb::{BackendError, StorageBackend};

use crate::OpenError;

/// Bytes before the database; keeps its pages aligned.
const LENGTH: u64 = 4096;
const MAGIC: &[u8; 12] = b"orlop-store\n";
/// The newest format that this program reads and writes.
pub(crate) const FORMAT: u32 = 1;

/// How far the making of a file got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The file is empty.
    Absent = 0,
    /// The database in it is being made; nothing was ever acknowledged from it.
    Making = 1,
    /// The database is there.
    Complete = 2,
}

impl Stage {
    /// Reads the header; refuses what is not a store and what is newer.
    pub(crate) fn read(backend: &impl StorageBackend) -> Result<Stage, OpenError> {
        let failed = |error: io::Error| OpenError::Disk(error.into());
        let length = backend.len().map_err(failed)?;
        let mut bytes = [0; 17];
        if length >= bytes.len() as u64 {
            backend.read(0, &mut bytes).map_err(failed)?;
        }
        let (magic, rest) = bytes.split_at(MAGIC.len());
        // The header is durable before anything follows it. So a short file without one was being made.
        if magic != MAGIC {
            return match length {
                0..=LENGTH if bytes.iter().all(|byte| *byte == 0) => Ok(Stage::Absent),
                _ => Err(OpenError::Corrupt { reason: "the file does not begin as a store does".into() }),
            };
        }
        match (u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]), rest[4]) {
            (FORMAT, 1) => Ok(Stage::Making),
            (FORMAT, 2) => Ok(Stage::Complete),
            (found, _) if found > FORMAT => Err(OpenError::NewerFormat { found, known: FORMAT }),
            (found, stage) => {
                Err(OpenError::Corrupt { reason: format!("format {found} in stage {stage} is not known") })
            }
        }
    }

    /// Writes the header durably.
    pub(crate) fn write(self, backend: &impl StorageBackend) -> io::Result<()> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(FORMAT.to_le_bytes());
        bytes.push(self as u8);
        if backend.len()? < LENGTH {
            backend.set_len(LENGTH)?;
        }
        backend.write(0, &bytes)?;
        backend.sync_data()
    }
}

/// The part of the file after the header: what redb sees.
#[derive(Debug)]
pub(crate) struct Body<B>(pub(crate) Arc<B>);

impl<B: StorageBackend> StorageBackend for Body<B> {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.len()?.saturating_sub(LENGTH))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset + LENGTH, out)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.0.set_len(length + LENGTH)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset + LENGTH, data)
    }

    fn close(&self) -> io::Result<()> {
        self.0.close()
    }

    // Only the whole file is ever locked, which includes the header.
    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.try_lock_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.unlock_range(start, end)
    }
}
