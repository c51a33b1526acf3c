//! Devices that fail, or lie, under a drive in use. Needs the device mapper: `cargo xtask guest faults`.

mod bench;

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bench::{
    Bench, MIB, journal,
    mapper::{self, Condition, Mapped},
    request,
};
use drives::{CreateVolume, DriveId, DriveSelector, DriveState, Drives, Force, MountFlags, Source, VolumeId};
use linux::Kernel;

/// How long an answer may take, even if it is an error.
const SOON: Duration = Duration::from_secs(60);
const EIO: i32 = 5;
/// What a file system says that gave up writing.
const EROFS: i32 = 30;

async fn soon<T>(what: &str, answer: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, answer).await.unwrap_or_else(|_| panic!("{what}: no answer"))
}

/// Writes and syncs until that fails.
fn writing(file: PathBuf) -> impl Future<Output = io::Error> {
    let writer = tokio::task::spawn_blocking(move || {
        let mut open = File::create(file).expect("create");
        loop {
            let block = vec![7; 64 << 10];
            let written = io::Seek::rewind(&mut open).and_then(|()| open.write_all(&block));
            if let Err(error) = written.and_then(|()| open.sync_data()) {
                return error;
            }
        }
    });
    async { writer.await.expect("writer") }
}

fn sync(path: &Path) {
    File::open(path).and_then(|open| open.sync_all()).expect("sync");
}

/// A drive on a device that can turn bad, and another beside it.
struct World {
    mapped: Mapped,
    bench: Bench,
}

impl World {
    fn new() -> Option<Self> {
        let bench = Bench::new()?;
        let below = mapper::attached(&bench.path("bad.img"), mapper::SIZE + mapper::OFFSET);
        Some(Self { mapped: Mapped::new(below), bench })
    }

    async fn open(&self) -> Drives {
        let sources = vec![self.mapped.source(), self.bench.source("good.img")];
        let root = self.bench.path("drives");
        soon("open", Drives::open(Arc::new(Kernel), root, sources)).await.expect("open")
    }

    fn drive(&self, drives: &Drives) -> DriveId {
        let source = self.mapped.source();
        let drive = drives.drives().into_iter().find(|drive| drive.source == source).expect("the drive");
        drive.id.expect("known")
    }

    fn failure(&self, drives: &Drives) -> Option<String> {
        let source = self.mapped.source();
        match drives.drives().into_iter().find(|drive| drive.source == source).expect("the drive").state {
            DriveState::Failed { reason } => Some(reason),
            DriveState::Ready => None,
        }
    }

    fn staging(&self) -> PathBuf {
        self.bench.path("staging")
    }

    /// Volumes on both; `kept` is staged, and what is written in it is durable.
    async fn populated(&self) -> Drives {
        let drives = self.open().await;
        for source in drives.uninitialised() {
            drives.initialise(source, Some(self.bench.kind), Force::No).await.expect("initialise");
        }
        for drive in drives.drives() {
            let place = if matches!(drive.source, Source::Device(_)) { "bad" } else { "good" };
            let labels = [("place".to_owned(), place.to_owned())].into();
            drives.label(&drive.id.expect("known"), labels).await.expect("label");
        }
        for (name, size) in [("kept", 64), ("grown", 32), ("doomed", 32)] {
            drives.create(at("bad", name, size * MIB)).await.expect("create");
        }
        // The other drive is the fuller one.
        drives.create(at("good", "other", 200 * MIB)).await.expect("create");
        let kept = self.volume(&drives, "kept");
        drives.stage(&kept, &self.staging(), MountFlags::default()).await.expect("stage");
        fs::write(self.staging().join("file"), "from before").expect("write");
        sync(&self.staging().join("file"));
        sync(&self.staging());
        if drives.copies() {
            drives.create_snapshot(&kept, "kept-snap").await.expect("snapshot");
        }
        drives
    }

    fn volume(&self, drives: &Drives, name: &str) -> VolumeId {
        drives.named(name).unwrap_or_else(|| panic!("{name} is gone")).id
    }

