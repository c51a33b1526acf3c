//! The files behind drives: one that was deleted or cut while its drive is in use is noticed before more is put on it. The
//! kernel goes on serving it until its loop device is detached, so that nothing else would tell.

use std::{sync::Weak, time::Duration};

use linux::Host;
use tokio::{task::spawn_blocking, time::sleep};

use crate::{Source, drives::Inner, state::Found};

/// How often they are looked at, besides before each new volume.
const PAUSE: Duration = Duration::from_secs(30);

/// Looks at them as long as the drives are open.
pub(crate) async fn watch(inner: Weak<Inner>) {
    loop {
        sleep(PAUSE).await;
        let Some(open) = inner.upgrade() else { return };
        if let Err(error) = spawn_blocking(move || check(&open)).await {
            tracing::error!(%error, "the files behind drives could not be looked at");
        }
    }
}

/// Notes of each drive what became of the file behind it.
pub(crate) fn check(inner: &Inner) {
    let files: Vec<_> = {
        let state = inner.state.lock();
        let file = |slot: &crate::state::Slot| match (&slot.source, &slot.found) {
            (Source::LoopFile { path, .. }, Found::Serving(drive)) => {
                Some((path.clone(), drive.id.clone(), drive.size))
            }
            _ => None,
        };
        state.slots.iter().filter_map(file).collect()
    };
    for (path, id, size) in files {
        let gone = match inner.host.length(&path) {
            Ok(None) => Some(format!("its file {} was deleted or moved", path.display())),
            Ok(Some(length)) if length < size => {
                Some(format!("its file {} was cut to {length} bytes", path.display()))
            }
            Ok(Some(_)) => None,
            // It can't be told; the drive itself will.
            Err(_) => continue,
        };
        let gone = gone.map(String::into_boxed_str);
        let mut state = inner.state.lock();
        let Some(drive) = state.drive_mut(&id).filter(|drive| drive.gone != gone) else { continue };
        if let Some(reason) = &gone {
            tracing::error!(drive = %id, reason, "nothing more is put on a drive");
        }
        drive.gone = gone;
        drop(state);
        inner.notify();
    }
}

/// Detaches a file that is a drive's, also one that was deleted meanwhile. A device that is in use goes with its last
/// user.
pub(crate) fn detach(host: &dyn Host, source: &Source) -> linux::Result<()> {
    let Source::LoopFile { path, .. } = source else { return Ok(()) };
    let mut deleted = path.clone().into_os_string();
    deleted.push(" (deleted)");
    for name in [path.clone(), deleted.into()] {
        for found in host.loops_of(&name)?.into_iter().filter(|found| !found.leaving) {
            host.detach_loop(&found.device)?;
        }
    }
    Ok(())
}
