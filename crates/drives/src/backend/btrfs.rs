//! btrfs: a volume is a subvolume, held to its size by a simple quota.

use std::{ffi::OsStr, io::ErrorKind, path::Path};

use linux::{Attributes, FilesystemMount, Host, Result, SubvolumeId};

use super::{Backend, Copies, New, Place, QuotaKey, Usage, foreign};
use crate::{
    BackendKind, DriveId,
    initialise::{self, LABEL},
};

pub(crate) struct Btrfs;

impl Backend for Btrfs {
    fn kind(&self) -> BackendKind {
        BackendKind::Btrfs
    }

    fn format(&self, host: &dyn Host, id: &DriveId, device: &Path, overwrite: bool) -> Result<()> {
        let mut arguments: Vec<String> =
            ["-q", "-L", LABEL, "-U", id.as_str(), "-m", "dup", "-d", "single"].map(str::to_owned).into();
        arguments.extend(overwrite.then(|| "-f".to_owned()));
        arguments.push(device.to_string_lossy().into_owned());
        let arguments: Vec<&OsStr> = arguments.iter().map(AsRef::as_ref).collect();
        host.run("mkfs.btrfs", &arguments, initialise::DEADLINE).map(drop)
    }

    fn mounting<'a>(&self, device: &'a str) -> FilesystemMount<'a> {
        FilesystemMount {
            filesystem: "btrfs",
            source: device,
            options: Vec::new(),
            attributes: Attributes { no_atime: true, ..Attributes::default() },
        }
    }

    fn prepare(&self, host: &dyn Host, mount: &Path) -> Result<()> {
        host.enable_simple_quota(mount)
    }

    /// Metadata is kept twice. What a volume's own tree takes counts against the volume once, so each volume byte may
    /// cost two where it is metadata; checksums and the extent tree count against nobody (about 0.2 % of the data,
    /// twice). Chunks are handed out in pieces of up to a tenth of a small device. An eighth of the device, between
    /// 96 MiB and 16 GiB, keeps volumes full of data writable to their last byte (the tests fill a drive).
    fn usable(&self, size: u64) -> u64 {
        size.saturating_sub((size / 8).clamp(96 << 20, 16 << 30))
    }

    fn choose_key(&self, _: &[QuotaKey]) -> Option<QuotaKey> {
        None
    }

    fn create(&self, host: &dyn Host, place: Place<'_>, _: &New) -> Result<()> {
        match host.create_subvolume(place.volume, 0o755) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn quota_key(&self, host: &dyn Host, place: Place<'_>) -> Result<Option<QuotaKey>> {
        host.subvolume_id(place.volume).map(|id| Some(QuotaKey::Subvolume(id.0)))
    }

    fn limit(&self, host: &dyn Host, place: Place<'_>, quota: QuotaKey, bytes: u64) -> Result<()> {
        host.limit_subvolume(place.mount, subvolume(quota)?, Some(bytes))
    }

    fn usage(&self, host: &dyn Host, place: Place<'_>, quota: QuotaKey) -> Result<Usage> {
        let quota = host.subvolume_quota(place.mount, subvolume(quota)?)?.unwrap_or_default();
        Ok(Usage { used: quota.used, limit: quota.limit, inodes: None })
    }

    fn copies(&self) -> Copies {
        Copies::Files
    }

    fn freeze(&self, host: &dyn Host, volume: &Path, frozen: &Path) -> Result<()> {
        host.freeze_subvolume(volume, frozen).map(drop)
    }

    fn thaw(&self, host: &dyn Host, mount: &Path, frozen: &Path) -> Result<()> {
        let Some(id) = host.delete_subvolume(frozen)? else { return Ok(()) };
        // What the volume overwrote meanwhile counts for it until then.
        clean_up(host, mount, id, &|| host.commit_transaction(mount))
    }

    fn fill(&self, host: &dyn Host, _: &Path, frozen: &Path, volume: &Path) -> Result<()> {
        host.copy_tree(frozen, volume)
    }

    fn restore(&self, host: &dyn Host, _: &Path, snapshot: &Path, volume: &Path) -> Result<()> {
        host.copy_tree(snapshot, volume)
    }

    fn destroy(&self, host: &dyn Host, mount: &Path, volume: &Path) -> Result<()> {
        if !host.exists(volume)? {
            return Ok(());
        }
        // To delete a subvolume inside a full volume takes room too, and nobody writes here any more.
        host.limit_subvolume(mount, host.subvolume_id(volume)?, None)?;
        host.delete_subvolume(volume).map(drop)
    }

    /// A file that is made durable by itself is written to a log beside all others, and would go ahead of them: so no
    /// record is, and all become durable by a commit.
    fn flush(&self, host: &dyn Host, mount: &Path, _: &Path) -> Result<()> {
        host.commit_transaction(mount)
    }

    fn reclaim(
        &self,
        host: &dyn Host,
        mount: &Path,
        quota: QuotaKey,
        flush: &dyn Fn() -> Result<()>,
    ) -> Result<()> {
        clean_up(host, mount, subvolume(quota)?, flush)
    }
}

/// How many commits it may take until a cleaned subvolume is taken off its quota group; one, mostly.
const COMMITS: usize = 8;

/// Waits until a deleted subvolume is cleaned up, which begins with a commit, and removes its quota.
fn clean_up(host: &dyn Host, mount: &Path, id: SubvolumeId, flush: &dyn Fn() -> Result<()>) -> Result<()> {
    flush()?;
    host.wait_for_cleaning(mount, id)?;
    for _ in 0..COMMITS {
        match host.remove_subvolume_quota(mount, id) {
            Err(error) if error.kind() == ErrorKind::ResourceBusy => flush()?,
            other => return other,
        }
    }
    host.remove_subvolume_quota(mount, id)
}

fn subvolume(quota: QuotaKey) -> Result<SubvolumeId> {
    match quota {
        QuotaKey::Subvolume(id) => Ok(SubvolumeId(id)),
        QuotaKey::Project(_) | QuotaKey::Device => Err(foreign(quota)),
    }
}
