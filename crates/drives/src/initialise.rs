//! Making a drive of a device. Nothing in use is ever formatted.

use std::{path::Path, sync::Arc, time::Duration};

use linux::{BlockDevice, Claim, Host, Signature, probe_superblock};

use crate::{
    BackendKind, DriveId, Force, InitialiseError, Source,
    backend::{self, Backend},
    claim::{self, Hold},
    execute::Site,
    expected,
    layout::{Layout, Maker},
    open,
    record::{DeviceFacts, DriveRecord, FORMAT},
    state::Serving,
};

/// Label of the file systems that we make.
pub(crate) const LABEL: &str = "orlop";

/// What both file systems need to be worth it.
pub(crate) const SMALLEST_DRIVE: u64 = 256 << 20;

/// Formatting a large drive discards all its blocks first.
pub(crate) const DEADLINE: Duration = Duration::from_secs(600);

/// What speaks against formatting: pure, so that every reason is a line in a table of tests.
pub(crate) fn refusal(
    device: &BlockDevice,
    signature: Option<&Signature>,
    force: Force,
) -> Result<(), InitialiseError> {
    let path = || device.path.clone();
    if let Some(at) = device.mounted_at.first() {
        return Err(InitialiseError::Mounted { device: path(), at: at.clone() });
    }
    if !device.partitions.is_empty() {
        return Err(InitialiseError::Partitioned {
            device: path(),
            partitions: device.partitions.join(", "),
        });
    }
    if !device.holders.is_empty() {
        return Err(InitialiseError::Held { device: path(), holders: device.holders.join(", ") });
    }
    if device.swap {
        return Err(InitialiseError::Swap(path()));
    }
    if device.read_only {
        return Err(InitialiseError::ReadOnly(path()));
    }
    if device.size < SMALLEST_DRIVE {
        return Err(InitialiseError::TooSmall {
            device: path(),
            size: device.size,
            smallest: SMALLEST_DRIVE,
        });
    }
    match signature {
        Some(signature) if force == Force::No => {
            Err(InitialiseError::Carries { device: path(), signature: signature.clone() })
        }
        _ => Ok(()),
    }
}

/// Formats, mounts and records.
pub(crate) fn initialise(
    host: &Arc<dyn Host>,
    root: &Path,
    source: &Source,
    kind: Option<BackendKind>,
    force: Force,
    claim: &mut Option<Claim>,
) -> Result<Serving, InitialiseError> {
    hold(host.as_ref(), root, source, claim)?;
    refuse_missing(host.as_ref(), root, source)?;
    make_file(host.as_ref(), source)?;
    hold(host.as_ref(), root, source, claim)?;
    let device = attach(host.as_ref(), source)?;
    let made = take_in(host, root, source, &device, kind, force);
    if made.is_err() && matches!(source, Source::LoopFile { .. }) && device.mounted_at.is_empty() {
        // Detaching is only tidiness; the refusal is what matters.
        let _ = host.detach_loop(&device.path);
    }
    made
}

/// Claims the file of a drive, if it is there, unless that was done.
fn hold(
    host: &dyn Host,
    root: &Path,
    source: &Source,
    claimed: &mut Option<Claim>,
) -> Result<(), InitialiseError> {
    let failed = |error| InitialiseError::Failed { source_path: source.clone(), error };
    if claimed.is_some() {
        return Ok(());
    }
    let path = match source {
        Source::LoopFile { path, .. } => host.exists(path).map_err(failed)?.then(|| path.clone()),
        // What is wrong with it is said later.
        Source::Device(path) => host
            .block_device(path)
            .ok()
            .and_then(|device| claim::file_behind(host, &device).map(Path::to_owned)),
    };
    let Some(path) = &path else { return Ok(()) };
    match claim::claim(host, path).map_err(failed)? {
        Hold::Theirs(reason) => Err(InitialiseError::Taken { source_path: source.clone(), reason }),
        Hold::Ours(claim) => {
            claim::sign(host, root, path);
            *claimed = Some(claim);
            Ok(())
        }
    }
}

