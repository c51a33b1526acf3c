//! Copying a tree whole: one that stands still, so that the copy shares no space with it, or one that is in use, file by
//! file, sharing the extents of each.

use std::{
    collections::HashMap,
    ffi::{CString, OsStr},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, CWD, Dir, FileType, Gid, IFlags, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, Uid,
        XattrFlags,
    },
    io::Errno,
};

use crate::{Error, Result};

/// What one call of the kernel copies at most.
const PIECE: usize = 8 << 20;

/// How deep directories may lie in a tree that is in use: each on the way is held open.
const DEEPEST: usize = 500;

/// How a tree is copied.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// Nobody else changes it; the copy shares nothing with it.
    Whole,
    /// Others change it; the copy shares its extents.
    Live,
}

/// A directory on the way from the root to where the copy is now, and its entries that are still to be copied.
struct Level {
    rest: Vec<CString>,
    attributes: Stat,
    /// The directory above, where it could be moved away meanwhile.
    above: Option<OwnedFd>,
}

/// Hard links: where in the copy a file with several names is, and how many of its names are still to come.
type Links = HashMap<u64, (PathBuf, u64)>;

/// Copies what the directory `from` holds into the directory `to`, with owners, modes, times, extended attributes of
/// files and directories, hard links and holes; `to` gets the attributes of `from`. Nobody else may change either.
/// May be repeated after it broke off.
pub(crate) fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    begin(from, to, Way::Whole)
}

/// Copies as [`copy_tree`] does, while others may change `from`; files share their extents with the copy.
pub(crate) fn clone_tree(from: &Path, to: &Path) -> Result<()> {
    begin(from, to, Way::Live)
}

fn begin(from: &Path, to: &Path, way: Way) -> Result<()> {
    let mut inside = PathBuf::new();
    copy(from, to, way, &mut inside).map_err(|error| Error::new("copy", from.join(&inside).display(), error))
}

/// `inside` is where the copy is, for messages.
fn copy(from: &Path, to: &Path, way: Way, inside: &mut PathBuf) -> rustix::io::Result<()> {
    let (mut source, mut target) = (directory(CWD, from)?, directory(CWD, to)?);
    let root = directory(CWD, to)?;
    let mut links = Links::new();
    let mut levels = vec![level(source.as_fd(), None)?];
    // One pair of descriptors, and no recursion, however deep the tree is: on the way back up `..` is opened, which
    // is safe where nobody else renames anything. Elsewhere the way up is kept open.
    while let Some(here) = levels.last_mut() {
        let Some(name) = here.rest.pop() else {
            attribute(source.as_fd(), target.as_fd(), &here.attributes)?;
            let above = here.above.take();
            levels.pop();
            inside.pop();
            if !levels.is_empty() {
                let up = Path::new("..");
                source = above.map_or_else(|| directory(source.as_fd(), up), Ok)?;
                target = directory(target.as_fd(), up)?;
            }
            continue;
        };
        let path = Path::new(OsStr::from_bytes(name.as_bytes()));
        inside.push(path);
        let stat = match rustix::fs::statat(&source, path, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) if way == Way::Live => {
                inside.pop();
                continue;
            }
            other => other?,
        };
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            match rustix::fs::mkdirat(&target, path, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
            }
            let below = match directory(source.as_fd(), path) {
                // Gone, or something else by now.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) if way == Way::Live => {
                    inside.pop();
                    continue;
                }
                other => other?,
            };
            if way == Way::Live && levels.len() >= DEEPEST {
                return Err(Errno::NAMETOOLONG);
            }
            target = directory(target.as_fd(), path)?;
            let above = std::mem::replace(&mut source, below);
            levels.push(level(source.as_fd(), (way == Way::Live).then_some(above))?);
            continue;
        }
        if !link(root.as_fd(), target.as_fd(), path, inside, &stat, &mut links)? {
            let copied = match way {
                Way::Whole => entry(source.as_fd(), target.as_fd(), path, &stat),
                Way::Live => live_entry(source.as_fd(), target.as_fd(), path, &stat),
            };
            match copied {
                // Gone, or something else by now: other names of it are to be copied still.
                Err(Errno::NOENT | Errno::LOOP | Errno::INVAL) if way == Way::Live => {
                    remove(target.as_fd(), path)?;
                    links.remove(&stat.st_ino);
                }
                other => other?,
            }
        }
        inside.pop();
    }
    Ok(())
}

fn directory(parent: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, path, flags, Mode::empty())
}

fn level(directory: BorrowedFd<'_>, above: Option<OwnedFd>) -> rustix::io::Result<Level> {
    let mut rest = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            rest.push(entry.file_name().to_owned());
        }
    }
    Ok(Level { rest, attributes: rustix::fs::fstat(directory)?, above })
}

/// Gives a file that was copied under another name this one too; `false` when it was not copied yet.
fn link(
    root: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    name: &Path,
    inside: &Path,
    stat: &Stat,
    links: &mut Links,
) -> rustix::io::Result<bool> {
    let names = stat.st_nlink;
    if names < 2 {
        return Ok(false);
    }
    let Some((first, to_come)) = links.get_mut(&stat.st_ino) else {
        links.insert(stat.st_ino, (inside.to_owned(), names - 1));
        return Ok(false);
    };
    remove(target, name)?;
    rustix::fs::linkat(root, first.as_path(), target, name, AtFlags::empty())?;
    *to_come -= 1;
    if *to_come == 0 {
        links.remove(&stat.st_ino);
    }
    Ok(true)
}

