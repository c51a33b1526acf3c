//! A drive as a power cut finds it: at every moment at which something had become durable. A device notes what is
//! written to it while volumes live and die; then the drive is opened as it was at each flush. Needs the device mapper:
//! `cargo xtask guest flushes`.

#[path = "../bench/mod.rs"]
mod bench;
mod noted;
mod write_log;

use std::{
    cell::RefCell,
    collections::BTreeSet,
    fs::File,
    io::Write,
    sync::Arc,
    time::{Duration, Instant},
};

use bench::{
    Bench, MIB,
    journal::{self, Journal},
    mapper::{self, Mapped, OFFSET, Recorded, SIZE},
    request,
};
use drives::{AccessType, CreateVolume, DriveState, Drives, Force, MountFlags, Origin, Source, VolumeId};
use linux::Kernel;
use noted::Noted;
use write_log::{Entry, Image, WriteLog};

/// About how long drives are looked at, unless `$ORLOP_FLUSHES` is `all`.
const TIME: Duration = Duration::from_secs(60);
/// At each of so many points everything is deleted, too, which takes long.
const DELETIONS: usize = 16;
/// Room for what is noted.
const LOG: u64 = 1024 * MIB;
/// What is noted when there is a drive.
const INITIALISED: &str = "initialised";

/// Volumes live and die on a new drive; `say` is told before and after each change.
async fn live(bench: &Bench, source: Source, say: &dyn Fn(&str)) {
    let drives =
        Drives::open(Arc::new(Kernel), bench.path("drives"), vec![source.clone()]).await.expect("open");
    drives.initialise(source, Some(bench.kind), Force::No).await.expect("initialise");
    say(INITIALISED);
    let create = async |wanted: CreateVolume| {
        say(&format!("creating {} {}", wanted.name, wanted.required));
        let volume = drives.create(wanted).await.expect("create");
        say(&format!("created {}", volume.name));
        volume.id
    };
    let grow = async |id: VolumeId, name: &str, size| {
        say(&format!("growing {name} {size}"));
        drives.expand(&id, size, None).await.expect("expand");
        say(&format!("grown {name} {size}"));
    };
    let delete = async |id: VolumeId, name: &str| {
        say(&format!("deleting {name}"));
        drives.delete(&id).await.expect("delete");
        say(&format!("deleted {name}"));
    };
    let one = create(request("one", 32 * MIB)).await;
    let at = bench.path("staged");
    drives.stage(&one, &at, MountFlags::default()).await.expect("stage");
    journal::write(&at, "one");
    say("written one");
    let two = create(request("two", 20 * MIB)).await;
    grow(one.clone(), "one", 48 * MIB).await;
    if drives.copies() {
        say("creating one-snap 0");
        let snapshot = drives.create_snapshot(&one, "one-snap").await.expect("snapshot");
        say("created one-snap");
        let origin = Some(Origin::Snapshot(snapshot.id.clone()));
        let back = create(CreateVolume { origin, ..request("one-back", 0) }).await;
        say("written one-back");
        delete(two, "two").await;
        say("deleting one-snap");
        drives.delete_snapshot(&snapshot.id).await.expect("delete");
        say("deleted one-snap");
        delete(back, "one-back").await;
    } else {
        delete(two, "two").await;
    }
    let raw = create(CreateVolume { access: AccessType::Block, ..request("raw", 8 * MIB) }).await;
    grow(raw.clone(), "raw", 12 * MIB).await;
    drives.unstage(&one, &at).await.expect("unstage");
    delete(raw, "raw").await;
    drives.close().await.expect("close");
}

/// What had been said when an entry was written.
fn said<F>(log: &WriteLog<F>, by: usize) -> Vec<&str> {
    let marks = log.entries[..=by].iter().filter_map(|entry| match entry {
        Entry::Mark(text) => Some(text.as_str()),
        Entry::Write { .. } | Entry::Discard { .. } => None,
    });
    marks.collect()
}

/// Opens the drive as it was and compares it with what had been said.
async fn look(image: &Image, said: &[&str], delete: bool) {
    let bench = Bench::new().expect("root");
    image.save(&bench.path("a.img"), SIZE).expect("image");
    let drives = bench.open(&["a.img"]).await;
    let Some((_, steps)) = said.split_first() else {
        return can_be_initialised(&bench, drives).await;
    };
    assert_eq!(drives.drives().first().map(|drive| drive.state.clone()), Some(DriveState::Ready));
    let journal = Journal::read(steps.iter().copied());
    journal.holds(&drives, &bench.path("staged")).await;
    if delete {
        journal.can_be_restored(&drives, &bench.path("staged")).await;
        journal::all_space_comes_back(&drives).await;
    }
    drives.close().await.expect("close");
}

