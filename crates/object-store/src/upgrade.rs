//! Files of earlier formats, and how they become files of today's.
//!
//! Format 1 had no checksums: its objects in one table, the newest revision in another. The change of the tables is one
//! transaction, the head follows it: a file with an old head and new tables was cut off in between.

use bytes::Bytes;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, TableError, WriteTransaction};

use crate::{DiskFailure, Key, Object, OpenError, Revision};

/// Resource, namespace and name to revision and value.
const OBJECTS: TableDefinition<(&str, &str, &str), (Revision, &[u8])> = TableDefinition::new("objects");
/// Single values by name.
const FACTS: TableDefinition<&str, u64> = TableDefinition::new("facts");
const REVISION: &str = "revision";

/// The newest revision and every object of a file of format 1; none if its tables are today's already.
pub(crate) fn read(database: &Database) -> Result<Option<(Revision, Vec<Object>)>, OpenError> {
    let read = || -> Result<_, DiskFailure> {
        let transaction = database.begin_read()?;
        let facts = match transaction.open_table(FACTS) {
            Err(TableError::TableDoesNotExist(_)) => return Ok(None),
            other => other?,
        };
        let revision = facts.get(REVISION)?.map(|fact| fact.value());
        let mut objects = Vec::new();
        for row in transaction.open_table(OBJECTS)?.iter()? {
            let (key, value) = row?;
            let ((resource, namespace, name), (revision, value)) = (key.value(), value.value());
            let key = Key::new(resource, namespace, name);
            objects.push(Object { key, revision, value: Bytes::copy_from_slice(value) });
        }
        Ok(Some((revision, objects)))
    };
    let corrupt = || OpenError::Corrupt { reason: "it has no revision".to_owned() };
    match read()? {
        None => Ok(None),
        Some((revision, objects)) => Ok(Some((revision.ok_or_else(corrupt)?, objects))),
    }
}

/// Removes the tables of format 1.
pub(crate) fn remove(transaction: &WriteTransaction) -> Result<(), redb::Error> {
    transaction.delete_table(OBJECTS)?;
    transaction.delete_table(FACTS)?;
    Ok(())
}
