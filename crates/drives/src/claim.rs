//! A drive serves one process at a time. Whoever serves it holds two claims: on the file, where the drive is one, before
//! that gets a loop device; and on the root of the mounted file system before anything on it is changed, whatever its
//! device is called and wherever else it is mounted. Both end with the process, in whatever way that ends.

use std::path::Path;

use linux::{BlockDevice, Claim, Claimed, Host};

/// How often, and how far apart, it is asked again: a child process that was just begun has what its parent has for a
/// moment, so that a holder that ended may seem to be there still. Two seconds in all.
const ATTEMPTS: u32 = 40;
const PAUSE: std::time::Duration = std::time::Duration::from_millis(50);

/// Whose something is.
pub(crate) enum Hold {
    Ours(Claim),
    /// Somebody else's: the words for it.
    Theirs(String),
}

/// Claims what is at `path`.
pub(crate) fn claim(host: &dyn Host, path: &Path) -> linux::Result<Hold> {
    let mut holder = None;
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            std::thread::sleep(PAUSE);
        }
        match host.claim(path)? {
            Claimed::Ours(claim) => return Ok(Hold::Ours(claim)),
            Claimed::Theirs { holder: named } => holder = named,
        }
    }
    let holder = holder.unwrap_or_else(|| "another process".to_owned());
    Ok(Hold::Theirs(format!(
        "it is held by {holder}; a drive serves one process at a time: end that one, and it is taken over here"
    )))
}

/// Notes for others who holds it: a process that mounts drives in `root`. That is for people only, so it may fail.
pub(crate) fn sign(host: &dyn Host, root: &Path, path: &Path) {
    if let Err(error) = host.sign(path, &name(root)) {
        tracing::debug!(%error, "nobody will be told who holds a drive");
    }
}

/// The file behind a loop device that was named as one, where it can be seen. (One that replaced it has no device.)
pub(crate) fn file_behind<'a>(host: &dyn Host, device: &'a BlockDevice) -> Option<&'a Path> {
    let file = device.backing_file.as_deref()?;
    host.loop_of(file).ok().flatten().map(|_| file)
}

/// This process, in words.
fn name(root: &Path) -> String {
    let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let mut words = std::env::args();
    let program = words.next().unwrap_or_default();
    let program = Path::new(&program).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let role = words.next().map(|role| format!(" {role}")).unwrap_or_default();
    format!(
        "process {} ({program}{role}) on {}, which mounts drives in {}",
        std::process::id(),
        machine.trim(),
        root.display()
    )
}
