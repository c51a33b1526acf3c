//! Drives whose devices failed: no volume is put on them while another drive has room, so nothing else would ever find
//! out that they are well again.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{sleep, timeout},
};

use crate::{DriveId, drives::Inner, execute::Site, state::Serving};

/// What comes before each try; the last one comes again and again. One try of a drive is under way at a time: it may
/// never end.
const PAUSES: [Duration; 3] = [Duration::from_secs(10), Duration::from_secs(60), Duration::from_secs(300)];

/// How long a small file may take to be written, after something else has taken long already.
const TRIAL: Duration = if cfg!(test) { Duration::from_millis(50) } else { Duration::from_secs(10) };

/// Why a drive fails that does not answer.
const HANGS: &str =
    "its device or file system hangs: not even a small file could be written; see the kernel's log";

/// Tries a drive on which something has not ended for long: there may just be much to do. One that hangs is marked by
/// that, until it answers.
pub(crate) async fn suspect(inner: Weak<Inner>, id: DriveId) {
    let Some(open) = inner.upgrade() else { return };
    let site = {
        let mut state = open.state.lock();
        let Some(drive) = state.drive_mut(&id).filter(|drive| !drive.tried) else { return };
        drive.tried = true;
        drive.site.clone()
    };
    drop(open);
    let mut trial = spawn_blocking(move || site.try_writing());
    let outcome = match timeout(TRIAL, &mut trial).await {
        Ok(outcome) => outcome,
        Err(_) => {
            let Some(open) = inner.upgrade() else { return };
            if let Some(drive) = open.state.lock().drive_mut(&id) {
                drive.failing = Some(HANGS.to_owned());
                tracing::warn!(drive = %id, "{HANGS}");
            }
            open.notify();
            drop(open);
            trial.await
        }
    };
    let Some(open) = inner.upgrade() else { return };
    let mut state = open.state.lock();
    match &outcome {
        Ok(outcome) => state.changed(&id, outcome),
        Err(error) => tracing::error!(drive = %id, %error, "trying a drive broke off"),
    }
    if let Some(drive) = state.drive_mut(&id) {
        drive.tried = false;
    }
    drop(state);
    open.notify();
}

/// Tries every drive that fails, from then on until it takes writes, as long as the drives are open.
pub(crate) async fn watch(inner: Weak<Inner>, mut changed: watch::Receiver<u64>) {
    while changed.changed().await.is_ok() {
        let Some(open) = inner.upgrade() else { return };
        for (id, site) in begun(&open) {
            tokio::spawn(until_well(inner.clone(), id, site));
        }
    }
}

/// The drives that fail and that nobody tries yet.
fn begun(inner: &Inner) -> Vec<(DriveId, Site)> {
    let mut state = inner.state.lock();
    let begun = state.serving_mut().filter(|drive| drive.failing.is_some() && !drive.tried);
    let begin = |drive: &mut Serving| {
        drive.tried = true;
        (drive.id.clone(), drive.site.clone())
    };
    begun.map(begin).collect()
}

async fn until_well(inner: Weak<Inner>, id: DriveId, site: Site) {
    for pause in PAUSES.into_iter().chain(std::iter::repeat(PAUSES[PAUSES.len() - 1])) {
        sleep(pause).await;
        let is_open = |inner: Arc<Inner>| inner.state.lock().drive(&id).is_some();
        if !inner.upgrade().is_some_and(is_open) {
            return;
        }
        let site = site.clone();
        let Ok(outcome) = spawn_blocking(move || site.try_writing()).await else { return };
        let Some(inner) = inner.upgrade() else { return };
        let mut state = inner.state.lock();
        state.changed(&id, &outcome);
        let Some(drive) = state.drive_mut(&id) else { return };
        if drive.failing.is_none() {
            drive.tried = false;
            drop(state);
            tracing::info!(drive = %id, "a drive that failed takes writes again");
            inner.notify();
            return;
        }
    }
}
