//! Finding drives: by what is recorded on them, never by what someone remembers.

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Arc,
};

use linux::{BlockDevice, Claim, FilesystemMount, Host, Signature, Unmount};

use crate::{
    BackendKind, DriveId, Source,
    backend::{self, Backend},
    claim::{self, Hold},
    directpv,
    execute::Site,
    idle::unmount_drive,
    initialise::{LABEL, signature},
    label,
    layout::{Layout, Maker},
    plan::Step,
    record::{DriveRecord, FORMAT, RecordError, parse, render},
    state::{Entry, Found, Serving},
    stock,
};

/// What a source turned out to hold.
pub(crate) enum Sighted {
    /// Nothing of ours.
    Blank,
    /// A drive's file system.
    Drive { id: DriveId, maker: Maker, backend: &'static dyn Backend, device: Box<BlockDevice> },
    /// Nothing can be told.
    Unusable(String),
    /// Another process has it: who.
    Held(String),
}

/// The identity in the signature of a drive, and who made it.
pub(crate) fn identity(signature: &Signature) -> Option<(DriveId, Maker)> {
    let kind = kind_of(signature)?;
    let maker = match signature.label.as_deref()? {
        LABEL => Maker::Orlop,
        label if directpv::LABELS.contains(&label) && kind == BackendKind::Xfs => Maker::DirectPv,
        _ => return None,
    };
    Some((DriveId(signature.uuid.clone()?), maker))
}

fn kind_of(signature: &Signature) -> Option<BackendKind> {
    signature.kind.parse().ok()
}

/// Looks at a source without mounting anything, and claims the file behind it before that gets a device.
pub(crate) fn look(host: &dyn Host, root: &Path, source: &Source) -> (Sighted, Option<Claim>) {
    let mut claimed = None;
    let sighted = sight(host, root, source, &mut claimed).unwrap_or_else(|error| {
        Sighted::Unusable(format!("{error}; check the device and its cable, or stop listing it"))
    });
    (sighted, claimed)
}

fn sight(
    host: &dyn Host,
    root: &Path,
    source: &Source,
    claimed: &mut Option<Claim>,
) -> linux::Result<Sighted> {
    let mut hold = |file: &Path| match claim::claim(host, file)? {
        Hold::Theirs(who) => Ok(Some(Sighted::Held(who))),
        Hold::Ours(claim) => {
            claim::sign(host, root, file);
            *claimed = Some(claim);
            Ok::<_, linux::Error>(None)
        }
    };
    let device = match source {
        Source::Device(path) => {
            let device = host.block_device(path)?;
            if let Some(file) = claim::file_behind(host, &device) {
                if let Some(held) = hold(file)? {
                    return Ok(held);
                }
                // Refuses a file with several devices.
                host.attach_loop(file)?;
            }
            device
        }
        Source::LoopFile { path, .. } => {
            if !host.exists(path)? {
                return Ok(Sighted::Blank);
            }
            if let Some(held) = hold(path)? {
                return Ok(held);
            }
            host.block_device(&host.attach_loop(path)?)?
        }
    };
    let signature = signature(host, &device.path)?;
    let known = signature.as_ref().and_then(|signature| identity(signature).zip(kind_of(signature)));
    Ok(match known {
        Some(((id, maker), kind)) => {
            Sighted::Drive { id, maker, backend: backend::of(kind), device: Box::new(device) }
        }
        None => Sighted::Blank,
    })
}

/// Mounts a drive, unless it is: after a crash of ours it still is.
pub(crate) fn mount(
    host: &dyn Host,
    backend: &dyn Backend,
    device: &Path,
    target: &Path,
) -> linux::Result<()> {
    let device = backend.bring_up(host, device, target)?;
    if host.mount_table()?.at(target).is_some_and(|mount| mount.source == device) {
        return Ok(());
    }
    host.make_directory(target, 0o700)?;
    let device = device.to_string_lossy();
    host.mount(&backend.mounting(&device), target)
}

pub(crate) fn unmount_quietly(host: &dyn Host, backend: &dyn Backend, target: &Path) {
    let unmount = || {
        backend.wind_down(host, target)?;
        unmount_drive(host, target)?;
        host.remove_directory(target)?;
        backend.let_go(host, target)
    };
    if let Err(error) = unmount() {
        tracing::warn!(%error, "a drive that can't serve stays mounted");
    }
}

/// Lets go of what a device that was pulled left mounted, now that the drive is back as another device. While its
/// volumes are still mounted somewhere its file system lives on without it, and can't be mounted a second time: then
/// the answer is why, in words.
fn let_go_of_pulled(
    host: &dyn Host,
    backend: &dyn Backend,
    device: &Path,
    target: &Path,
) -> linux::Result<Option<String>> {
    let table = host.mount_table()?;
    let Some(left) = table.at(target) else { return Ok(None) };
    if backend.is_on(host, left, device)? {
        return Ok(None);
    }
    let user = table.iter().find(|other| other.device == left.device && other.target != target);
    let used = match user {
        Some(user) => Some(format!("it is mounted at {}", user.target.display())),
        None => backend.wind_down(host, target).err().map(|error| error.to_string()),
    };
    if let Some(used) = used {
        return Ok(Some(format!(
            "it came back as {}, and as the device that it was before it is in use still ({used}); end the pods that \
             use its volumes, then restart Orlop",
            device.display()
        )));
    }
    host.unmount(target, Unmount::Detach)?;
    backend.let_go(host, target)?;
    Ok(None)
}

/// Reads the record of a drive through a read-only mount, so that a drive of a newer format is not touched at all. (One
/// that is mounted somewhere can be mounted in the same way only, which changes nothing more.)
fn read_record(
    host: &dyn Host,
    backend: &dyn Backend,
    device: &BlockDevice,
    layout: &Layout,
) -> linux::Result<Option<Vec<u8>>> {
    let in_use = !device.mounted_at.is_empty();
    let device = &backend.bring_up(host, &device.path, layout.mount())?;
    let mounted = host.mount_table()?.at(layout.mount()).is_some_and(|mount| mount.source == *device);
    if mounted {
        return drive_record(host, layout);
    }
    host.make_directory(layout.mount(), 0o700)?;
    let device = device.to_string_lossy();
    let mount = |read_only| {
        let mut look = backend.mounting(&device);
        look.attributes.read_only = read_only;
        host.mount(&FilesystemMount { options: Vec::new(), ..look }, layout.mount())
    };
    match mount(!in_use) {
        // It is mounted where this process does not see it.
        Err(error) if !in_use && error.kind() == ErrorKind::ResourceBusy => mount(false),
        mounted => mounted,
    }?;
    let content = drive_record(host, layout);
    unmount_drive(host, layout.mount())?;
    content
}

/// The record of a drive; should it be damaged, the copy of it.
fn drive_record(host: &dyn Host, layout: &Layout) -> linux::Result<Option<Vec<u8>>> {
    let is_damaged = |bytes: &[u8]| matches!(parse::<DriveRecord>(bytes), Err(RecordError::Damaged(_)));
    let found = host.read(&layout.drive_record());
    match &found {
        Ok(None) => found,
        Ok(Some(bytes)) if !is_damaged(bytes) => found,
        _ => match host.read(&layout.drive_copy()) {
            Ok(Some(copy)) if !is_damaged(&copy) => Ok(Some(copy)),
            _ => found,
        },
    }
}

/// Writes the record of a drive, and the copy of it, unless they are there in the present format.
pub(crate) fn keep_record(host: &dyn Host, layout: &Layout, record: &DriveRecord) -> linux::Result<()> {
    let bytes = render(&DriveRecord { format: FORMAT, ..record.clone() });
    for file in [layout.drive_record(), layout.drive_copy()] {
        if !matches!(host.read(&file), Ok(Some(found)) if found == bytes) {
            host.write_durable(&file, &bytes, 0o600)?;
        }
    }
    Ok(())
}

/// Reads the record of a drive, which one that was never finished does not have.
fn recorded(
    host: &dyn Host,
    backend: &dyn Backend,
    device: &BlockDevice,
    layout: &Layout,
) -> linux::Result<Option<Vec<u8>>> {
    match read_record(host, backend, device, layout) {
        Err(_) if backend.is_half_formatted(host, layout.mount()).unwrap_or(false) => Ok(None),
        record => record,
    }
}

/// Whether a file system of ours has its drive record; `None` when its backend is not known.
pub(crate) fn peek(
    host: &dyn Host,
    root: &Path,
    device: &BlockDevice,
    id: &DriveId,
) -> linux::Result<Option<(&'static dyn Backend, bool)>> {
    let Some(kind) = signature(host, &device.path)?.as_ref().and_then(kind_of) else { return Ok(None) };
    let backend = backend::of(kind);
    let layout = Layout::new(root.join(id.as_str()));
    match recorded(host, backend, device, &layout) {
        Ok(record) => Ok(Some((backend, record.is_some()))),
        Err(error) => {
            unmount_quietly(host, backend, layout.mount());
            Err(error)
        }
    }
}

fn unable(id: &DriveId, backend: &dyn Backend, reason: String, held: bool) -> Found {
    Found::Failed { id: Some(id.clone()), backend: Some(backend.kind()), reason, held }
}

/// Mounts a drive and claims it. One that is somebody else's is let go as it was found, with its words for it.
pub(crate) fn mount_and_claim(
    host: &dyn Host,
    root: &Path,
    backend: &dyn Backend,
    device: &Path,
    layout: &Layout,
) -> linux::Result<Hold> {
    let was_mounted = host.mount_table()?.at(layout.mount()).is_some();
    mount(host, backend, device, layout.mount())?;
    let hold = claim::claim(host, layout.mount());
    match &hold {
        Ok(Hold::Ours(_)) => {
            // What DirectPV made is left as it is.
            if layout.maker() == Maker::Orlop {
                claim::sign(host, root, layout.mount());
            }
            unmount_predecessors(host, backend, layout.mount());
        }
        Ok(Hold::Theirs(_)) if !was_mounted => {
            unmount_drive(host, layout.mount())?;
            host.remove_directory(layout.mount())?;
        }
        _ => {}
    }
    hold
}

/// Whoever had the drive before, in another directory, is gone, or it could not be claimed. What that left mounted of
/// it goes, unless volumes are used through it.
fn unmount_predecessors(host: &dyn Host, backend: &dyn Backend, mount: &Path) {
    let unmount = || {
        let table = host.mount_table()?;
        let Some(own) = table.at(mount) else { return Ok(()) };
        let is_left = |other: &&linux::Mount| {
            let is_drive = other.root == Path::new("/") && other.target.file_name() == mount.file_name();
            other.device == own.device && is_drive && other.target != mount
        };
        table.iter().filter(is_left).try_for_each(|left| {
            backend.wind_down(host, &left.target)?;
            unmount_drive(host, &left.target)
        })
    };
    if let Err(error) = unmount() {
        tracing::warn!(%error, "what an earlier process left mounted of a drive stays");
    }
}

/// What opening a drive came to.
pub(crate) struct Opened {
    pub(crate) found: Option<Found>,
    /// Volumes to be removed in the background, with the steps for each.
    pub(crate) removals: Vec<(String, Vec<Step>)>,
}

/// Mounts a drive and takes stock of its volumes. `None` found: it is ours, but was never finished.
pub(crate) fn open(
    host: &Arc<dyn Host>,
    root: &Path,
    (id, maker): (&DriveId, Maker),
    backend: &'static dyn Backend,
    device: &BlockDevice,
) -> Opened {
    let layout = Layout::of(maker, root.join(id.as_str()));
    let failed = |reason: String| {
        unmount_quietly(host.as_ref(), backend, layout.mount());
        Opened { found: Some(unable(id, backend, reason, false)), removals: Vec::new() }
    };
    if device.read_only {
        let why = "is read-only: find out why (a failing disk, a write-protect switch, a mapping made so)";
        return failed(format!("{} {why}, make it writable and restart", device.path.display()));
    }
    match let_go_of_pulled(host.as_ref(), backend, &device.path, layout.mount()) {
        Ok(None) => {}
        Ok(Some(reason)) => {
            return Opened { found: Some(unable(id, backend, reason, false)), removals: Vec::new() };
        }
        Err(error) => return failed(error.to_string()),
    }
    let record = match recorded(host.as_ref(), backend, device, &layout) {
        Ok(Some(bytes)) => Some(parse::<DriveRecord>(&bytes)),
        Ok(None) if maker == Maker::DirectPv => None,
        Ok(None) => {
            unmount_quietly(host.as_ref(), backend, layout.mount());
            return Opened { found: None, removals: Vec::new() };
        }
        Err(error) => return failed(format!("{error}; check the drive (btrfs check, xfs_repair -n)")),
    };
    let record = match record {
        None => None,
        Some(Ok(record)) if record.id == *id && record.backend == backend.kind() => Some(record),
        Some(Ok(record)) => {
            return failed(format!(
                "its record says drive {} ({}); it was changed by hand",
                record.id, record.backend
            ));
        }
        Some(Err(error)) => {
            let remedy = match error {
                RecordError::Newer { .. } => "",
                RecordError::Damaged(_) => "; restore it from a backup, or remove the drive",
            };
            return failed(format!("its record .orlop/drive.json can't be used: {error}{remedy}"));
        }
    };
    let site = Site::new(host.clone(), backend, layout.clone());
    let start = || {
        let claim = match mount_and_claim(host.as_ref(), root, backend, &device.path, &layout)? {
            Hold::Ours(claim) => claim,
            Hold::Theirs(who) => return Ok(Err(who)),
        };
        if maker == Maker::DirectPv {
            directpv::verify(&site, id)?;
        }
        backend.prepare(host.as_ref(), layout.mount())?;
        let (volumes, removals) = stock::take(&site)?;
        if let Some(record) = &record {
            keep_record(host.as_ref(), &layout, record)?;
        }
        let labels = label::read(host.as_ref(), &site.layout)?;
        let serving = Serving {
            id: id.clone(),
            device: device.path.clone(),
            size: device.size,
            foreign: foreign(&site, &volumes)?,
            failing: None,
            gone: None,
            tried: false,
            unread: labels.is_none(),
            labels: labels.unwrap_or_default(),
            site: site.clone(),
            claim: Some(claim),
            volumes,
        };
        Ok::<_, linux::Error>(Ok((serving, removals)))
    };
    match start() {
        Ok(Ok((serving, removals))) => Opened { found: Some(Found::Serving(serving)), removals },
        Ok(Err(who)) => Opened { found: Some(unable(id, backend, who, true)), removals: Vec::new() },
        // What a kernel without quotas says to a mount that asks for them.
        Err(error) if backend.kind() == BackendKind::Xfs && error.kind() == ErrorKind::InvalidInput => {
            failed(format!("{error} (does this kernel have XFS project quotas?)"))
        }
        Err(error) => failed(error.to_string()),
    }
}

/// Bytes of an adopted drive that are used by what is neither a volume nor free, such as deletions that DirectPV never
/// finished.
fn foreign(site: &Site, volumes: &BTreeMap<String, Entry>) -> linux::Result<u64> {
    if site.layout.maker() == Maker::Orlop {
        return Ok(0);
    }
    let space = site.host.space(site.layout.mount())?;
    let mut foreign = space.size.saturating_sub(space.available);
    for entry in volumes.values().filter(|entry| entry.unfit.is_none() && !entry.busy) {
        foreign = foreign.saturating_sub(site.used(&entry.record)?);
    }
    Ok(foreign)
}

/// Two devices with one identity: one is a copy, and nobody knows which.
pub(crate) fn copies(sighted: &[(Source, Sighted, Option<Claim>)]) -> BTreeMap<DriveId, Vec<PathBuf>> {
    let mut places: BTreeMap<DriveId, Vec<PathBuf>> = BTreeMap::new();
    for (source, found, _) in sighted {
        if let Sighted::Drive { id, .. } = found {
            places.entry(id.clone()).or_default().push(source.path().to_owned());
        }
    }
    places.retain(|_, places| places.len() > 1);
    places
}
