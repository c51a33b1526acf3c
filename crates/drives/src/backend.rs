//! What holds volumes apart and to their sizes, per file system.

mod btrfs;
pub(crate) mod lvm;
mod probe;
mod xfs;

use std::path::{Path, PathBuf};

use linux::{FilesystemMount, Host, Mount, Result, Signature};
use serde::{Deserialize, Serialize};

use crate::{
    BackendKind, DriveId,
    allocate::{GRAIN, SMALLEST},
};

pub(crate) use probe::probe;
#[cfg(test)]
pub(crate) use probe::trial;

/// What the kernel counts a volume by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum QuotaKey {
    Subvolume(u64),
    Project(u32),
    /// The volume's own device is its limit.
    Device,
}

/// What a volume uses and may use, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) used: u64,
    pub(crate) limit: Option<u64>,
    /// Inodes in use, where they are counted.
    pub(crate) inodes: Option<u64>,
}

/// A volume on a mounted drive.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    pub(crate) mount: &'a Path,
    pub(crate) volume: &'a Path,
}

/// What is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct New {
    pub(crate) quota: Option<QuotaKey>,
    pub(crate) size: u64,
    pub(crate) use_as: Use,
    /// The volume or snapshot whose blocks it begins with.
    pub(crate) of: Option<String>,
    /// Whether its drive may promise more than it has.
    pub(crate) overcommitted: bool,
}

/// What a new volume is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// To be mounted; with a file system of this type where volumes have their own.
    Filesystem(Option<String>),
    /// To be a device.
    Block,
    /// To be kept: a snapshot.
    Kept,
}

/// What snapshots and clones are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Copies {
    /// There are none.
    None,
    /// Files, on any drive.
    Files,
    /// Blocks that are shared, at once and in use or not, on the source's own drive.
    Blocks,
}

/// A way to hold volumes. Every method may be repeated after a crash at any point within it.
pub(crate) trait Backend: Send + Sync {
    fn kind(&self) -> BackendKind;

    /// Says why this machine can't serve it, where that is known without trying.
    fn supported(&self, _: &dyn Host) -> Result<()> {
        Ok(())
    }

    /// Formats a device.
    fn format(&self, host: &dyn Host, id: &DriveId, device: &Path, overwrite: bool) -> Result<()>;

    /// Whether formatting broke off on the drive that is to be mounted at `mount`: it holds nothing, and is to be
    /// formatted again.
    fn is_half_formatted(&self, _: &dyn Host, _mount: &Path) -> Result<bool> {
        Ok(false)
    }

    /// Brings a drive up that is to be mounted at `mount`: the device to be mounted.
    fn bring_up(&self, _: &dyn Host, device: &Path, _mount: &Path) -> Result<PathBuf> {
        Ok(device.to_owned())
    }

    /// Whether what is mounted of a drive lies on this device, or may still be needed: not so when it is left from
    /// another one that is gone.
    fn is_on(&self, host: &dyn Host, mounted: &Mount, device: &Path) -> Result<bool> {
        Ok(mounted.source == device || host.exists(&mounted.source)?)
    }

    /// Gets a drive ready to be unmounted. Fails while one of its volumes is in use.
    fn wind_down(&self, _: &dyn Host, _mount: &Path) -> Result<()> {
        Ok(())
    }

    /// Lets a drive go that was mounted there.
    fn let_go(&self, _: &dyn Host, _mount: &Path) -> Result<()> {
        Ok(())
    }

