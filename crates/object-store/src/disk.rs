//! What the store keeps on the disk, and how it gets there.

use std::cell::Cell;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use redb::{Database, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition, WriteTransaction};

use crate::device::{Body, Device};
use crate::header::Stage;
use crate::record::{self, Census, Row};
use crate::{DiskFailure, Event, EventKind, Object, OpenError, Revision, upgrade};

/// Objects are served from memory; redb caches only what it needs to find their pages.
const CACHE_BYTES: usize = 16 << 20;

/// A file smaller than this is not worth compacting.
const COMPACT_ABOVE: u64 = 128 << 20;

/// Objects, as `record` writes them.
const RECORDS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("records");
/// Under [`SUMMARY`]: the newest revision, which may be a deletion's; the census' two numbers; a checksum of the three.
const STATE: TableDefinition<&str, [u64; 4]> = TableDefinition::new("state");
const SUMMARY: &str = "summary";
/// Written and removed again to see whether the disk takes writes.
const TRIAL: TableDefinition<(), &[u8]> = TableDefinition::new("trial");
/// The revision of an empty store, not 0: Kubernetes clients mean "any" by 0.
const FIRST_REVISION: Revision = 1;

/// An open store file. Only the writer changes it.
pub(crate) struct Disk {
    /// None once it was given up.
    database: Option<Database>,
    census: Census,
    /// The file's length in bytes.
    length: Box<dyn Fn() -> std::io::Result<u64> + Send>,
}

/// What a file held when it was opened.
pub(crate) struct Loaded {
    pub(crate) revision: Revision,
    pub(crate) objects: Vec<Object>,
}

impl Disk {
    /// Opens the file; `create` says whether one that is missing or empty becomes an empty store.
    pub(crate) fn open_file(path: &Path, create: bool) -> Result<(Disk, Loaded), OpenError> {
        let failed = |source: std::io::Error| match source.kind() {
            ErrorKind::NotFound if !create => OpenError::Missing { path: path.to_owned() },
            _ => OpenError::File { path: path.to_owned(), source },
        };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(create).truncate(false).mode(0o600);
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
        let backend = redb::backends::FileBackend::new(file).map_err(DiskFailure::from)?;
        Disk::open(backend, create)?.ok_or_else(|| OpenError::Missing { path: path.to_owned() })
    }

    /// Opens what is there and reads all of it; none if that is nothing and `create` does not allow to begin anew.
    pub(crate) fn open(
        backend: impl StorageBackend,
        create: bool,
    ) -> Result<Option<(Disk, Loaded)>, OpenError> {
        let device = Arc::new(Device::new(backend));
        let stage = Stage::read(&device)?;
        match stage {
            Stage::Absent if !create => return Ok(None),
            // What is there was never completed, so nothing was acknowledged from it: make it anew.
            Stage::Absent | Stage::Making => {
                device.set_len(0).and_then(|()| Stage::Making.write(&device)).map_err(DiskFailure::from)?;
                let (database, _) = database(device.clone())?;
                Disk::on(&device, database).initialise()?;
                Stage::Complete.write(&device).map_err(DiskFailure::from)?;
            }
            Stage::Complete => {}
            Stage::Older => {
                let (database, _) = database(device.clone())?;
                let mut disk = Disk::on(&device, database);
                if let Some((revision, objects)) = upgrade::read(disk.database()?)? {
                    disk.replace(revision, &objects, upgrade::remove)?;
                }
                drop(disk);
                Stage::Complete.write(&device).map_err(DiskFailure::from)?;
            }
        }
        let (database, repaired) = database(device.clone())?;
        let mut disk = Disk::on(&device, database);
        let mut loaded = disk.load()?;
        // A repair has read every page and its checksum.
        if !repaired && !disk.is_sound()? {
            let again = disk.load()?;
            if (again.revision, &again.objects) != (loaded.revision, &loaded.objects) {
                return Err(corrupt("a repair would lose some of what it holds"));
            }
            loaded = again;
        }
        disk.compact_if_sparse(loaded.objects.iter().map(|object| object.value.len() as u64).sum())?;
        Ok(Some((disk, loaded)))
    }

    fn on<B: StorageBackend>(device: &Arc<Device<B>>, database: Database) -> Disk {
        let measured = device.clone();
        Disk { database: Some(database), census: Census::default(), length: Box::new(move || measured.len()) }
    }

    fn database(&self) -> Result<&Database, DiskFailure> {
        self.database.as_ref().ok_or_else(|| DiskFailure::said("it is closed"))
    }

    fn initialise(&mut self) -> Result<(), DiskFailure> {
        self.replace(FIRST_REVISION, &[], |_| Ok(()))
    }

