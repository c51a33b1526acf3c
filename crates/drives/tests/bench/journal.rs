//! What was asked of a drive and what it answered, a line for each, and what has to be on the drive because of it.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read, Write},
    path::Path,
    time::Duration,
};

use drives::{AccessType, CreateVolume, Drives, MountFlags, Origin};

use super::{Bench, request};

/// What is known of a volume or snapshot.
#[derive(Clone, Debug, Default)]
struct Known {
    announced: bool,
    leaving: bool,
    gone: bool,
    written: bool,
    sizes: Vec<u64>,
}

/// What is known of every volume and snapshot that was ever asked for.
pub(crate) struct Journal(BTreeMap<String, Known>);

impl Journal {
    /// Each line is a verb, a name and perhaps a size: `creating v 4096`, `created v`, `written v`, `growing v 8192`,
    /// `grown v 8192`, `deleting v`, `deleted v`.
    pub(crate) fn read<'a>(lines: impl IntoIterator<Item = &'a str>) -> Self {
        let mut all: BTreeMap<String, Known> = BTreeMap::new();
        for line in lines {
            let words: Vec<&str> = line.split(' ').collect();
            let (verb, name, size) = (words[0], words[1], words.get(2).and_then(|size| size.parse().ok()));
            let known = all.entry(name.to_owned()).or_default();
            match verb {
                "creating" | "growing" => known.sizes.extend(size.filter(|size| *size > 0)),
                "created" => known.announced = true,
                "grown" => known.sizes = size.into_iter().collect(),
                "written" => known.written = true,
                "deleting" => known.leaving = true,
                "deleted" => known.gone = true,
                other => panic!("{other} is no step"),
            }
        }
        Self(all)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The drive holds what was announced, with the sizes and contents that it was announced with, and nothing that
    /// was deleted or never asked for.
    pub(crate) async fn holds(&self, drives: &Drives, staging: &Path) {
        settle(drives).await;
        let volumes = drives.volumes();
        let snapshots: Vec<String> = drives.snapshots().into_iter().map(|snapshot| snapshot.name).collect();
        for name in volumes.iter().map(|volume| &volume.name).chain(&snapshots) {
            let known = self.0.get(name).unwrap_or_else(|| panic!("nobody asked for {name}"));
            assert!(!known.gone, "{name} was deleted: {known:?}");
        }
        for (name, known) in &self.0 {
            let volume = volumes.iter().find(|volume| volume.name == *name);
            if known.announced && !known.leaving {
                let there = volume.is_some() || snapshots.contains(name);
                assert!(there, "{name} was announced and is not there: {known:?}");
            }
            let Some(volume) = volume else { continue };
            assert_eq!(volume.trouble, None, "{name}");
            let size = volume.size;
            assert!(known.sizes.is_empty() || known.sizes.contains(&size), "{name} has {size}: {known:?}");
            if volume.access == AccessType::Block {
                continue;
            }
            let at = staging.join(name);
            drives.stage(&volume.id, &at, MountFlags::default()).await.expect("stage");
            if known.written {
                assert!(read(&at) == content(name), "{name} lost what was synced");
            }
            let stats = drives.stats(&volume.id, &at).await.expect("stats");
            assert!(stats.used <= size && stats.size <= size, "{name}: {stats:?}");
            drives.unstage(&volume.id, &at).await.expect("unstage");
        }
    }

    /// The snapshots that were announced hold what their volumes held.
    pub(crate) async fn can_be_restored(&self, drives: &Drives, staging: &Path) {
        for snapshot in drives.snapshots() {
            let restored = format!("{}-again", snapshot.name);
            let origin = Some(Origin::Snapshot(snapshot.id.clone()));
            let volume =
                drives.create(CreateVolume { origin, ..request(&restored, 0) }).await.expect("restore");
            let at = staging.join(&restored);
            drives.stage(&volume.id, &at, MountFlags::default()).await.expect("stage");
            assert!(read(&at) == content(&snapshot.name), "{} lost what was synced", snapshot.name);
            drives.unstage(&volume.id, &at).await.expect("unstage");
        }
    }
}

/// What a volume of this name is written with, and so what snapshots and copies of it hold.
fn content(name: &str) -> Vec<u8> {
    let name = ["-back", "-snap"].into_iter().fold(name, |name, ending| name.trim_end_matches(ending));
    name.bytes().cycle().take(300_000).collect()
}

fn read(volume: &Path) -> Vec<u8> {
    let mut found = Vec::new();
    File::open(volume.join("file")).and_then(|mut file| file.read_to_end(&mut found)).expect("read");
    found
}

/// Writes what a volume of this name is written with, durably.
pub(crate) fn write(volume: &Path, name: &str) {
    let mut file = File::create(volume.join("file")).expect("create");
    file.write_all(&content(name)).and_then(|()| file.sync_all()).expect("write");
    File::open(volume).and_then(|directory| directory.sync_all()).expect("sync");
}

/// Deletes everything, after which all space is back.
pub(crate) async fn all_space_comes_back(drives: &Drives) {
    for volume in drives.volumes() {
        drives.delete(&volume.id).await.expect("delete");
    }
    for snapshot in drives.snapshots() {
        drives.delete_snapshot(&snapshot.id).await.expect("delete");
    }
    let drive = drives.drives().remove(0);
    assert_eq!((drive.allocated, drive.free), (0, drive.capacity), "all space is back");
    Bench::new().expect("root").leaves_nothing(drives);
}

/// Waits until what was half done is gone.
pub(crate) async fn settle(drives: &Drives) {
    let mut changed = drives.changed();
    let count = || drives.drives().iter().map(|drive| drive.volumes + drive.snapshots).sum::<usize>();
    let settled = async {
        while count() != drives.volumes().len() + drives.snapshots().len() {
            changed.changed().await.expect("open");
        }
    };
    tokio::time::timeout(Duration::from_secs(120), settled).await.expect("half-done volumes go away");
}