    /// How to mount a drive, once brought up.
    fn mounting<'a>(&self, device: &'a str) -> FilesystemMount<'a>;

    /// Makes a freshly mounted drive enforce sizes; repeated at each start.
    fn prepare(&self, host: &dyn Host, mount: &Path) -> Result<()>;

    /// What volumes can have altogether of a device of this size.
    fn usable(&self, size: u64) -> u64;

    /// Sizes are multiples of this.
    fn unit(&self) -> u64 {
        GRAIN
    }

    /// Bytes of the smallest volume with such a file system, where volumes have their own.
    fn smallest(&self, _filesystem: Option<&str>) -> u64 {
        SMALLEST
    }

    /// The key for a new volume, where it has to be chosen beforehand, given those in use.
    fn choose_key(&self, used: &[QuotaKey]) -> Option<QuotaKey>;

    /// Makes the volume's directory.
    fn create(&self, host: &dyn Host, place: Place<'_>, new: &New) -> Result<()>;

    /// What the kernel counts the volume by; `None` when it does not count it.
    fn quota_key(&self, host: &dyn Host, place: Place<'_>) -> Result<Option<QuotaKey>>;

    /// Limits a volume.
    fn limit(&self, host: &dyn Host, place: Place<'_>, quota: QuotaKey, bytes: u64) -> Result<()>;

    /// What a volume uses and may use.
    fn usage(&self, host: &dyn Host, place: Place<'_>, quota: QuotaKey) -> Result<Usage>;

    /// How snapshots and clones are made.
    fn copies(&self) -> Copies;

    /// Bytes that a copy made now would take.
    fn copied(&self, host: &dyn Host, place: Place<'_>, quota: QuotaKey) -> Result<u64> {
        Ok(self.usage(host, place, quota)?.used)
    }

    /// The device that a block volume is, by its plain path, where it is more than a file; `None` while it is not there.
    fn device(&self, _: &dyn Host, _: Place<'_>) -> Result<Option<PathBuf>> {
        Ok(None)
    }

    /// Makes the directory `frozen` of what the volume holds at this moment, where that can be done.
    fn freeze(&self, host: &dyn Host, volume: &Path, frozen: &Path) -> Result<()>;

    /// Removes what was frozen, and waits until it takes no space.
    fn thaw(&self, host: &dyn Host, mount: &Path, frozen: &Path) -> Result<()>;

    /// Fills a new volume with what another one of this drive holds, which was frozen where that can be done.
    fn fill(&self, host: &dyn Host, source: &Path, frozen: &Path, volume: &Path) -> Result<()>;

    /// Fills a new volume with a snapshot, which lies on the same drive or on another.
    fn restore(&self, host: &dyn Host, mount: &Path, snapshot: &Path, volume: &Path) -> Result<()>;

    /// Gets a volume's directory ready to be moved.
    fn withdraw(&self, _: &dyn Host, _volume: &Path) -> Result<()> {
        Ok(())
    }

    /// Removes a volume's directory with all in it.
    fn destroy(&self, host: &dyn Host, mount: &Path, volume: &Path) -> Result<()>;

    /// Whether nothing that it makes of a volume becomes durable before what was done before it, such as writing its record.
    fn is_ordered(&self) -> bool {
        true
    }

    /// Makes all changes so far of the tree of files and of limits durable, and the records that were written; what other
    /// files hold is not meant. XFS and ext4 write their journals in order.
    fn flush(&self, host: &dyn Host, _mount: &Path, records: &Path) -> Result<()> {
        host.force_journal(records)
    }

    /// Waits until the space of a destroyed volume is free, and removes its quota. `flush` makes all so far durable.
    fn reclaim(
        &self,
        host: &dyn Host,
        mount: &Path,
        quota: QuotaKey,
        flush: &dyn Fn() -> Result<()>,
    ) -> Result<()>;
}

/// The backend of a kind.
pub(crate) fn of(kind: BackendKind) -> &'static dyn Backend {
    match kind {
        BackendKind::Xfs => &xfs::Xfs,
        BackendKind::Btrfs => &btrfs::Btrfs,
        BackendKind::Lvm => &lvm::LINEAR,
        BackendKind::LvmThin => &lvm::THIN,
    }
}

/// A drive that a group of volumes of ours lies on is told as a file system of ours is.
pub(crate) fn told(host: &dyn Host, device: &Path, signature: Signature) -> Result<Signature> {
    match signature.kind {
        "LVM2" => Ok(lvm::told(host, device)?.unwrap_or(signature)),
        _ => Ok(signature),
    }
}

/// A record that names another backend's key was not written by us.
fn foreign(quota: QuotaKey) -> linux::Error {
    linux::Error::because("use quota", format!("{quota:?}"), "it belongs to another backend")
}
