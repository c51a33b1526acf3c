//! All drives of a machine: found at start, let go at the end.

use std::{collections::BTreeSet, path::Path, sync::Arc};

use linux::{Attributes, BindSource, BlockDevice, Claim, Host, Unmount};

use crate::{
    DriveId, Source, VolumeId,
    backend::Backend,
    backing,
    claim::{self, Hold},
    drives::Inner,
    expected, group,
    idle::unmount_drive,
    layout::Maker,
    open::{self, Opened, Sighted},
    plan::Step,
    state::{Found, Serving, Slot, State},
};

/// Volumes to be removed, with the steps for each.
pub(crate) type Removals = Vec<(VolumeId, Vec<Step>)>;

/// Looks at every source and opens the drives among them.
pub(crate) fn take(host: &Arc<dyn Host>, root: &Path, sources: Vec<Source>) -> (State, Removals) {
    let remembered = expected::all(host.as_ref(), root).unwrap_or_else(|error| {
        tracing::warn!(%error, "it is not known which drives were here before");
        Vec::new()
    });
    let sighted: Vec<(Source, Sighted, Option<Claim>)> = sources
        .into_iter()
        .map(|source| {
            let (found, claim) = open::look(host.as_ref(), root, &source);
            (source, found, claim)
        })
        .collect();
    let copies = open::copies(&sighted);
    let (mut state, mut removals) = (State::default(), Removals::new());
    for (source, sighted, claim) in sighted {
        let was_here =
            || remembered.iter().find(|(_, place)| place.path() == source.path()).map(|(id, _)| id.clone());
        let found = match sighted {
            Sighted::Drive { id, .. } if copies.contains_key(&id) => {
                let places: Vec<String> = copies[&id].iter().map(|place| place.display().to_string()).collect();
                let reason = format!(
                    "{} carry the same drive {id}: one is a copy of the other; detach the copy and restart",
                    places.join(" and ")
                );
                Some(Found::Failed { id: Some(id), backend: None, reason, held: false })
            }
            Sighted::Drive { id, maker, backend, device } => {
                let (found, of_drive) = open_one(host, root, &source, (&id, maker), backend, &device);
                removals.extend(of_drive);
                found
            }
            Sighted::Blank => was_here().map(|id| {
                let reason = format!(
                    "{source} held the drive {id}, and does not any more; bring it back, or forget the drive {id} to \
                     use this place anew"
                );
                Found::Failed { id: Some(id), backend: None, reason, held: false }
            }),
            Sighted::Unusable(reason) => {
                Some(Found::Failed { id: was_here(), backend: None, reason, held: false })
            }
            Sighted::Held(reason) => Some(Found::Failed { id: was_here(), backend: None, reason, held: true }),
        };
        match found {
            None => state.blank.push(source),
            Some(found) => {
                announce(&source, &found);
                state.slots.push(Slot { source, claim, found });
            }
        }
    }
    for slot in &state.slots {
        if let Found::Failed { id: Some(id), .. } = &slot.found {
            state.out_of_reach.insert(id.clone(), expected::names(host.as_ref(), root, id));
        }
    }
    removals.extend(group::broken(&mut state));
    (state, removals)
}

/// Opens a drive, and remembers where it is.
pub(crate) fn open_one(
    host: &Arc<dyn Host>,
    root: &Path,
    source: &Source,
    (id, maker): (&DriveId, Maker),
    backend: &'static dyn Backend,
    device: &BlockDevice,
) -> (Option<Found>, Removals) {
    let Opened { found, removals } = open::open(host, root, (id, maker), backend, device);
    if matches!(found, Some(Found::Serving(_)))
        && let Err(error) = expected::remember(host.as_ref(), root, id, source)
    {
        tracing::warn!(%error, drive = %id, "the place of a drive could not be remembered");
    }
    let of_drive = |(key, steps)| (VolumeId { drive: id.clone(), key }, steps);
    (found, removals.into_iter().map(of_drive).collect())
}

/// Says in the log how a drive is.
pub(crate) fn announce(source: &Source, found: &Found) {
    match found {
        Found::Serving(drive) => tracing::info!(
            drive = %drive.id, %source, volumes = drive.volumes.len(), free = drive.free(), "drive is ready"
        ),
        Found::Failed { reason, .. } => tracing::error!(%source, reason, "drive can't serve"),
    }
}

