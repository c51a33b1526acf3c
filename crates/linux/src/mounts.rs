//! Mounts by file descriptor: what is to be mounted is opened, given its attributes while still detached, and only
//! then moved to its place. No moment exists at which a read-only volume is writable.

use std::{
    fmt,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{AtFlags, CWD},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
        fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
    },
};

use crate::{Kernel, MountTable, Result, error::Context};

/// What a mount refuses, beyond its file system's own options.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// No writes.
    pub read_only: bool,
    /// Set-user-id bits have no effect.
    pub no_suid: bool,
    /// Device nodes can't be opened.
    pub no_dev: bool,
    /// Nothing can be executed.
    pub no_exec: bool,
    /// Reading does not write access times.
    pub no_atime: bool,
    /// A bind takes the mounts below the source along, and these attributes hold for them too.
    pub recursive: bool,
}

/// What a bind mount shows.
#[derive(Clone, Copy, Debug)]
pub enum BindSource<'a> {
    /// A file or directory; a symbolic link in the last place is refused.
    Path(&'a Path),
    /// What this descriptor has open (`O_PATH` suffices): immune to renames and swapped links.
    Open(BorrowedFd<'a>),
}

impl fmt::Display for BindSource<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(formatter, "{}", path.display()),
            Self::Open(fd) => write!(formatter, "open file {}", fd.as_raw_fd()),
        }
    }
}

/// A file system to mount.
#[derive(Clone, Debug, Default)]
pub struct FilesystemMount<'a> {
    /// `xfs`, `btrfs`, `tmpfs`, `overlay`, …
    pub filesystem: &'a str,
    /// Block device or name.
    pub source: &'a str,
    /// Options of the file system; `None` is a flag without a value.
    pub options: Vec<(&'a str, Option<&'a str>)>,
    /// Attributes of the mount.
    pub attributes: Attributes,
}

/// How hard to unmount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmount {
    /// Refused with `EBUSY` while files are open in it.
    Plain,
    /// Taken from the tree at once, gone when its last user is. An escalation: only where the volume is known to be
    /// finished with.
    Detach,
}

/// Mounting and unmounting.
pub trait Mounts {
    /// The mounts of this namespace.
    ///
    /// # Errors
    /// When `/proc` can't be read.
    fn mount_table(&self) -> Result<MountTable>;

    /// Shows `source` at `target` too. `target` must exist and be of the same kind (directory or file).
    ///
    /// # Errors
    /// When the kernel refuses; then nothing was mounted.
    fn bind(&self, source: BindSource<'_>, target: &Path, attributes: Attributes) -> Result<()>;

    /// Mounts a file system at the existing directory `target`.
    ///
    /// # Errors
    /// When the kernel refuses; then nothing was mounted. The message carries the kernel's own words where it has any.
    fn mount(&self, what: &FilesystemMount<'_>, target: &Path) -> Result<()>;

    /// Unmounts what is visible at `target`; `false` when nothing was mounted there. Never follows a symbolic link.
    ///
    /// # Errors
    /// `EBUSY` while in use (with [`Unmount::Plain`]), and what else the kernel refuses.
    fn unmount(&self, target: &Path, how: Unmount) -> Result<bool>;
}
