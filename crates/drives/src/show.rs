//! Mounting volumes and asking what they hold, from what is known in memory.

use std::path::{Path, PathBuf};

use linux::Attributes;

use crate::{
    DriveId, Inodes, MountError, Stats, StatsError, VolumeId,
    drives::Inner,
    execute::Site,
    record::VolumeRecord,
    staging::{self, Shown},
};

enum Unavailable {
    NoVolume,
    NoDrive { drive: DriveId, reason: String },
    Busy,
    Lost,
}

fn live(inner: &Inner, id: &VolumeId) -> Result<(Site, VolumeRecord), Unavailable> {
    let state = inner.state.lock();
    if state.drive(&id.drive).is_none() {
        return match state.knows(&id.drive) {
            true => Err(Unavailable::NoDrive { drive: id.drive.clone(), reason: state.why_not(&id.drive) }),
            false => Err(Unavailable::NoVolume),
        };
    }
    match state.volume(id) {
        None => Err(Unavailable::NoVolume),
        Some((_, entry)) if !entry.live() || entry.busy => Err(Unavailable::Busy),
        Some((_, entry)) if entry.lost => Err(Unavailable::Lost),
        Some((serving, entry)) => Ok((serving.site.clone(), entry.record.clone())),
    }
}

fn for_mounting(inner: &Inner, id: &VolumeId) -> Result<(Site, VolumeRecord), MountError> {
    live(inner, id).map_err(|unavailable| match unavailable {
        Unavailable::NoVolume => MountError::NotFound(id.clone()),
        Unavailable::NoDrive { drive, reason } => MountError::NoDrive { id: id.clone(), drive, reason },
        Unavailable::Busy => MountError::Busy(id.clone()),
        Unavailable::Lost => MountError::NoDrive {
            id: id.clone(),
            drive: id.drive.clone(),
            reason: "the volume's directory is gone from it; restore the drive from a backup, or delete the volume"
                .to_owned(),
        },
    })
}

pub(crate) fn stage(
    inner: &Inner,
    id: &VolumeId,
    at: &Path,
    attributes: Attributes,
) -> Result<(), MountError> {
    let (site, _) = for_mounting(inner, id)?;
    staging::stage(inner.host.as_ref(), &Shown { id, layout: &site.layout }, at, attributes)
}

pub(crate) fn publish(
    inner: &Inner,
    id: &VolumeId,
    staged: &Path,
    target: &Path,
    attributes: Attributes,
) -> Result<(), MountError> {
    let (site, _) = for_mounting(inner, id)?;
    staging::publish(inner.host.as_ref(), &Shown { id, layout: &site.layout }, staged, target, attributes)
}

pub(crate) fn elsewhere(
    inner: &Inner,
    id: &VolumeId,
    besides: &[PathBuf],
) -> Result<Option<PathBuf>, MountError> {
    let (site, _) = for_mounting(inner, id)?;
    staging::elsewhere(inner.host.as_ref(), &Shown { id, layout: &site.layout }, besides)
}

/// Works without the volume too: what is mounted must come away even if its drive is gone.
pub(crate) fn hide(inner: &Inner, id: &VolumeId, target: &Path) -> Result<(), MountError> {
    let layout = inner.state.lock().drive(&id.drive).map(|serving| serving.site.layout.clone());
    staging::hide(inner.host.as_ref(), id, layout.as_ref(), target)
}

pub(crate) fn stats(inner: &Inner, id: &VolumeId, path: &Path) -> Result<Stats, StatsError> {
    let (site, record) = live(inner, id).map_err(|unavailable| match unavailable {
        Unavailable::NoVolume | Unavailable::Busy => StatsError::NotFound(id.clone()),
        Unavailable::NoDrive { drive, reason } => StatsError::NoDrive { drive, reason },
        Unavailable::Lost => StatsError::NoDrive {
            drive: id.drive.clone(),
            reason: "the volume's directory is gone from it".to_owned(),
        },
    })?;
    let host = inner.host.as_ref();
    let not_mounted = || StatsError::NotMounted { id: id.clone(), path: path.to_owned() };
    match staging::is_at(host, &Shown { id, layout: &site.layout }, path) {
        Ok(true) => {}
        Ok(false) | Err(MountError::Path(_)) => return Err(not_mounted()),
        Err(MountError::Host(error)) => return Err(error.into()),
        Err(_) => return Err(not_mounted()),
    }
    let quota = site.backend.quota_key(host, &site.layout.volume(&record.key))?.ok_or_else(not_mounted)?;
    let usage = site.backend.usage(host, site.layout.mount(), quota)?;
    let space = host.space(site.layout.mount())?;
    // Neighbours can't take a volume's room; should the drive run dry all the same, that is what is left.
    let available = record.size.saturating_sub(usage.used).min(space.available);
    let inodes =
        usage.inodes.map(|used| Inodes { total: used + space.inodes_free, used, free: space.inodes_free });
    Ok(Stats { size: record.size, used: usage.used, available, inodes })
}
