//! Mounting volumes and asking what they hold, from what is known in memory.

use std::path::{Path, PathBuf};

use linux::{
    Attributes,
    ownership::{self, ChangePolicy},
};

use crate::{
    AccessType, DriveId, Inodes, MountError, Stats, StatsError, VolumeId,
    backend::{Place, lvm},
    block::BlockVolume,
    drives::Inner,
    execute::Site,
    layout::Layout,
    record::VolumeRecord,
    staging::{self, Shown},
    state::Entry,
    target,
};

enum Unavailable {
    NoVolume,
    NoDrive { drive: DriveId, reason: String },
    Busy,
    Unfit(String),
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
        Some((_, Entry { unfit: Some(reason), .. })) => Err(Unavailable::Unfit(reason.clone())),
        Some((serving, entry)) => Ok((serving.site.clone(), entry.record.clone())),
    }
}

fn for_mounting(inner: &Inner, id: &VolumeId) -> Result<(Site, VolumeRecord), MountError> {
    live(inner, id).map_err(|unavailable| match unavailable {
        Unavailable::NoVolume => MountError::NotFound(id.clone()),
        Unavailable::NoDrive { drive, reason } => MountError::NoDrive { id: id.clone(), drive, reason },
        Unavailable::Busy => MountError::Busy(id.clone()),
        Unavailable::Unfit(reason) => MountError::NoDrive { id: id.clone(), drive: id.drive.clone(), reason },
    })
}

/// The volume, if it shows what is asked for and nothing is being made from it.
fn to_show(inner: &Inner, id: &VolumeId, asked: AccessType) -> Result<Site, MountError> {
    let (site, record) = for_mounting(inner, id)?;
    match record.access == asked {
        true => Ok(site),
        false => Err(MountError::OtherAccess { id: id.clone(), is: record.access, asked }),
    }
}

pub(crate) fn stage(
    inner: &Inner,
    id: &VolumeId,
    at: &Path,
    attributes: Attributes,
) -> Result<(), MountError> {
    let site = to_show(inner, id, AccessType::Mount)?;
    let volume = site.layout.volume(&id.key);
    let place = Place { mount: site.layout.mount(), volume: &volume };
    if site.backend.quota_key(inner.host.as_ref(), place)?.is_none() {
        return Err(MountError::NoDrive {
            id: id.clone(),
            drive: id.drive.clone(),
            reason: "the volume is not at its place on it, or nothing holds it to its size; restart Orlop"
                .to_owned(),
        });
    }
    let host = inner.host.as_ref();
    let at = target::to_show(host, &inner.confines.read(), at)?;
    staging::stage(host, &Shown { id, layout: &site.layout }, &at, attributes)
}

pub(crate) fn publish(
    inner: &Inner,
    id: &VolumeId,
    staged: &Path,
    target: &Path,
    attributes: Attributes,
) -> Result<(), MountError> {
    let site = to_show(inner, id, AccessType::Mount)?;
    let host = inner.host.as_ref();
    let target = target::to_show(host, &inner.confines.read(), target)?;
    staging::publish(host, &Shown { id, layout: &site.layout }, staged, &target, attributes)
}

fn block<'a>(site: &'a Site, id: &'a VolumeId) -> linux::Result<BlockVolume<'a>> {
    Ok(BlockVolume { host: site.host.as_ref(), id, layout: &site.layout, own: site.device(&id.key)? })
}

pub(crate) fn stage_block(inner: &Inner, id: &VolumeId) -> Result<(), MountError> {
    let site = to_show(inner, id, AccessType::Block)?;
    let volume = block(&site, id)?;
    // Looked at before and after: of a copy and a staging that begin at once, one finds the other.
    let copied = || inner.state.lock().entry(id).is_some_and(|(_, entry)| entry.readers > 0);
    if copied() {
        return Err(MountError::Busy(id.clone()));
    }
    volume.stage()?;
    if copied() {
        volume.unstage()?;
        return Err(MountError::Busy(id.clone()));
    }
    Ok(())
}

