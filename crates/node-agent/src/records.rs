//! Records on the node's disk: each has a version, and a sum by which a flipped bit is found.
//!
//! Records of earlier versions are brought up to date as they are read; one of a later version is refused and left as
//! it is. What can't be read is an error of that record alone: who reads it decides how to go on without.

use std::{fs, io, path::Path, path::PathBuf};

use linux::{Files, Kernel};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

/// A kind of record.
pub(crate) trait Record: Serialize + DeserializeOwned {
    /// The version that is written. What has no version is of version 0.
    const FORMAT: u64 = 1;
    /// The key of the object that has version and sum, where that is not the record itself.
    const PART: Option<&'static str> = None;

    /// Brings what an earlier version wrote to the present form.
    fn upgrade(_record: &mut Value, _from: u64) {}
}

/// Why a record can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("{} is damaged: {why}", path.display())]
    Damaged { path: PathBuf, why: String },
    #[error("{} has format {found}, newer than this version knows ({known}): use the newer orlop", path.display())]
    Newer { path: PathBuf, found: u64, known: u64 },
    #[error("cannot read {}: {}", path.display(), linux::in_words(source))]
    Read { path: PathBuf, source: io::Error },
}

impl RecordError {
    /// Whether a later version of Orlop wrote it: it is not to be touched.
    pub(crate) fn is_newer(&self) -> bool {
        matches!(self, RecordError::Newer { .. })
    }
}

/// Reads a record; None when it is absent.
pub(crate) fn read<T: Record>(path: &Path) -> Result<Option<T>, RecordError> {
    let failed = |source| RecordError::Read { path: path.to_owned(), source };
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    parse(&bytes).map(Some).map_err(|why| match why {
        Fault::Newer(found) => RecordError::Newer { path: path.to_owned(), found, known: T::FORMAT },
        Fault::Damaged(why) => RecordError::Damaged { path: path.to_owned(), why },
    })
}

enum Fault {
    Newer(u64),
    Damaged(String),
}

fn parse<T: Record>(bytes: &[u8]) -> Result<T, Fault> {
    let damaged = |error: serde_json::Error| Fault::Damaged(error.to_string());
    if bytes.is_empty() {
        return Err(Fault::Damaged("it is empty".into()));
    }
    let mut record: Value = serde_json::from_slice(bytes).map_err(damaged)?;
    if let (Some(key), Some(record)) = (T::PART, record.as_object())
        && !record.contains_key(key)
        && record.values().any(Value::is_object)
    {
        // Records of kubelet's own have no such part, and texts only.
        return Err(Fault::Damaged(format!("it has no {key}")));
    }
    let part = part::<T>(&mut record);
    let found = part.as_ref().and_then(|part| part.get("format")?.as_u64()).unwrap_or(0);
    if found > T::FORMAT {
        return Err(Fault::Newer(found));
    }
    if let Some(Value::String(sum)) = part.and_then(|part| part.remove("sum"))
        && sum != sum_of(&record)
    {
        return Err(Fault::Damaged("its content does not have the sum that was written with it".into()));
    }
    if found < T::FORMAT {
        T::upgrade(&mut record, found);
    }
    serde_json::from_value(record).map_err(damaged)
}

/// The bytes of a record, with version and sum.
pub(crate) fn render<T: Record>(record: &T) -> io::Result<Vec<u8>> {
    let mut value = serde_json::to_value(record)?;
    if let Some(part) = part::<T>(&mut value) {
        part.insert("format".into(), T::FORMAT.into());
    }
    let sum = sum_of(&value);
    if let Some(part) = part::<T>(&mut value) {
        part.insert("sum".into(), sum.into());
    }
    Ok(serde_json::to_vec(&value)?)
}

fn part<T: Record>(record: &mut Value) -> Option<&mut Map<String, Value>> {
    match T::PART {
        Some(key) => record.get_mut(key)?.as_object_mut(),
        None => record.as_object_mut(),
    }
}

fn sum_of(record: &Value) -> String {
    let digest = Sha256::digest(record.to_string().as_bytes());
    digest[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes a record so that it is there after a power loss, or not at all.
pub(crate) fn write_durably<T: Record>(path: &Path, record: &T) -> io::Result<()> {
    Kernel.write_durable(path, &render(record)?, 0o600).map_err(io::Error::other)
}

/// Writes a record so that a reader sees all of it or nothing; it may be lost in a power loss, where its content
/// (a process, a mount) is lost too.
pub(crate) fn write_volatile<T: Record>(path: &Path, record: &T) -> io::Result<()> {
    replace(path, &render(record)?)
}

/// Replaces a file of ours so that a reader sees all of the old or of the new one.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let draft = linux::draft_of(path);
    fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&draft)?
        .write_all(content)?;
    fs::rename(&draft, path)
}

#[cfg(test)]
mod tests;
