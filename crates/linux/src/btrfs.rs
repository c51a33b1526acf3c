//! btrfs: subvolumes, and the quotas that limit them.

use std::path::Path;

use crate::{Kernel, Result};

/// The kernel's number of a subvolume; its quota group is `0/<number>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SubvolumeId(pub u64);

/// How the file system counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuotaMode {
    /// Each extent belongs to the subvolume that wrote it first; counting is cheap.
    Simple,
    /// Extents are traced back to all that refer to them (`qgroups`).
    Full,
}

/// What a subvolume uses and may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SubvolumeQuota {
    /// Bytes it holds: data and the metadata of its own tree.
    pub used: u64,
    /// Bytes it may hold; `None` is no limit.
    pub limit: Option<u64>,
}

/// Subvolumes and their quotas. `mount` is any directory of the file system.
pub trait Btrfs {
    /// Creates the empty subvolume `path` with this mode.
    ///
    /// # Errors
    /// `AlreadyExists` among others.
    fn create_subvolume(&self, path: &Path, mode: u32) -> Result<SubvolumeId>;

    /// Deletes the subvolume `path` with all in it; the kernel gives its space back in the background (see
    /// [`wait_for_cleaning`](Self::wait_for_cleaning)). `None` when there was none.
    ///
    /// # Errors
    /// When it holds another subvolume, or is no subvolume.
    fn delete_subvolume(&self, path: &Path) -> Result<Option<SubvolumeId>>;

    /// The number of the subvolume that `path` is the root of.
    ///
    /// # Errors
    /// When it is no subvolume's root.
    fn subvolume_id(&self, path: &Path) -> Result<SubvolumeId>;

    /// Waits until the space of a deleted subvolume is free.
    ///
    /// # Errors
    /// When the kernel can't wait for it.
    fn wait_for_cleaning(&self, mount: &Path, id: SubvolumeId) -> Result<()>;

    /// Turns quotas on, simple ones where the kernel has them. Those that are on stay as they are.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn enable_quota(&self, mount: &Path) -> Result<QuotaMode>;

    /// Limits what a subvolume may hold; `None` lifts the limit.
    ///
    /// # Errors
    /// When quotas are off.
    fn limit_subvolume(&self, mount: &Path, id: SubvolumeId, limit: Option<u64>) -> Result<()>;

    /// What a subvolume uses and may use; `None` when the kernel has no quota group for it.
    ///
    /// # Errors
    /// When quotas are off.
    fn subvolume_quota(&self, mount: &Path, id: SubvolumeId) -> Result<Option<SubvolumeQuota>>;

    /// Removes the quota group of a deleted subvolume, if it is still there.
    ///
    /// # Errors
    /// `EBUSY` while the subvolume is not cleaned up.
    fn remove_quota_group(&self, mount: &Path, id: SubvolumeId) -> Result<()>;

    /// Grows the file system to the size of its device.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn grow_btrfs(&self, mount: &Path) -> Result<()>;

    /// Commits everything written so far.
    ///
    /// # Errors
    /// When the drive refuses.
    fn sync_filesystem(&self, mount: &Path) -> Result<()>;
}
