//! Project quotas: limits on directory trees, as XFS (and ext4) have them.

use std::path::Path;

use crate::{Kernel, Result};

/// The number that ties files to a limit. 0 means "no project".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProjectId(pub u32);

/// What a project uses and may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProjectUsage {
    /// Bytes used.
    pub used: u64,
    /// Bytes that may be used; `None` is no limit.
    pub limit: Option<u64>,
    /// Inodes used.
    pub inodes: u64,
}

/// Project quotas of a file system; `mount` is its mount point.
pub trait ProjectQuota {
    /// Puts a directory, and what is made in it from now on, into a project.
    ///
    /// # Errors
    /// When the file system has no projects.
    fn set_project(&self, directory: &Path, project: ProjectId) -> Result<()>;

    /// The project of a directory.
    ///
    /// # Errors
    /// When the file system has no projects.
    fn project(&self, directory: &Path) -> Result<ProjectId>;

    /// Limits what a project may use, in bytes (rounded up to 512); `None` lifts the limit.
    ///
    /// # Errors
    /// When the file system was not mounted with project quotas, or the kernel has none.
    fn limit_project(&self, mount: &Path, project: ProjectId, limit: Option<u64>) -> Result<()>;

    /// What a project uses and may use; all zero for a project that never was.
    ///
    /// # Errors
    /// When the file system was not mounted with project quotas, or the kernel has none.
    fn project_usage(&self, mount: &Path, project: ProjectId) -> Result<ProjectUsage>;
}
