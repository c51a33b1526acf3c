//! LVM: a volume is a logical volume of its size, with a file system of its own or as it is. A drive is a volume group on
//! one device, named after the drive; a small logical volume beside the others holds the records. While the drive
//! serves, each file system is mounted where a directory is on other drives.
//!
//! On `lvm` a volume's space is its own. On `lvm-thin` it comes from a pool as it is written, and is shared with copies.

mod filesystem;
mod pool;

use std::{
    ffi::OsStr,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use linux::{
    Attributes, COMING, Error, FilesystemMount, Host, LogicalVolume, Making, Mount, Result, Signature,
    Unmount, logical_device, probe_superblock,
};

use super::{Backend, Copies, New, Place, QuotaKey, Usage, Use};
use crate::{
    BackendKind, DriveId,
    idle::unmount_drive,
    initialise::{self, LABEL},
    layout::image_in,
};
use filesystem::{filesystem, is_shown, show};
use pool::{POOL, Pool};

/// Groups of one kind.
pub(crate) struct Lvm {
    kind: BackendKind,
}

pub(super) static LINEAR: Lvm = Lvm { kind: BackendKind::Lvm };
pub(super) static THIN: Lvm = Lvm { kind: BackendKind::LvmThin };

/// What groups of ours begin with; the drive's identity without its dashes follows.
const PREFIX: &str = "orlop_";
/// The logical volume with the records, and room for those of thousands of volumes.
const RECORDS: &str = "records";
const RECORDS_SIZE: u64 = 64 << 20;
/// ENOSPC.
const NO_SPACE: i32 = 28;
/// What LVM hands out, and what it keeps for itself at the start of a device.
const EXTENT: u64 = 4 << 20;
const OVERHEAD: u64 = 8 << 20;
/// On a group of ours, and on its volumes, so that people see whose they are.
const DRIVE_TAG: &str = "orlop.dev/drive";
const THIN_TAG: &str = "orlop.dev/thin";
const VOLUME_TAG: &str = "orlop.dev/volume";
/// A volume group of ours, told as a file system with our label is.
pub(super) fn told(host: &dyn Host, device: &Path) -> Result<Option<Signature>> {
    let Some(found) = host.group_on(device)? else { return Ok(None) };
    let digits = found.name.strip_prefix(PREFIX).and_then(|digits| uuid::Uuid::try_parse(digits).ok());
    let Some(id) = digits.filter(|_| found.tags.iter().any(|tag| tag == DRIVE_TAG)) else { return Ok(None) };
    if found.devices != 1 || found.missing != 0 {
        let why = "a drive is on one device; this group was changed by hand";
        return Err(Error::because("use volume group", found.name, why));
    }
    let kind = match found.tags.iter().any(|tag| tag == THIN_TAG) {
        true => BackendKind::LvmThin,
        false => BackendKind::Lvm,
    };
    Ok(Some(Signature { kind: kind.name(), uuid: Some(id.to_string()), label: Some(LABEL.to_owned()) }))
}

fn group(id: &DriveId) -> String {
    format!("{PREFIX}{}", id.as_str().replace('-', ""))
}

/// The group of the drive that is mounted there: under its identity.
fn group_at(mount: &Path) -> Result<String> {
    let name = mount.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let id = name.len().checked_sub(36).and_then(|at| name.get(at..)).unwrap_or_default();
    match uuid::Uuid::try_parse(id) {
        Ok(_) => Ok(group(&DriveId(id.to_owned()))),
        Err(_) => Err(Error::because("find the volume group of", mount.display(), "it is no drive's place")),
    }
}

/// The logical volume of a volume. LVM gives some names with `_` in them a meaning of its own.
fn name(key: &str) -> String {
    format!("v.{}", key.replace('_', "+"))
}

fn key(name: &str) -> Option<String> {
    Some(name.strip_prefix("v.")?.replace('+', "_"))
}

fn last(volume: &Path) -> &str {
    volume.file_name().and_then(OsStr::to_str).unwrap_or_default()
}

/// The device that a volume would have for itself.
pub(crate) fn device(drive: &DriveId, key: &str) -> PathBuf {
    logical_device(&group(drive), &name(key))
}

/// The device that a volume has for itself, by its plain path; it is there even if its drive is gone.
pub(crate) fn own_device(host: &dyn Host, drive: &DriveId, key: &str) -> Result<Option<PathBuf>> {
    plain(host, &device(drive, key))
}

/// Whether a logical volume, by its plain path, is made of this device, and not of one that was pulled.
fn lies_on(host: &dyn Host, volume: &Path, device: &Path) -> Result<bool> {
    let holders = host.block_device(device)?.holders;
    Ok(volume.file_name().and_then(OsStr::to_str).is_some_and(|name| holders.iter().any(|one| one == name)))
}

fn plain(host: &dyn Host, device: &Path) -> Result<Option<PathBuf>> {
    match host.block_device(device) {
        Ok(device) => Ok(Some(device.path)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// What a device of this size has for volumes, or for a pool.
fn space(size: u64) -> u64 {
    size.saturating_sub(OVERHEAD + RECORDS_SIZE) / EXTENT * EXTENT
}

impl Lvm {
    fn is_thin(&self) -> bool {
        self.kind == BackendKind::LvmThin
    }
}

/// A snapshot counts what its volume had when it was taken. That was looked up before, and somebody may have written
/// since.
fn fits(host: &dyn Host, group: &str, new: &New) -> Result<()> {
    let Some(of) = &new.of else { return Ok(()) };
    match pool::written(host, group, &name(of))? > new.size {
        true => Err(Error::new("take a snapshot in", group, std::io::Error::from_raw_os_error(NO_SPACE))),
        false => Ok(()),
    }
}

impl Place<'_> {
    fn device(&self) -> Result<PathBuf> {
        Ok(logical_device(&group_at(self.mount)?, &name(last(self.volume))))
    }
}

impl Backend for Lvm {
    fn kind(&self) -> BackendKind {
        self.kind
    }

    fn supported(&self, host: &dyn Host) -> Result<()> {
        host.has_device_mapper(if self.is_thin() { "thin-pool" } else { "linear" })
    }

    fn format(&self, host: &dyn Host, id: &DriveId, device: &Path, _: bool) -> Result<()> {
        let group = group(id);
        let tags: &[&str] = if self.is_thin() { &[DRIVE_TAG, THIN_TAG] } else { &[DRIVE_TAG] };
        host.make_group(device, &group, tags)?;
        host.make_logical_volume(&group, RECORDS, Making::Linear(RECORDS_SIZE), DRIVE_TAG)?;
        if self.is_thin() {
            let pool = Pool::on(space(host.block_device(device)?.size));
            host.make_logical_volume(&group, POOL, pool.making(), DRIVE_TAG)?;
        }
        let records = logical_device(&group, RECORDS);
        let arguments = ["-q", "-F", "-m", "0", "-L", LABEL].map(OsStr::new);
        host.run("mkfs.ext4", &[&arguments[..], &[records.as_os_str()]].concat(), initialise::DEADLINE)
            .map(drop)
    }

    /// The file system of the records is made last, and volumes come after it.
    fn is_half_formatted(&self, host: &dyn Host, mount: &Path) -> Result<bool> {
        let group = group_at(mount)?;
        let is_volume = |found: &LogicalVolume| found.tags.iter().any(|tag| tag == VOLUME_TAG);
        if host.logical_volumes(&group)?.iter().any(is_volume) {
            return Ok(false);
        }
        let records = logical_device(&group, RECORDS);
        if !host.exists(&records)? {
            return Ok(true);
        }
        let (first, last) = host.read_edges(&records)?;
        Ok(probe_superblock(&first, &last).is_none())
    }

    fn bring_up(&self, host: &dyn Host, device: &Path, mount: &Path) -> Result<PathBuf> {
        let group = group_at(mount)?;
        let records = logical_device(&group, RECORDS);
        if let Some(left) = plain(host, &records)?
            && !lies_on(host, &left, device)?
        {
            host.activate_group(&group, false)?;
        }
        if !host.exists(&records)?
            && let Err(error) = host.activate_group(&group, true)
        {
            // Power loss while LVM makes a thin volume leaves one that the pool does not know: it was never announced,
            // and goes when the records are read.
            let pool = logical_device(&group, POOL);
            if !host.exists(&records)? || self.is_thin() && !host.exists(&pool)? {
                return Err(error);
            }
            tracing::warn!(%error, group, "a logical volume can't be activated");
        }
        Ok(records)
    }

    fn is_on(&self, host: &dyn Host, mounted: &Mount, device: &Path) -> Result<bool> {
        match plain(host, &mounted.source)? {
            Some(records) => lies_on(host, &records, device),
            None => Ok(false),
        }
    }

    fn wind_down(&self, host: &dyn Host, mount: &Path) -> Result<()> {
        let table = host.mount_table()?;
        // What has another root is the device of a block volume, and in use.
        let own = |shown: &&linux::Mount| shown.target != mount && shown.root == Path::new("/");
        let volumes: Vec<_> = table.below(mount).into_iter().filter(own).collect();
        for shown in &volumes {
            let used = |other: &&linux::Mount| other.device == shown.device && other.target != shown.target;
            if let Some(other) = table.iter().find(used) {
                let why = format!("a volume of it is mounted at {}", other.target.display());
                return Err(Error::because("close drive", mount.display(), why));
            }
        }
        volumes.iter().try_for_each(|shown| unmount_drive(host, &shown.target))
    }

    fn let_go(&self, host: &dyn Host, mount: &Path) -> Result<()> {
        let group = group_at(mount)?;
        match host.exists(&logical_device(&group, RECORDS))? {
            true => host.activate_group(&group, false),
            false => Ok(()),
        }
    }

    fn mounting<'a>(&self, device: &'a str) -> FilesystemMount<'a> {
        FilesystemMount {
            filesystem: "ext4",
            source: device,
            options: Vec::new(),
            attributes: Attributes { no_atime: true, ..Attributes::default() },
        }
    }

    /// Shows the volumes at their places. One that can't be shown is a lost one, or was never finished.
    fn prepare(&self, host: &dyn Host, mount: &Path) -> Result<()> {
        let group = group_at(mount)?;
        let table = host.mount_table()?;
        for found in host.logical_volumes(&group)? {
            if found.name.starts_with(COMING) {
                host.remove_logical_volume(&group, &found.name)?;
            }
            let Some(key) = key(&found.name) else { continue };
            let volume = mount.join("volumes").join(key);
            let is_shown = table.at(&volume).is_some();
            if (is_shown || host.exists(&volume)? && !host.exists(&image_in(&volume))?)
                && let Err(error) = show(host, &logical_device(&group, &found.name), &volume)
            {
                tracing::warn!(%error, volume = %volume.display(), "a logical volume can't be shown");
            }
        }
        Ok(())
    }

    fn usable(&self, size: u64) -> u64 {
        match self.is_thin() {
            true => Pool::on(space(size)).data,
            false => space(size),
        }
    }

    fn unit(&self) -> u64 {
        EXTENT
    }

    /// What a file system of its own takes at least.
    fn smallest(&self, name: Option<&str>) -> u64 {
        filesystem(name).map_or(EXTENT, |filesystem| filesystem.smallest())
    }

    fn choose_key(&self, _: &[QuotaKey]) -> Option<QuotaKey> {
        Some(QuotaKey::Device)
    }

    fn create(&self, host: &dyn Host, place: Place<'_>, new: &New) -> Result<()> {
        let (group, device) = (group_at(place.mount)?, place.device()?);
        host.make_directory_ordered(place.volume, 0o755)?;
        if host.mount_table()?.at(place.volume).is_some() {
            return Ok(());
        }
        if new.use_as != Use::Kept && self.is_thin() {
            pool::has_room(host, &group, new.overcommitted)?;
        }
        let of = new.of.as_deref().map(name);
        let making = match (&of, &new.use_as) {
            (Some(of), _) => Making::Snapshot { of },
            (None, _) if self.is_thin() => Making::Thin { pool: POOL, size: new.size },
            // Its user could read what was there before.
            (None, Use::Block) => Making::Zeroed(new.size),
            (None, _) => Making::Linear(new.size),
        };
        host.make_logical_volume(&group, &name(last(place.volume)), making, VOLUME_TAG)?;
        match &new.use_as {
            Use::Filesystem(own) => {
                if of.is_none() {
                    filesystem(own.as_deref())?.make(host, &device)?;
                }
                show(host, &device, place.volume)
            }
            // The place where its device is shown while it is staged.
            Use::Block | Use::Kept => host.write_durable(&image_in(place.volume), b"", 0o600),
        }?;
        match new.use_as {
            Use::Kept => fits(host, &group, new),
            _ => Ok(()),
        }
    }

    fn quota_key(&self, host: &dyn Host, place: Place<'_>) -> Result<Option<QuotaKey>> {
        let device = place.device()?;
        let there = match host.mount_table()?.at(place.volume) {
            Some(_) => is_shown(host, &device, place.volume)?,
            None => host.exists(&image_in(place.volume))? && host.exists(&device)?,
        };
        Ok(there.then_some(QuotaKey::Device))
    }

    fn limit(&self, host: &dyn Host, place: Place<'_>, _: QuotaKey, bytes: u64) -> Result<()> {
        let (group, device) = (group_at(place.mount)?, place.device()?);
        let is_block = host.mount_table()?.at(place.volume).is_none();
        let size = host.block_device(&device)?.size;
        if size > bytes {
            let why =
                format!("it has {} already, and a logical volume is not made smaller", values::Bytes(size));
            return Err(Error::because("limit", place.volume.display(), why));
        }
        if size < bytes {
            if self.is_thin() {
                pool::has_room(host, &group, false)?;
            }
            let zeroed = is_block && !self.is_thin();
            host.grow_logical_volume(&group, &name(last(place.volume)), bytes, zeroed)?;
        }
        match is_block {
            true => Ok(()),
            false => show(host, &device, place.volume),
        }
    }

    fn usage(&self, host: &dyn Host, place: Place<'_>, _: QuotaKey) -> Result<Usage> {
        let size = host.block_device(&place.device()?)?.size;
        if host.mount_table()?.at(place.volume).is_none() {
            return Ok(Usage { used: size, limit: Some(size), inodes: None });
        }
        let space = host.space(place.volume)?;
        // What the file system needs for itself is used.
        Ok(Usage {
            used: size.saturating_sub(space.available),
            limit: Some(size),
            inodes: Some(space.inodes.saturating_sub(space.inodes_free)),
        })
    }

    fn copies(&self) -> Copies {
        if self.is_thin() { Copies::Blocks } else { Copies::None }
    }

    /// What of the volume was ever written, in the pool's chunks.
    fn copied(&self, host: &dyn Host, place: Place<'_>, _: QuotaKey) -> Result<u64> {
        pool::written(host, &group_at(place.mount)?, &name(last(place.volume)))
    }

    fn device(&self, host: &dyn Host, place: Place<'_>) -> Result<Option<PathBuf>> {
        plain(host, &place.device()?)
    }

    fn freeze(&self, _: &dyn Host, volume: &Path, _: &Path) -> Result<()> {
        Err(Error::because(
            "copy the files of",
            volume.display(),
            "logical volumes are copied by their blocks",
        ))
    }

    fn thaw(&self, _: &dyn Host, _: &Path, _: &Path) -> Result<()> {
        Ok(())
    }

    fn fill(&self, host: &dyn Host, source: &Path, _: &Path, _: &Path) -> Result<()> {
        self.freeze(host, source, source)
    }

    fn restore(&self, host: &dyn Host, _: &Path, snapshot: &Path, _: &Path) -> Result<()> {
        self.freeze(host, snapshot, snapshot)
    }

    fn withdraw(&self, host: &dyn Host, volume: &Path) -> Result<()> {
        host.unmount(volume, Unmount::Plain).map(drop)
    }

    /// Its logical volume goes by its name, whether or not it was ever shown.
    fn destroy(&self, host: &dyn Host, mount: &Path, volume: &Path) -> Result<()> {
        host.remove_logical_volume(&group_at(mount)?, &name(last(volume)))?;
        host.remove_tree(volume).map(drop)
    }

    /// Logical volumes are durable at once, and no part of the file system with the records.
    fn is_ordered(&self) -> bool {
        false
    }

    /// The space is free when the logical volume is gone.
    fn reclaim(&self, _: &dyn Host, _: &Path, _: QuotaKey, _: &dyn Fn() -> Result<()>) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_lvm_and_ours_lead_to_each_other() {
        let id = DriveId("01234567-89ab-4cde-8f01-23456789abcd".to_owned());
        for place in
            ["/drives/01234567-89ab-4cde-8f01-23456789abcd", "/x/.probe-01234567-89ab-4cde-8f01-23456789abcd"]
        {
            assert_eq!(group_at(Path::new(place)).expect("a drive's place"), group(&id));
        }
        assert!(group_at(Path::new("/drives/somewhere")).is_err());
        for volume in ["pvc-1", "a_tdata.b", "_"] {
            assert_eq!(key(&name(volume)).as_deref(), Some(volume));
        }
        assert_eq!(key(RECORDS), None);
        assert!(!name("x_tmeta").contains('_'), "LVM keeps such names for itself");
    }
}