    /// What was durable when the device turned bad is there.
    async fn has_what_was_before(&self, drives: &Drives) {
        assert_eq!(self.failure(drives), None);
        let kept = self.volume(drives, "kept");
        assert_eq!(drives.volume(&kept).expect("live").size, 64 * MIB);
        drives.stage(&kept, &self.staging(), MountFlags::default()).await.expect("stage");
        let file = fs::read_to_string(self.staging().join("file"));
        assert_eq!(file.expect("read"), "from before");
        fs::write(self.staging().join("more"), "from after").expect("it can be written again");
        sync(&self.staging().join("more"));
        drives.unstage(&kept, &self.staging()).await.expect("unstage");
        let snapshots: Vec<String> = drives.snapshots().into_iter().map(|one| one.name).collect();
        assert_eq!(snapshots.contains(&"kept-snap".to_owned()), drives.copies(), "{snapshots:?}");
    }

    async fn gives_all_space_back(&self, drives: &Drives) {
        for snapshot in drives.snapshots() {
            soon("delete", drives.delete_snapshot(&snapshot.id)).await.expect("delete");
        }
        for volume in drives.volumes() {
            soon("delete", drives.delete(&volume.id)).await.expect("delete");
        }
        for drive in drives.drives() {
            assert_eq!((drive.allocated, drive.free), (0, drive.capacity));
        }
        self.bench.leaves_nothing(drives);
        drives.close().await.expect("close");
    }
}

/// A volume on the drive at this place.
fn at(place: &str, name: &str, size: u64) -> CreateVolume {
    let labels = format!("place={place}").parse().expect("a selector");
    CreateVolume { drives: DriveSelector { labels, tier: None }, ..request(name, size) }
}

