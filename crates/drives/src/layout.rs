//! Where things are on a drive.

use std::path::{Path, PathBuf};

/// The directories of a mounted drive.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    mount: PathBuf,
}

impl Layout {
    pub(crate) fn new(mount: PathBuf) -> Self {
        Self { mount }
    }

    pub(crate) fn mount(&self) -> &Path {
        &self.mount
    }

    pub(crate) fn drive_record(&self) -> PathBuf {
        self.mount.join(".orlop/drive.json")
    }

    pub(crate) fn records(&self) -> PathBuf {
        self.mount.join(".orlop/volumes")
    }

    pub(crate) fn record(&self, key: &str) -> PathBuf {
        self.records().join(format!("{key}.json"))
    }

    /// Directories of volumes that are being deleted.
    pub(crate) fn trash(&self) -> PathBuf {
        self.mount.join(".orlop/trash")
    }

    pub(crate) fn discarded(&self, key: &str) -> PathBuf {
        self.trash().join(key)
    }

    /// What volumes held when copies of them were begun, until the copies are finished.
    pub(crate) fn all_frozen(&self) -> PathBuf {
        self.mount.join(".orlop/frozen")
    }

    pub(crate) fn frozen(&self, key: &str) -> PathBuf {
        self.all_frozen().join(key)
    }

    pub(crate) fn volumes(&self) -> PathBuf {
        self.mount.join("volumes")
    }

    pub(crate) fn volume(&self, key: &str) -> PathBuf {
        self.volumes().join(key)
    }
}
