//! Unmounting what is busy for a moment only: a child process between fork and exec holds every file that is open in
//! this one.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use linux::{Host, Unmount};

const PAUSE: Duration = Duration::from_millis(20);
/// Two seconds: nobody but children of ours can have a drive that nothing uses.
const OF_DRIVE: usize = 100;
/// A fifth of a second: a volume may well be in use, and who asks comes again.
const OF_VOLUME: usize = 10;

/// Unmounts a drive.
pub(crate) fn unmount_drive(host: &dyn Host, mount: &Path) -> linux::Result<()> {
    patiently(OF_DRIVE, || host.unmount(mount, Unmount::Plain)).map(drop)
}

/// Unmounts a volume by what is given.
pub(crate) fn unmount_volume<T>(unmount: impl Fn() -> linux::Result<T>) -> linux::Result<T> {
    patiently(OF_VOLUME, unmount)
}

fn patiently<T>(attempts: usize, unmount: impl Fn() -> linux::Result<T>) -> linux::Result<T> {
    for _ in 0..attempts {
        match unmount() {
            Err(error) if error.kind() == ErrorKind::ResourceBusy => std::thread::sleep(PAUSE),
            result => return result,
        }
    }
    unmount()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn what_is_busy_for_a_moment_is_unmounted_and_what_stays_busy_is_told() {
        let busy = || linux::Error::new("unmount", "/mnt", std::io::Error::from(ErrorKind::ResourceBusy));
        for (moments, expected) in [(0, Ok(1)), (3, Ok(4)), (100, Err(OF_VOLUME + 1))] {
            let calls = Cell::new(0);
            let outcome = unmount_volume(|| {
                calls.set(calls.get() + 1);
                if calls.get() > moments { Ok(calls.get()) } else { Err(busy()) }
            });
            assert_eq!(outcome.map_err(|_| calls.get()), expected);
        }
    }
}
