//! The places where volumes are shown to others. They lie in directories that somebody else owns, so everything is done
//! by file descriptor beneath a root, through no symbolic link, and what we mounted on carries a mark of ours: only that
//! is ever removed again.

use std::{
    ffi::OsStr,
    fmt,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, XattrFlags, fstat, fsync, getxattr, mkdirat,
        openat2, setxattr, unlinkat,
    },
    io::Errno,
    mount::{MoveMountFlags, UnmountFlags, move_mount, unmount},
};

use crate::{Attributes, BindSource, Error, Kernel, Result, error::Context, mounts::detached};

/// Of whoever is no administrator of this machine, nobody can write such an attribute.
const MARK: &str = "trusted.orlop.target";
/// Bytes of a mark.
const LONGEST_MARK: usize = 256;

/// A place beneath a directory; both absolute, plain, and without symbolic links.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The directory that is never left.
    pub root: PathBuf,
    /// The place.
    pub at: PathBuf,
}

/// What a place is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetKind {
    /// For a file system.
    Directory,
    /// For a device.
    File,
}

/// What is in the way at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// A directory with something in it.
    FullDirectory,
    /// A directory, and a file is needed.
    Directory,
    /// A file with something in it.
    FullFile,
    /// A file, and a directory is needed.
    File,
    /// A device, FIFO, socket or symbolic link.
    Special,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::FullDirectory => "a directory that is not empty",
            Self::Directory => "a directory, and a file is needed",
            Self::FullFile => "a file that is not empty",
            Self::File => "a file, and a directory is needed",
            Self::Special => "a device, FIFO, socket or symbolic link",
        })
    }
}

/// Mounting at places that others own.
pub trait Targets {
    /// Makes the place (and missing directories that lead there, mode 0750) unless it is there and empty, marks it, and
    /// shows `source` there. What is in the way, if anything, is answered, and left as it is.
    ///
    /// # Errors
    /// When the kernel refuses; then nothing was mounted, and an empty place may be left with its mark.
    fn show_at(
        &self,
        source: BindSource<'_>,
        target: &Target,
        kind: TargetKind,
        mark: &str,
        attributes: Attributes,
    ) -> Result<Option<Obstacle>>;

    /// Unmounts what is visible at the place; `false` when nothing was mounted there.
    ///
    /// # Errors
    /// `EBUSY` while in use, and what else the kernel refuses.
    fn unmount_at(&self, target: &Target) -> Result<bool>;

    /// The mark of the place, where nothing may be mounted. None where nothing is, or no mark can be had.
    ///
    /// # Errors
    /// When it can't be told.
    fn mark_at(&self, target: &Target) -> Result<Option<String>>;

    /// Removes the place, if it is an empty directory or an empty file. `false` when it is not, or is not there.
    ///
    /// # Errors
    /// When the kernel refuses for another reason.
    fn remove_at(&self, target: &Target) -> Result<bool>;
}