/// Where a power cut comes while a drive is made, it can be made all the same, by force at worst.
async fn can_be_initialised(bench: &Bench, drives: Drives) {
    if drives.drives().first().is_some_and(|drive| drive.state == DriveState::Ready) {
        return drives.close().await.expect("close");
    }
    let initialise = async |force| drives.initialise(bench.source("a.img"), Some(bench.kind), force).await;
    if let Err(error) = initialise(Force::No).await {
        eprintln!("by force: {error}");
        assert!(error.to_string().contains("force"), "{error}");
        initialise(Force::OverwriteFileSystem).await.expect("initialise by force");
    }
    drives.create(request("first", 20 * MIB)).await.expect("create");
    drives.close().await.expect("close");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the device mapper: cargo xtask guest"]
async fn at_every_flush_the_drive_has_what_was_announced() {
    let Some(bench) = Bench::new() else { return };
    let notes = bench.path("log.img");
    {
        let below = mapper::attached(&bench.path("data.img"), SIZE + OFFSET);
        let recorded = Recorded::new(&below, &mapper::attached(&notes, LOG));
        let mapped = Mapped::new(recorded.device());
        live(&bench, mapped.source(), &|text| recorded.mark(text)).await;
    }
    let mut log = WriteLog::read(File::open(&notes).expect("log")).expect("log");
    look_at_every_flush(&mut log, OFFSET).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs QEMU's storage daemon: cargo xtask guest"]
async fn at_every_flush_noted_by_qemu_the_drive_has_what_was_announced() {
    let Some(bench) = Bench::new() else { return };
    let notes = bench.path("log.img");
    let said = RefCell::new(Vec::new());
    {
        let noted = Noted::new(&bench, SIZE, &notes);
        let length = || std::fs::metadata(&notes).expect("log").len();
        live(&bench, noted.source(), &|text| said.borrow_mut().push((length(), text.to_owned()))).await;
    }
    let mut log = WriteLog::read(File::open(&notes).expect("log")).expect("log");
    log.mark(said.into_inner());
    log.order_by_durability();
    look_at_every_flush(&mut log, 0).await;
}

async fn look_at_every_flush(log: &mut WriteLog<File>, begins: u64) {
    let is = |what: fn(&Entry) -> bool| -> BTreeSet<usize> {
        (0..log.entries.len()).filter(|entry| what(&log.entries[*entry])).collect()
    };
    let flushes = is(|entry| matches!(entry, Entry::Write { durable: true, .. }));
    // What was durable when an answer was given, and no more.
    let answers = is(|entry| matches!(entry, Entry::Mark(text) if !text.contains("ing ")));
    let all = std::env::var("ORLOP_FLUSHES").is_ok_and(|which| which == "all");
    let began = Instant::now();
    let mut looked = BTreeSet::new();
    look_at(log, begins, &answers).await;
    // Evenly at first, then between; what is to come takes as long as all before it.
    for stride in [16, 8, 4, 2, 1] {
        let some: BTreeSet<usize> = flushes.iter().copied().step_by(stride).collect();
        look_at(log, begins, &(&some - &looked)).await;
        looked = some;
        if !all && began.elapsed() * 2 > TIME {
            break;
        }
    }
    let (looked, seconds) = (looked.len(), began.elapsed().as_secs());
    // For whoever runs this, even if it succeeds.
    let told =
        format!("the drive at {looked} of {} flushes, {} answers: {seconds} s", flushes.len(), answers.len());
    writeln!(std::io::stdout(), "{told}").expect("standard output");
}

/// Looks at the drive as it was when these entries were written.
async fn look_at(log: &mut WriteLog<File>, begins: u64, entries: &BTreeSet<usize>) {
    let (mut image, mut next) = (Image::new(begins), 0);
    for (number, &entry) in entries.iter().enumerate() {
        for entry in next..=entry {
            log.apply(entry, &mut image).expect("log");
        }
        next = entry + 1;
        let said = said(log, entry);
        let delete = number % DELETIONS == DELETIONS / 2;
        eprintln!("entry {entry} of {}, after: {}", log.entries.len(), said.last().unwrap_or(&"nothing"));
        look(&image, &said, delete).await;
    }
}
