//! Programs, for what has no system call: `mkfs.xfs`, `mkfs.btrfs`, `xfs_growfs`.

use std::{ffi::OsStr, time::Duration};

use crate::{Kernel, Result};

/// What a program said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// Standard output, at most 64 KiB of it.
    pub stdout: String,
    /// Standard error, at most 64 KiB of it.
    pub stderr: String,
}

/// Running programs.
pub trait Programs {
    /// Runs a program to its end and returns what it printed.
    ///
    /// # Errors
    /// When it can't be started (`NotFound`: not installed), fails (the message ends with what it wrote to standard
    /// error), or is not done by the deadline (`TimedOut`; it is killed).
    fn run(&self, program: &str, arguments: &[&OsStr], deadline: Duration) -> Result<Output>;
}