    /// Reads the newest revision and every object. What of them is damaged is told, and stands in the file as damaged
    /// from then on; who has it may delete it.
    fn load(&mut self) -> Result<Loaded, OpenError> {
        let Read { revision, objects, damaged, census } = self.read()?;
        self.census = census;
        if damaged.is_empty() {
            return Ok(Loaded { revision, objects });
        }
        let mut objects: std::collections::BTreeMap<_, _> =
            objects.into_iter().map(|object| (object.key.clone(), object)).collect();
        for row in damaged {
            match row.object {
                Some(object) => {
                    tracing::error!(
                        object = %object.key,
                        "a stored object is damaged on the disk: it can't be read any more, and can be deleted"
                    );
                    let revision = object.revision.clamp(1, revision);
                    objects.entry(object.key.clone()).or_insert(Object { revision, ..object });
                }
                None => tracing::error!(
                    "a stored object is damaged on the disk, its name as well: it is left out; delete and create anew \
                     what is missing"
                ),
            }
        }
        let objects: Vec<Object> = objects.into_values().collect();
        // Made anew, so that the database's own checks find a whole table again after the next crash.
        self.replace(revision, &objects, |transaction| {
            transaction.delete_table(RECORDS)?;
            Ok(())
        })?;
        Ok(Loaded { revision, objects })
    }

    fn read(&self) -> Result<Read, OpenError> {
        let failed = |error: redb::Error| match error {
            redb::Error::TableDoesNotExist(table) => corrupt(format!("its table {table} is missing")),
            other => DiskFailure::from(other).into(),
        };
        let read = || -> Result<_, redb::Error> {
            let transaction = self.database().map_err(|_| redb::Error::DatabaseClosed)?.begin_read()?;
            let summary = transaction.open_table(STATE)?.get(SUMMARY)?.map(|summary| summary.value());
            Ok((transaction.open_table(RECORDS)?, summary))
        };
        let (table, summary) = read().map_err(failed)?;
        let [revision, records, sum, seal] = summary.ok_or_else(|| corrupt("it has no summary"))?;
        if seal != record::checksum_of(&[revision, records, sum]) {
            return Err(corrupt("its summary is damaged"));
        }
        let stated = Census { records, sum };
        let mut read = Read { revision, objects: Vec::new(), damaged: Vec::new(), census: Census::default() };
        for entry in table.iter().map_err(|error| failed(error.into()))? {
            let (name, content) = entry.map_err(|error| failed(error.into()))?;
            let before = read.objects.last().map(|object: &Object| &object.key);
            let row = record::read(name.value(), content.value(), before);
            read.census.add(row.checksum);
            if read.census.records > records {
                return Err(corrupt("it has more objects than were written"));
            }
            match row {
                Row { whole: true, object: Some(object), .. } => read.objects.push(object),
                damaged => read.damaged.push(damaged),
            }
        }
        let missing = records - read.census.records;
        if missing > 0 {
            return Err(corrupt(format!("{missing} of its {records} objects are missing")));
        }
        // A damaged record may have lost its checksum.
        if read.damaged.is_empty() && read.census != stated {
            return Err(corrupt("some of its objects are older than they should be"));
        }
        Ok(read)
    }

    /// Whether every page matches its checksum and what is free is known. Repairs what can be repaired.
    fn is_sound(&mut self) -> Result<bool, OpenError> {
        let Some(database) = &mut self.database else { return Ok(true) };
        let sound = database.check_integrity().map_err(DiskFailure::from)?;
        if !sound {
            tracing::warn!("the store's file was damaged where no object lies, and was repaired");
        }
        Ok(sound)
    }

    /// Gives space back to the file system when little of the file is in use; `live` are the bytes of all objects.
    fn compact_if_sparse(&mut self, live: u64) -> Result<(), DiskFailure> {
        let length = (self.length)()?;
        if let Some(database) = &mut self.database
            && is_sparse(length, live)
        {
            database.compact()?;
            tracing::info!(before = length, after = (self.length)()?, "compacted the store's file");
        }
        Ok(())
    }

    /// Makes the changes durable, all or none. After an error nobody knows which, and the file must be opened anew.
    pub(crate) fn commit(&mut self, events: &[Event]) -> Result<(), DiskFailure> {
        let Some(last) = events.last() else { return Ok(()) };
        self.change(|transaction, census| {
            let mut records = transaction.open_table(RECORDS)?;
            for Event { kind, object, previous, .. } in events {
                let name = record::name(&object.key);
                if let Some(previous) = previous {
                    census.remove(record::checksum(&name, previous.revision, &previous.value));
                }
                match kind {
                    EventKind::Created | EventKind::Updated => put(&mut records, census, &name, object)?,
                    EventKind::Deleted => {
                        records.remove(&*name)?;
                    }
                }
            }
            Ok(last.revision)
        })
    }

