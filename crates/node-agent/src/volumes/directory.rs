//! PersistentVolumes that are a directory of the node (`local`, `hostPath`): bound into the pod's directory, from where
//! its containers get them.

use std::{fs, os::fd::AsFd};

use linux::{
    Attributes, BindSource, Host, beneath,
    ownership::{self, ChangePolicy},
};

use super::{VolumeError, claim::ClaimedDirectory, csi::Publication, host_path, local::Marker};
use crate::{
    layout::{self, Layout},
    records,
};

/// Binds the directory to its place for the pod. Repeating it does no harm. Blocks.
pub(crate) fn set_up(
    host: &dyn Host,
    layout: &Layout,
    directory: &ClaimedDirectory,
    publication: &Publication,
) -> Result<(), VolumeError> {
    host_path::check(&directory.path, &directory.kind).map_err(VolumeError::HostPath)?;
    if !fs::metadata(&directory.path).is_ok_and(|found| found.is_dir()) {
        let (path, volume) = (directory.path.display(), &directory.volume);
        let why = format!(
            "{path} of PV {volume} is no directory: other files are not served by this node agent yet"
        );
        return Err(VolumeError::HostPath(why));
    }
    let plugin = if directory.local { layout::LOCAL } else { layout::HOST_PATH };
    let target = layout.volume(&publication.uid, plugin, &publication.volume);
    host.make_directory(&target, 0o750)?;
    if host.mount_table()?.at(&target).is_none() {
        let open = beneath::open_directory(&directory.path)?;
        let attributes = Attributes { read_only: publication.read_only, ..Attributes::default() };
        host.bind(BindSource::Open(open.as_fd()), &target, attributes)?;
    }
    let files = |source| VolumeError::Files { action: "give the volume to fsGroup", source };
    if let Some(group) = publication.group.filter(|_| directory.local && !publication.read_only) {
        let policy = publication.policy.unwrap_or(ChangePolicy::Always);
        ownership::apply(&target, group, false, policy).map_err(files)?;
    }
    let ready = layout.ready(&publication.uid, plugin, &publication.volume);
    host.make_directory(ready.parent().unwrap_or(layout.root()), 0o750)?;
    // It is there as long as it is mounted.
    let written = records::write_volatile(&ready, &Marker { memory: true });
    written.map_err(|source| VolumeError::Files { action: "write the volume's record", source })
}
