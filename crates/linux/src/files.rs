//! Files that must survive power loss, and directories.

use std::{
    ffi::{OsStr, OsString},
    fs::{DirBuilder, File, OpenOptions, Permissions},
    io::{self, Read, Write},
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, FallocateFlags, IFlags, RenameFlags, StatVfs},
    io::Errno,
};

use crate::{Error, Kernel, Result, beneath, error::Context};

/// No record or small file that we read is near this; what is larger is not ours.
const LARGEST_FILE: u64 = 1 << 20;

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

/// Where the new content of `file` is written before it takes the name: `.NAME.new` beside it. A crash may leave it.
pub fn draft_of(file: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(file.file_name().unwrap_or_default());
    name.push(".new");
    file.with_file_name(name)
}

/// Whether a name is that of a draft, of whatever file.
pub fn is_draft(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name.len() > 5 && name.starts_with(b".") && name.ends_with(b".new")
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

    /// The path without symbolic links, dots or `..` in it, for comparing with the mount table. The last part is not
    /// looked at: it may be a dead mount.
    ///
    /// # Errors
    /// `NotFound` when the parent directory is missing.
    fn real_path(&self, path: &Path) -> Result<PathBuf>;

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

    /// As [`write_durable`](Self::write_durable), but power loss may undo it, together with every later change of the file
    /// system's tree: journals (ext4, XFS) and transactions (btrfs) become durable in order. Never is half of it there.
    /// What makes the tree durable makes it durable, content included.
    ///
    /// # Errors
    /// As there.
    fn write_ordered(&self, file: &Path, content: &[u8], mode: u32) -> Result<()>;

    /// As [`remove_file`](Self::remove_file), durable as [`write_ordered`](Self::write_ordered) is.
    ///
    /// # Errors
    /// As there.
    fn remove_ordered(&self, file: &Path) -> Result<bool>;

    /// As [`make_directory`](Self::make_directory) in a directory that exists, durable as
    /// [`write_ordered`](Self::write_ordered) is.
    ///
    /// # Errors
    /// As there.
    fn make_directory_ordered(&self, directory: &Path, mode: u32) -> Result<()>;

    /// On XFS and ext4, makes all changes so far of the file system's tree durable: the journal is written up to a change
    /// that is made for this, of the time of `directory`. What files hold is not meant.
    ///
    /// # Errors
    /// When the drive refuses.
    fn force_journal(&self, directory: &Path) -> Result<()>;

    /// Renames within one file system. Refuses to replace what is at `to`. Not durable by itself.
    ///
    /// # Errors
    /// `NotFound` and `AlreadyExists` among others.
    fn rename(&self, from: &Path, to: &Path) -> Result<()>;

    /// Removes a file, durably, and the [draft](draft_of) that a crash may have left beside it; `false` when there was
    /// no file.
    ///
    /// # Errors
    /// When it can't be removed.
    fn remove_file(&self, file: &Path) -> Result<bool>;

    /// Removes the drafts that crashes have left in a directory; how many there were. Nobody may write there meanwhile.
    ///
    /// # Errors
    /// When the directory can't be read, or one can't be removed.
    fn remove_drafts(&self, directory: &Path) -> Result<usize> {
        let drafts: Vec<_> = self.list(directory)?.into_iter().filter(|name| is_draft(name)).collect();
        for draft in &drafts {
            self.remove_file(&directory.join(draft))?;
        }
        Ok(drafts.len())
    }

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

    /// Copies what the directory `from` holds into the existing directory `to`: files with their holes, links, owners,
    /// modes, times, and the extended attributes of files and directories; `to` gets the attributes of `from`. The two
    /// share no space afterwards. Not durable by itself; may be repeated after it broke off. Nobody else may change
    /// either meanwhile.
    ///
    /// # Errors
    /// At the first entry that can't be copied: `EDQUOT` where `to` is too small for it.
    fn copy_tree(&self, from: &Path, to: &Path) -> Result<()>;

    /// Copies as [`copy_tree`](Self::copy_tree) does, within one file system that shares extents (reflinks), while
    /// others may change `from`: each file is of one moment, and what comes or goes meanwhile is there or not. What the
    /// two share is counted for both.
    ///
    /// # Errors
    /// At the first entry that can't be copied: `ENOSPC` or `EDQUOT` where `to` is too small for it, `ENAMETOOLONG` where
    /// directories lie more than 500 deep.
    fn clone_tree(&self, from: &Path, to: &Path) -> Result<()>;

    /// Makes a sparse file of this size (mode 0600), durably.
    ///
    /// # Errors
    /// `AlreadyExists`, or when the file system can't hold a file of this size.
    fn make_image(&self, file: &Path, size: u64) -> Result<()>;

    /// Makes a file (mode 0600) if there is none, sets space aside for all of its `size` bytes, and gives it that length
    /// if it is shorter. On btrfs it is written in place, without checksums, so that the space stays its own. Bytes that
    /// were never written are zero. Durable as [`write_ordered`](Self::write_ordered) is; may be repeated after it broke
    /// off.
    ///
    /// # Errors
    /// `ENOSPC` or `EDQUOT` where there is no such space.
    fn allocate(&self, file: &Path, size: u64) -> Result<()>;

    /// Makes everything written so far on a file system durable, whoever wrote it: as long as that takes.
    ///
    /// # Errors
    /// When the drive refuses.
    fn sync_filesystem(&self, mount: &Path) -> Result<()>;

    /// Cuts a file to this length, durably; a shorter one, or none, stays as it is.
    ///
    /// # Errors
    /// When it can't be cut.
    fn cut(&self, file: &Path, size: u64) -> Result<()>;

    /// The length of a file; `None` when there is none.
    ///
    /// # Errors
    /// When it can't be told.
    fn length(&self, file: &Path) -> Result<Option<u64>>;

    /// What the file system at `path` has room for.
    ///
    /// # Errors
    /// When it can't be told.
    fn space(&self, path: &Path) -> Result<Space>;
}