pub(crate) fn publish_block(
    inner: &Inner,
    id: &VolumeId,
    staged: &Path,
    target: &Path,
    read_only: bool,
) -> Result<(), MountError> {
    let site = to_show(inner, id, AccessType::Block)?;
    let target = target::to_show(inner.host.as_ref(), &inner.confines.read(), target)?;
    block(&site, id)?.publish(staged, &target, read_only)
}

pub(crate) fn elsewhere(
    inner: &Inner,
    id: &VolumeId,
    besides: &[PathBuf],
) -> Result<Option<PathBuf>, MountError> {
    let (site, record) = for_mounting(inner, id)?;
    let host = inner.host.as_ref();
    let besides = besides.iter().filter_map(|path| target::plain(host, path).transpose());
    let besides = besides.collect::<Result<Vec<_>, _>>()?;
    match record.access {
        AccessType::Mount => staging::elsewhere(host, &Shown { id, layout: &site.layout }, &besides),
        AccessType::Block => block(&site, id)?.elsewhere(&besides),
    }
}

/// Of a volume that is to be taken away, what is known without asking its drive.
struct Known {
    /// Where its things are, were its drive mounted.
    layout: Layout,
    serving: bool,
    /// Whether it may be a block volume.
    block: bool,
}

fn known(inner: &Inner, id: &VolumeId) -> Known {
    let state = inner.state.lock();
    let serving = state.drive(&id.drive).map(|serving| serving.site.layout.clone());
    Known {
        serving: serving.is_some(),
        layout: serving.unwrap_or_else(|| Layout::new(inner.root.join(id.drive.as_str()))),
        block: state.entry(id).is_none_or(|(_, entry)| entry.record.is_block()),
    }
}

/// Takes a volume from where it is published. Works without the volume too: what is mounted must come away even if its
/// drive is gone.
pub(crate) fn unpublish(inner: &Inner, id: &VolumeId, target: &Path) -> Result<(), MountError> {
    let host = inner.host.as_ref();
    let Some(target) = target::to_hide(host, target)? else { return Ok(()) };
    let Known { layout, serving, block } = known(inner, id);
    if block {
        let own = lvm::own_device(host, &id.drive, &id.key)?;
        if (BlockVolume { host, id, layout: &layout, own }).unpublish(&target)? {
            return Ok(());
        }
    }
    hide(inner, id, serving.then_some(&layout), &target)
}

/// Takes a volume from where it is staged; also without the volume.
pub(crate) fn unstage(inner: &Inner, id: &VolumeId, staging: &Path) -> Result<(), MountError> {
    let host = inner.host.as_ref();
    let Known { layout, serving, block } = known(inner, id);
    if block {
        let own = lvm::own_device(host, &id.drive, &id.key)?;
        BlockVolume { host, id, layout: &layout, own }.unstage()?;
    }
    match target::to_hide(host, staging)? {
        None => Ok(()),
        Some(staging) => hide(inner, id, serving.then_some(&layout), &staging),
    }
}

/// As [`staging::hide`]; a mount where no volume can be is nothing in the way of ours.
fn hide(
    inner: &Inner,
    id: &VolumeId,
    layout: Option<&Layout>,
    target: &linux::Target,
) -> Result<(), MountError> {
    let host = inner.host.as_ref();
    match staging::hide(host, id, layout, target) {
        Err(MountError::Taken { .. })
            if target::to_show(host, &inner.confines.read(), &target.at).is_err() =>
        {
            Ok(())
        }
        hidden => hidden,
    }
}