fn take_in(
    host: &Arc<dyn Host>,
    root: &Path,
    source: &Source,
    device: &BlockDevice,
    kind: Option<BackendKind>,
    force: Force,
) -> Result<Serving, InitialiseError> {
    let failed = |error| InitialiseError::Failed { source_path: source.clone(), error };
    let signature = signature(host.as_ref(), &device.path).map_err(failed)?;
    let known = signature.as_ref().and_then(open::identity).filter(|_| device.mounted_at.is_empty());
    if let Some((id, Maker::DirectPv)) = &known
        && force == Force::No
    {
        return Err(InitialiseError::AlreadyDrive { device: device.path.clone(), id: id.clone() });
    }
    if let Some((id, Maker::Orlop)) = known {
        match open::peek(host.as_ref(), root, device, &id) {
            Ok(Some((_, true))) if force == Force::No => {
                return Err(InitialiseError::AlreadyDrive { device: device.path.clone(), id });
            }
            Ok(Some((backend, false))) => {
                // We formatted it and were interrupted: nothing is on it yet.
                tracing::info!(device = %device.path.display(), drive = %id, "finishing an interrupted initialisation");
                format_again(host.as_ref(), root, device, &id, backend).map_err(failed)?;
                return finish(host, root, source, device, &id, backend);
            }
            Err(error) if force == Force::No => {
                return Err(InitialiseError::Unreadable { device: device.path.clone(), id, error });
            }
            Ok(_) | Err(_) => {}
        }
    }
    refusal(device, signature.as_ref(), force)?;
    let backend = choose_backend(host.as_ref(), root, kind)?;
    let id = DriveId(uuid::Uuid::new_v4().to_string());
    host.check_exclusive(&device.path)
        .map_err(|error| InitialiseError::InUse { device: device.path.clone(), error })?;
    let again = host.block_device(&device.path).map_err(failed)?;
    if again != *device {
        return Err(InitialiseError::Changed(device.path.clone()));
    }
    tracing::info!(device = %device.path.display(), drive = %id, backend = %backend.kind(), "formatting");
    let overwrite = force == Force::OverwriteFileSystem;
    backend.format(host.as_ref(), &id, &device.path, overwrite).map_err(failed)?;
    finish(host, root, source, device, &id, backend)
}

/// Formats a drive whose formatting broke off.
fn format_again(
    host: &dyn Host,
    root: &Path,
    device: &BlockDevice,
    id: &DriveId,
    backend: &dyn Backend,
) -> linux::Result<()> {
    let mount = root.join(id.as_str());
    match backend.is_half_formatted(host, &mount)? {
        true => {
            backend.let_go(host, &mount)?;
            backend.format(host, id, &device.path, true)
        }
        false => Ok(()),
    }
}

/// From a fresh file system to a drive. The record of the drive is the last thing written.
fn finish(
    host: &Arc<dyn Host>,
    root: &Path,
    source: &Source,
    device: &BlockDevice,
    id: &DriveId,
    backend: &'static dyn Backend,
) -> Result<Serving, InitialiseError> {
    let failed = |error| InitialiseError::Failed { source_path: source.clone(), error };
    let layout = Layout::new(root.join(id.as_str()));
    let record = DriveRecord {
        format: FORMAT,
        id: id.clone(),
        backend: backend.kind(),
        created: clock::now(),
        device: DeviceFacts {
            path: device.path.clone(),
            size: device.size,
            model: device.model.clone(),
            serial: device.serial.clone(),
        },
    };
    let hold = open::mount_and_claim(host.as_ref(), root, backend, &device.path, &layout);
    let claim = match hold.map_err(failed)? {
        Hold::Ours(claim) => claim,
        Hold::Theirs(reason) => {
            return Err(InitialiseError::Taken { source_path: source.clone(), reason });
        }
    };
    let make = || {
        backend.prepare(host.as_ref(), layout.mount())?;
        host.make_directory(&layout.records(), 0o700)?;
        host.make_directory(&layout.trash(), 0o700)?;
        host.make_directory(&layout.volumes(), 0o711)?;
        host.sync_filesystem(layout.mount())?;
        open::keep_record(host.as_ref(), &layout, &record)?;
        expected::remember(host.as_ref(), root, id, source)
    };
    if let Err(error) = make() {
        drop(claim);
        open::unmount_quietly(host.as_ref(), backend, layout.mount());
        return Err(failed(error));
    }
    Ok(Serving {
        id: id.clone(),
        device: device.path.clone(),
        size: device.size,
        foreign: 0,
        failing: None,
        gone: None,
        unread: false,
        tried: false,
        site: Site::new(host.clone(), backend, layout),
        claim: Some(claim),
        volumes: Default::default(),
        labels: Default::default(),
    })
}

