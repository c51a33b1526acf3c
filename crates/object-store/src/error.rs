//! What can go wrong, one type per boundary.

use std::path::PathBuf;
use std::sync::Arc;

use crate::Revision;

/// Why a store could not be opened. What is locked, newer or no store is left as it was.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has the store open.
    #[error("{path} is in use by another process: stop that process, or choose another data directory")]
    Locked {
        /// The store's file.
        path: PathBuf,
    },
    /// The store was written by a newer version of this software.
    #[error(
        "the store has format version {found}, this program knows versions up to {known}: run a newer version"
    )]
    NewerFormat {
        /// The version in the file.
        found: u32,
        /// The newest version known here.
        known: u32,
    },
    /// The file is not a store, or what it holds can't be trusted.
    #[error("the store can't be read ({reason}): restore the file from a backup")]
    Corrupt {
        /// What was found.
        reason: String,
    },
    /// There is no store, or an empty file, and none is to be made.
    #[error("{path} is missing or empty: restore the file from a backup")]
    Missing {
        /// The store's file.
        path: PathBuf,
    },
    /// Reading the file did not come to an end.
    #[error(
        "reading the store did not end within {seconds} s, so it is damaged or its disk hangs: check the disk, or restore \
         the file from a backup"
    )]
    Endless {
        /// How long was waited.
        seconds: u64,
    },
    /// The operating system refused.
    #[error("can't open {path}: {source}; check that the directory exists, is writable and has free space")]
    File {
        /// The file or directory.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// Reading or writing the opened store failed.
    #[error("opening the store failed: {0}")]
    Disk(DiskFailure),
    /// The writer's thread could not be started.
    #[error("can't start the store's writer thread: {0}; raise the limit on processes")]
    Thread(std::io::Error),
}

/// The disk failed. The store that saw it takes no more writes until the disk does; it tries again by itself.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the store's disk failed: {0}")]
pub struct DiskFailure(Arc<redb::Error>);

impl DiskFailure {
    /// A failure that the database has no error of its own for.
    pub(crate) fn said(why: impl Into<String>) -> DiskFailure {
        DiskFailure(Arc::new(redb::Error::Corrupted(why.into())))
    }
}

impl From<DiskFailure> for OpenError {
    /// All but what the operating system refuses comes from what the file holds.
    fn from(failure: DiskFailure) -> OpenError {
        use std::io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};
        match &*failure.0 {
            // Such a place is not in the file, or nothing that could be there.
            redb::Error::Io(error) if matches!(error.kind(), UnexpectedEof | InvalidData | InvalidInput) => {
                OpenError::Corrupt { reason: error.to_string() }
            }
            redb::Error::Io(_) | redb::Error::PreviousIo => OpenError::Disk(failure),
            error => OpenError::Corrupt { reason: error.to_string() },
        }
    }
}

impl From<OpenError> for DiskFailure {
    fn from(error: OpenError) -> DiskFailure {
        match error {
            OpenError::Disk(failure) => failure,
            other => DiskFailure(Arc::new(redb::Error::Io(std::io::Error::other(other.to_string())))),
        }
    }
}

impl<E: Into<redb::Error>> From<E> for DiskFailure {
    fn from(error: E) -> DiskFailure {
        DiskFailure(Arc::new(error.into()))
    }
}

/// Why a put or a delete did not happen.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WriteError {
    /// A create found the object present.
    #[error("the object exists already, at revision {current}")]
    Exists {
        /// The present object's revision.
        current: Revision,
    },
    /// An update or delete found no object.
    #[error("the object does not exist")]
    Missing,
    /// The object is at another revision than the caller saw: read it again and decide anew.
    #[error(
        "the object has been changed, it is at revision {current} now: read it again and repeat the change"
    )]
    Conflict {
        /// The object's revision.
        current: Revision,
    },
    /// The encoded object is larger than the store takes.
    #[error("the object has {size} bytes, the store takes at most {limit}: make it smaller")]
    TooLarge {
        /// The object's size in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
    /// The disk failed in this write or in one before it. This write did not happen, unless the process ends before the
    /// disk takes writes again: then it may have.
    #[error(
        "{0}; writes are refused until it takes them again, which is tried by itself: free space, or check the disk"
    )]
    Disk(#[from] DiskFailure),
}

/// Why a list could not be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// The history no longer reaches back to the revision asked for.
    #[error("the revision is too old, history begins at {oldest}: list again without a revision")]
    Expired {
        /// The oldest revision that can be listed.
        oldest: Revision,
    },
    /// The revision asked for is not written yet.
    #[error("the revision is in the future, the store is at {current}")]
    Future {
        /// The newest revision.
        current: Revision,
    },
}

/// Why a watch could not start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// The history no longer reaches back to the revision asked for.
    #[error("the revision is too old, history begins at {oldest}: list again and watch from there")]
    Expired {
        /// The oldest revision that a watch can start after.
        oldest: Revision,
    },
    /// The revision asked for is not written yet.
    #[error("the revision is in the future, the store is at {current}")]
    Future {
        /// The newest revision.
        current: Revision,
    },
}

/// Why a running watch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WatchEnd {
    /// The reader was too slow: events it had not read have left the history.
    #[error("the watch fell behind, history begins at {oldest}: list again and watch from there")]
    Lagged {
        /// The oldest revision that a watch can start after.
        oldest: Revision,
    },
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}