/// Removes what a volume that is gone was shown at, if it is marked as such. `false` when something is mounted there,
/// which may be anybody's.
pub(crate) fn unpublish_gone(inner: &Inner, target: &Path) -> Result<bool, MountError> {
    let host = inner.host.as_ref();
    let Some(target) = target::to_hide(host, target)? else { return Ok(true) };
    if host.mount_table()?.at(&target.at).is_some() {
        return Ok(target::to_show(host, &inner.confines.read(), &target.at).is_err());
    }
    let marked = host.mark_at(&target)?.and_then(|mark| mark.parse::<VolumeId>().ok());
    if let Some(id) = marked
        && matches!(live(inner, &id), Err(Unavailable::NoVolume))
    {
        host.remove_at(&target)?;
    }
    Ok(true)
}

pub(crate) fn shown(inner: &Inner, drive: &DriveId) -> Result<Vec<(VolumeId, PathBuf)>, MountError> {
    let layout = inner.state.lock().drive(drive).map(|serving| serving.site.layout.clone());
    let Some(layout) = layout else { return Ok(Vec::new()) };
    Ok(staging::all(drive, &layout, &inner.host.mount_table()?))
}

pub(crate) fn give(inner: &Inner, id: &VolumeId, at: &Path, group: u32) -> Result<(), MountError> {
    let (site, _) = for_mounting(inner, id)?;
    if !staging::is_at(inner.host.as_ref(), &Shown { id, layout: &site.layout }, at)? {
        return Err(MountError::NotStaged { id: id.clone(), staging: at.to_owned() });
    }
    ownership::apply(at, group, false, ChangePolicy::OnRootMismatch)
        .map_err(|error| MountError::Host(linux::Error::new("give to group", at.display(), error)))
}

pub(crate) fn relabel(inner: &Inner, id: &VolumeId, label: &str) -> Result<(), MountError> {
    let (site, _) = for_mounting(inner, id)?;
    // Where it is shown it may be read-only.
    let volume = site.layout.volume(&id.key);
    ownership::relabel(&volume, label)
        .map_err(|error| MountError::Host(linux::Error::new("relabel", volume.display(), error)))
}

pub(crate) fn stats(inner: &Inner, id: &VolumeId, path: &Path) -> Result<Stats, StatsError> {
    let (site, record) = live(inner, id).map_err(|unavailable| match unavailable {
        Unavailable::NoVolume | Unavailable::Busy => StatsError::NotFound(id.clone()),
        Unavailable::NoDrive { drive, reason } => StatsError::NoDrive { drive, reason },
        Unavailable::Unfit(reason) => StatsError::NoDrive { drive: id.drive.clone(), reason },
    })?;
    let host = inner.host.as_ref();
    let not_mounted = || StatsError::NotMounted { id: id.clone(), path: path.to_owned() };
    let is_at = match record.access {
        AccessType::Mount => staging::is_at(host, &Shown { id, layout: &site.layout }, path),
        AccessType::Block => block(&site, id).map_err(MountError::from).and_then(|volume| volume.is_at(path)),
    };
    match is_at {
        Ok(true) => {}
        Ok(false) | Err(MountError::Path { .. }) => return Err(not_mounted()),
        Err(MountError::Host(error)) => return Err(error.into()),
        Err(_) => return Err(not_mounted()),
    }
    if record.access == AccessType::Block {
        return Ok(Stats { access: record.access, size: record.size, ..Stats::default() });
    }
    let volume = site.layout.volume(&record.key);
    let place = Place { mount: site.layout.mount(), volume: &volume };
    let quota = site.backend.quota_key(host, place)?.ok_or_else(not_mounted)?;
    let usage = site.backend.usage(host, place, quota)?;
    let space = host.space(&volume)?;
    // Neighbours can't take a volume's room; should the drive run dry all the same, that is what is left.
    let available = record.size.saturating_sub(usage.used).min(space.available);
    let inodes =
        usage.inodes.map(|used| Inodes { total: used + space.inodes_free, used, free: space.inodes_free });
    Ok(Stats { access: record.access, size: record.size, used: usage.used, available, inodes })
}
