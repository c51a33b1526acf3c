//! Showing volumes at paths, and taking them away again. The mount table tells what is where; targets are never looked
//! at, because a dead volume would block whoever looks.

use std::path::{Path, PathBuf};

use linux::{Attributes, BindSource, Host, Mount, MountTable, Target, TargetKind};

use crate::{
    DriveId, MountError, VolumeId, backend,
    idle::unmount_volume,
    layout::Layout,
    target::{plain, unusable},
};

/// A volume as the mount table shows it.
pub(crate) struct Shown<'a> {
    pub(crate) id: &'a VolumeId,
    pub(crate) layout: &'a Layout,
}

impl Shown<'_> {
    /// The mount whose file system holds the volume, and the volume's root within it: one of its own, or its drive's.
    fn home<'t>(&self, table: &'t MountTable) -> Option<(&'t Mount, PathBuf)> {
        match table.at(&self.layout.volume(&self.id.key)) {
            Some(own) => Some((own, PathBuf::from("/"))),
            None => Some((table.at(self.layout.mount())?, self.layout.root_of(&self.id.key))),
        }
    }

    /// Whether a mount shows this volume.
    fn is(&self, table: &MountTable, mount: &Mount) -> bool {
        self.home(table).is_some_and(|(home, root)| home.device == mount.device && mount.root == root)
    }

    /// Where the volume, or a part of it, is mounted outside its drive.
    pub(crate) fn mounted_at(&self, table: &MountTable) -> Option<PathBuf> {
        let (home, root) = self.home(table)?;
        table
            .iter()
            .find(|mount| {
                mount.device == home.device && mount.root.starts_with(&root) && mount.target != home.target
            })
            .map(|mount| mount.target.clone())
    }
}

/// Shows the volume's directory at `staging`.
pub(crate) fn stage(
    host: &dyn Host,
    volume: &Shown<'_>,
    staging: &Target,
    attributes: Attributes,
) -> Result<(), MountError> {
    let directory = volume.layout.volume(&volume.id.key);
    show(host, volume, &directory, staging, attributes)
}

/// Shows what is staged at `target`.
pub(crate) fn publish(
    host: &dyn Host,
    volume: &Shown<'_>,
    staging: &Path,
    target: &Target,
    attributes: Attributes,
) -> Result<(), MountError> {
    let not_staged = || MountError::NotStaged { id: volume.id.clone(), staging: staging.to_owned() };
    let staged = plain(host, staging)?.ok_or_else(not_staged)?;
    let table = host.mount_table()?;
    if !table.at(&staged).is_some_and(|mount| volume.is(&table, mount)) {
        return Err(not_staged());
    }
    show(host, volume, &staged, target, attributes)
}

fn show(
    host: &dyn Host,
    volume: &Shown<'_>,
    source: &Path,
    target: &Target,
    attributes: Attributes,
) -> Result<(), MountError> {
    let table = host.mount_table()?;
    let at = target.at.clone();
    match table.at(&at) {
        None => {}
        Some(mount) if !volume.is(&table, mount) => {
            let why = format!("{} ({}) is mounted there", mount.source.display(), mount.filesystem);
            return Err(MountError::Taken { at, why });
        }
        Some(mount) => {
            return match differs(mount, attributes) {
                None => Ok(()),
                Some(why) => Err(MountError::Taken { at, why }),
            };
        }
    }
    put(host, BindSource::Path(source), target, TargetKind::Directory, volume.id, attributes)
}

/// Shows something of the volume at a place where nothing is mounted.
pub(crate) fn put(
    host: &dyn Host,
    source: BindSource<'_>,
    target: &Target,
    kind: TargetKind,
    id: &VolumeId,
    attributes: Attributes,
) -> Result<(), MountError> {
    match host.show_at(source, target, kind, &id.to_string(), attributes) {
        Ok(None) => Ok(()),
        Ok(Some(by)) => Err(MountError::Occupied { at: target.at.clone(), by }),
        Err(error) => Err(unusable(&target.at, error)),
    }
}

/// Removes the empty directory, or empty file, that the volume was mounted on just now, or that is marked as its own.
pub(crate) fn clear(host: &dyn Host, id: &VolumeId, target: &Target, shown: bool) -> Result<(), MountError> {
    if shown || host.mark_at(target)?.is_some_and(|mark| mark == id.to_string()) {
        host.remove_at(target)?;
    }
    Ok(())
}