    /// Makes the file hold `objects` and nothing else, whatever it held; `loaded` is what it held when it was opened.
    pub(crate) fn restore(
        &mut self,
        revision: Revision,
        objects: &[Object],
        loaded: &Loaded,
    ) -> Result<(), DiskFailure> {
        if (loaded.revision, &*loaded.objects) == (revision, objects) {
            return Ok(());
        }
        self.replace(revision, objects, |transaction| {
            transaction.delete_table(RECORDS)?;
            Ok(())
        })
    }

    /// Whether the disk takes as many bytes; leaves nothing of them but room in the file.
    pub(crate) fn try_writing(&mut self, bytes: usize) -> Result<(), DiskFailure> {
        let filler = vec![0xA5; bytes];
        for full in [true, false] {
            let transaction = self.database()?.begin_write()?;
            match full {
                true => _ = transaction.open_table(TRIAL)?.insert((), &*filler)?,
                false => _ = transaction.delete_table(TRIAL)?,
            }
            transaction.commit()?;
        }
        Ok(())
    }

    /// Writes all objects after `clear`, in one transaction.
    fn replace(
        &mut self,
        revision: Revision,
        objects: &[Object],
        clear: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), DiskFailure> {
        self.change(|transaction, census| {
            clear(transaction)?;
            *census = Census::default();
            let mut records = transaction.open_table(RECORDS)?;
            for object in objects {
                put(&mut records, census, &record::name(&object.key), object)?;
            }
            Ok(revision)
        })
    }

    /// One transaction, and the summary with it. A panic of the database is a failure like others.
    fn change(
        &mut self,
        change: impl FnOnce(&WriteTransaction, &mut Census) -> Result<Revision, redb::Error>,
    ) -> Result<(), DiskFailure> {
        let mut census = self.census;
        let database = self.database()?;
        let work = || -> Result<(), DiskFailure> {
            let transaction = database.begin_write()?;
            let revision = change(&transaction, &mut census)?;
            let words = [revision, census.records, census.sum];
            let summary = [revision, census.records, census.sum, record::checksum_of(&words)];
            transaction.open_table(STATE)?.insert(SUMMARY, summary)?;
            Ok(transaction.commit()?)
        };
        let outcome = catch_unwind(AssertUnwindSafe(work));
        outcome.unwrap_or_else(|_| Err(DiskFailure::said("the database in it is damaged")))?;
        self.census = census;
        Ok(())
    }

    /// Lets go of the file.
    pub(crate) fn close(&mut self) {
        let database = self.database.take();
        if catch_unwind(AssertUnwindSafe(|| drop(database))).is_err() {
            tracing::error!("closing the store's file broke off");
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.close();
    }
}

struct Read {
    revision: Revision,
    objects: Vec<Object>,
    damaged: Vec<Row>,
    census: Census,
}

fn put(
    records: &mut redb::Table<'_, &'static [u8], &'static [u8]>,
    census: &mut Census,
    name: &[u8],
    object: &Object,
) -> Result<(), redb::Error> {
    records.insert(name, &*record::content(name, object))?;
    census.add(record::checksum(name, object.revision, &object.value));
    Ok(())
}

fn corrupt(reason: impl Into<String>) -> OpenError {
    OpenError::Corrupt { reason: reason.into() }
}

/// Opens the database, and says whether it was left by a crash and repaired.
fn database<B: StorageBackend>(device: Arc<Device<B>>) -> Result<(Database, bool), OpenError> {
    let repaired = Rc::new(Cell::new(false));
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder.set_repair_callback({
        let repaired = repaired.clone();
        move |_| repaired.set(true)
    });
    let database = builder.create_with_backend(Body(device)).map_err(DiskFailure::from)?;
    Ok((database, repaired.get()))
}

/// Whether less than a quarter of a large file is used.
fn is_sparse(length: u64, live: u64) -> bool {
    length > COMPACT_ABOVE && length / 4 > live
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Key;

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
        let opened = Disk::open(redb::backends::InMemoryBackend::new(), true).unwrap();
        let (mut disk, _) = opened.unwrap();
        let event = |revision, kind, name: String, previous: Option<&Event>| {
            let object =
                Object { key: Key::new("pods", "", name), revision, value: vec![b'x'; 60_000].into() };
            Event { revision, kind, object, previous: previous.map(|event| event.object.clone()) }
        };
        let created: Vec<_> = (2..102).map(|n| event(n, EventKind::Created, n.to_string(), None)).collect();
        disk.commit(&created).unwrap();
        let deleted: Vec<_> = (102..201)
            .map(|n| event(n, EventKind::Deleted, (n - 100).to_string(), created.get(n as usize - 102)))
            .collect();
        disk.commit(&deleted).unwrap();
        let before = (disk.length)().unwrap();
        disk.database.as_mut().unwrap().compact().unwrap();
        assert!((disk.length)().unwrap() < before / 2, "{before} to {}", (disk.length)().unwrap());
        let Loaded { revision, objects } = disk.load().unwrap();
        assert_eq!((revision, objects.len(), &*objects[0].key.name), (200, 1, "101"));
    }
}
