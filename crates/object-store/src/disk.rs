//! What the store keeps on the disk, and how it gets there.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition};

use crate::device::{Body, Device};
use crate::header::Stage;
use crate::{DiskFailure, Event, EventKind, Key, Object, OpenError, Revision};

/// Objects are served from memory; redb caches only what it needs to find their pages.
const CACHE_BYTES: usize = 16 << 20;

/// A file smaller than this is not worth compacting.
const COMPACT_ABOVE: u64 = 128 << 20;

/// Resource, namespace and name to revision and value.
const OBJECTS: TableDefinition<(&str, &str, &str), (Revision, &[u8])> = TableDefinition::new("objects");
/// Single values by name.
const FACTS: TableDefinition<&str, u64> = TableDefinition::new("facts");
/// The fact that holds the newest revision, which may be a deletion's.
const REVISION: &str = "revision";
/// The revision of an empty store, not 0: Kubernetes clients mean "any" by 0.
const FIRST_REVISION: Revision = 1;

/// An open store file. Only the writer changes it.
pub(crate) struct Disk {
    database: Database,
    /// The file's length in bytes.
    length: Box<dyn Fn() -> std::io::Result<u64> + Send>,
}

impl Disk {
    pub(crate) fn open_file(path: &Path) -> Result<Disk, OpenError> {
        let failed = |source| OpenError::File { path: path.to_owned(), source };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::Locked { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        // A file that was just made is durable only when its directory is.
        let directory =
            path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)?;
        // After a failed fsync the kernel may still show what the disk does not hold: read from the disk itself.
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)
            .map_err(|error| failed(error.into()))?;
        Disk::open(redb::backends::FileBackend::new(file).map_err(DiskFailure::from)?)
    }

    pub(crate) fn open(backend: impl StorageBackend) -> Result<Disk, OpenError> {
        let device = Arc::new(Device::new(backend));
        if Stage::read(&device)? == Stage::Complete {
            return Disk::on(&device);
        }
        // What is there was never completed, so nothing was acknowledged from it: make it anew.
        device.set_len(0).and_then(|()| Stage::Making.write(&device)).map_err(DiskFailure::from)?;
        let disk = Disk::on(&device)?;
        disk.initialise()?;
        Stage::Complete.write(&device).map_err(DiskFailure::from)?;
        Ok(disk)
    }

    fn on<B: StorageBackend>(device: &Arc<Device<B>>) -> Result<Disk, OpenError> {
        let measured = device.clone();
        Ok(Disk { database: database(device.clone())?, length: Box::new(move || measured.len()) })
    }

    fn initialise(&self) -> Result<(), DiskFailure> {
        let transaction = self.database.begin_write()?;
        transaction.open_table(OBJECTS)?;
        transaction.open_table(FACTS)?.insert(REVISION, FIRST_REVISION)?;
        Ok(transaction.commit()?)
    }

    /// The newest revision and every object.
    pub(crate) fn load(&self) -> Result<(Revision, Vec<Object>), OpenError> {
        self.read()
            .map_err(OpenError::Disk)?
            .ok_or_else(|| OpenError::Corrupt { reason: "it has no revision".into() })
    }

    /// Gives space back to the file system when little of the file is in use; `live` are the bytes of all objects.
    pub(crate) fn compact_if_sparse(&mut self, live: u64) -> Result<(), DiskFailure> {
        let length = (self.length)()?;
        if is_sparse(length, live) {
            self.database.compact()?;
            tracing::info!(before = length, after = (self.length)()?, "compacted the store's file");
        }
        Ok(())
    }

    fn read(&self) -> Result<Option<(Revision, Vec<Object>)>, DiskFailure> {
        let transaction = self.database.begin_read()?;
        let Some(revision) = transaction.open_table(FACTS)?.get(REVISION)?.map(|fact| fact.value()) else {
            return Ok(None);
        };
        let mut objects: Vec<Object> = Vec::new();
        for row in transaction.open_table(OBJECTS)?.iter()? {
            let (key, value) = row?;
            let ((resource, namespace, name), (revision, value)) = (key.value(), value.value());
            // Rows are sorted: neighbours share their resource and namespace.
            let before = objects.last().map(|object| &object.key);
            let resource = shared(before.map(|key| &key.resource), resource);
            let namespace = shared(before.map(|key| &key.namespace), namespace);
            let key = Key { resource, namespace, name: name.into() };
            objects.push(Object { key, revision, value: Bytes::copy_from_slice(value) });
        }
        Ok(Some((revision, objects)))
    }

    /// Makes the changes durable, all or none. After an error nobody knows which, and the file must be opened anew.
    pub(crate) fn commit(&self, events: &[Event]) -> Result<(), DiskFailure> {
        let Some(last) = events.last() else { return Ok(()) };
        let transaction = self.database.begin_write()?;
        {
            let mut objects = transaction.open_table(OBJECTS)?;
            for Event { kind, object, .. } in events {
                let key = (&*object.key.resource, &*object.key.namespace, &*object.key.name);
                match kind {
                    EventKind::Created | EventKind::Updated => {
                        objects.insert(key, (object.revision, &*object.value))?;
                    }
                    EventKind::Deleted => {
                        objects.remove(key)?;
                    }
                }
            }
            transaction.open_table(FACTS)?.insert(REVISION, last.revision)?;
        }
        Ok(transaction.commit()?)
    }
}

