//! Files that must survive power loss, and directories.

use std::{ffi::OsString, path::Path};

use crate::{Kernel, Result};

/// What a file system has room for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Bytes altogether.
    pub size: u64,
    /// Bytes free for an unprivileged writer.
    pub available: u64,
    /// Inodes altogether; 0 where the file system has no fixed number.
    pub inodes: u64,
    /// Inodes free.
    pub inodes_free: u64,
}

/// Files and directories by path. Used below directories that belong to us alone; paths inside volumes go through
/// [`beneath`](crate::beneath).
pub trait Files {
    /// The content of a file of at most 1 MiB; `None` when there is none.
    ///
    /// # Errors
    /// When it can't be read or is larger.
    fn read(&self, file: &Path) -> Result<Option<Vec<u8>>>;

    /// The names in a directory, sorted; empty when there is no such directory.
    ///
    /// # Errors
    /// When it can't be read.
    fn list(&self, directory: &Path) -> Result<Vec<OsString>>;

    /// Whether something is at `path` (a symbolic link counts).
    ///
    /// # Errors
    /// When it can't be told, such as `EIO` of a dead drive.
    fn exists(&self, path: &Path) -> Result<bool>;

    /// Makes a directory with this mode (whatever the umask) and its missing parents (0755), durably. One that exists
    /// is left as it is.
    ///
    /// # Errors
    /// When it can't be made, or something else is there.
    fn make_directory(&self, directory: &Path, mode: u32) -> Result<()>;

    /// Replaces a file's content as a whole: after a crash it is the old or the new one, and once this returns it is
    /// the new one.
    ///
    /// # Errors
    /// When it can't be written.
    fn write_durable(&self, file: &Path, content: &[u8], mode: u32) -> Result<()>;

    /// Renames within one file system, durably. Refuses to replace what is at `to`.
    ///
    /// # Errors
    /// `NotFound` and `AlreadyExists` among others.
    fn rename_durable(&self, from: &Path, to: &Path) -> Result<()>;

    /// Removes a file, durably; `false` when there was none.
    ///
    /// # Errors
    /// When it can't be removed.
    fn remove_file(&self, file: &Path) -> Result<bool>;

    /// Removes an empty directory; `false` when there was none.
    ///
    /// # Errors
    /// `DirectoryNotEmpty`, or `EBUSY` when something is mounted there.
    fn remove_directory(&self, directory: &Path) -> Result<bool>;

    /// Removes a directory with all below it, never following a symbolic link and never crossing a mount point;
    /// `false` when there was none.
    ///
    /// # Errors
    /// At the first entry that can't be removed, such as a mount point.
    fn remove_tree(&self, directory: &Path) -> Result<bool>;

    /// Makes a sparse file of this size (mode 0600), durably.
    ///
    /// # Errors
    /// `AlreadyExists`, or when the file system can't hold a file of this size.
    fn make_image(&self, file: &Path, size: u64) -> Result<()>;

    /// What the file system at `path` has room for.
    ///
    /// # Errors
    /// When it can't be told.
    fn space(&self, path: &Path) -> Result<Space>;
}
