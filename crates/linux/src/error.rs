//! The one error of this crate: what was tried, on what, and what the kernel said.

use std::{fmt, io};

/// A request that the kernel (or a program) refused.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {object}: {source}")]
pub struct Error {
    action: &'static str,
    object: String,
    source: io::Error,
}

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `action` (an infinitive: "mount", "read") on `object`.
    pub fn new(action: &'static str, object: impl fmt::Display, source: impl Into<io::Error>) -> Self {
        Self { action, object: object.to_string(), source: source.into() }
    }

    /// An error that says in words what the kernel's number would not.
    pub fn because(action: &'static str, object: impl fmt::Display, why: impl Into<String>) -> Self {
        Self::new(action, object, io::Error::other(why.into()))
    }

    /// The kind, to decide on: `NotFound`, `AlreadyExists`, `TimedOut`, …
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }

    /// The kernel's error number, where one is behind this.
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }
}

/// Adds what was tried, and on what, to an error of the kernel.
pub(crate) trait Context<T> {
    fn context(self, action: &'static str, object: impl fmt::Display) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, action: &'static str, object: impl fmt::Display) -> Result<T> {
        self.map_err(|error| Error::new(action, object, error))
    }
}
