//! Opening a node's drives, and making drives of those that were named for the first time.

use std::path::PathBuf;
use std::sync::Arc;

use super::Making;
use anyhow::Context;
use drives::{DriveState, Drives, Force, InitialiseError, Source};

/// Opens what the node has. A source that is no drive yet is formatted if it carries nothing, or if it may be
/// overwritten; a refusal ends the start, because the user named the device and should know.
pub(crate) async fn open(
    node: &str,
    root: PathBuf,
    sources: &[Source],
    making: Making<'_>,
) -> anyhow::Result<Drives> {
    let drives = Drives::open(Arc::new(linux::Kernel), root, sources.to_vec())
        .await
        .with_context(|| format!("opening the drives of node {node}"))?;
    // A drive that was here before and is gone fails alone; a source that never was a drive is a mistake.
    for drive in drives.drives() {
        if let (None, DriveState::Failed { reason }) = (&drive.id, &drive.state) {
            give_back(&drives).await;
            anyhow::bail!("{} can't be a drive: {reason}", drive.source);
        }
    }
    for source in drives.uninitialised() {
        let force = match making.overwrite.iter().any(|path| path == source.path()) {
            true => Force::OverwriteFileSystem,
            false => Force::No,
        };
        match drives.initialise(source.clone(), making.backend, force).await {
            Ok(id) => tracing::info!(node, drive = %id, source = %source, "made a new drive"),
            Err(refusal) => {
                let flag = format!("; if its content may go, name it with --overwrite-drive {source}");
                let hint =
                    if matches!(refusal, InitialiseError::Carries { .. }) { flag.as_str() } else { "" };
                give_back(&drives).await;
                anyhow::bail!("{refusal}{hint}");
            }
        }
    }
    Ok(drives)
}

/// Refuses a backend that no drive has: it is for drives that are made, and those that are there keep theirs.
pub(crate) fn check_backend<'a>(
    asked: Option<drives::BackendKind>,
    drives: impl IntoIterator<Item = &'a Drives>,
) -> anyhow::Result<()> {
    let Some(asked) = asked else { return Ok(()) };
    let all = drives.into_iter().flat_map(Drives::drives);
    let mut found: Vec<_> = all.map(|drive| drive.backend).collect();
    if found.contains(&Some(asked)) || found.contains(&None) {
        return Ok(());
    }
    found.sort_by_key(|kind| kind.map(drives::BackendKind::name));
    found.dedup();
    let names: Vec<_> = found.into_iter().flatten().map(drives::BackendKind::name).collect();
    anyhow::bail!(
        "--backend {}: the drives here are {} already and stay so; leave --backend out, or name a new drive as well",
        asked.name(),
        names.join(" and ")
    )
}

/// Unmounts the drives after a start was refused. Those whose volumes are in use stay mounted, as after any stop.
pub(crate) async fn give_back(drives: &Drives) {
    if let Err(error) = drives.close().await {
        tracing::info!(%error, "a drive stays mounted");
    }
}