/// What a mount of the volume lacks of what is asked for now, or has beyond it.
fn differs(mount: &Mount, asked: Attributes) -> Option<String> {
    if mount.read_only() && !asked.read_only {
        return Some("the volume is mounted there read-only already".to_owned());
    }
    let needed = [
        ("ro", asked.read_only),
        ("nosuid", asked.no_suid),
        ("nodev", asked.no_dev),
        ("noexec", asked.no_exec),
    ];
    needed
        .into_iter()
        .find(|(option, asked)| *asked && !mount.has_option(option))
        .map(|(option, _)| format!("the volume is mounted there without {option} already"))
}

/// Takes the volume from a path and removes the directory. What is not the volume's is left alone, and refused when it is
/// a mount.
pub(crate) fn hide(
    host: &dyn Host,
    id: &VolumeId,
    layout: Option<&Layout>,
    target: &Target,
) -> Result<(), MountError> {
    let at = target.at.as_path();
    let mut shown = false;
    // One volume may lie there twice, when two calls once raced; the table shrinks with every turn.
    loop {
        let table = host.mount_table()?;
        let Some(mount) = table.at(at) else { break };
        // Without its drive only the name within the file system is left to go by.
        let ours = match layout.filter(|layout| table.at(layout.mount()).is_some()) {
            Some(layout) => Shown { id, layout }.is(&table, mount),
            None => {
                mount.source == backend::lvm::device(&id.drive, &id.key)
                    || Layout::could_show(&mount.root, &id.key)
                        && matches!(mount.filesystem.as_str(), "xfs" | "btrfs")
            }
        };
        if !ours {
            let why = format!(
                "{} ({}) is mounted there, not volume {id}",
                mount.source.display(),
                mount.filesystem
            );
            return Err(MountError::Taken { at: at.to_owned(), why });
        }
        unmount_volume(|| host.unmount_at(target))?;
        shown = true;
    }
    clear(host, id, target, shown)
}

/// Where the volume as a whole is mounted, besides its drive and these paths.
pub(crate) fn elsewhere(
    host: &dyn Host,
    volume: &Shown<'_>,
    besides: &[PathBuf],
) -> Result<Option<PathBuf>, MountError> {
    let table = host.mount_table()?;
    let home = volume.layout.volume(&volume.id.key);
    let other = table
        .iter()
        .find(|mount| volume.is(&table, mount) && mount.target != home && !besides.contains(&mount.target));
    Ok(other.map(|mount| mount.target.clone()))
}

/// Every volume of the drive that is mounted as a whole outside it, and where.
pub(crate) fn all(drive: &DriveId, layout: &Layout, table: &MountTable) -> Vec<(VolumeId, PathBuf)> {
    let Some(own) = table.at(layout.mount()) else { return Vec::new() };
    // A volume with a file system of its own has that mounted at its place.
    let at_home = |mount: &&Mount| {
        mount.target.parent() == Some(layout.volumes().as_path()) && mount.device != own.device
    };
    let homes: Vec<&Mount> = table.iter().filter(at_home).collect();
    let of_its_own = |mount: &Mount| {
        let home = homes.iter().find(|home| home.device == mount.device && home.root == mount.root)?;
        let id = VolumeId { drive: drive.clone(), key: home.target.file_name()?.to_str()?.to_owned() };
        (mount.target != home.target).then(|| (id, mount.target.clone()))
    };
    let volume = |mount: &Mount| {
        let key = mount
            .root
            .file_name()
            .filter(|key| key.to_str().is_some_and(|key| layout.root_of(key) == mount.root))?;
        let id = VolumeId { drive: drive.clone(), key: key.to_str()?.to_owned() };
        Some((id, mount.target.clone()))
    };
    let shared = table.iter().filter(|mount| mount.device == own.device).filter_map(volume);
    shared.chain(table.iter().filter_map(of_its_own)).collect()
}

/// Whether the volume is mounted at `path`.
pub(crate) fn is_at(host: &dyn Host, volume: &Shown<'_>, path: &Path) -> Result<bool, MountError> {
    let Some(at) = plain(host, path)? else { return Ok(false) };
    let table = host.mount_table()?;
    Ok(table.at(&at).is_some_and(|mount| volume.is(&table, mount)))
}
