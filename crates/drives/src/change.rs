//! Making, growing and deleting volumes: reserve under the lock, carry the plan out without it, settle under it again.

use std::{collections::BTreeMap, sync::Arc};

use values::Bytes;

use crate::{
    AccessType, CreateError, CreateVolume, DeleteError, DriveId, ExpandError, FILESYSTEM, SourceError,
    Throttle, Volume, VolumeId,
    allocate::{SMALLEST, Wanted, choose, size_of, unable},
    backing,
    content::{self, Found},
    drives::Inner,
    execute::Site,
    plan::{self, Step},
    record::{Phase, VolumeRecord},
    reservation::{Busy, Intended, Reservation},
    staging::Shown,
    state::{Entry, Serving, State},
};

/// What a request to make a volume comes to.
pub(crate) enum Reserved {
    /// There is one, and it is as asked for.
    Existing(Box<Volume>),
    /// It has a drive and its space there, and waits for being made.
    New(Box<Reservation>),
}

/// Finds the volume of that name, or a drive for it.
pub(crate) fn reserve(inner: &Arc<Inner>, request: &CreateVolume) -> Result<Reserved, CreateError> {
    check_name(&request.name).map_err(CreateError::Refused)?;
    size_of(request.required, request.limit).map_err(CreateError::OutOfRange)?;
    let mut state = inner.state.lock();
    if let Some(existing) = existing(&state, request)? {
        return Ok(Reserved::Existing(Box::new(existing)));
    }
    if let Some(origin) = &request.origin {
        let source = content::find(&state, origin)?;
        drop(state);
        let busy = content::user(inner.host.as_ref(), &source).map_err(CreateError::Host)?;
        if let Some(device) = busy {
            return Err(SourceError::InUse { id: origin.id().clone(), device }.into());
        }
        state = inner.state.lock();
        if let Some(existing) = existing(&state, request)? {
            return Ok(Reserved::Existing(Box::new(existing)));
        }
    }
    let plan = take_in(&mut state, request)?;
    Ok(Reserved::New(Box::new(Reservation::new(inner.clone(), plan))))
}

/// Makes the volume that was reserved; none if the file behind its drive is gone, which only now is known.
pub(crate) fn create(inner: &Inner, reservation: Reservation) -> Result<Option<Volume>, CreateError> {
    let Intended { id, record, .. } = reservation.intended();
    let (id, record) = (id.clone(), record.clone());
    if backing::is_gone(inner, &id.drive) {
        return Ok(None);
    }
    let made = reservation.make();
    let volume = inner.state.lock().entry(&id).map(|(serving, entry)| serving.volume(entry));
    match (made, volume) {
        (Ok(()), Some(volume)) => {
            tracing::info!(volume = %id, name = record.name, size = volume.size, "volume created");
            Ok(Some(volume))
        }
        (Ok(()), None) => Err(CreateError::Busy(record.name)),
        (Err(error), _) if record.origin.is_some() && overflows(&error) => {
            Err(CreateError::OutOfRange(format!(
                "a copy of the source takes more than {}, because its files share data among themselves \
                 (reflinks), which a copy can't; ask for more",
                Bytes(record.size)
            )))
        }
        (Err(error), _) => Err(CreateError::Drive { drive: id.drive, name: record.name, error }),
    }
}

/// Whether a copy did not fit its limit: EDQUOT, and ENOSPC for a project.
pub(crate) fn overflows(error: &linux::Error) -> bool {
    const FULL: [i32; 2] = [122, 28];
    error.errno().is_some_and(|errno| FULL.contains(&errno))
}

