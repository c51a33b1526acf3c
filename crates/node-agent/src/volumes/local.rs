//! Volumes that live in the pod's own directory: emptyDir, and files made from API objects.

use std::path::Path;

use linux::{
    Attributes, FilesystemMount, Host, Unmount,
    ownership::{self, ChangePolicy},
};
use serde::{Deserialize, Serialize};

use super::{VolumeError, atomic, content::Payload};
use crate::{
    layout::Layout,
    plan::VolumeDirectory,
    records::{self, Record, RecordError},
};

/// Says that a volume of the pod is completely set up.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Marker {
    /// Contents in memory are void without their mount.
    pub(crate) memory: bool,
}

impl Record for Marker {}

/// A local volume to be set up.
#[derive(Debug)]
pub(crate) struct LocalVolume<'a> {
    pub(crate) uid: &'a str,
    pub(crate) directory: VolumeDirectory,
    pub(crate) memory: bool,
    pub(crate) size: Option<u64>,
    pub(crate) group: Option<u32>,
    /// Files that it shows; None: the containers write it.
    pub(crate) payload: Option<Payload>,
}

/// Sets the volume up, or brings its files up to date. Blocks.
pub(crate) fn set_up(host: &dyn Host, layout: &Layout, volume: &LocalVolume<'_>) -> Result<(), VolumeError> {
    let VolumeDirectory { plugin, name, .. } = &volume.directory;
    let directory = layout.volume(volume.uid, plugin, name);
    host.make_directory(&directory, 0o777)?;
    if volume.memory && host.mount_table()?.at(&directory).is_none() {
        let size = volume.size.map(|size| size.to_string());
        let mut options = vec![("mode", Some("0777"))];
        options.extend(size.as_deref().map(|size| ("size", Some(size))));
        let attributes = Attributes { no_suid: true, no_dev: true, ..Attributes::default() };
        host.mount(
            &FilesystemMount { filesystem: "tmpfs", source: "tmpfs", options, attributes },
            &directory,
        )?;
    }
    let files = |source| VolumeError::Files { action: "write the volume's files", source };
    match &volume.payload {
        Some(payload) => {
            atomic::write(&directory, payload, volume.group).map_err(files)?;
        }
        None => {
            if let Some(group) = volume.group {
                ownership::apply(&directory, group, false, ChangePolicy::Always).map_err(files)?;
            }
        }
    }
    let ready = layout.ready(volume.uid, plugin, name);
    // One that can't be read is written anew.
    if !records::read::<Marker>(&ready).is_ok_and(|marker| marker.is_some()) {
        host.make_directory(ready.parent().unwrap_or(layout.root()), 0o750)?;
        let marker = Marker { memory: volume.memory };
        records::write_volatile(&ready, &marker).map_err(files)?;
    }
    Ok(())
}

/// Whether the volume's set-up was finished and is still in effect.
pub(crate) fn is_ready(
    layout: &Layout,
    uid: &str,
    directory: &VolumeDirectory,
    mounted: bool,
) -> Result<bool, RecordError> {
    let marker: Option<Marker> = records::read(&layout.ready(uid, &directory.plugin, &directory.name))?;
    Ok(marker.is_some_and(|marker| !marker.memory || mounted))
}

/// Unmounts and removes the volume. What is mounted is seen from the mount table, not from a record; a mount inside
/// the volume that is not ours is an error, never followed. Blocks.
pub(crate) fn tear_down(
    host: &dyn Host,
    layout: &Layout,
    uid: &str,
    volume: &VolumeDirectory,
) -> Result<(), VolumeError> {
    let directory = layout.volume(uid, &volume.plugin, &volume.name);
    unmount(host, &directory)?;
    host.remove_tree(&directory)?;
    if let Some(ready) = layout.ready(uid, &volume.plugin, &volume.name).parent() {
        host.remove_tree(ready)?;
    }
    Ok(())
}

fn unmount(host: &dyn Host, directory: &Path) -> Result<(), VolumeError> {
    while host.mount_table()?.at(directory).is_some() {
        host.unmount(directory, Unmount::Plain)?;
    }
    Ok(())
}