async fn fails_alone_and_is_whole_afterwards(condition: Condition) {
    let Some(world) = World::new() else { return };
    let drives = world.populated().await;
    let bad = world.drive(&drives);
    let [kept, grown, doomed] = ["kept", "grown", "doomed"].map(|name| world.volume(&drives, name));
    let writer = writing(world.staging().join("busy"));
    world.mapped.turn(condition);
    let error = soon("the writer", writer).await;
    assert!([Some(EIO), Some(EROFS)].contains(&error.raw_os_error()), "{error}");

    // What concerns that drive is refused with its name, and at once.
    let mut refused = vec![
        (
            "create",
            soon("create", drives.create(at("bad", "late", 32 * MIB))).await.expect_err("dead").to_string(),
        ),
        (
            "expand",
            soon("expand", drives.expand(&grown, 48 * MIB, None)).await.expect_err("dead").to_string(),
        ),
        ("delete", soon("delete", drives.delete(&doomed)).await.expect_err("dead").to_string()),
        ("again", soon("delete", drives.delete(&doomed)).await.expect_err("dead").to_string()),
    ];
    if drives.copies() {
        let snapshot = soon("snapshot", drives.create_snapshot(&kept, "late-snap")).await;
        refused.push(("snapshot", snapshot.expect_err("dead").to_string()));
    }
    for (call, why) in &refused {
        eprintln!("{condition:?} {call}: {why}");
    }
    for (call, why) in &refused {
        assert!(why.contains(bad.as_str()), "{call}: {why}");
    }
    let trouble = drives.volume(&kept).expect("live").trouble.expect("its users are told");
    assert!(trouble.contains(bad.as_str()), "{trouble}");
    match soon("stats", drives.stats(&kept, &world.staging())).await {
        Ok(stats) => assert_eq!(stats.size, 64 * MIB),
        Err(error) => eprintln!("{condition:?} stats: {error}"),
    }

    // The other goes on, and takes what could not be made, although it is the fuller one.
    for name in ["late", "fresh"] {
        let made = soon("create", drives.create(request(name, 32 * MIB))).await.expect(name);
        assert_ne!(*made.id.drive(), bad, "{name}");
    }
    let fresh = world.volume(&drives, "fresh");
    let elsewhere = world.bench.path("elsewhere");
    drives.stage(&fresh, &elsewhere, MountFlags::default()).await.expect("stage");
    fs::write(elsewhere.join("file"), "fine").expect("write");
    sync(&elsewhere.join("file"));
    soon("expand", drives.expand(&fresh, 48 * MIB, None)).await.expect("expand");
    soon("unstage", drives.unstage(&fresh, &elsewhere)).await.expect("unstage");
    soon("delete", drives.delete(&fresh)).await.expect("delete");

    // What is mounted comes away, and a restart tells what is wrong.
    soon("unstage", drives.unstage(&kept, &world.staging())).await.expect("unstage");
    if let Err(error) = soon("close", drives.close()).await {
        eprintln!("{condition:?} close: {error}");
    }
    drop(drives);
    let drives = world.open().await;
    let reason = world.failure(&drives);
    eprintln!("{condition:?} reopened: {reason:?}");
    assert!(reason.is_some(), "it serves on a device that is {condition:?}");
    let missing = soon("expand", drives.expand(&grown, 48 * MIB, None)).await.expect_err("it is not there");
    assert!(missing.to_string().contains(bad.as_str()), "{missing}");
    soon("create", drives.create(request("meanwhile", 32 * MIB))).await.expect("the other goes on");
    if let Err(error) = soon("close", drives.close()).await {
        eprintln!("{condition:?} close: {error}");
    }

    world.mapped.turn(Condition::Good);
    drop(drives);
    let drives = world.open().await;
    journal::settle(&drives).await;
    world.has_what_was_before(&drives).await;
    let names: BTreeSet<String> = drives.volumes().into_iter().map(|volume| volume.name).collect();
    // It may be gone: its deletion was asked for.
    let expected = ["doomed", "grown", "kept", "late", "meanwhile", "other"].map(str::to_owned);
    let sure = names.iter().cloned().chain(["doomed".to_owned()]).collect();
    assert_eq!(BTreeSet::from(expected), sure);
    let size = drives.volume(&grown).expect("live").size;
    assert!([32 * MIB, 48 * MIB].contains(&size), "{size}");
    assert_eq!(drives.expand(&grown, 64 * MIB, None).await.expect("it grows again"), 64 * MIB);
    world.gives_all_space_back(&drives).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the device mapper: cargo xtask guest"]
async fn a_drive_that_dies_fails_alone_and_is_whole_when_it_works_again() {
    fails_alone_and_is_whole_afterwards(Condition::Dead).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the device mapper: cargo xtask guest"]
async fn a_drive_that_can_t_be_written_fails_alone_and_is_whole_when_it_works_again() {
    fails_alone_and_is_whole_afterwards(Condition::Unwritable).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the device mapper: cargo xtask guest"]
async fn a_drive_that_forgets_has_all_from_before_and_nothing_half_made_since() {
    let Some(world) = World::new() else { return };
    let drives = world.populated().await;
    let [kept, grown, doomed] = ["kept", "grown", "doomed"].map(|name| world.volume(&drives, name));
    let bad = world.drive(&drives);
    world.mapped.turn(Condition::Forgetful);

    // It may say yes to all of this.
    let late = soon("create", drives.create(at("bad", "late", 32 * MIB))).await;
    eprintln!("create: {late:?}");
    eprintln!("expand: {:?}", soon("expand", drives.expand(&grown, 48 * MIB, None)).await);
    eprintln!("delete: {:?}", soon("delete", drives.delete(&doomed)).await);
    if drives.copies() {
        eprintln!("snapshot: {:?}", soon("snapshot", drives.create_snapshot(&kept, "late-snap")).await);
    }
    let since = world.staging().join("since");
    eprintln!("write: {:?}", fs::write(&since, "lost").and_then(|()| File::open(&since)?.sync_all()));
    soon("unstage", drives.unstage(&kept, &world.staging())).await.expect("unstage");
    eprintln!("close: {:?}", soon("close", drives.close()).await);
    // The kernel knows devices that nothing on the drive speaks of any more.
    mapper::remove_all(&format!("orlop_{}", bad.as_str().replace('-', "")));

    world.mapped.turn(Condition::Good);
    drop(drives);
    let drives = world.open().await;
    journal::settle(&drives).await;
    world.has_what_was_before(&drives).await;
    let volumes: Vec<(String, u64)> =
        drives.volumes().into_iter().map(|volume| (volume.name, volume.size / MIB)).collect();
    let expected = [("doomed", 32), ("grown", 32), ("kept", 64), ("other", 200)];
    assert_eq!(volumes, expected.map(|(name, size)| (name.to_owned(), size)));
    assert!(drives.snapshots().iter().all(|snapshot| snapshot.name == "kept-snap"));
    drives.create(at("bad", "late", 32 * MIB)).await.expect("it can be made now");
    world.gives_all_space_back(&drives).await;
}