/// The volume of that name, if it is what is asked for.
fn existing(state: &State, request: &CreateVolume) -> Result<Option<Volume>, CreateError> {
    let Some((serving, entry)) = state.by_name(&request.name) else {
        return match state.out_of_reach(&request.name) {
            None => Ok(None),
            Some(drive) => Err(CreateError::OutOfReach {
                name: request.name.clone(),
                drive: drive.clone(),
                reason: state.why_not(drive),
            }),
        };
    };
    if entry.busy || entry.record.phase == Phase::Deleting {
        return Err(CreateError::Busy(request.name.clone()));
    }
    if entry.record.phase == Phase::Creating {
        // An earlier call stopped half-way and could not clean up: that is where this one goes on.
        return Ok(None);
    }
    if let Some(reason) = &entry.unfit {
        let id = VolumeId { drive: serving.id.clone(), key: entry.record.key.clone() };
        return Err(CreateError::Unfit { id, reason: reason.clone() });
    }
    let volume = serving.volume(entry);
    let why = if volume.size < request.required {
        format!("{} are asked for now", Bytes(request.required))
    } else if request.limit.is_some_and(|limit| volume.size > limit) {
        format!("at most {} are asked for now", Bytes(request.limit.unwrap_or_default()))
    } else if request.backend.is_some_and(|backend| backend != volume.backend) {
        format!("its backend is {}", volume.backend)
    } else if volume.access != request.access {
        format!("it is {}", volume.access)
    } else if differ(&volume.parameters, &request.parameters) {
        "its parameters differ".to_owned()
    } else if entry.record.spread != request.spread {
        "its group, of volumes on different drives, differs".to_owned()
    } else if volume.origin != request.origin {
        match &volume.origin {
            Some(origin) => format!("it was made from {origin}"),
            None => "it was made empty".to_owned(),
        }
    } else {
        return Ok(Some(volume));
    };
    Err(CreateError::Incompatible { existing: Box::new(volume), why })
}

/// Whether a volume has other parameters than these. A copy has its source's file system even if nobody named it.
fn differ(has: &BTreeMap<String, String>, asked: &BTreeMap<String, String>) -> bool {
    let named = |(key, _): &(&String, &String)| *key != FILESYSTEM || asked.contains_key(FILESYSTEM);
    !has.iter().filter(named).eq(asked)
}

/// The size for what is asked, given what has to go in.
fn fitting(request: &CreateVolume, source: Option<&Found>) -> Result<u64, CreateError> {
    let least = source.map_or(0, |source| source.least);
    if request.required != 0 && request.required < least {
        return Err(CreateError::OutOfRange(format!(
            "{} are asked for, and what it is made from needs {}; ask for at least that",
            Bytes(request.required),
            Bytes(least)
        )));
    }
    size_of(request.required.max(least), request.limit).map_err(CreateError::OutOfRange)
}

/// Puts the volume into memory, where its size counts from now on.
fn take_in(state: &mut State, request: &CreateVolume) -> Result<Intended, CreateError> {
    let source = request.origin.as_ref().map(|origin| content::find(state, origin)).transpose()?;
    if let Some(source) = source.as_ref().filter(|source| source.access != request.access) {
        return Err(CreateError::Refused(format!(
            "{} is asked for, and what it is made from was {}; ask for the same",
            request.access, source.access
        )));
    }
    let size = fitting(request, source.as_ref())?;
    let half_made = state
        .by_name(&request.name)
        .map(|(serving, entry)| VolumeId { drive: serving.id.clone(), key: entry.record.key.clone() });
    let ((id, site, record), fresh) = match half_made {
        None => (place(state, request, size, source.as_ref(), None)?, true),
        Some(id) => match move_away(state, request, size, source.as_ref(), &id) {
            Some(moved) => (moved, true),
            None => (take_up(state, request, size, id)?, false),
        },
    };
    if let Some(origin) = &request.origin
        && let Some(entry) = state.entry_mut(origin.id())
    {
        entry.readers += 1;
    }
    Ok(Intended { id, site, record, content: source.map(|source| source.content), fresh })
}

/// Leaves a failing drive alone with what it has of a volume, and makes that on another one, if it fits there: the
/// next start of the failing one removes what was never announced.
fn move_away(
    state: &mut State,
    request: &CreateVolume,
    size: u64,
    source: Option<&Found>,
    id: &VolumeId,
) -> Option<(VolumeId, Site, VolumeRecord)> {
    let stays = state.entry(id).is_none_or(|(_, entry)| entry.busy || entry.in_doubt);
    if stays || !state.is_failing(&id.drive) {
        return None;
    }
    let moved = place(state, request, size, source, Some(&id.drive)).ok()?;
    if let Some(drive) = state.drive_mut(&id.drive) {
        drive.volumes.remove(&id.key);
    }
    Some(moved)
}

