//! Whether the running kernel can serve a backend: tried out for real on a small file.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use linux::{Host, Unmount};
use parking_lot::Mutex;
use values::Bytes;

use super::{Backend, New, Place, QuotaKey, Use};
use crate::{BackendKind, DriveId, layout::Layout};

/// What the kernel can do: tried once per process.
static VERDICTS: Mutex<BTreeMap<BackendKind, Result<(), String>>> = Mutex::new(BTreeMap::new());

/// Big enough for both file systems.
const IMAGE: u64 = 320 << 20;

/// Says why the kernel can't serve this backend, if it can't. `scratch` is a directory for the trial.
pub(crate) fn probe(host: &dyn Host, backend: &dyn Backend, scratch: &Path) -> Result<(), String> {
    // The lock is held through the trial: a second caller waits for the verdict instead of trying too.
    let mut verdicts = VERDICTS.lock();
    if let Some(verdict) = verdicts.get(&backend.kind()) {
        return verdict.clone();
    }
    // Without a file or a formatting program nothing is known about the kernel: the next caller tries again.
    let verdict = trial(host, backend, scratch).map_err(|error| error.to_string())?;
    if let Err(reason) = &verdict {
        tracing::info!(backend = %backend.kind(), reason, "backend can't serve on this machine");
    }
    verdicts.insert(backend.kind(), verdict.clone());
    verdict
}

/// Tries a backend out, now: the verdict, if there can be one.
pub(crate) fn trial(
    host: &dyn Host,
    backend: &dyn Backend,
    scratch: &Path,
) -> linux::Result<Result<(), String>> {
    if let Err(error) = backend.supported(host) {
        return Ok(Err(error.to_string()));
    }
    let id = DriveId(uuid::Uuid::new_v4().to_string());
    let image = scratch.join(format!(".probe-{id}.img"));
    let mount = scratch.join(format!(".probe-{id}"));
    let verdict = furnish(host, backend, &id, &image).map(|device| {
        attempt(host, backend, &device, &mount).map_err(|error| match backend.kind() {
            BackendKind::Xfs => format!("{error} (does this kernel have XFS project quotas?)"),
            BackendKind::Btrfs | BackendKind::Lvm | BackendKind::LvmThin => error.to_string(),
        })
    });
    clean_up(host, backend, &image, &mount);
    verdict
}

/// A formatted file on a loop device.
fn furnish(host: &dyn Host, backend: &dyn Backend, id: &DriveId, image: &Path) -> linux::Result<PathBuf> {
    host.make_image(image, IMAGE)?;
    let device = host.attach_loop(image)?;
    backend.format(host, id, &device, false)?;
    Ok(device)
}

fn attempt(host: &dyn Host, backend: &dyn Backend, device: &Path, mount: &Path) -> linux::Result<()> {
    host.make_directory(mount, 0o700)?;
    let device = backend.bring_up(host, device, mount)?;
    host.mount(&backend.mounting(&device.to_string_lossy()), mount)?;
    backend.prepare(host, mount)?;
    let layout = Layout::new(mount.to_owned());
    host.make_directory(&layout.volumes(), 0o755)?;
    let volume = layout.volume("probe");
    let new = New {
        quota: backend.choose_key(&[]),
        size: backend.smallest(None),
        use_as: Use::Filesystem(None),
        of: None,
        overcommitted: false,
    };
    let place = Place { mount, volume: &volume };
    backend.create(host, place, &new)?;
    let quota = backend.quota_key(host, place)?.ok_or_else(|| {
        linux::Error::because("enforce sizes with", backend.kind(), "a new volume is not counted")
    })?;
    backend.limit(host, place, quota, new.size)?;
    check_enforced(host, backend, place, quota, new.size)
}

/// Writes more than the volume may hold; that must fail.
fn check_enforced(
    host: &dyn Host,
    backend: &dyn Backend,
    place: Place<'_>,
    quota: QuotaKey,
    limit: u64,
) -> linux::Result<()> {
    let excess = vec![1; limit as usize * 2];
    if host.write_durable(&place.volume.join("excess"), &excess, 0o600).is_ok() {
        return Err(linux::Error::because(
            "enforce sizes with",
            backend.kind(),
            "a volume grew past its limit",
        ));
    }
    match backend.usage(host, place, quota)?.limit {
        Some(found) if found == limit => Ok(()),
        other => {
            let found = other.map_or("none".to_owned(), |found| Bytes(found).to_string());
            let why = format!("a limit of {} was read back as {found}", Bytes(limit));
            Err(linux::Error::because("enforce sizes with", backend.kind(), why))
        }
    }
}

fn clean_up(host: &dyn Host, backend: &dyn Backend, image: &Path, mount: &Path) {
    let clean = || {
        backend.wind_down(host, mount)?;
        host.unmount(mount, Unmount::Plain)?;
        host.remove_directory(mount)?;
        backend.let_go(host, mount)?;
        if let Some(device) = host.loop_of(image)? {
            host.detach_loop(&device)?;
        }
        host.remove_file(image)
    };
    if let Err(error) = clean() {
        tracing::warn!(%error, image = %image.display(), "the trial of a backend left something behind");
    }
}
