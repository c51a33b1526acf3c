//! The store as a whole: against a model, on failing disks, between processes.
#![allow(clippy::unwrap_used, reason = "a failed expectation fails the test")]

mod disk;
mod faults;
mod format;
mod model;
mod process;
mod rot;
mod walk;
mod watching;

use bytes::Bytes;
use object_store::{Encode, Key, OpenError, Options, Store};

fn pod(name: &str) -> Key {
    Key::new("pods", "default", name)
}

/// An encoder that puts the revision before `value`.
fn stamped(value: impl Into<String>) -> Encode {
    let value = value.into();
    Box::new(move |revision| Bytes::from(format!("{revision}:{value}")))
}

fn run<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn open(disk: &disk::Disk, options: Options) -> Result<Store, OpenError> {
    let disk = disk.clone();
    Store::open_backend(move || disk.open(), options)
}

/// Waits until `holds`, for a minute.
async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let since = std::time::Instant::now();
    while !holds() {
        assert!(since.elapsed().as_secs() < 60, "{what}");
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
}
