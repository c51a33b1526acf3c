//! Showing block volumes: the file that holds a volume's bytes is attached to a loop device when it is staged, and the
//! device's node is bound to the places where it is published. Who reads only gets a device of its own that can't write.
//! The kernel tells what is attached and shown where; nothing of it is remembered.

use std::{
    path::{Path, PathBuf},
    thread::sleep,
    time::Duration,
};

use linux::{Attributes, BindSource, Host, LoopDevice, MountTable, Unmount};

use crate::{
    MountError, VolumeId,
    layout::Layout,
    staging::{parent_for, plain, remove_target},
};

/// How often, and how far apart, a detached device is looked at until its last user is gone: a child process holds every
/// open file from its fork to its exec.
const LEAVING_ATTEMPTS: u32 = 40;
const LEAVING_PAUSE: Duration = Duration::from_millis(50);

/// A block volume on a mounted drive, or on one that is gone: where its bytes are is known either way.
pub(crate) struct BlockVolume<'a> {
    pub(crate) host: &'a dyn Host,
    pub(crate) id: &'a VolumeId,
    pub(crate) layout: &'a Layout,
}

impl BlockVolume<'_> {
    fn devices(&self) -> linux::Result<Vec<LoopDevice>> {
        self.host.loops_of(&self.layout.image(&self.id.key))
    }

    /// Attaches it for writing. What it has grown to since it was attached, its users see.
    pub(crate) fn stage(&self) -> Result<(), MountError> {
        let image = self.layout.image(&self.id.key);
        let device = self.host.attach_fixed_loop(&image, false)?;
        Ok(self.host.refresh_loop(&device)?)
    }

    /// Shows its device at `target`.
    pub(crate) fn publish(&self, staging: &Path, target: &Path, read_only: bool) -> Result<(), MountError> {
        let staged = self.devices()?.into_iter().find(|one| !one.read_only && !one.leaving);
        let Some(staged) = staged else {
            return Err(MountError::NotStaged { id: self.id.clone(), staging: staging.to_owned() });
        };
        let at = parent_for(self.host, target)?;
        let table = self.host.mount_table()?;
        if let Some(mount) = table.at(&at) {
            let shown = self.devices()?.into_iter().find(|one| table.shows(mount, &one.device));
            let why = match shown {
                Some(one) if one.read_only == read_only => return Ok(()),
                Some(_) if read_only => "the volume is shown there for writing already".to_owned(),
                Some(_) => "the volume is shown there read-only already".to_owned(),
                None => format!("{} ({}) is mounted there", mount.source.display(), mount.filesystem),
            };
            return Err(MountError::Taken { at, why });
        }
        let device = match read_only {
            true => self.host.attach_fixed_loop(&self.layout.image(&self.id.key), true)?,
            false => staged.device,
        };
        if self.host.length(&at)?.is_none() {
            self.host.write_durable(&at, b"", 0o600)?;
        }
        Ok(self.host.bind(BindSource::Path(&device), &at, Attributes::default())?)
    }

    /// Takes it from `target`, and detaches the device that its readers had after the last of them. `false` when
    /// something else is mounted there.
    pub(crate) fn unpublish(&self, at: &Path) -> Result<bool, MountError> {
        // One volume may lie there twice, when two calls once raced; the table shrinks with every turn.
        loop {
            let (devices, table) = (self.devices()?, self.host.mount_table()?);
            let Some(mount) = table.at(at) else { break };
            if !devices.iter().any(|one| table.shows(mount, &one.device)) {
                return Ok(false);
            }
            self.host.unmount(at, Unmount::Plain)?;
        }
        remove_target(self.host, at)?;
        let table = self.host.mount_table()?;
        for reader in self.devices()?.into_iter().filter(|one| one.read_only) {
            if shown_at(&table, &reader).is_none() {
                self.detach(&reader)?;
            }
        }
        Ok(true)
    }

    /// Detaches it. A device that is shown somewhere stays: its number would be given to another file.
    pub(crate) fn unstage(&self) -> Result<(), MountError> {
        let (devices, table) = (self.devices()?, self.host.mount_table()?);
        if let Some(at) = devices.iter().find_map(|one| shown_at(&table, one)) {
            return Err(MountError::Published { id: self.id.clone(), at: at.to_owned() });
        }
        devices.iter().try_for_each(|one| self.detach(one))
    }

    fn detach(&self, one: &LoopDevice) -> Result<(), MountError> {
        if !one.leaving {
            self.host.detach_loop(&one.device)?;
        }
        for _ in 0..LEAVING_ATTEMPTS {
            if !self.devices()?.iter().any(|left| left.device == one.device) {
                return Ok(());
            }
            sleep(LEAVING_PAUSE);
        }
        Err(MountError::Open { id: self.id.clone(), device: one.device.clone() })
    }

    /// Where it is shown, besides these paths.
    pub(crate) fn elsewhere(&self, besides: &[PathBuf]) -> Result<Option<PathBuf>, MountError> {
        let (devices, table) = (self.devices()?, self.host.mount_table()?);
        let shown = table.iter().filter(|mount| devices.iter().any(|one| table.shows(mount, &one.device)));
        let mut targets = shown.map(|mount| &mount.target);
        Ok(targets.find(|target| !besides.contains(target)).cloned())
    }

    /// Whether it is shown at `path`, or staged there: its staging path is an ordinary directory.
    pub(crate) fn is_at(&self, path: &Path) -> Result<bool, MountError> {
        let Some(at) = plain(self.host, path)? else { return Ok(false) };
        let (devices, table) = (self.devices()?, self.host.mount_table()?);
        match table.at(&at) {
            Some(mount) => Ok(devices.iter().any(|one| table.shows(mount, &one.device))),
            None => Ok(!devices.is_empty() && self.host.exists(&at)?),
        }
    }
}

/// A place where a device's node is bound, other than its own.
fn shown_at<'a>(table: &'a MountTable, one: &LoopDevice) -> Option<&'a Path> {
    table.iter().find(|mount| table.shows(mount, &one.device)).map(|mount| mount.target.as_path())
}
