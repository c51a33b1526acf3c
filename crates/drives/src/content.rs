//! What a new volume is filled with: a volume as it is at this moment, or a snapshot.

use crate::{BackendKind, DriveId, Origin, SourceError, plan::Content, state::State};

/// A source that can be copied.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) content: Content,
    /// Bytes that a volume needs to take it.
    pub(crate) least: u64,
    pub(crate) backend: BackendKind,
    /// The drive that the copy has to lie on: a volume in use is frozen, which its own drive alone can do.
    pub(crate) drive: Option<DriveId>,
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
    if entry.lost {
        let reason = "its directory is gone; restore the drive from a backup".to_owned();
        return Err(SourceError::NoDrive { id: id.clone(), reason });
    }
    let backend = serving.site.backend;
    if !backend.copies() {
        return Err(SourceError::Unserved { id: id.clone(), backend: backend.kind() });
    }
    let (record, key) = (&entry.record, entry.record.key.clone());
    Ok(match origin {
        Origin::Snapshot(_) => Found {
            content: Content::Snapshot { directory: serving.site.layout.volume(&key) },
            least: record.restore_size.unwrap_or(record.size),
            backend: backend.kind(),
            drive: None,
        },
        Origin::Volume(_) => Found {
            content: Content::Volume { key },
            least: record.size,
            backend: backend.kind(),
            drive: Some(serving.id.clone()),
        },
    })
}