/// A drive that was last seen here must not be replaced unasked.
fn refuse_missing(host: &dyn Host, root: &Path, source: &Source) -> Result<(), InitialiseError> {
    let failed = |error| InitialiseError::Failed { source_path: source.clone(), error };
    let expected = expected::all(host, root).map_err(failed)?;
    let Some((id, _)) = expected.into_iter().find(|(_, place)| place.path() == source.path()) else {
        return Ok(());
    };
    let here = match host.block_device(&device_path(host, source).map_err(failed)?.unwrap_or_default()) {
        Ok(device) => signature(host, &device.path).map_err(failed)?.as_ref().and_then(open::identity),
        Err(_) => None,
    };
    match here {
        Some(_) => Ok(()),
        None => Err(InitialiseError::Missing { source_path: source.clone(), id }),
    }
}

fn device_path(host: &dyn Host, source: &Source) -> linux::Result<Option<std::path::PathBuf>> {
    match source {
        Source::Device(path) => Ok(Some(path.clone())),
        Source::LoopFile { path, .. } if host.exists(path)? => host.attach_loop(path).map(Some),
        Source::LoopFile { .. } => Ok(None),
    }
}

/// Makes the file of a source that is one, unless it is there.
fn make_file(host: &dyn Host, source: &Source) -> Result<(), InitialiseError> {
    let failed = |error| InitialiseError::Failed { source_path: source.clone(), error };
    let Source::LoopFile { path, size } = source else { return Ok(()) };
    if host.exists(path).map_err(failed)? {
        return Ok(());
    }
    if *size < SMALLEST_DRIVE {
        return Err(InitialiseError::TooSmall {
            device: path.clone(),
            size: *size,
            smallest: SMALLEST_DRIVE,
        });
    }
    if let Some(parent) = path.parent() {
        host.make_directory(parent, 0o700).map_err(failed)?;
    }
    host.make_image(path, *size).map_err(failed)
}

/// The device of a source.
fn attach(host: &dyn Host, source: &Source) -> Result<BlockDevice, InitialiseError> {
    let device = device_path(host, source)
        .map_err(|error| InitialiseError::Failed { source_path: source.clone(), error })?
        .unwrap_or_default();
    host.block_device(&device)
        .map_err(|error| InitialiseError::NoDevice { source_path: source.clone(), error })
}

pub(crate) fn signature(host: &dyn Host, device: &Path) -> linux::Result<Option<Signature>> {
    let (first, last) = host.read_edges(device)?;
    probe_superblock(&first, &last).map(|found| backend::told(host, device, found)).transpose()
}

/// The one asked for, or the first that the kernel can serve.
fn choose_backend(
    host: &dyn Host,
    root: &Path,
    kind: Option<BackendKind>,
) -> Result<&'static dyn Backend, InitialiseError> {
    if let Some(kind) = kind {
        let backend = backend::of(kind);
        return match backend::probe(host, backend, root) {
            Ok(()) => Ok(backend),
            Err(reason) => Err(InitialiseError::Backend { backend: kind, reason }),
        };
    }
    let mut reasons = Vec::new();
    for kind in BackendKind::ALL {
        match backend::probe(host, backend::of(kind), root) {
            Ok(()) => return Ok(backend::of(kind)),
            Err(reason) => reasons.push(format!("{kind}: {reason}")),
        }
    }
    Err(InitialiseError::NoBackend(reasons.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_in_use_is_refused_even_when_forced() {
        let free = || BlockDevice { path: "/dev/sdb".into(), size: SMALLEST_DRIVE, ..BlockDevice::default() };
        let ext4 = || Some(Signature { kind: "ext4", uuid: None, label: Some("data".to_owned()) });
        let words = |device: BlockDevice, signature: Option<Signature>, force| {
            refusal(&device, signature.as_ref(), force).err().map(|refusal| refusal.to_string())
        };
        let cases = [
            (BlockDevice { mounted_at: vec!["/data".into()], ..free() }, "is mounted at /data; unmount"),
            (BlockDevice { partitions: vec!["sdb1".to_owned()], ..free() }, "has partitions (sdb1)"),
            (BlockDevice { holders: vec!["dm-0".to_owned()], ..free() }, "is held by dm-0"),
            (BlockDevice { swap: true, ..free() }, "swapoff"),
            (BlockDevice { read_only: true, ..free() }, "read-only"),
            (BlockDevice { size: SMALLEST_DRIVE - 1, ..free() }, "needs at least"),
        ];
        for (device, expected) in cases {
            let said = words(device, ext4(), Force::OverwriteFileSystem).expect("refused");
            assert!(said.starts_with("/dev/sdb ") && said.contains(expected), "{said}");
        }
        let said = words(free(), ext4(), Force::No).expect("refused");
        assert!(said.contains("carries ext4 \"data\"") && said.contains("force"), "{said}");
        assert_eq!(words(free(), ext4(), Force::OverwriteFileSystem), None);
        assert_eq!(words(free(), None, Force::No), None);
    }
}
