//! What is there of a pod on this node: read from its directory, the mount table and the monitors' locks.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::PathBuf,
};

use linux::{Host, MountTable};

use crate::{
    containers::attempt::Attempt,
    layout::{self, Layout},
    plan::{Actual, VolumeDirectory},
    volumes::{VolumeError, local, places::Places, stages},
};

/// Looks at a pod. `checked` are hostPath volumes: nothing on the node tells that they were. Blocks.
pub(crate) fn observe(
    host: &dyn Host,
    layout: &Layout,
    uid: &str,
    boot_id: &str,
    checked: &BTreeSet<String>,
) -> Result<Actual, VolumeError> {
    let table = host.mount_table()?;
    let mut actual = Actual { directory: host.exists(&layout.pod(uid))?, ..Actual::default() };
    actual.ready.extend(checked.iter().map(|name| (name.clone(), None)));
    if !actual.directory {
        return Ok(actual);
    }
    for (plugin, name) in pairs(host, &layout.volumes(uid))? {
        actual.present.push(VolumeDirectory { plugin, name, block: false });
    }
    for name in host.list(&layout.plugin(uid, layout::CSI))? {
        let Ok(name) = name.into_string() else { continue };
        actual.present.push(VolumeDirectory { plugin: layout::CSI.into(), name, block: true });
    }
    for directory in &actual.present {
        for volume in ready_names(layout, uid, boot_id, directory, &table).map_err(unreadable)? {
            actual.ready.insert(volume, Some(directory.clone()));
        }
    }
    actual.sub_paths = host.exists(&layout.subpaths(uid))?;
    actual.attempts = attempts(host, layout, uid, boot_id, &table)?;
    Ok(actual)
}

fn ready_names(
    layout: &Layout,
    uid: &str,
    boot_id: &str,
    directory: &VolumeDirectory,
    table: &MountTable,
) -> io::Result<Vec<String>> {
    if directory.plugin == layout::CSI {
        let places = Places { layout, block: directory.block };
        let target = places.target(uid, &directory.name);
        let record = stages::publish_record(places, uid, &directory.name)?;
        let ready = record.filter(|record| stages::is_ready(record, boot_id, table.at(&target).is_some()));
        return Ok(ready.map(|record| record.own.volumes.into_iter().collect()).unwrap_or_default());
    }
    let path = layout.volume(uid, &directory.plugin, &directory.name);
    let ready = local::is_ready(layout, uid, directory, table.at(&path).is_some())?;
    Ok(ready.then(|| directory.name.clone()).into_iter().collect())
}

fn attempts(
    host: &dyn Host,
    layout: &Layout,
    uid: &str,
    boot_id: &str,
    table: &MountTable,
) -> Result<BTreeMap<String, Vec<Attempt>>, VolumeError> {
    let mut found: BTreeMap<String, Vec<Attempt>> = BTreeMap::new();
    for (container, number) in pairs(host, &layout.containers(uid))? {
        let Ok(number) = number.parse() else { continue };
        let directory = layout.attempt(uid, &container, number);
        let rootfs = table.at(&directory.join("rootfs")).is_some();
        if let Some(attempt) = Attempt::read(&directory, rootfs, boot_id).map_err(unreadable)? {
            found.entry(container).or_default().push(attempt);
        }
    }
    for attempts in found.values_mut() {
        attempts.sort_by_key(|attempt| attempt.record.number);
    }
    Ok(found)
}

/// The entries of the entries of a directory.
fn pairs(host: &dyn Host, directory: &std::path::Path) -> Result<Vec<(String, String)>, VolumeError> {
    let names = |directory: PathBuf| -> Result<Vec<String>, VolumeError> {
        Ok(host.list(&directory)?.into_iter().filter_map(|name| name.into_string().ok()).collect())
    };
    let mut found = Vec::new();
    for outer in names(directory.to_path_buf())? {
        let inner = match names(directory.join(&outer)) {
            // A file among the directories: nothing of ours, and set aside when the pod goes.
            Err(VolumeError::Host(error)) if error.kind() == io::ErrorKind::NotADirectory => continue,
            inner => inner?,
        };
        found.extend(inner.into_iter().map(|inner| (outer.clone(), inner)));
    }
    Ok(found)
}

fn unreadable(source: io::Error) -> VolumeError {
    VolumeError::Files { action: "read the pod's records", source }
}
