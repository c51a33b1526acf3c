//! What is there of a pod on this node: read from its directory, the mount table and the monitors' locks.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::PathBuf,
    sync::Arc,
};

use linux::{Host, MountTable};

use crate::{
    containers::{
        attempt::{Attempt, AttemptRecord},
        start,
    },
    layout::{self, Layout},
    plan::{Actual, Fault, VolumeDirectory},
    records::RecordError,
    volumes::{VolumeError, local, places::Places, stages},
};

/// Where to look.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) host: Arc<dyn Host>,
    pub(crate) layout: Layout,
    pub(crate) node: String,
    pub(crate) boot_id: String,
    /// The OCI runtime that containers were started with, if their records don't say.
    pub(crate) runtime: PathBuf,
}

/// Looks at a pod. `checked` are hostPath volumes: nothing on the node tells that they were. A record that can't be read
/// hides nothing but itself. Blocks.
pub(crate) fn observe(place: &Place, uid: &str, checked: &BTreeSet<String>) -> Result<Actual, VolumeError> {
    let Place { host, layout, boot_id, .. } = place;
    let host = &**host;
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
        match ready_names(layout, uid, boot_id, directory, &table) {
            Ok(names) => {
                actual.ready.extend(names.into_iter().map(|volume| (volume, Some(directory.clone()))));
            }
            Err(error) => actual.faults.push(error.into()),
        }
    }
    actual.sub_paths = host.exists(&layout.subpaths(uid))?;
    let mut faults = Vec::new();
    actual.attempts = attempts(place, uid, &table, &mut faults)?;
    actual.faults.extend(faults.into_iter().map(Fault::from));
    Ok(actual)
}

fn ready_names(
    layout: &Layout,
    uid: &str,
    boot_id: &str,
    directory: &VolumeDirectory,
    table: &MountTable,
) -> Result<Vec<String>, RecordError> {
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
    place: &Place,
    uid: &str,
    table: &MountTable,
    faults: &mut Vec<RecordError>,
) -> Result<BTreeMap<String, Vec<Attempt>>, VolumeError> {
    let Place { host, layout, boot_id, .. } = place;
    let mut found: BTreeMap<String, Vec<Attempt>> = BTreeMap::new();
    for (container, number) in pairs(&**host, &layout.containers(uid))? {
        let Ok(number) = number.parse() else { continue };
        let directory = layout.attempt(uid, &container, number);
        let rootfs = table.at(&directory.join("rootfs")).is_some();
        let rebuilt = || rebuilt(place, uid, &container, number);
        if let Some(attempt) = Attempt::read(&directory, rebuilt, rootfs, boot_id, faults) {
            found.entry(container).or_default().push(attempt);
        }
    }
    for attempts in found.values_mut() {
        attempts.sort_by_key(|attempt| attempt.record.number);
    }
    Ok(found)
}

/// What an attempt's place tells of it, when its record can't be read: enough to end it and to clean up.
fn rebuilt(place: &Place, uid: &str, container: &str, number: u32) -> AttemptRecord {
    let layout = &place.layout;
    // Where a monitor has been, the container may have run.
    let begun = layout.attempt(uid, container, number).join("lock").exists();
    let suffix = format!("_{uid}");
    let logs = place.host.list(&layout.logs()).unwrap_or_default();
    let logs = logs.into_iter().find(|name| name.to_string_lossy().ends_with(&suffix)).unwrap_or_default();
    let mut names = logs.to_str().unwrap_or_default().splitn(3, '_').map(str::to_owned);
    AttemptRecord {
        namespace: names.next().unwrap_or_default(),
        pod: names.next().unwrap_or_default(),
        uid: uid.to_owned(),
        container: container.to_owned(),
        number,
        crashes: 0,
        grace: 30,
        boot_id: if begun { String::new() } else { place.boot_id.clone() },
        runtime: place.runtime.clone(),
        state: layout.runtime_state(),
        cgroup: start::cgroup(&place.node, uid, container, number),
        log: start::log_path(&layout.logs().join(logs), container, number),
        log_size: 0,
        log_files: 0,
        image: None,
        logs_as_message: false,
    }
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
