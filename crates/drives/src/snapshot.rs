//! Making snapshots. A snapshot is a full copy that is kept like a volume and never mounted: with simple quotas, shared
//! extents would go on counting for the volume that wrote them, which could then neither be filled with its own data
//! nor be deleted with its space given back.

use std::sync::Arc;

use crate::{
    FILESYSTEM, Origin, Snapshot, SnapshotError, SourceError, VolumeId,
    allocate::{SMALLEST, whole},
    change::{check_name, free_key, overflows},
    content,
    drives::Inner,
    plan::with_headroom,
    record::{Phase, VolumeRecord},
    reservation::{Intended, Reservation},
    state::{Entry, State},
};

/// Takes a snapshot, or finds the one of that name.
pub(crate) fn create(inner: &Arc<Inner>, source: &VolumeId, name: &str) -> Result<Snapshot, SnapshotError> {
    check_name(name).map_err(SnapshotError::Refused)?;
    let origin = Origin::Volume(source.clone());
    let failed = |error| SnapshotError::Drive { id: source.clone(), name: name.to_owned(), error };
    let (site, record, found) = {
        let state = inner.state.lock();
        if let Some(existing) = existing(&state, source, name)? {
            return Ok(existing);
        }
        let found = content::find(&state, &origin)?;
        let (serving, entry) = state.entry(source).ok_or_else(|| SnapshotError::Busy(name.to_owned()))?;
        (serving.site.clone(), entry.record.clone(), found)
    };
    if let Some(device) = content::user(inner.host.as_ref(), &found).map_err(failed)? {
        return Err(SourceError::InUse { id: source.clone(), device }.into());
    }
    // What is written between this and the moment of the snapshot has to fit the headroom, or the caller tries again.
    let size = size_of(site.copied(&record).map_err(failed)?);
    let intended = {
        let mut state = inner.state.lock();
        if let Some(existing) = existing(&state, source, name)? {
            return Ok(existing);
        }
        reserve(&mut state, source, name, size)?
    };
    let id = intended.id.clone();
    Reservation::new(inner.clone(), intended).make().map_err(|error| match overflows(&error) {
        true => SnapshotError::Overflows { id: source.clone(), size },
        false => failed(error),
    })?;
    let state = inner.state.lock();
    let made = state.entry(&id).and_then(|(serving, entry)| serving.snapshot(entry));
    tracing::info!(snapshot = %id, name, size, "snapshot taken");
    made.ok_or_else(|| SnapshotError::Busy(name.to_owned()))
}

/// What a snapshot counts: what its volume holds.
pub(crate) fn size_of(used: u64) -> u64 {
    whole(with_headroom(used)).unwrap_or(u64::MAX).max(SMALLEST)
}

/// The snapshot of that name, if it is what is asked for.
fn existing(state: &State, source: &VolumeId, name: &str) -> Result<Option<Snapshot>, SnapshotError> {
    let Some((serving, entry)) = state.snapshot_by_name(name) else { return Ok(None) };
    if entry.busy || entry.record.phase == Phase::Deleting {
        return Err(SnapshotError::Busy(name.to_owned()));
    }
    match serving.snapshot(entry) {
        Some(snapshot) if snapshot.source != *source => {
            Err(SnapshotError::Incompatible { existing: Box::new(snapshot) })
        }
        // An earlier call stopped half-way and could not clean up: that is where this one goes on.
        _ if entry.record.phase == Phase::Creating => Ok(None),
        snapshot => Ok(snapshot),
    }
}

/// Puts the snapshot into memory, where it counts from now on.
pub(crate) fn reserve(
    state: &mut State,
    source: &VolumeId,
    name: &str,
    size: u64,
) -> Result<Intended, SnapshotError> {
    let busy = || SnapshotError::Busy(name.to_owned());
    let origin = Origin::Volume(source.clone());
    let found = content::find(state, &origin)?;
    let half_made = state.snapshot_by_name(name).map(|(_, entry)| entry.record.clone());
    let drive = state.drive_mut(&source.drive).ok_or_else(busy)?;
    let free = drive.free() + half_made.as_ref().map_or(0, |record| record.size);
    if size > free {
        return Err(SnapshotError::NoSpace { id: source.clone(), needed: size, free });
    }
    let fresh = half_made.is_none();
    let key = half_made.map_or_else(|| free_key(drive, name), |record| record.key);
    let record = VolumeRecord {
        access: found.access,
        quota: drive.site.backend.choose_key(&drive.quota_keys()),
        parameters: found.filesystem.iter().map(|own| (FILESYSTEM.to_owned(), own.clone())).collect(),
        origin: Some(origin),
        restore_size: Some(found.least),
        ..VolumeRecord::intended(key.clone(), name, size)
    };
    let site = drive.site.clone();
    let refused = |error| SnapshotError::Drive { id: source.clone(), name: name.to_owned(), error };
    drive.set_aside(&record).map_err(refused)?;
    // One that was half made is begun anew.
    drive.volumes.insert(key.clone(), Entry { busy: true, ..Entry::new(record.clone()) });
    if let Some(entry) = state.entry_mut(source) {
        entry.readers += 1;
    }
    let id = VolumeId { drive: source.drive.clone(), key };
    Ok(Intended { id, site, record, content: Some(found.content), fresh })
}
