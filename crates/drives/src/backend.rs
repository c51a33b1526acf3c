//! What holds volumes apart and to their sizes, per file system.

mod btrfs;
mod probe;
mod xfs;

use std::path::Path;

use linux::{FilesystemMount, Host, Result};
use serde::{Deserialize, Serialize};

use crate::{BackendKind, DriveId};

pub(crate) use probe::probe;
#[cfg(test)]
pub(crate) use probe::trial;

/// What the kernel counts a volume by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum QuotaKey {
    Subvolume(u64),
    Project(u32),
}

/// What a volume uses and may use, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) used: u64,
    pub(crate) limit: Option<u64>,
    /// Inodes in use, where they are counted.
    pub(crate) inodes: Option<u64>,
}

/// A way to hold volumes. Every method may be repeated after a crash at any point within it.
pub(crate) trait Backend: Send + Sync {
    fn kind(&self) -> BackendKind;

    /// The program that formats, and its arguments; the device comes last.
    fn format(&self, id: &DriveId, overwrite: bool) -> (&'static str, Vec<String>);

    /// How to mount a drive.
    fn mounting<'a>(&self, device: &'a str) -> FilesystemMount<'a>;

    /// Makes a freshly mounted drive enforce sizes; repeated at each start.
    fn prepare(&self, host: &dyn Host, mount: &Path) -> Result<()>;

    /// What volumes can have altogether of a device of this size.
    fn usable(&self, size: u64) -> u64;

    /// The key for a new volume, where it has to be chosen beforehand, given those in use.
    fn choose_key(&self, used: &[QuotaKey]) -> Option<QuotaKey>;

    /// Makes the volume's directory.
    fn create(&self, host: &dyn Host, volume: &Path, quota: Option<QuotaKey>) -> Result<()>;

    /// What the kernel counts the volume by; `None` when it does not count it.
    fn quota_key(&self, host: &dyn Host, volume: &Path) -> Result<Option<QuotaKey>>;

    /// Limits a volume.
    fn limit(&self, host: &dyn Host, mount: &Path, quota: QuotaKey, bytes: u64) -> Result<()>;

    /// What a volume uses and may use.
    fn usage(&self, host: &dyn Host, mount: &Path, quota: QuotaKey) -> Result<Usage>;

    /// Whether snapshots and clones can be made.
    fn copies(&self) -> bool;

    /// Makes the directory `frozen` of what the volume holds at this moment, where that can be done.
    fn freeze(&self, host: &dyn Host, volume: &Path, frozen: &Path) -> Result<()>;

    /// Removes what was frozen, and waits until it takes no space.
    fn thaw(&self, host: &dyn Host, mount: &Path, frozen: &Path) -> Result<()>;

    /// Fills a new volume with what another one of this drive holds, which was frozen where that can be done.
    fn fill(&self, host: &dyn Host, source: &Path, frozen: &Path, volume: &Path) -> Result<()>;

    /// Fills a new volume with a snapshot, which lies on the same drive or on another.
    fn restore(&self, host: &dyn Host, mount: &Path, snapshot: &Path, volume: &Path) -> Result<()>;

    /// Removes a volume's directory with all in it.
    fn destroy(&self, host: &dyn Host, mount: &Path, volume: &Path) -> Result<()>;

    /// Waits until the space of a destroyed volume is free, and removes its quota.
    fn reclaim(&self, host: &dyn Host, mount: &Path, quota: QuotaKey) -> Result<()>;
}

/// The backend of a kind.
pub(crate) fn of(kind: BackendKind) -> &'static dyn Backend {
    match kind {
        BackendKind::Xfs => &xfs::Xfs,
        BackendKind::Btrfs => &btrfs::Btrfs,
    }
}

/// A record that names another backend's key was not written by us.
fn foreign(quota: QuotaKey) -> linux::Error {
    linux::Error::because("use quota", format!("{quota:?}"), "it belongs to another backend")
}
