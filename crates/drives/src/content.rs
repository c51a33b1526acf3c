//! What a new volume is filled with: a volume as it is at this moment, or a snapshot.

use std::path::PathBuf;

use linux::Host;

use crate::{
    AccessType, BackendKind, DriveId, FILESYSTEM, Origin, SourceError, backend::Copies, layout::image_in,
    plan::Content, state::State,
};

/// A source that can be copied.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) content: Content,
    /// Bytes that a volume needs to take it.
    pub(crate) least: u64,
    pub(crate) access: AccessType,
    pub(crate) backend: BackendKind,
    /// The drive that the copy has to lie on: a volume in use is frozen, which its own drive alone can do.
    pub(crate) drive: Option<DriveId>,
    /// The type of the file system that its blocks hold, if they do and it was named.
    pub(crate) filesystem: Option<String>,
}

/// The device through which somebody may be writing what is to be copied as it stands.
pub(crate) fn user(host: &dyn Host, source: &Found) -> linux::Result<Option<PathBuf>> {
    match &source.content {
        Content::Still { directory } => {
            Ok(host.loops_of(&image_in(directory))?.pop().map(|user| user.device))
        }
        Content::Volume { .. } | Content::Blocks { .. } => Ok(None),
    }
}

/// Looks a source up, as it is in memory now.
pub(crate) fn find(state: &State, origin: &Origin) -> Result<Found, SourceError> {
    let id = origin.id();
    if state.drive(&id.drive).is_none() && state.knows(&id.drive) {
        return Err(SourceError::NoDrive { id: id.clone(), reason: state.why_not(&id.drive) });
    }
    let is_snapshot = matches!(origin, Origin::Snapshot(_));
    let (serving, entry) = state
        .entry(id)
        .filter(|(_, entry)| entry.record.is_snapshot() == is_snapshot)
        .ok_or_else(|| SourceError::NotFound(id.clone()))?;
    if entry.busy || !entry.live() {
        return Err(SourceError::Busy(id.clone()));
    }
    if let Some(reason) = entry.unfit.clone() {
        return Err(SourceError::NoDrive { id: id.clone(), reason });
    }
    let (backend, record) = (serving.site.backend, &entry.record);
    // The bytes of a block volume are not frozen: its old bytes would go on counting for it for good. They are copied
    // while nobody has the device.
    let btrfs = record.parameters.get(FILESYSTEM).is_some_and(|own| own == "btrfs");
    let key = record.key.clone();
    match backend.copies() {
        // The kernel takes two file systems of one identity for one, and btrfs loses data then.
        Copies::Blocks if btrfs => return Err(SourceError::OwnBtrfs { id: id.clone() }),
        Copies::Blocks => {
            return Ok(Found {
                least: record.restore_size.unwrap_or(record.size),
                access: record.access,
                backend: backend.kind(),
                drive: Some(serving.id.clone()),
                filesystem: record.parameters.get(FILESYSTEM).cloned(),
                content: Content::Blocks { key },
            });
        }
        Copies::None => return Err(SourceError::Unserved { id: id.clone(), backend: backend.kind() }),
        Copies::Files => {}
    }
    let still = is_snapshot || record.is_block();
    Ok(Found {
        least: record.restore_size.unwrap_or(record.size),
        access: record.access,
        backend: backend.kind(),
        drive: (!still).then(|| serving.id.clone()),
        filesystem: None,
        content: match still {
            true => Content::Still { directory: serving.site.layout.volume(&key) },
            false => Content::Volume { key },
        },
    })
}