/// Goes on where an earlier call stopped.
fn take_up(
    state: &mut State,
    request: &CreateVolume,
    size: u64,
    id: VolumeId,
) -> Result<(VolumeId, Site, VolumeRecord), CreateError> {
    if let Some(drive) = state.drive_mut(&id.drive)
        && let Some(entry) = drive.volumes.get_mut(&id.key)
        && entry.record.size == size
        && entry.record.access == request.access
        && !differ(&entry.record.parameters, &request.parameters)
        && entry.record.origin == request.origin
    {
        entry.busy = true;
        return Ok((id, drive.site.clone(), entry.record.clone()));
    }
    Err(CreateError::Busy(request.name.clone()))
}

/// Finds a drive for it, besides one.
fn place(
    state: &mut State,
    request: &CreateVolume,
    size: u64,
    source: Option<&Found>,
    besides: Option<&DriveId>,
) -> Result<(VolumeId, Site, VolumeRecord), CreateError> {
    let mut candidates = state.candidates(request);
    candidates.retain(|candidate| besides.is_none() || candidate.drive.as_ref() != besides);
    if let Some(home) = source.and_then(|source| source.drive.as_ref()) {
        for other in candidates.iter_mut().filter(|candidate| candidate.drive.as_ref() != Some(home)) {
            other.failed.get_or_insert_with(|| "a clone lies on the drive of its source".to_owned());
        }
    }
    let backend = match (request.backend, source.map(|source| source.backend)) {
        (Some(asked), Some(source)) if asked != source => {
            return Err(CreateError::Refused(format!(
                "backend {asked} is asked for, and the source is on {source}; leave the backend out"
            )));
        }
        (asked, source) => asked.or(source),
    };
    let own = request.parameters.get(FILESYSTEM).map(String::as_str);
    let copied = source.and_then(|source| source.filesystem.as_deref());
    if let (Some(own), Some(copied)) = (own, copied)
        && own != copied
    {
        return Err(CreateError::Refused(format!(
            "the file system {own} is asked for, and what it is made from has {copied}; ask for the same"
        )));
    }
    for other in &mut candidates {
        if let Some(why) = unable(other.backend, &request.parameters) {
            other.failed.get_or_insert_with(|| why.to_owned());
        }
    }
    let wanted = |size| Wanted {
        name: &request.name,
        size,
        backend,
        drives: &request.drives,
        spread: request.spread.as_deref(),
    };
    let (mut id, mut size) = (choose(&candidates, &wanted(size))?, size);
    // Each backend has its own units: sizes only grow here, until the drive and its units agree.
    loop {
        let drive = state.drive(&id).ok_or_else(|| CreateError::Busy(request.name.clone()))?;
        let least = match request.access {
            AccessType::Mount => drive.site.backend.smallest(own.or(copied)),
            AccessType::Block => SMALLEST,
        };
        let whole = in_units(drive, size.max(least), request.limit).map_err(CreateError::OutOfRange)?;
        if whole == size {
            break;
        }
        (id, size) = (choose(&candidates, &wanted(whole))?, whole);
    }
    let mut parameters = request.parameters.clone();
    if let Some(copied) = copied {
        parameters.insert(FILESYSTEM.to_owned(), copied.to_owned());
    }
    let Some(drive) = state.drive_mut(&id) else { return Err(CreateError::Busy(request.name.clone())) };
    let key = free_key(drive, &request.name);
    let record = VolumeRecord {
        access: request.access,
        quota: drive.site.backend.choose_key(&drive.quota_keys()),
        parameters,
        notes: request.notes.clone(),
        origin: request.origin.clone(),
        spread: request.spread.clone(),
        throttle: request.throttle,
        ephemeral: request.ephemeral,
        ..VolumeRecord::intended(key.clone(), &request.name, size)
    };
    let refused = |error| CreateError::Drive { drive: id.clone(), name: request.name.clone(), error };
    drive.set_aside(&record).map_err(refused)?;
    Ok((VolumeId { drive: id.clone(), key }, drive.site.clone(), record))
}

/// A size as the drive's backend makes it.
fn in_units(drive: &Serving, size: u64, limit: Option<u64>) -> Result<u64, String> {
    let size = size.next_multiple_of(drive.site.backend.unit());
    match limit.filter(|limit| size > *limit) {
        None => Ok(size),
        Some(limit) => Err(format!(
            "at most {} were asked for, and this would have {} on drive {}; raise the limit",
            Bytes(limit),
            Bytes(size),
            drive.id
        )),
    }
}

