//! Paths inside volumes, where a container may race us: every step is resolved by the kernel beneath an open directory.

use std::{
    collections::VecDeque,
    ffi::{CString, OsString},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStringExt,
    },
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, ResolveFlags, openat2},
    io::Errno,
};

use crate::{Error, Result, error::Context};

/// No symbolic links, no other mounts, no way out.
const STRICT: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// As strict, but links that stay inside are followed.
const LINKS_INSIDE: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS).union(ResolveFlags::NO_XDEV);

/// Opens a directory that we trust the path of, as a root for the other functions.
///
/// # Errors
/// When it is not there or no directory.
pub fn open_directory(directory: &Path) -> Result<OwnedFd> {
    rustix::fs::open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .context("open", directory.display())
}

/// Opens an existing file or directory beneath `root` (`O_PATH`), through no symbolic link.
///
/// # Errors
/// `EXDEV` when the path leaves `root` or crosses a mount, `ELOOP` at a symbolic link, `NotFound`.
pub fn open(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd> {
    openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), STRICT).context("open", path.display())
}

/// Opens the sub-path of a volume for being bind-mounted: a pod's `subPath`. Missing directories are made with the mode
/// of the volume's root, as kubelet does. Symbolic links inside the volume are followed (the keys of a config map are
/// such links); one that leads out is refused. The descriptor stays what was checked, whatever is renamed meanwhile:
/// give it to [`BindSource::Open`](crate::BindSource::Open).
///
/// # Errors
/// `InvalidInput` when the path is absolute or has `..`; `EXDEV` when it leads out of the volume or across a mount.
pub fn open_sub_path(volume: BorrowedFd<'_>, sub_path: &Path) -> Result<OwnedFd> {
    let context = |error: Errno| Error::new("open sub-path", sub_path.display(), error);
    if sub_path.components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err(context(Errno::INVAL));
    }
    let look =
        |path: &Path| openat2(volume, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), LINKS_INSIDE);
    let mut here = look(Path::new(".")).map_err(context)?;
    match look(if sub_path.as_os_str().is_empty() { Path::new(".") } else { sub_path }) {
        Err(Errno::NOENT) => {}
        other => return other.map_err(context),
    }
    let mode = Mode::from_raw_mode(rustix::fs::fstat(volume).map_err(context)?.st_mode & 0o7777);
    let mut path = PathBuf::new();
    for part in sub_path.components() {
        path.push(part);
        here = match look(&path) {
            Err(Errno::NOENT) => {
                make_directory(here.as_fd(), Path::new(part.as_os_str()), mode).map_err(context)?;
                look(&path).map_err(context)?
            }
            other => other.map_err(context)?,
        };
    }
    Ok(here)
}

/// Makes a directory with this mode, whatever the umask. One that someone made first keeps its mode.
fn make_directory(parent: BorrowedFd<'_>, name: &Path, mode: Mode) -> rustix::io::Result<()> {
    match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
        Ok(()) => {}
        Err(Errno::EXIST) => return Ok(()),
        Err(error) => return Err(error),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::fchmod(openat2(parent, name, flags, Mode::empty(), STRICT)?, mode)
}

/// Directories open at once while removing a tree; deeper ones are first moved up, so that no depth exhausts
/// descriptors.
const DEPTH: usize = 64;

/// Removes the entry `name` of `directory` with all below it, never following a symbolic link and never crossing a
/// mount point; `false` when there was none.
///
/// # Errors
/// At the first entry that can't be removed: `EBUSY` or `EXDEV` for a mount point.
pub fn remove_tree(directory: BorrowedFd<'_>, name: &Path) -> Result<bool> {
    let context = |error: Errno| Error::new("remove", name.display(), error);
    let top = match open_for_removal(directory, name) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(false),
        Err(Errno::NOTDIR | Errno::LOOP) => {
            return rustix::fs::unlinkat(directory, name, AtFlags::empty()).map(|()| true).map_err(context);
        }
        Err(error) => return Err(context(error)),
    };
    let mut moved = 0;
    // Each pass empties the tree but for what it moved up; every pass takes at least DEPTH levels away.
    loop {
        let before = moved;
        empty(top.as_fd(), top.as_fd(), 0, &mut moved)
            .map_err(|(inside, error)| Error::new("remove", name.join(inside).display(), error))?;
        if moved == before {
            break;
        }
    }
    match rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR) {
        // Somebody else, who had the same in mind, was faster.
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(error) => Err(context(error)),
    }
}

fn open_for_removal(directory: BorrowedFd<'_>, name: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat2(directory, name, flags, Mode::empty(), STRICT)
}

type Inside = (PathBuf, Errno);

fn empty(
    top: BorrowedFd<'_>,
    directory: BorrowedFd<'_>,
    depth: usize,
    moved: &mut u64,
) -> Result<(), Inside> {
    let here = |error| (PathBuf::new(), error);
    // Read first, remove then: removing while reading may skip entries on some file systems.
    let mut entries = VecDeque::new();
    for entry in Dir::read_from(directory).map_err(here)? {
        let entry = entry.map_err(here)?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            entries.push_back((entry.file_name().to_owned(), entry.file_type()));
        }
    }
    for (name, kind) in entries {
        let at = |error| (path_of(&name), error);
        if !matches!(kind, FileType::Directory | FileType::Unknown) {
            remove_entry(directory, &name, AtFlags::empty()).map_err(at)?;
            continue;
        }
        match open_for_removal(directory, &path_of(&name)) {
            Ok(_) if depth + 1 >= DEPTH => {
                move_up(directory, &name, top, moved).map_err(at)?;
                continue;
            }
            Ok(inner) => empty(top, inner.as_fd(), depth + 1, moved)
                .map_err(|(inside, error)| (path_of(&name).join(inside), error))?,
            Err(Errno::NOENT) => continue,
            Err(Errno::NOTDIR | Errno::LOOP) => {
                remove_entry(directory, &name, AtFlags::empty()).map_err(at)?;
                continue;
            }
            Err(error) => return Err(at(error)),
        }
        remove_entry(directory, &name, AtFlags::REMOVEDIR).map_err(at)?;
    }
    Ok(())
}

/// Moves an entry to the top under a name that nothing has there: what a removal that was cut off moved there before may
/// not have been met yet.
fn move_up(
    directory: BorrowedFd<'_>,
    name: &CString,
    top: BorrowedFd<'_>,
    moved: &mut u64,
) -> rustix::io::Result<()> {
    loop {
        *moved += 1;
        let free = format!(".removing-{moved}");
        match rustix::fs::renameat_with(directory, name, top, free, RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => {}
            other => return other,
        }
    }
}

fn remove_entry(directory: BorrowedFd<'_>, name: &CString, flags: AtFlags) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(directory, name, flags) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error),
    }
}

fn path_of(name: &CString) -> PathBuf {
    PathBuf::from(OsString::from_vec(name.as_bytes().to_vec()))
}
