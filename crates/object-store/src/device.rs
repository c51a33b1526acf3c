//! The file below the database. After the first failure it is not written any more until it is opened again: nobody knows what a failed sync
//! left on the disk, and a later one that succeeds does not tell.

use std::io;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::{BackendError, StorageBackend};

use crate::header;

/// A backend that fails for good when it fails once.
#[derive(Debug)]
pub(crate) struct Device<B> {
    backend: B,
    failed: AtomicBool,
}

impl<B: StorageBackend> Device<B> {
    pub(crate) fn new(backend: B) -> Device<B> {
        Device { backend, failed: AtomicBool::new(false) }
    }

    pub(crate) fn len(&self) -> io::Result<u64> {
        self.backend.len()
    }

    pub(crate) fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.backend.read(offset, out)
    }

    pub(crate) fn set_len(&self, length: u64) -> io::Result<()> {
        self.change(|backend| backend.set_len(length))
    }

    pub(crate) fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(|backend| backend.write(offset, data))
    }

    pub(crate) fn sync_data(&self) -> io::Result<()> {
        self.change(B::sync_data)
    }

    fn change(&self, change: impl FnOnce(&B) -> io::Result<()>) -> io::Result<()> {
        if self.failed.load(Ordering::Acquire) {
            return Err(io::Error::other("the disk failed before"));
        }
        change(&self.backend).inspect_err(|_| self.failed.store(true, Ordering::Release))
    }
}

/// What follows the header: what redb sees.
#[derive(Debug)]
pub(crate) struct Body<B>(pub(crate) Arc<Device<B>>);

impl<B: StorageBackend> StorageBackend for Body<B> {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.len()?.saturating_sub(header::LENGTH))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset + header::LENGTH, out)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.0.set_len(length + header::LENGTH)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset + header::LENGTH, data)
    }

    fn close(&self) -> io::Result<()> {
        self.0.backend.close()
    }

    // redb asks for the whole file only, which includes the header.
    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.backend.try_lock_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.backend.unlock_range(start, end)
    }
}
