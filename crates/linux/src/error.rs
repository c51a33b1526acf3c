//! The one error of this crate: what was tried, on what, and what the kernel said.

use std::{fmt, io};

use rustix::io::Errno;

/// A request that the kernel (or a program) refused.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {object}: {}", in_words(source))]
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

    /// The same, for another who waited for the same thing.
    pub fn again(&self) -> Self {
        let source = match self.source.raw_os_error() {
            Some(number) => io::Error::from_raw_os_error(number),
            None => io::Error::new(self.source.kind(), self.source.to_string()),
        };
        Self { action: self.action, object: self.object.clone(), source }
    }

    /// The kernel's error number, where one is behind this.
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }

    /// In words, when the kernel says of a path that nothing can be there.
    pub fn unusable_path(&self) -> Option<&'static str> {
        match Errno::from_raw_os_error(self.errno()?) {
            Errno::NOTDIR => Some("a part of it is no directory"),
            Errno::LOOP => {
                Some("a part of it is a symbolic link that leads nowhere, or came there meanwhile")
            }
            Errno::NAMETOOLONG => Some("a part of it is longer than 255 bytes, or all of it than 4095"),
            _ => None,
        }
    }
}

/// What an error of the kernel means, for people: the number is left out, and what only a programmer would understand is
/// said in other words.
pub fn in_words(error: &io::Error) -> String {
    let words = match error.raw_os_error() {
        Some(libc::EXDEV) => "it leads to another file system or out of its directory",
        Some(libc::ELOOP) => "a symbolic link is in the way",
        Some(libc::EBUSY) => "it is in use or mounted",
        Some(libc::EDQUOT) => "its quota is used up",
        Some(libc::ENOSPC) => "no space is left on its file system",
        Some(libc::EFBIG) => "its file system has no files that large",
        Some(libc::EROFS) => "its file system is read-only",
        Some(libc::EIO) => "its drive can't be read or written, see the kernel's log",
        Some(libc::ENAMETOOLONG) => "the name or path is too long for the file system",
        Some(libc::ENOTEMPTY) => "the directory is not empty",
        Some(libc::ENODEV | libc::ENXIO) => "there is no such device",
        Some(libc::EINVAL) => "the kernel takes it for invalid",
        Some(libc::EMFILE | libc::ENFILE) => "too many files are open",
        Some(libc::ESTALE) => "it was removed meanwhile",
        _ => "",
    };
    if !words.is_empty() {
        return words.to_owned();
    }
    let text = error.to_string();
    match text.split_once(" (os error ") {
        // A file system may have said more.
        Some((words, rest)) => format!("{words}{}", rest.split_once(')').map_or("", |(_, more)| more)),
        None => text,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_number_reaches_people() {
        for number in 1..134 {
            let text = in_words(&io::Error::from_raw_os_error(number));
            assert!(!text.is_empty() && !text.contains("os error"), "{number}: {text}");
        }
        let failed = Error::new("open", "/a", io::Error::from_raw_os_error(libc::EXDEV));
        assert_eq!(
            failed.to_string(),
            "cannot open /a: it leads to another file system or out of its directory"
        );
        assert_eq!(in_words(&io::Error::other("it burns")), "it burns");
    }
}
