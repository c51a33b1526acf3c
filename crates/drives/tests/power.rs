//! Work that is cut off at any moment, and what has to be there afterwards. `cargo xtask guest` runs the first test in an
//! emulated machine, cuts its power, and runs the second when it is on again. What the first one says, a line for each
//! step, is what outlived the cut; the second believes it and looks at the drive.

mod bench;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bench::{Bench, MIB, request};
use drives::{CreateVolume, DriveState, Drives, Force, MountFlags, Origin, Source, VolumeId};
use linux::Kernel;

const LANES: u64 = 3;

fn setting(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("cargo xtask guest sets ${name}"))
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "@ {line}").and_then(|()| out.flush()).expect("standard output");
}

/// Numbers that look random and are the same for the same seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

async fn open() -> Drives {
    let source = Source::Device(setting("ORLOP_DEVICE").into());
    let kind = setting("ORLOP_BACKEND").parse().expect("backend");
    let drives =
        Drives::open(Arc::new(Kernel), "/var/orlop/drives".into(), vec![source]).await.expect("open");
    for source in drives.uninitialised() {
        drives.initialise(source, Some(kind), Force::No).await.expect("initialise");
    }
    assert_eq!(drives.drives()[0].state, DriveState::Ready);
    drives
}

/// What a volume of this name is written with.
fn content(name: &str) -> Vec<u8> {
    name.bytes().cycle().take(300_000).collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "cargo xtask guest cuts it off"]
async fn churn() {
    let drives = open().await;
    let seed: u64 = setting("ORLOP_SEED").parse().expect("seed");
    let mut lanes = tokio::task::JoinSet::new();
    for lane in 0..LANES {
        let drives = drives.clone();
        lanes.spawn(async move {
            let mut dice = Dice((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(lane));
            for turn in 0.. {
                walk(&drives, &mut dice, &format!("s{seed}-{lane}-{turn}")).await;
            }
        });
    }
    lanes.join_all().await;
}

/// A volume's life, cut short now and then so that volumes stay.
async fn walk(drives: &Drives, dice: &mut Dice, name: &str) {
    let size = (20 + 4 * dice.roll(3)) * MIB;
    say(&format!("creating {name} {size}"));
    let Ok(volume) = drives.create(request(name, size)).await else { return };
    say(&format!("created {name}"));
    let at = PathBuf::from("/var/orlop/staged").join(name);
    drives.stage(&volume.id, &at, MountFlags::default()).await.expect("stage");
    let mut file = File::create(at.join("file")).expect("create");
    file.write_all(&content(name)).and_then(|()| file.sync_all()).expect("write");
    File::open(&at).and_then(|directory| directory.sync_all()).expect("sync");
    say(&format!("written {name}"));
    drop(file);
    if dice.roll(2) == 0 {
        let size = size + 8 * MIB;
        say(&format!("growing {name} {size}"));
        if drives.expand(&volume.id, size, None).await.is_ok() {
            say(&format!("grown {name} {size}"));
        }
    }
    if dice.roll(2) == 0 {
        let snapshot = format!("{name}-snap");
        say(&format!("creating {snapshot} 0"));
        if let Ok(taken) = drives.create_snapshot(&volume.id, &snapshot).await {
            say(&format!("created {snapshot}"));
            let restored = format!("{name}-back");
            say(&format!("creating {restored} 0"));
            let origin = Some(Origin::Snapshot(taken.id.clone()));
            if drives.create(CreateVolume { origin, ..request(&restored, 0) }).await.is_ok() {
                say(&format!("created {restored}"));
                say(&format!("written {restored}"));
            }
            say(&format!("deleting {snapshot}"));
            if drives.delete_snapshot(&taken.id).await.is_ok() {
                say(&format!("deleted {snapshot}"));
            }
        }
    }
    if dice.roll(8) == 0 {
        return;
    }
    drives.unstage(&volume.id, &at).await.expect("unstage");
    for volume in drives.volumes().into_iter().filter(|volume| volume.name.starts_with(name)) {
        say(&format!("deleting {}", volume.name));
        match drives.delete(&volume.id).await {
            Ok(()) => say(&format!("deleted {}", volume.name)),
            Err(error) => panic!("{}: {error}", volume.name),
        }
    }
}

/// What is known of a volume or snapshot.
#[derive(Clone, Debug, Default)]
struct Known {
    announced: bool,
    leaving: bool,
    gone: bool,
    written: bool,
    sizes: Vec<u64>,
}

fn known(journal: &str) -> BTreeMap<String, Known> {
    let mut all: BTreeMap<String, Known> = BTreeMap::new();
    for line in journal.lines() {
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
    all
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "cargo xtask guest runs it after a power cut"]
async fn what_was_announced_is_there() {
    let journal = fs::read_to_string(setting("ORLOP_JOURNAL")).expect("journal");
    let all = known(&journal);
    let drives = open().await;
    settle(&drives).await;
    let volumes: BTreeMap<String, VolumeId> =
        drives.volumes().into_iter().map(|volume| (volume.name, volume.id)).collect();
    let snapshots: Vec<String> = drives.snapshots().into_iter().map(|snapshot| snapshot.name).collect();
    for name in volumes.keys().chain(&snapshots) {
        let known = all.get(name).unwrap_or_else(|| panic!("nobody asked for {name}"));
        assert!(!known.gone, "{name} was deleted: {known:?}");
    }
    for (name, known) in &all {
        if known.announced && !known.leaving {
            let there = volumes.contains_key(name) || snapshots.contains(name);
            assert!(there, "{name} was announced and is not there: {known:?}");
        }
        let Some(id) = volumes.get(name) else { continue };
        let size = drives.volume(id).expect("live").size;
        assert!(known.sizes.is_empty() || known.sizes.contains(&size), "{name} has {size}: {known:?}");
        let at = Path::new("/var/orlop/staged").join(name);
        drives.stage(id, &at, MountFlags::default()).await.expect("stage");
        if known.written {
            let mut found = Vec::new();
            File::open(at.join("file")).and_then(|mut file| file.read_to_end(&mut found)).expect("read");
            assert!(found == content(name.trim_end_matches("-back")), "{name} lost what was synced");
        }
        let stats = drives.stats(id, &at).await.expect("stats");
        assert!(stats.used <= size && stats.size <= size, "{name}: {stats:?}");
        drives.unstage(id, &at).await.expect("unstage");
    }
    for volume in drives.volumes() {
        drives.delete(&volume.id).await.expect("delete");
    }
    for snapshot in drives.snapshots() {
        drives.delete_snapshot(&snapshot.id).await.expect("delete");
    }
    let drive = drives.drives().remove(0);
    assert_eq!((drive.allocated, drive.free), (0, drive.capacity), "all space is back");
    Bench::new().expect("root").leaves_nothing(&drives);
    drives.close().await.expect("close");
    say(&format!("checked {} volumes and snapshots", all.len()));
}

/// Waits until what was half deleted is gone.
async fn settle(drives: &Drives) {
    let mut changed = drives.changed();
    let unsettled = || {
        let drive = drives.drives().remove(0);
        drive.volumes != drives.volumes().len() || drive.snapshots != drives.snapshots().len()
    };
    let settled = async {
        while unsettled() {
            changed.changed().await.expect("open");
        }
    };
    tokio::time::timeout(Duration::from_secs(120), settled).await.expect("half-done volumes go away");
}
