//! Which drive was last seen at which source. Not the truth about anything: it only tells a drive that is missing from
//! a source that never held one, so that nothing is formatted in its place.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use linux::{Host, Result};
use serde::{Deserialize, Serialize};

use crate::{
    DriveId, Source,
    record::{FORMAT, parse, render},
};

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Sighting {
    format: u32,
    source: Source,
}

fn file(root: &Path, id: &DriveId) -> PathBuf {
    root.join("expected").join(format!("{id}.json"))
}

/// Remembers that the drive was at this source.
pub(crate) fn remember(host: &dyn Host, root: &Path, id: &DriveId, source: &Source) -> Result<()> {
    let bytes = render(&Sighting { format: FORMAT, source: source.clone() });
    let file = file(root, id);
    if host.read(&file)?.as_deref() == Some(&bytes) {
        return Ok(());
    }
    host.make_directory(&root.join("expected"), 0o700)?;
    host.write_durable(&file, &bytes, 0o600)
}

/// Forgets the drive.
pub(crate) fn forget(host: &dyn Host, root: &Path, id: &DriveId) -> Result<()> {
    host.remove_file(&names_file(root, id))?;
    host.remove_file(&file(root, id)).map(drop)
}

/// Names of the volumes on a drive, as they were not long ago: should the drive be away, none of them is made again
/// elsewhere.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Names {
    format: u32,
    volumes: BTreeSet<String>,
}

fn names_file(root: &Path, id: &DriveId) -> PathBuf {
    root.join("expected").join(format!("{id}.volumes"))
}

/// Remembers the names of the volumes on a drive.
pub(crate) fn remember_names(
    host: &dyn Host,
    root: &Path,
    id: &DriveId,
    volumes: BTreeSet<String>,
) -> Result<()> {
    let bytes = render(&Names { format: FORMAT, volumes });
    let file = names_file(root, id);
    if host.read(&file)?.as_deref() == Some(&bytes) {
        return Ok(());
    }
    host.make_directory(&root.join("expected"), 0o700)?;
    host.write_durable(&file, &bytes, 0o600)
}

/// The names that are remembered. What can't be read is left out: it is only a memory.
pub(crate) fn names(host: &dyn Host, root: &Path, id: &DriveId) -> BTreeSet<String> {
    match host.read(&names_file(root, id)) {
        Ok(Some(bytes)) => parse::<Names>(&bytes).unwrap_or_default().volumes,
        _ => BTreeSet::new(),
    }
}

/// All drives remembered. What can't be read is left out: it is only a memory.
pub(crate) fn all(host: &dyn Host, root: &Path) -> Result<Vec<(DriveId, Source)>> {
    let mut sightings = Vec::new();
    for name in host.list(&root.join("expected"))? {
        let Some(id) =
            name.to_str().and_then(|name| name.strip_suffix(".json")).filter(|id| !id.starts_with('.'))
        else {
            continue;
        };
        let id = DriveId(id.to_owned());
        if let Some(Ok(sighting)) = host.read(&file(root, &id))?.map(|bytes| parse::<Sighting>(&bytes)) {
            sightings.push((id, sighting.source));
        }
    }
    Ok(sightings)
}
