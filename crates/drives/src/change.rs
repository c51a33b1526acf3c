//! Making, growing and deleting volumes: reserve under the lock, carry the plan out without it, settle under it again.

use jiff::Timestamp;

use crate::{
    CreateError, CreateVolume, DeleteError, ExpandError, Volume, VolumeId,
    allocate::{choose, size_of},
    drives::Inner,
    execute::Site,
    plan::{self, Step},
    record::{FORMAT, Phase, VolumeRecord},
    staging::Shown,
    state::{Entry, State},
};

/// Makes a volume, or finds the one of that name.
pub(crate) fn create(inner: &Inner, request: &CreateVolume) -> Result<Volume, CreateError> {
    check_name(&request.name).map_err(CreateError::Refused)?;
    let size = size_of(request.required, request.limit).map_err(CreateError::OutOfRange)?;
    let (id, site, record) = {
        let mut state = inner.state.lock();
        if let Some(existing) = existing(&state, request)? {
            return Ok(existing);
        }
        reserve(&mut state, request, size)?
    };
    inner.notify();
    let made = site.execute(&plan::create(&record));
    let undone = match &made {
        Ok(()) => false,
        // Never announced, so it may go; what can't go now is done again by the next call or at the next start.
        Err(_) => site.observe(&record).and_then(|found| site.execute(&plan::delete(&record, found))).is_ok(),
    };
    let mut state = inner.state.lock();
    if undone {
        if let Some(drive) = state.drive_mut(&id.drive) {
            drive.volumes.remove(&id.key);
        }
    } else if let Some(entry) = state.entry_mut(&id) {
        entry.busy = false;
        if made.is_ok() {
            entry.record.phase = Phase::Ready;
        }
    }
    let volume = state.entry(&id).map(|(serving, entry)| serving.volume(entry));
    drop(state);
    inner.notify();
    match (made, volume) {
        (Ok(()), Some(volume)) => {
            tracing::info!(volume = %id, name = request.name, size, "volume created");
            Ok(volume)
        }
        (Ok(()), None) => Err(CreateError::Busy(request.name.clone())),
        (Err(error), _) => Err(CreateError::Drive { drive: id.drive, name: request.name.clone(), error }),
    }
}

/// The volume of that name, if it is what is asked for.
fn existing(state: &State, request: &CreateVolume) -> Result<Option<Volume>, CreateError> {
    let Some((serving, entry)) = state.by_name(&request.name) else { return Ok(None) };
    if entry.busy || entry.record.phase == Phase::Deleting {
        return Err(CreateError::Busy(request.name.clone()));
    }
    if entry.record.phase == Phase::Creating {
        // An earlier call stopped half-way and could not clean up: that is where this one goes on.
        return Ok(None);
    }
    let volume = serving.volume(entry);
    let why = if volume.size < request.required {
        format!("{} bytes are asked for now", request.required)
    } else if request.limit.is_some_and(|limit| volume.size > limit) {
        format!("at most {} bytes are asked for now", request.limit.unwrap_or_default())
    } else if request.backend.is_some_and(|backend| backend != volume.backend) {
        format!("its backend is {}", volume.backend)
    } else if volume.parameters != request.parameters {
        "its parameters differ".to_owned()
    } else {
        return Ok(Some(volume));
    };
    Err(CreateError::Incompatible { existing: Box::new(volume), why })
}

/// Puts the volume into memory, where its size counts from now on.
fn reserve(
    state: &mut State,
    request: &CreateVolume,
    size: u64,
) -> Result<(VolumeId, Site, VolumeRecord), CreateError> {
    let half_made = state
        .by_name(&request.name)
        .map(|(serving, entry)| VolumeId { drive: serving.id.clone(), key: entry.record.key.clone() });
    if let Some(id) = half_made
        && let Some(drive) = state.drive_mut(&id.drive)
        && let Some(entry) = drive.volumes.get_mut(&id.key)
    {
        if entry.record.size == size && entry.record.parameters == request.parameters {
            entry.busy = true;
            return Ok((id, drive.site.clone(), entry.record.clone()));
        }
        return Err(CreateError::Busy(request.name.clone()));
    }
    let id = choose(&state.candidates(), size, request.backend)?;
    let Some(drive) = state.drive_mut(&id) else { return Err(CreateError::Busy(request.name.clone())) };
    let key = match plain(&request.name) && !drive.volumes.contains_key(&request.name) {
        true => request.name.clone(),
        false => format!("volume-{}", uuid::Uuid::new_v4()),
    };
    let record = VolumeRecord {
        format: FORMAT,
        key: key.clone(),
        name: request.name.clone(),
        size,
        phase: Phase::Creating,
        created: Timestamp::now(),
        quota: drive.site.backend.choose_key(&drive.quota_keys()),
        parameters: request.parameters.clone(),
    };
    drive
        .volumes
        .insert(key.clone(), Entry { record: record.clone(), busy: true, doubtful: false, lost: false });
    Ok((VolumeId { drive: id, key }, drive.site.clone(), record))
}

fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > 128 {
        return Err(format!("a volume's name has 1 to 128 bytes, this one has {}", name.len()));
    }
    match name.chars().any(char::is_control) {
        true => Err("a volume's name has no control characters".to_owned()),
        false => Ok(()),
    }
}

/// Whether a name can be a directory's.
fn plain(name: &str) -> bool {
    name.len() <= 64
        && !name.starts_with(['.', '-'])
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// Deletes a volume that is mounted nowhere.
pub(crate) fn delete(inner: &Inner, id: &VolumeId) -> Result<(), DeleteError> {
    let failed = |error| DeleteError::Drive { id: id.clone(), error };
    let (site, record) = {
        let mut state = inner.state.lock();
        if state.drive(&id.drive).is_none() {
            return Err(DeleteError::NoDrive { id: id.clone(), drive: id.drive.clone() });
        }
        let Some((serving, entry)) = state.entry(id) else { return Ok(()) };
        if entry.busy {
            return Err(DeleteError::Busy(id.clone()));
        }
        let known = (serving.site.clone(), entry.record.clone());
        if let Some(entry) = state.entry_mut(id) {
            entry.busy = true;
        }
        known
    };
    let plan = || {
        let shown = Shown { id, layout: &site.layout };
        if let Some(at) = shown.mounted_at(&inner.host.mount_table().map_err(failed)?) {
            return Err(DeleteError::InUse { id: id.clone(), at });
        }
        Ok(plan::delete(&record, site.observe(&record).map_err(failed)?))
    };
    let steps = plan().inspect_err(|_| {
        if let Some(entry) = inner.state.lock().entry_mut(id) {
            entry.busy = false;
        }
    })?;
    settle(inner, id, &site, &steps).map_err(failed)
}

/// Carries out what a restart found to be removed.
pub(crate) fn remove(inner: &Inner, id: &VolumeId, steps: &[Step]) {
    let Some(site) = inner.state.lock().drive(&id.drive).map(|serving| serving.site.clone()) else { return };
    if let Err(error) = settle(inner, id, &site, steps) {
        tracing::warn!(volume = %id, %error, "a half-done volume could not be removed; deleting it tries again");
    }
}

/// Carries out a removal. From its first step on the volume is on its way out, whatever happens.
fn settle(inner: &Inner, id: &VolumeId, site: &Site, steps: &[Step]) -> linux::Result<()> {
    if let (Some(Step::Record(record)), Some(entry)) = (steps.first(), inner.state.lock().entry_mut(id)) {
        entry.record = record.clone();
    }
    let removed = site.execute(steps);
    let mut state = inner.state.lock();
    match &removed {
        Ok(()) => {
            if let Some(drive) = state.drive_mut(&id.drive) {
                drive.volumes.remove(&id.key);
            }
            tracing::info!(volume = %id, "volume deleted");
        }
        Err(_) => {
            if let Some(entry) = state.entry_mut(id) {
                entry.busy = false;
            }
        }
    }
    drop(state);
    inner.notify();
    removed
}

/// Grows a volume; the new size counts before it is given.
pub(crate) fn expand(
    inner: &Inner,
    id: &VolumeId,
    required: u64,
    limit: Option<u64>,
) -> Result<u64, ExpandError> {
    let size = size_of(required, limit).map_err(ExpandError::OutOfRange)?;
    let (site, record, size) = {
        let mut state = inner.state.lock();
        if state.drive(&id.drive).is_none() {
            return match state.knows(&id.drive) {
                true => {
                    Err(ExpandError::NoDrive { drive: id.drive.clone(), reason: state.why_not(&id.drive) })
                }
                false => Err(ExpandError::NotFound(id.clone())),
            };
        }
        let Some((serving, entry)) = state.entry(id) else { return Err(ExpandError::NotFound(id.clone())) };
        if entry.busy || !entry.live() || entry.lost {
            return Err(ExpandError::Busy(id.clone()));
        }
        let record = entry.record.clone();
        if record.size >= size && !entry.doubtful {
            return match limit.filter(|limit| record.size > *limit) {
                None => Ok(record.size),
                Some(limit) => Err(ExpandError::OutOfRange(format!(
                    "volume {id} has {} bytes already, more than {limit}; volumes don't shrink",
                    record.size
                ))),
            };
        }
        let size = size.max(record.size);
        let free = serving.free();
        if size - record.size > free {
            return Err(ExpandError::NoSpace { id: id.clone(), asked: size, free });
        }
        let site = serving.site.clone();
        if let Some(entry) = state.entry_mut(id) {
            entry.busy = true;
            entry.record.size = size;
        }
        (site, record, size)
    };
    inner.notify();
    let grown = site.execute(&plan::expand(&record, size));
    let back = grown.is_err() && site.execute(&plan::expand(&record, record.size)).is_ok();
    if let Some(entry) = inner.state.lock().entry_mut(id) {
        entry.busy = false;
        // Where not even the way back worked, the larger size counts until a further call or a restart settles it.
        entry.doubtful = grown.is_err() && !back;
        if back {
            entry.record.size = record.size;
        }
    }
    inner.notify();
    grown.map(|()| size).map_err(ExpandError::from)
}
