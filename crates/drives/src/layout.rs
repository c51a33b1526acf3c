//! Where things are on a drive.

use std::path::{Path, PathBuf};

/// Who formatted a drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Maker {
    /// We did.
    Orlop,
    /// DirectPV, or DirectCSI before it.
    DirectPv,
}

/// The file in the directory of a block volume that holds its bytes.
pub(crate) fn image_in(volume: &Path) -> PathBuf {
    volume.join("image")
}

/// The directories of a mounted drive.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    mount: PathBuf,
    maker: Maker,
}

impl Layout {
    pub(crate) fn new(mount: PathBuf) -> Self {
        Self::of(Maker::Orlop, mount)
    }

    pub(crate) fn of(maker: Maker, mount: PathBuf) -> Self {
        Self { mount, maker }
    }

    pub(crate) fn maker(&self) -> Maker {
        self.maker
    }

    pub(crate) fn mount(&self) -> &Path {
        &self.mount
    }

    pub(crate) fn drive_record(&self) -> PathBuf {
        self.mount.join(".orlop/drive.json")
    }

    /// The same once more: without it nothing on the drive could be used.
    pub(crate) fn drive_copy(&self) -> PathBuf {
        self.mount.join(".orlop/drive.copy.json")
    }

    pub(crate) fn labels(&self) -> PathBuf {
        self.mount.join(".orlop/labels.json")
    }

    pub(crate) fn records(&self) -> PathBuf {
        self.mount.join(".orlop/volumes")
    }

    pub(crate) fn record(&self, key: &str) -> PathBuf {
        self.records().join(format!("{key}.json"))
    }

    /// What is written to see whether the drive takes writes.
    pub(crate) fn trial(&self) -> PathBuf {
        self.mount.join(".orlop/trial")
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

    /// The bytes of a block volume.
    pub(crate) fn image(&self, key: &str) -> PathBuf {
        image_in(&self.volume(key))
    }

    pub(crate) fn volumes(&self) -> PathBuf {
        match self.maker {
            Maker::Orlop => self.mount.join("volumes"),
            Maker::DirectPv => self.mount.clone(),
        }
    }

    pub(crate) fn volume(&self, key: &str) -> PathBuf {
        self.volumes().join(key)
    }

    /// The volume's directory within the drive's file system, as the mount table shows it.
    pub(crate) fn root_of(&self, key: &str) -> PathBuf {
        Path::new("/").join(self.volume(key).strip_prefix(&self.mount).unwrap_or(Path::new(key)))
    }

    /// Whether a mount of any drive of ours could show the volume, going by its directory alone.
    pub(crate) fn could_show(root: &Path, key: &str) -> bool {
        [Maker::Orlop, Maker::DirectPv]
            .into_iter()
            .any(|maker| Self::of(maker, PathBuf::new()).root_of(key) == root)
    }
}
