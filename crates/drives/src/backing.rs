//! The files behind drives: one that was deleted or cut while its drive is in use is noticed before more is put on it. The
//! kernel goes on serving it until its loop device is detached, so that nothing else would tell.

use std::{sync::Weak, time::Duration};

use linux::Host;
use tokio::{task::JoinSet, time::sleep};

use crate::{
    DriveId, Source,
    drives::Inner,
    state::{Found, Slot},
    work::Pace,
};

/// How often they are looked at, besides before each new volume.
const PAUSE: Duration = Duration::from_secs(30);

/// Looks at them as long as the drives are open.
pub(crate) async fn watch(inner: Weak<Inner>) {
    loop {
        sleep(PAUSE).await;
        let Some(open) = inner.upgrade() else { return };
        let mut looks = JoinSet::new();
        for id in drives(&open) {
            let open = open.clone();
            looks.spawn(async move {
                let drive = id.clone();
                let look = open.on(&id, Pace::Quick, move |inner| is_gone(inner, &drive)).await;
                if let Err(error) = look {
                    tracing::warn!(drive = %id, %error, "the file behind a drive could not be looked at");
                }
            });
        }
        while looks.join_next().await.is_some() {}
    }
}

/// The drives that files are behind.
fn drives(inner: &Inner) -> Vec<DriveId> {
    let state = inner.state.lock();
    let in_file =
        |slot: &&Slot| matches!((&slot.source, &slot.found), (Source::LoopFile { .. }, Found::Serving(_)));
    state.slots.iter().filter(in_file).filter_map(|slot| slot.found.id().cloned()).collect()
}

/// Notes of a drive what became of the file behind it, and tells whether that is gone. Blocks.
pub(crate) fn is_gone(inner: &Inner, id: &DriveId) -> bool {
    let behind = inner.state.lock().slots.iter().find_map(|slot| match (&slot.source, &slot.found) {
        (Source::LoopFile { path, .. }, Found::Serving(drive)) if drive.id == *id => {
            Some((path.clone(), drive.size))
        }
        _ => None,
    });
    let Some((path, size)) = behind else { return false };
    let gone = match inner.host.length(&path) {
        Ok(None) => Some(format!("its file {} was deleted or moved", path.display())),
        Ok(Some(length)) if length < size => {
            Some(format!("its file {} was cut to {length} bytes", path.display()))
        }
        Ok(Some(_)) => None,
        // It can't be told; the drive itself will.
        Err(_) => return false,
    };
    let gone = gone.map(String::into_boxed_str);
    let is_gone = gone.is_some();
    let mut state = inner.state.lock();
    if let Some(drive) = state.drive_mut(id).filter(|drive| drive.gone != gone) {
        if let Some(reason) = &gone {
            tracing::error!(drive = %id, reason, "nothing more is put on a drive");
        }
        drive.gone = gone;
        drop(state);
        inner.notify();
    }
    is_gone
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