/// Copies what is no directory.
fn entry(source: BorrowedFd<'_>, target: BorrowedFd<'_>, name: &Path, stat: &Stat) -> rustix::io::Result<()> {
    remove(target, name)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {
            let flags = OFlags::NOFOLLOW | OFlags::NOATIME | OFlags::CLOEXEC;
            let from = rustix::fs::openat(source, name, OFlags::RDONLY | flags, Mode::empty())?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | flags;
            let to = rustix::fs::openat(target, name, flags, Mode::RUSR | Mode::WUSR)?;
            content(&from, &to, stat.st_size.cast_unsigned())?;
            attribute(from.as_fd(), to.as_fd(), stat)
        }
        FileType::Symlink => {
            let text = rustix::fs::readlinkat(source, name, Vec::new())?;
            rustix::fs::symlinkat(text.as_c_str(), target, name)?;
            own_and_date(target, name, stat)
        }
        kind => {
            let mode = Mode::from_raw_mode(stat.st_mode);
            rustix::fs::mknodat(target, name, kind, mode, stat.st_rdev)?;
            own_and_date(target, name, stat)?;
            // The mode was cut by the umask, and its special bits went with the owner.
            rustix::fs::chmodat(target, name, mode, AtFlags::empty())
        }
    }
}

/// Copies what is no directory from a tree in use. A name may mean something else from one call to the next, and to open
/// a pipe or a device does something: so it is looked at again before it is opened.
fn live_entry(
    source: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    name: &Path,
    stat: &Stat,
) -> rustix::io::Result<()> {
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return entry(source, target, name, stat);
    }
    remove(target, name)?;
    let found =
        rustix::fs::openat(source, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let now = rustix::fs::fstat(&found)?;
    if (now.st_ino, now.st_mode & libc::S_IFMT) != (stat.st_ino, stat.st_mode & libc::S_IFMT) {
        return Err(Errno::NOENT);
    }
    let path = format!("/proc/self/fd/{}", found.as_raw_fd());
    let flags = OFlags::NOATIME | OFlags::CLOEXEC;
    let from = rustix::fs::open(path.as_str(), OFlags::RDONLY | flags, Mode::empty())?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | flags;
    let to = rustix::fs::openat(target, name, flags, Mode::RUSR | Mode::WUSR)?;
    // The kernel holds writers off while it shares a file, however many extents it has.
    match rustix::fs::ioctl_ficlone(&to, &from) {
        Err(Errno::INVAL) => return Err(Errno::OPNOTSUPP),
        other => other?,
    }
    attribute(from.as_fd(), to.as_fd(), &rustix::fs::fstat(&from)?)
}

fn remove(target: BorrowedFd<'_>, name: &Path) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(target, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Copies data, and leaves holes where there are holes. (`copy_file_range` would share the extents.)
fn content(from: &OwnedFd, to: &OwnedFd, size: u64) -> rustix::io::Result<()> {
    let flags = match rustix::fs::ioctl_getflags(from) {
        // A file system without flags.
        Err(Errno::NOTTY | Errno::OPNOTSUPP) => IFlags::empty(),
        other => other?,
    };
    let kept = flags.intersection(IFlags::NOCOW | IFlags::COMPRESSED);
    if !kept.is_empty() {
        rustix::fs::ioctl_setflags(to, kept)?;
    }
    let mut at = 0;
    while at < size {
        let mut offset = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error),
        };
        at = rustix::fs::seek(from, SeekFrom::Hole(offset))?;
        rustix::fs::seek(to, SeekFrom::Start(offset))?;
        while offset < at {
            let piece = usize::try_from(at - offset).unwrap_or(PIECE).min(PIECE);
            if rustix::fs::sendfile(to, from, Some(&mut offset), piece)? == 0 {
                return Err(Errno::IO);
            }
        }
    }
    rustix::fs::ftruncate(to, size)
}

/// The owner first, which takes special bits and capabilities away; the times last.
fn attribute(from: BorrowedFd<'_>, to: BorrowedFd<'_>, stat: &Stat) -> rustix::io::Result<()> {
    rustix::fs::fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    let mut names = vec![0; rustix::fs::flistxattr_query(from)?];
    let length = rustix::fs::flistxattr(from, &mut names[..])?;
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let name = OsStr::from_bytes(name);
        let mut value = vec![0; rustix::fs::fgetxattr_query(from, name)?];
        let length = rustix::fs::fgetxattr(from, name, &mut value[..])?;
        rustix::fs::fsetxattr(to, name, &value[..length], XattrFlags::empty())?;
    }
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode))?;
    rustix::fs::futimens(to, &times(stat))
}

fn own_and_date(directory: BorrowedFd<'_>, name: &Path, stat: &Stat) -> rustix::io::Result<()> {
    let (owner, group) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::chownat(directory, name, Some(owner), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
    rustix::fs::utimensat(directory, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)
}

fn times(stat: &Stat) -> Timestamps {
    let time = |seconds: i64, nanoseconds: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: i64::try_from(nanoseconds).unwrap_or(0),
    };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}
