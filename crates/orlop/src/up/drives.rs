//! Opening a node's drives, and making drives of those that were named for the first time.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use drives::{Drives, Force, Source};

/// Opens what the node has. A source that is no drive yet is formatted if it carries nothing, or if it is one of
/// `overwrite`; a refusal ends the start, because the user named the device and should know.
pub(super) async fn open(
    node: &str,
    root: PathBuf,
    sources: &[Source],
    overwrite: &[PathBuf],
) -> anyhow::Result<Drives> {
    let drives = Drives::open(Arc::new(linux::Kernel), root, sources.to_vec())
        .await
        .with_context(|| format!("opening the drives of node {node}"))?;
    for source in drives.uninitialised() {
        let force = match overwrite.iter().any(|path| path == source.path()) {
            true => Force::OverwriteFileSystem,
            false => Force::No,
        };
        let id = drives.initialise(source.clone(), None, force).await?;
        tracing::info!(node, drive = %id, source = %source, "made a new drive");
    }
    Ok(drives)
}
