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

impl Mounts for Kernel {
    fn mount_table(&self) -> Result<MountTable> {
        let text = std::fs::read("/proc/self/mountinfo").context("read", "/proc/self/mountinfo")?;
        Ok(MountTable::parse(&text))
    }

    fn bind(&self, source: BindSource<'_>, target: &Path, attributes: Attributes) -> Result<()> {
        let tree = detached(source, attributes)?;
        place(tree, target)
    }

    fn mount(&self, what: &FilesystemMount<'_>, target: &Path) -> Result<()> {
        let object = || format!("{} ({}) at {}", what.source, what.filesystem, target.display());
        let context = fsopen(what.filesystem, FsOpenFlags::FSOPEN_CLOEXEC).context("mount", object())?;
        let configure = || {
            fsconfig_set_string(context.as_fd(), "source", what.source)?;
            for (key, value) in &what.options {
                match value {
                    Some(value) => fsconfig_set_string(context.as_fd(), *key, *value)?,
                    None => fsconfig_set_flag(context.as_fd(), *key)?,
                }
            }
            if what.attributes.read_only {
                fsconfig_set_flag(context.as_fd(), "ro")?;
            }
            fsconfig_create(context.as_fd())
        };
        let tree = configure()
            .and_then(|()| {
                fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attribute_flags(what.attributes))
            })
            .map_err(|error| explain(context.as_fd(), error))
            .context("mount", object())?;
        place(tree, target)
    }

    fn unmount(&self, target: &Path, how: Unmount) -> Result<bool> {
        let flags = match how {
            Unmount::Plain => UnmountFlags::NOFOLLOW,
            Unmount::Detach => UnmountFlags::NOFOLLOW | UnmountFlags::DETACH,
        };
        match rustix::mount::unmount(target, flags) {
            Ok(()) => Ok(true),
            // EINVAL is how the kernel says that nothing is mounted there.
            Err(Errno::INVAL | Errno::NOENT) => Ok(false),
            Err(error) => Err(error).context("unmount", target.display()),
        }
    }
}

/// What a bind mount shows, with its attributes, and nowhere yet.
pub(crate) fn detached(source: BindSource<'_>, attributes: Attributes) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if attributes.recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let tree = match source {
        BindSource::Path(path) => open_tree(CWD, path, flags | OpenTreeFlags::AT_SYMLINK_NOFOLLOW),
        BindSource::Open(fd) => open_tree(fd, "", flags | OpenTreeFlags::AT_EMPTY_PATH),
    }
    .context("open for a bind mount", source)?;
    set_attributes(tree.as_fd(), attributes).context("set mount attributes of", source)?;
    Ok(tree)
}

/// Puts a detached tree in its place. Without `T_SYMLINKS` a symbolic link at the target is refused.
fn place(tree: OwnedFd, target: &Path) -> Result<()> {
    move_mount(tree.as_fd(), "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .context("mount at", target.display())
}

fn attribute_flags(attributes: Attributes) -> MountAttrFlags {
    let mut flags = MountAttrFlags::empty();
    flags.set(MountAttrFlags::MOUNT_ATTR_RDONLY, attributes.read_only);
    flags.set(MountAttrFlags::MOUNT_ATTR_NOSUID, attributes.no_suid);
    flags.set(MountAttrFlags::MOUNT_ATTR_NODEV, attributes.no_dev);
    flags.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, attributes.no_exec);
    flags.set(MountAttrFlags::MOUNT_ATTR_NOATIME, attributes.no_atime);
    flags
}

/// Adds attributes to a detached tree; none are ever taken away, so that a bind is never laxer than its source.
fn set_attributes(tree: BorrowedFd<'_>, attributes: Attributes) -> Result<(), Errno> {
    let mut set = attribute_flags(attributes);
    let mut clear = 0;
    if attributes.no_atime {
        // Access-time modes are an enumeration: to choose one, the others have to be cleared.
        set |= MountAttrFlags::MOUNT_ATTR_NOATIME;
        clear = u64::from(MountAttrFlags::MOUNT_ATTR__ATIME.bits());
    }
    if set.is_empty() {
        return Ok(());
    }
    let request = linux_raw_sys::general::mount_attr {
        attr_set: u64::from(set.bits()),
        attr_clr: clear,
        propagation: 0,
        userns_fd: 0,
    };
    let mut flags = AtFlags::EMPTY_PATH;
    if attributes.recursive {
        flags |= AtFlags::from_bits_retain(linux_raw_sys::general::AT_RECURSIVE);
    }
    // SAFETY: the descriptor is open, the path is an empty C string, and `request` lives through the call with the size
    // given; the kernel only reads it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags.bits(),
            &raw const request,
            size_of_val(&request),
        )
    };
    if result == 0 { Ok(()) } else { Err(crate::ioctl::last_error()) }
}

/// Adds what the file system says about its refusal.
fn explain(context: BorrowedFd<'_>, error: Errno) -> std::io::Error {
    let mut words = Vec::new();
    let mut buffer = [0_u8; 512];
    // Messages are "e text" (error), "w text", "i text"; the kernel keeps eight at most.
    for _ in 0..8 {
        match rustix::io::read(context, &mut buffer) {
            Ok(length @ 2..) if buffer[0] == b'e' => {
                words.push(String::from_utf8_lossy(&buffer[2..length]).trim().to_owned());
            }
            Ok(1..) => {}
            _ => break,
        }
    }
    if words.is_empty() {
        return error.into();
    }
    let error = std::io::Error::from(error);
    std::io::Error::new(error.kind(), format!("{error}: {}", words.join("; ")))
}