impl Files for Kernel {
    fn read(&self, file: &Path) -> Result<Option<Vec<u8>>> {
        let open = match File::open(file) {
            Ok(open) => open,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).context("open", file.display()),
        };
        let mut content = Vec::new();
        open.take(LARGEST_FILE + 1).read_to_end(&mut content).context("read", file.display())?;
        if content.len() as u64 > LARGEST_FILE {
            return Err(Error::because("read", file.display(), "it is larger than 1 MiB"));
        }
        Ok(Some(content))
    }

    fn list(&self, directory: &Path) -> Result<Vec<OsString>> {
        let entries = match std::fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).context("list", directory.display()),
        };
        let mut names = entries
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<io::Result<Vec<_>>>()
            .context("list", directory.display())?;
        names.sort();
        Ok(names)
    }

    fn exists(&self, path: &Path) -> Result<bool> {
        match path.symlink_metadata() {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error).context("look at", path.display()),
        }
    }

    fn real_path(&self, path: &Path) -> Result<PathBuf> {
        match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => {
                Ok(std::fs::canonicalize(parent).context("find", parent.display())?.join(name))
            }
            _ => std::fs::canonicalize(path).context("find", path.display()),
        }
    }

    fn make_directory(&self, directory: &Path, mode: u32) -> Result<()> {
        let context = |error: io::Error| Error::new("make directory", directory.display(), error);
        if let Some(parent) = directory.parent()
            && !parent.as_os_str().is_empty()
            && !self.exists(parent)?
        {
            self.make_directory(parent, 0o755)?;
        }
        match make_one(directory, mode).map_err(context)? {
            true => sync_parent(directory),
            false => Ok(()),
        }
    }

    fn make_directory_ordered(&self, directory: &Path, mode: u32) -> Result<()> {
        make_one(directory, mode).map(drop).context("make directory", directory.display())
    }

    fn write_durable(&self, file: &Path, content: &[u8], mode: u32) -> Result<()> {
        replace(file, content, mode, File::sync_all)?;
        sync_parent(file)
    }

    fn write_ordered(&self, file: &Path, content: &[u8], mode: u32) -> Result<()> {
        replace(file, content, mode, |open| match content.len() > INLINE {
            true => open.sync_all(),
            false => write_out(open),
        })
    }

    fn remove_ordered(&self, file: &Path) -> Result<bool> {
        let found = unlink(file)?;
        unlink(&draft_of(file))?;
        Ok(found)
    }

    fn force_journal(&self, directory: &Path) -> Result<()> {
        let force = || {
            let open = File::open(directory)?;
            open.set_modified(std::time::SystemTime::now())?;
            open.sync_all()
        };
        force().context("sync", directory.display())
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)
            .context("rename", format!("{} to {}", from.display(), to.display()))
    }

    fn sync_filesystem(&self, mount: &Path) -> Result<()> {
        let directory = File::open(mount).context("open", mount.display())?;
        rustix::fs::syncfs(&directory).context("sync", mount.display())
    }

    fn remove_file(&self, file: &Path) -> Result<bool> {
        let found = unlink(file)?;
        let draft = unlink(&draft_of(file))?;
        if found || draft {
            sync_parent(file)?;
        }
        Ok(found)
    }

    fn remove_directory(&self, directory: &Path) -> Result<bool> {
        match std::fs::remove_dir(directory) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error).context("remove", directory.display()),
        }
    }

    fn remove_tree(&self, directory: &Path) -> Result<bool> {
        let (Some(parent), Some(name)) = (directory.parent(), directory.file_name()) else {
            return Err(Error::because("remove", directory.display(), "it has no parent directory"));
        };
        match beneath::open_directory(parent) {
            Ok(parent) => beneath::remove_tree(parent.as_fd(), Path::new(name)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn copy_tree(&self, from: &Path, to: &Path) -> Result<()> {
        crate::copy::copy_tree(from, to)
    }

    fn clone_tree(&self, from: &Path, to: &Path) -> Result<()> {
        crate::copy::clone_tree(from, to)
    }

    fn make_image(&self, file: &Path, size: u64) -> Result<()> {
        let make = || {
            let open = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(file)?;
            open.set_len(size).and_then(|()| open.sync_all()).inspect_err(|_| {
                // A file of the wrong size must not be found at the next try.
                let _ = std::fs::remove_file(file);
            })
        };
        make().context("make", file.display())?;
        sync_parent(file)
    }

    fn allocate(&self, file: &Path, size: u64) -> Result<()> {
        let open = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(file)
            .context("make", file.display())?;
        let set_aside = || {
            if open.metadata()?.len() == 0 {
                write_in_place(&open)?;
            }
            // Extents no larger than needed: one is given back only when all of it is free, so a small one that is
            // written anew, or zeroed by the kernel, does not keep a large one.
            let piece = (size / PIECES).next_multiple_of(SMALLEST_PIECE).clamp(SMALLEST_PIECE, LARGEST_PIECE);
            let mut at = 0;
            while at < size {
                let length = piece.min(size - at);
                rustix::fs::fallocate(&open, FallocateFlags::empty(), at, length)?;
                at += length;
            }
            Ok::<_, io::Error>(())
        };
        set_aside().context("set space aside for", file.display())
    }

    fn cut(&self, file: &Path, size: u64) -> Result<()> {
        match self.length(file)? {
            Some(length) if length > size => OpenOptions::new()
                .write(true)
                .open(file)
                .and_then(|open| open.set_len(size).and_then(|()| open.sync_all()))
                .context("cut", file.display()),
            _ => Ok(()),
        }
    }

    fn length(&self, file: &Path) -> Result<Option<u64>> {
        match file.symlink_metadata() {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).context("look at", file.display()),
        }
    }

    fn space(&self, path: &Path) -> Result<Space> {
        let StatVfs { f_frsize, f_blocks, f_bavail, f_files, f_ffree, .. } =
            rustix::fs::statvfs(path).context("ask for the free space of", path.display())?;
        Ok(Space {
            size: f_blocks.saturating_mul(f_frsize),
            available: f_bavail.saturating_mul(f_frsize),
            inodes: f_files,
            inodes_free: f_ffree,
        })
    }
}

/// What btrfs keeps in its tree, beside the name, once it is written out: bytes.
const INLINE: usize = 2048;

/// Replaces a file's content as a whole, once `settle` has done with the draft what it must.
fn replace(file: &Path, content: &[u8], mode: u32, settle: impl Fn(&File) -> io::Result<()>) -> Result<()> {
    let draft = draft_of(file);
    let write = || {
        let mut open = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&draft)?;
        open.set_permissions(Permissions::from_mode(mode))?;
        open.write_all(content)?;
        settle(&open)?;
        std::fs::rename(&draft, file)
    };
    write().context("write", file.display())
}