fn database<B: StorageBackend>(device: Arc<Device<B>>) -> Result<Database, OpenError> {
    let corrupt = |reason: String| OpenError::Corrupt { reason };
    // redb trusts what a clean stop left, and panics where that is damaged.
    let open = || Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(Body(device));
    let opened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(open));
    opened.map_err(|_| corrupt("the database is damaged".into()))?.map_err(|error| match error {
        DatabaseError::Storage(redb::StorageError::Corrupted(reason)) => corrupt(reason),
        DatabaseError::Storage(redb::StorageError::Io(error)) if error.kind() == ErrorKind::InvalidData => {
            corrupt(error.to_string())
        }
        other => OpenError::Disk(other.into()),
    })
}

/// Whether less than a quarter of a large file is used.
fn is_sparse(length: u64, live: u64) -> bool {
    length > COMPACT_ABOVE && length / 4 > live
}

/// `text`, in the memory of `before` if that is the same text.
fn shared(before: Option<&Arc<str>>, text: &str) -> Arc<str> {
    before.filter(|before| &***before == text).cloned().unwrap_or_else(|| text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_large_and_empty_files_are_compacted() {
        for (length_mib, live_mib, expected) in
            [(100, 0, false), (129, 0, true), (200, 49, true), (200, 50, false)]
        {
            assert_eq!(is_sparse(length_mib << 20, live_mib << 20), expected, "{length_mib} {live_mib}");
        }
    }

    #[test]
    fn compacting_shrinks_the_file_and_keeps_its_objects() {
        let mut disk = Disk::open(redb::backends::InMemoryBackend::new()).unwrap();
        let event = |revision, kind, name: String| {
            let object =
                Object { key: Key::new("pods", "", name), revision, value: vec![b'x'; 60_000].into() };
            Event { revision, kind, object, previous: None }
        };
        let created: Vec<_> = (2..102).map(|n| event(n, EventKind::Created, n.to_string())).collect();
        disk.commit(&created).unwrap();
        let deleted: Vec<_> =
            (102..201).map(|n| event(n, EventKind::Deleted, (n - 100).to_string())).collect();
        disk.commit(&deleted).unwrap();
        let before = (disk.length)().unwrap();
        disk.database.compact().unwrap();
        assert!((disk.length)().unwrap() < before / 2, "{before} to {}", (disk.length)().unwrap());
        let (revision, objects) = disk.load().unwrap();
        assert_eq!((revision, objects.len(), &*objects[0].key.name), (200, 1, "101"));
    }
}