/// Notes beside the drives which volumes they have.
pub(crate) fn note_names(inner: &Inner) -> linux::Result<()> {
    let names = |drive: &Serving| {
        let volumes = drive.volumes.values().filter(|entry| !entry.record.is_snapshot());
        (drive.id.clone(), volumes.map(|entry| entry.record.name.clone()).collect())
    };
    let all: Vec<(_, BTreeSet<String>)> = inner.state.lock().serving().map(names).collect();
    let host = inner.host.as_ref();
    all.into_iter().try_for_each(|(id, names)| expected::remember_names(host, &inner.root, &id, names))
}

/// Mounts a directory of our own on itself, and takes that away.
pub(crate) fn try_mounting(inner: &Inner) -> linux::Result<()> {
    let _one_at_a_time = inner.trying.lock();
    let (host, place) = (inner.host.as_ref(), inner.root.join("expected"));
    host.make_directory(&place, 0o700)?;
    host.bind(BindSource::Path(&place), &place, Attributes::default())?;
    host.unmount(&place, Unmount::Detach).map(drop)
}

/// Unmounts and detaches every drive that nothing uses. One that is mounted but not at its place any more (its loop
/// file was deleted) stays: that mount is the last way to its data.
pub(crate) fn close(inner: &Inner) -> linux::Result<()> {
    let host = inner.host.as_ref();
    let mut state = inner.state.lock();
    let mut first_error = None;
    state.slots.retain_mut(|slot| {
        let drive = match &mut slot.found {
            Found::Serving(drive) => drive,
            Found::Failed { id, held, .. } => {
                let closed = id
                    .as_ref()
                    .map_or(Ok(()), |id| unmounted(host, &inner.root.join(id.as_str())))
                    .and_then(|()| match held {
                        true => Ok(()),
                        false => backing::detach(host, &slot.source),
                    });
                let Err(error) = closed else { return false };
                tracing::warn!(%error, source = %slot.source, "drive stays mounted");
                first_error.get_or_insert(error);
                return true;
            }
        };
        let mut close = || {
            // The kernel would let the drive's own mount go, and its volumes live on at other places.
            let table = host.mount_table()?;
            let mount = drive.site.layout.mount();
            let device = table.at(mount).map(|mount| mount.device);
            if let Some(volume) =
                table.iter().find(|other| Some(other.device) == device && other.target != mount)
            {
                let why = format!("a volume of it is mounted at {}", volume.target.display());
                return Err(linux::Error::because("close drive", &drive.id, why));
            }
            for volume in drive.volumes.values().filter(|entry| entry.record.is_block()) {
                if let Some(user) = drive.site.shown_as(&volume.record.key)?.first() {
                    let why = format!(
                        "the block volume {} is staged as {}",
                        volume.record.name,
                        user.device.display()
                    );
                    return Err(linux::Error::because("close drive", &drive.id, why));
                }
            }
            drive.site.backend.wind_down(host, mount)?;
            // A claim keeps the file system in use. From here on nothing is changed on it.
            drive.claim = None;
            unmount_drive(host, mount).inspect_err(|_| {
                if let Ok(Hold::Ours(claim)) = claim::claim(host, mount) {
                    drive.claim = Some(claim);
                }
            })?;
            host.remove_directory(mount)?;
            drive.site.backend.let_go(host, mount)?;
            match slot.source {
                Source::LoopFile { .. } => host.detach_loop(&drive.device).map(drop),
                Source::Device(_) => Ok(()),
            }
        };
        match close() {
            Ok(()) => false,
            Err(error) => {
                tracing::warn!(%error, drive = %drive.id, "drive stays mounted");
                first_error.get_or_insert(error);
                true
            }
        }
    });
    // Those that carry nothing of ours were attached to be looked at.
    for source in &state.blank {
        let detached = backing::detach(host, source);
        first_error = first_error.or(detached.err());
    }
    drop(state);
    inner.notify();
    first_error.map_or(Ok(()), Err)
}

fn unmounted(host: &dyn Host, mount: &Path) -> linux::Result<()> {
    let Some(device) = host.mount_table()?.at(mount).map(|mount| mount.source.clone()) else { return Ok(()) };
    let why = format!(
        "the drive can't serve, but is mounted still: copy what you need from there, then run `umount {}`, and \
         `losetup -d {device}` if that is a loop device",
        mount.display(),
        device = device.display()
    );
    Err(linux::Error::because("close the drive at", mount.display(), why))
}