/// Writes what a file holds to its place, without flushing the device: whatever flushes it later makes it durable.
fn write_out(open: &File) -> io::Result<()> {
    let flags =
        libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: the descriptor is open; the call touches no memory of ours.
    match unsafe { libc::sync_file_range(open.as_raw_fd(), 0, 0, flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Removes a file; `false` when there was none.
fn unlink(path: &Path) -> Result<bool> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        // A name that is too long for a file is none of a file either.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidFilename) => {
            Ok(false)
        }
        Err(error) => Err(error).context("remove", path.display()),
    }
}

/// Makes a directory; `false` when it is there already.
fn make_one(directory: &Path, mode: u32) -> io::Result<bool> {
    match DirBuilder::new().mode(mode).create(directory) {
        Ok(()) => {
            std::fs::set_permissions(directory, Permissions::from_mode(mode))?;
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            match directory.symlink_metadata()?.is_dir() {
                true => Ok(false),
                false => Err(io::ErrorKind::NotADirectory.into()),
            }
        }
        Err(error) => Err(error),
    }
}

/// Into how many pieces the space of a file is cut, and how small and large they may be, in bytes.
const PIECES: u64 = 4096;
const SMALLEST_PIECE: u64 = 1 << 20;
const LARGEST_PIECE: u64 = 64 << 20;

/// Turns copying on write off, where the file system copies. The file is empty: later there would be no way to.
fn write_in_place(open: &File) -> io::Result<()> {
    match rustix::fs::ioctl_getflags(open) {
        Ok(flags) if flags.contains(IFlags::NOCOW) => Ok(()),
        Ok(flags) => match rustix::fs::ioctl_setflags(open, flags | IFlags::NOCOW) {
            // A file system that never copies.
            Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOTTY) => Ok(()),
            other => Ok(other?),
        },
        Err(Errno::NOTTY | Errno::OPNOTSUPP) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Makes the entry `path` of its directory survive power loss.
fn sync_parent(path: &Path) -> Result<()> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(parent).and_then(|directory| directory.sync_all()).context("sync", parent.display())
}