/// The name of the directory: the volume's own name where that can be one.
pub(crate) fn free_key(drive: &Serving, name: &str) -> String {
    match plain(name) && !drive.volumes.contains_key(name) {
        true => name.to_owned(),
        false => format!("volume-{}", uuid::Uuid::new_v4()),
    }
}

pub(crate) fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > 128 {
        return Err(format!("a name has 1 to 128 bytes, this one has {}", name.len()));
    }
    match name.chars().any(char::is_control) {
        true => Err("a name has no control characters".to_owned()),
        false => Ok(()),
    }
}

/// Whether a name can be a directory's.
fn plain(name: &str) -> bool {
    name.len() <= 64
        && !name.starts_with(['.', '-'])
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// Deletes a volume that is mounted nowhere, or a snapshot.
pub(crate) fn delete(inner: &Inner, id: &VolumeId, is_snapshot: bool) -> Result<(), DeleteError> {
    let failed = |error| DeleteError::Drive { id: id.clone(), error };
    let (site, record) = {
        let mut state = inner.state.lock();
        if state.drive(&id.drive).is_none() {
            if !state.knows(&id.drive) && !id.drive.is_possible() {
                return Ok(());
            }
            return Err(DeleteError::NoDrive { id: id.clone(), drive: id.drive.clone() });
        }
        let Some((serving, entry)) = state.entry(id).filter(|(_, entry)| entry.may_be(is_snapshot)) else {
            return Ok(());
        };
        if entry.busy {
            return Err(DeleteError::Busy(id.clone()));
        }
        if entry.readers > 0 {
            return Err(DeleteError::Copied(id.clone()));
        }
        if let Some(group) = &entry.record.group {
            return Err(DeleteError::Member { id: id.clone(), group: group.id.clone() });
        }
        let known = (serving.site.clone(), entry.record.clone());
        if let Some(entry) = state.entry_mut(id) {
            entry.busy = true;
        }
        known
    };
    let busy = Busy::new(inner, id);
    let plan = || {
        let shown = Shown { id, layout: &site.layout };
        if let Some(at) = shown.mounted_at(&inner.host.mount_table().map_err(failed)?) {
            return Err(DeleteError::InUse { id: id.clone(), at });
        }
        if record.is_block()
            && let Some(user) = site.shown_as(&id.key).map_err(failed)?.pop()
        {
            return Err(DeleteError::InUse { id: id.clone(), at: user.device });
        }
        Ok(plan::delete(&record, site.observe(&record).map_err(failed)?))
    };
    let steps = plan()?;
    settle(busy, &site, &steps).map_err(failed)
}

/// Carries out what a restart found to be removed; `false` if that has to be tried again. Until the first try its entry
/// is busy for this. After that, somebody else may delete it, and make another one of that name, which is not to go.
pub(crate) fn remove(inner: &Inner, id: &VolumeId, steps: &[Step], tries: usize) -> bool {
    let site = {
        let mut state = inner.state.lock();
        let Some(site) = state.drive(&id.drive).map(|serving| serving.site.clone()) else { return true };
        let is_left =
            |entry: &Entry| matches!(steps.first(), Some(Step::Record(left)) if entry.record == **left);
        match state.entry_mut(id) {
            Some(entry) if tries == 0 || !entry.busy && is_left(entry) => entry.busy = true,
            _ => return true,
        }
        site
    };
    let removed = settle(Busy::new(inner, id), &site, steps);
    if let Err(error) = &removed {
        tracing::warn!(volume = %id, %error, "a half-done volume could not be removed yet");
    }
    removed.is_ok()
}

/// Carries out a removal. From its first step on the volume is on its way out, whatever happens.
pub(crate) fn settle(busy: Busy<'_>, site: &Site, steps: &[Step]) -> linux::Result<()> {
    let (inner, id) = (busy.inner(), busy.id());
    if let (Some(Step::Record(record)), Some(entry)) = (steps.first(), inner.state.lock().entry_mut(id)) {
        entry.record = record.as_ref().clone();
    }
    let removed = site.execute(steps);
    let mut state = inner.state.lock();
    state.changed(&id.drive, &removed);
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
    busy.settled();
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
    let (site, record, grown, doubtful) = {
        let mut state = inner.state.lock();
        if state.drive(&id.drive).is_none() {
            return match state.knows(&id.drive) {
                true => {
                    Err(ExpandError::NoDrive { drive: id.drive.clone(), reason: state.why_not(&id.drive) })
                }
                false => Err(ExpandError::NotFound(id.clone())),
            };
        }
        let Some((serving, entry)) = state.volume(id) else { return Err(ExpandError::NotFound(id.clone())) };
        if entry.busy || !entry.live() || entry.unfit.is_some() {
            return Err(ExpandError::Busy(id.clone()));
        }
        let record = entry.record.clone();
        if record.size >= size && !entry.doubtful {
            return match limit.filter(|limit| record.size > *limit) {
                None => {
                    // A crash may have come between the growth and its being shown.
                    let site = serving.site.clone();
                    drop(state);
                    plan::resize(&record).map_or(Ok(()), |step| site.execute(&[step]))?;
                    Ok(record.size)
                }
                Some(limit) => Err(ExpandError::OutOfRange(format!(
                    "volume {id} has {} already, more than {}; volumes don't shrink",
                    Bytes(record.size),
                    Bytes(limit)
                ))),
            };
        }
        let size = in_units(serving, size.max(record.size), limit).map_err(ExpandError::OutOfRange)?;
        let grown = VolumeRecord { size, ..record.clone() };
        let free = serving.room(AccessType::Mount, &record.parameters);
        if grown.held() - record.held() > free {
            return Err(ExpandError::NoSpace { id: id.clone(), asked: size, free });
        }
        let (site, doubtful) = (serving.site.clone(), entry.doubtful);
        if let Some(drive) = state.drive_mut(&id.drive) {
            drive.set_aside(&grown)?;
        }
        (site, record, grown, doubtful)
    };
    let busy = Busy::new(inner, id);
    inner.notify();
    let size = grown.size;
    let (seen, steps): (Vec<_>, Vec<_>) =
        plan::expand(&record, size).into_iter().partition(|step| matches!(step, Step::Resize { .. }));
    let grown = site.execute(&steps);
    let back = grown.is_err() && !doubtful && site.execute(&plan::shrink_back(&record)).is_ok();
    // Whoever has the device may use its new bytes from here on: there is no way back.
    let grown = grown.and_then(|()| site.execute(&seen));
    let mut state = inner.state.lock();
    state.changed(&id.drive, &grown);
    if let Some(entry) = state.entry_mut(id) {
        entry.busy = false;
        // Where not even the way back worked, the larger size counts until a further call or a restart settles it.
        entry.doubtful = grown.is_err() && !back;
        if back {
            entry.record.size = record.size;
        }
    }
    drop(state);
    busy.settled();
    inner.notify();
    grown.map(|()| size).map_err(ExpandError::from)
}

/// Records how fast the users of a volume may be.
pub(crate) fn throttle(inner: &Inner, id: &VolumeId, throttle: Throttle) -> Result<(), ExpandError> {
    let (site, record) = {
        let mut state = inner.state.lock();
        if state.drive(&id.drive).is_none() && state.knows(&id.drive) {
            return Err(ExpandError::NoDrive { drive: id.drive.clone(), reason: state.why_not(&id.drive) });
        }
        let Some((serving, entry)) = state.volume(id) else { return Err(ExpandError::NotFound(id.clone())) };
        if entry.busy || !entry.live() || entry.unfit.is_some() {
            return Err(ExpandError::Busy(id.clone()));
        }
        if entry.record.throttle == throttle {
            return Ok(());
        }
        let known = (serving.site.clone(), VolumeRecord { throttle, ..entry.record.clone() });
        if let Some(entry) = state.entry_mut(id) {
            entry.busy = true;
        }
        known
    };
    let busy = Busy::new(inner, id);
    let recorded = site.execute(&[Step::record(record)]);
    let mut state = inner.state.lock();
    state.changed(&id.drive, &recorded);
    if let Some(entry) = state.entry_mut(id) {
        entry.busy = false;
        if recorded.is_ok() {
            entry.record.throttle = throttle;
        }
    }
    drop(state);
    busy.settled();
    inner.notify();
    recorded.map_err(ExpandError::from)
}
