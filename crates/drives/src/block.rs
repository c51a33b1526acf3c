//! Showing block volumes: the file that holds a volume's bytes is attached to a loop device when it is staged, and the
//! device's node is bound to the places where it is published. A volume that is a device already is staged by binding
//! its node where the file is on other drives. Who reads only gets a device of its own that can't write.
//! The kernel tells what is attached and shown where; nothing of it is remembered.

use std::{
    path::{Path, PathBuf},
    thread::sleep,
    time::Duration,
};

use linux::{Attributes, BindSource, Host, LoopDevice, MountTable, Target, TargetKind, Unmount};

use crate::{
    MountError, VolumeId,
    idle::unmount_volume,
    layout::Layout,
    staging::{clear, put},
    target::plain,
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
    /// The device that it is, by its plain path, unless its bytes are a file's.
    pub(crate) own: Option<PathBuf>,
}

/// The devices that a block volume is shown as.
pub(crate) fn devices(
    host: &dyn Host,
    layout: &Layout,
    key: &str,
    own: Option<&Path>,
) -> linux::Result<Vec<LoopDevice>> {
    let image = layout.image(key);
    let Some(own) = own else { return host.loops_of(&image) };
    let mut devices = host.loops_of(own)?;
    let table = host.mount_table()?;
    if table.at(&image).is_some_and(|mount| table.shows(mount, own)) {
        devices.push(LoopDevice { device: own.to_owned(), read_only: false, leaving: false });
    }
    Ok(devices)
}

impl BlockVolume<'_> {
    fn devices(&self) -> linux::Result<Vec<LoopDevice>> {
        devices(self.host, self.layout, &self.id.key, self.own.as_deref())
    }

    /// Attaches it for writing. What it has grown to since it was attached, its users see.
    pub(crate) fn stage(&self) -> Result<(), MountError> {
        let image = self.layout.image(&self.id.key);
        if let Some(own) = &self.own {
            let staged = self.devices()?.iter().any(|one| one.device == *own);
            return match staged {
                true => Ok(()),
                false => Ok(self.host.bind(BindSource::Path(own), &image, Attributes::default())?),
            };
        }
        let device = self.host.attach_fixed_loop(&image, false)?;
        Ok(self.host.refresh_loop(&device)?)
    }

    /// Shows its device at `target`.
    pub(crate) fn publish(&self, staging: &Path, target: &Target, read_only: bool) -> Result<(), MountError> {
        let staged = self.devices()?.into_iter().find(|one| !one.read_only && !one.leaving);
        let Some(staged) = staged else {
            return Err(MountError::NotStaged { id: self.id.clone(), staging: staging.to_owned() });
        };
        let at = target.at.clone();
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
            true => {
                let image = self.layout.image(&self.id.key);
                self.host.attach_fixed_loop(self.own.as_deref().unwrap_or(&image), true)?
            }
            false => staged.device,
        };
        let (source, kind) = (BindSource::Path(&device), TargetKind::File);
        put(self.host, source, target, kind, self.id, Attributes::default())
    }

    /// Takes it from `target`, and detaches the device that its readers had after the last of them. `false` when
    /// something else is mounted there.
    pub(crate) fn unpublish(&self, target: &Target) -> Result<bool, MountError> {
        let mut shown = false;
        // One volume may lie there twice, when two calls once raced; the table shrinks with every turn.
        loop {
            let (devices, table) = (self.devices()?, self.host.mount_table()?);
            let Some(mount) = table.at(&target.at) else { break };
            if !devices.iter().any(|one| table.shows(mount, &one.device)) {
                return Ok(false);
            }
            unmount_volume(|| self.host.unmount_at(target))?;
            shown = true;
        }
        clear(self.host, self.id, target, shown)?;
        let table = self.host.mount_table()?;
        for reader in self.devices()?.into_iter().filter(|one| one.read_only) {
            if self.shown_at(&table, &reader).is_none() {
                self.detach(&reader)?;
            }
        }
        Ok(true)
    }

    /// Detaches it. A device that is shown somewhere stays: its number would be given to another file.
    pub(crate) fn unstage(&self) -> Result<(), MountError> {
        let (devices, table) = (self.devices()?, self.host.mount_table()?);
        if let Some(at) = devices.iter().find_map(|one| self.shown_at(&table, one)) {
            return Err(MountError::Published { id: self.id.clone(), at: at.to_owned() });
        }
        devices.iter().try_for_each(|one| self.detach(one))
    }

    fn detach(&self, one: &LoopDevice) -> Result<(), MountError> {
        if self.own.as_ref() == Some(&one.device) {
            unmount_volume(|| self.host.unmount(&self.layout.image(&self.id.key), Unmount::Plain))?;
            return Ok(());
        }
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
        let image = self.layout.image(&self.id.key);
        let shown = table.iter().filter(|mount| devices.iter().any(|one| table.shows(mount, &one.device)));
        let shown = shown.filter(|mount| mount.target != image);
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

    /// A place where a device's node is bound, other than its own and the one where it is staged.
    fn shown_at<'t>(&self, table: &'t MountTable, one: &LoopDevice) -> Option<&'t Path> {
        let image = self.layout.image(&self.id.key);
        let shows = |mount: &&linux::Mount| mount.target != image && table.shows(mount, &one.device);
        table.iter().find(shows).map(|mount| mount.target.as_path())
    }
}
