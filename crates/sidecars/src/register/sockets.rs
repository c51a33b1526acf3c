//! The registration sockets that exist, and when they change.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

/// How deep sockets are looked for, and how many entries are looked at.
const DEPTH: usize = 3;
const ENTRIES: usize = 4096;

/// Tells a socket from one that was made anew under its name. Ordered by age, the youngest last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Identity {
    seconds: i64,
    nanoseconds: i64,
    device: u64,
    inode: u64,
}

/// A watched directory of sockets.
pub(super) struct Sockets {
    directory: PathBuf,
    inotify: AsyncFd<OwnedFd>,
}

impl Sockets {
    /// Creates the directory, mode 0750 as kubelet does, if it is not there.
    #[expect(deprecated, reason = "sound for an OwnedFd, which keeps its descriptor until it is dropped")]
    pub(super) fn open(directory: &Path) -> io::Result<Sockets> {
        DirBuilder::new().recursive(true).mode(0o750).create(directory)?;
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        Ok(Sockets { directory: directory.to_owned(), inotify: AsyncFd::new(inotify)? })
    }

    /// The sockets that exist now. Directories are watched before they are read, so nothing falls in between.
    pub(super) async fn scan(&self) -> io::Result<BTreeMap<PathBuf, Identity>> {
        let (directory, inotify) = (self.directory.clone(), self.inotify.get_ref().try_clone()?);
        tokio::task::spawn_blocking(move || {
            let mut found = BTreeMap::new();
            let mut entries = ENTRIES;
            look(&inotify, &directory, DEPTH, &mut entries, &mut found)?;
            Ok(found)
        })
        .await
        .map_err(io::Error::other)?
    }

    /// Waits until something was created or removed.
    pub(super) async fn changed(&mut self) -> io::Result<()> {
        let mut ready = self.inotify.readable().await?;
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = Reader::new(self.inotify.get_ref(), &mut buffer);
        // What happened does not matter: everything is looked at anyway.
        loop {
            match events.next() {
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        ready.clear_ready();
        Ok(())
    }
}

fn look(
    inotify: &OwnedFd,
    directory: &Path,
    depth: usize,
    entries: &mut usize,
    found: &mut BTreeMap<PathBuf, Identity>,
) -> io::Result<()> {
    let happenings = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVE | WatchFlags::ONLYDIR;
    inotify::add_watch(inotify, directory, happenings)?;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        *entries = entries.saturating_sub(1);
        if *entries == 0 {
            tracing::warn!(directory = %directory.display(), "too many files to look for sockets among them all");
            return Ok(());
        }
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        // What is gone by now will be announced.
        let Ok(metadata) = fs::symlink_metadata(entry.path()) else { continue };
        if metadata.file_type().is_socket() {
            // Unlike the change time, the modification time stays when the mode is changed after binding.
            let (seconds, nanoseconds) = (metadata.mtime(), metadata.mtime_nsec());
            let identity = Identity { seconds, nanoseconds, device: metadata.dev(), inode: metadata.ino() };
            found.insert(entry.path(), identity);
        } else if metadata.is_dir() && depth > 1 {
            match look(inotify, &entry.path(), depth - 1, entries, found) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                result => result?,
            }
        }
    }
    Ok(())
}
