//! Kernel descriptors that the async runtime waits for.

use std::{io, os::fd::OwnedFd};

use tokio::io::unix::AsyncFd;

/// Registers a descriptor that we own: it stays open and the same for as long as it is registered.
#[expect(deprecated, reason = "the safe constructor is unsound only for types that change their descriptor")]
pub(crate) fn register(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(descriptor)
}
