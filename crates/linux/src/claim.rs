//! Claims: one holder of a file or of a mounted file system at a time, on the whole machine.

use std::{fmt, os::fd::OwnedFd, path::Path};

use rustix::{
    fs::{FlockOperation, Mode, OFlags, XattrFlags, flock, fsetxattr},
    io::Errno,
};

use crate::{Kernel, Result, error::Context};

/// Where a holder notes who it is.
const HOLDER: &str = "user.orlop.holder";
/// Nobody says more about itself.
const LONGEST_HOLDER: usize = 1024;

/// Something is ours alone until this is dropped, or the process ends in whatever way.
pub struct Claim {
    _held: Box<dyn Send + Sync>,
}

impl Claim {
    /// A claim that lasts as long as what is given.
    pub fn new(held: impl Send + Sync + 'static) -> Self {
        Self { _held: Box::new(held) }
    }
}

impl fmt::Debug for Claim {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Claim")
    }
}

/// What claiming came to.
#[derive(Debug)]
pub enum Claimed {
    /// It is ours.
    Ours(Claim),
    /// Somebody else has it.
    Theirs {
        /// Who, in the holder's own words.
        holder: Option<String>,
    },
}

/// Claiming things among the processes of a machine.
pub trait Claims {
    /// Claims the file or directory at `path`: the same one by another name, through another mount or in another mount
    /// namespace is claimed with it. A second claim is refused, also to the process that has the first. A claimed
    /// directory keeps its file system from being unmounted.
    ///
    /// # Errors
    /// `NotFound`, or when it can't be opened.
    fn claim(&self, path: &Path) -> Result<Claimed>;

    /// Notes at `path` who holds it, for those who are refused.
    ///
    /// # Errors
    /// When its file system keeps no such notes.
    fn sign(&self, path: &Path, holder: &str) -> Result<()>;
}

struct Held(OwnedFd);

/// A child process that has yet to exec holds the file as well: closing it alone would not free the lock.
impl Drop for Held {
    fn drop(&mut self) {
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

impl Claims for Kernel {
    fn claim(&self, path: &Path) -> Result<Claimed> {
        let open = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .context("open", path.display())?;
        match flock(&open, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Claimed::Ours(Claim::new(Held(open)))),
            Err(Errno::WOULDBLOCK) => {
                let mut words = vec![0; LONGEST_HOLDER];
                // One that signed nothing stays unnamed.
                let length = rustix::fs::fgetxattr(&open, HOLDER, &mut words[..]).unwrap_or(0);
                let holder = String::from_utf8_lossy(&words[..length]).into_owned();
                Ok(Claimed::Theirs { holder: Some(holder).filter(|holder| !holder.is_empty()) })
            }
            Err(error) => Err(error).context("claim", path.display()),
        }
    }

    fn sign(&self, path: &Path, holder: &str) -> Result<()> {
        let sign = || {
            let open = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
            let words = &holder.as_bytes()[..holder.len().min(LONGEST_HOLDER)];
            fsetxattr(&open, HOLDER, words, XattrFlags::empty())
        };
        sign().context("note the holder of", path.display())
    }
}
