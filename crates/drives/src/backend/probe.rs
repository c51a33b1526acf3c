//! Whether the running kernel can serve a backend: tried out for real on a small file.

use std::{collections::BTreeSet, path::Path, time::Duration};

use linux::{Host, Unmount};
use parking_lot::Mutex;

use super::{Backend, QuotaKey};
use crate::{BackendKind, DriveId, layout::Layout};

/// Backends that were seen to work: tried once per process. A refusal is not kept; a module may be loaded, room made.
static PROVEN: Mutex<BTreeSet<BackendKind>> = Mutex::new(BTreeSet::new());

/// Big enough for both file systems.
const IMAGE: u64 = 320 << 20;
const DEADLINE: Duration = Duration::from_secs(60);

/// Says why the kernel can't serve this backend, if it can't. `scratch` is a directory for the trial.
pub(crate) fn probe(host: &dyn Host, backend: &dyn Backend, scratch: &Path) -> Result<(), String> {
    // The lock is held through the trial: a second caller waits for the verdict instead of trying too.
    let mut proven = PROVEN.lock();
    if proven.contains(&backend.kind()) {
        return Ok(());
    }
    try_out(host, backend, scratch).inspect_err(|reason| {
        tracing::info!(backend = %backend.kind(), reason, "backend can't serve on this machine");
    })?;
    proven.insert(backend.kind());
    Ok(())
}

fn try_out(host: &dyn Host, backend: &dyn Backend, scratch: &Path) -> Result<(), String> {
    let id = DriveId(uuid::Uuid::new_v4().to_string());
    let image = scratch.join(format!(".probe-{id}.img"));
    let mount = scratch.join(format!(".probe-{id}"));
    let verdict = attempt(host, backend, &id, &image, &mount).map_err(|error| match backend.kind() {
        BackendKind::Xfs if error.errno().is_some() => {
            format!("{error} (this kernel lacks XFS project quotas)")
        }
        _ => error.to_string(),
    });
    clean_up(host, &image, &mount);
    verdict
}

fn attempt(
    host: &dyn Host,
    backend: &dyn Backend,
    id: &DriveId,
    image: &Path,
    mount: &Path,
) -> linux::Result<()> {
    host.make_image(image, IMAGE)?;
    let device = host.attach_loop(image)?;
    let (program, mut arguments) = backend.format(id, false);
    let device = device.to_string_lossy().into_owned();
    arguments.push(device.clone());
    host.run(program, &arguments.iter().map(AsRef::as_ref).collect::<Vec<_>>(), DEADLINE)?;
    host.make_directory(mount, 0o700)?;
    host.mount(&backend.mounting(&device), mount)?;
    backend.prepare(host, mount)?;
    let layout = Layout::new(mount.to_owned());
    host.make_directory(&layout.volumes(), 0o755)?;
    let volume = layout.volume("probe");
    let quota = backend.choose_key(&[]);
    backend.create(host, &volume, quota)?;
    let quota = backend.quota_key(host, &volume)?.ok_or_else(|| {
        linux::Error::because("enforce sizes with", backend.kind(), "a new volume is not counted")
    })?;
    backend.limit(host, mount, quota, LIMIT)?;
    check_enforced(host, backend, mount, &volume, quota)
}

const LIMIT: u64 = 1 << 20;

/// Writes more than the volume may hold; that must fail.
fn check_enforced(
    host: &dyn Host,
    backend: &dyn Backend,
    mount: &Path,
    volume: &Path,
    quota: QuotaKey,
) -> linux::Result<()> {
    let excess = vec![1; LIMIT as usize * 2];
    if host.write_durable(&volume.join("excess"), &excess, 0o600).is_ok() {
        return Err(linux::Error::because(
            "enforce sizes with",
            backend.kind(),
            "a volume grew past its limit",
        ));
    }
    match backend.usage(host, mount, quota)?.limit {
        Some(LIMIT) => Ok(()),
        other => {
            let why = format!("a limit of {LIMIT} bytes was read back as {other:?}");
            Err(linux::Error::because("enforce sizes with", backend.kind(), why))
        }
    }
}

fn clean_up(host: &dyn Host, image: &Path, mount: &Path) {
    let clean = || {
        host.unmount(mount, Unmount::Plain)?;
        host.remove_directory(mount)?;
        if let Some(device) = host.loop_of(image)? {
            host.detach_loop(&device)?;
        }
        host.remove_file(image)
    };
    if let Err(error) = clean() {
        tracing::warn!(%error, image = %image.display(), "the trial of a backend left something behind");
    }
}