impl Targets for Kernel {
    fn show_at(
        &self,
        source: BindSource<'_>,
        target: &Target,
        kind: TargetKind,
        mark: &str,
        attributes: Attributes,
    ) -> Result<Option<Obstacle>> {
        let tree = detached(source, attributes)?;
        let context = |error: Errno| Error::new("make", target.at.display(), error);
        let (parent, name) = parent_of(target, true)?;
        let made = match kind {
            TargetKind::Directory => mkdirat(&parent, name, Mode::from_raw_mode(0o750)),
            TargetKind::File => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                openat2(&parent, name, flags, Mode::from_raw_mode(0o600), PLAIN).map(drop)
            }
        };
        let place = match made {
            Ok(()) | Err(Errno::EXIST) => look(parent.as_fd(), Path::new(name)).map_err(context)?,
            Err(error) => return Err(context(error)),
        };
        if let Some(obstacle) = obstacle(place.as_fd(), kind).map_err(context)? {
            return Ok(Some(obstacle));
        }
        match setxattr(by_descriptor(place.as_fd()), MARK, mark.as_bytes(), XattrFlags::empty()) {
            // Without a mark it is found by what is mounted there; after a restart of the machine, an empty place stays.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM) => {}
            Err(error) => return Err(error).context("mark", target.at.display()),
        }
        if made.is_ok() {
            let directory = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            openat2(&parent, ".", directory, Mode::empty(), PLAIN).and_then(fsync).map_err(context)?;
        }
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(tree.as_fd(), "", place.as_fd(), "", flags).context("mount at", target.at.display())?;
        Ok(None)
    }

    fn unmount_at(&self, target: &Target) -> Result<bool> {
        let (parent, name) = match parent_of(target, false) {
            Ok(found) => found,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        match unmount(by_descriptor(parent.as_fd()).join(name), UnmountFlags::NOFOLLOW) {
            Ok(()) => Ok(true),
            // EINVAL is how the kernel says that nothing is mounted there.
            Err(Errno::INVAL | Errno::NOENT) => Ok(false),
            Err(error) => Err(error).context("unmount", target.at.display()),
        }
    }

    fn mark_at(&self, target: &Target) -> Result<Option<String>> {
        let Some((_, place)) = existing(target)? else { return Ok(None) };
        let mut mark = [0_u8; LONGEST_MARK];
        match getxattr(by_descriptor(place.as_fd()), MARK, &mut mark[..]) {
            Ok(length) => Ok(std::str::from_utf8(&mark[..length]).ok().map(str::to_owned)),
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM | Errno::RANGE) => Ok(None),
            Err(error) => Err(error).context("read the mark of", target.at.display()),
        }
    }

    fn remove_at(&self, target: &Target) -> Result<bool> {
        let Some((parent, place)) = existing(target)? else { return Ok(false) };
        let context = |error: Errno| Error::new("remove", target.at.display(), error);
        let name = Path::new(target.at.file_name().unwrap_or_default());
        let kind = FileType::from_raw_mode(fstat(&place).map_err(context)?.st_mode);
        let flags = match kind {
            FileType::Directory => AtFlags::REMOVEDIR,
            FileType::RegularFile
                if obstacle(place.as_fd(), TargetKind::File).map_err(context)?.is_none() =>
            {
                AtFlags::empty()
            }
            _ => return Ok(false),
        };
        match unlinkat(&parent, name, flags) {
            Ok(()) => Ok(true),
            // Something has been put there, or mounted.
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::BUSY | Errno::NOENT) => Ok(false),
            Err(error) => Err(context(error)),
        }
    }
}

/// No symbolic links and no way out. Mounts may lie on the way: kubelet's directory has some.
const PLAIN: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

fn by_descriptor(file: BorrowedFd<'_>) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// Without opening it: a device might do something then, and a FIFO wait.
fn look(directory: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    openat2(directory, path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty(), PLAIN)
}

/// The open parent directory, and the name in it.
fn parent_of(target: &Target, make: bool) -> Result<(OwnedFd, &OsStr)> {
    let inside = target.at.strip_prefix(&target.root).ok();
    let Some((inside, name)) = inside.and_then(|inside| Some((inside.parent()?, inside.file_name()?))) else {
        return Err(Error::new("use", target.at.display(), Errno::XDEV));
    };
    let context = |error: Errno| Error::new("open", target.at.display(), error);
    let root = crate::beneath::open_directory(&target.root)?;
    match look(root.as_fd(), inside) {
        Err(Errno::NOENT) if make => {}
        found => return Ok((found.map_err(context)?, name)),
    }
    let mut here = look(root.as_fd(), Path::new("")).map_err(context)?;
    for part in inside.components() {
        let part: &Path = part.as_ref();
        match mkdirat(&here, part, Mode::from_raw_mode(0o750)) {
            Ok(()) | Err(Errno::EXIST) => here = look(here.as_fd(), part).map_err(context)?,
            Err(error) => return Err(context(error)),
        }
    }
    Ok((here, name))
}

fn existing(target: &Target) -> Result<Option<(OwnedFd, OwnedFd)>> {
    let (parent, name) = match parent_of(target, false) {
        Ok(found) => found,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match look(parent.as_fd(), Path::new(name)) {
        Ok(place) => Ok(Some((parent, place))),
        // A symbolic link is none of ours.
        Err(Errno::NOENT | Errno::LOOP) => Ok(None),
        Err(error) => Err(error).context("look at", target.at.display()),
    }
}

fn obstacle(place: BorrowedFd<'_>, wanted: TargetKind) -> rustix::io::Result<Option<Obstacle>> {
    let status = fstat(place)?;
    Ok(match (FileType::from_raw_mode(status.st_mode), wanted) {
        (FileType::Directory, TargetKind::Directory) => {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let directory = openat2(place, ".", flags, Mode::empty(), PLAIN)?;
            for entry in Dir::read_from(directory)? {
                if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
                    return Ok(Some(Obstacle::FullDirectory));
                }
            }
            None
        }
        (FileType::RegularFile, TargetKind::File) if status.st_size == 0 => None,
        (FileType::RegularFile, TargetKind::File) => Some(Obstacle::FullFile),
        (FileType::Directory, TargetKind::File) => Some(Obstacle::Directory),
        (FileType::RegularFile, TargetKind::Directory) => Some(Obstacle::File),
        _ => Some(Obstacle::Special),
    })
}
