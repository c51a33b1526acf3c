//! Volumes that are logical volumes, on `lvm` or, with `ORLOP_BACKEND=lvm-thin`, on that: needs root and a kernel with the
//! device mapper.

mod bench;

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use bench::{Bench, MIB, StopOnDrop, journal::settle, request};
use drives::{
    AccessType, BackendKind, CreateError, CreateVolume, DeleteError, DriveSelector, DriveState, Drives,
    FILESYSTEM, Force, InitialiseError, MountError, MountFlags, OVERCOMMIT, Origin, SnapshotError, Source,
    Volume,
};
use linux::{BlockDevices, Files, Kernel, Mounts, Programs};

/// A drive of 1 GiB, unless the kernel has no device mapper.
async fn drive(bench: &mut Bench) -> Option<Drives> {
    if !bench.kind.has_filesystems() {
        bench.kind = BackendKind::Lvm;
    }
    let drives = open(bench).await;
    match drives.initialise(source(bench), Some(bench.kind), Force::No).await {
        Err(InitialiseError::Backend { reason, .. }) => {
            eprintln!("SKIPPED: {} on this kernel: {reason}", bench.kind);
            assert!(std::env::var_os("ORLOP_BACKEND").is_none(), "it was asked for: {reason}");
            None
        }
        other => other.map(|_| Some(drives)).expect("initialise"),
    }
}

fn source(bench: &Bench) -> Source {
    bench.source_of("a.img", 1024 * MIB)
}

async fn open(bench: &Bench) -> Drives {
    Drives::open(std::sync::Arc::new(Kernel), bench.path("drives"), vec![source(bench)]).await.expect("open")
}

async fn create(drives: &Drives, name: &str, size: u64, filesystem: &str) -> Volume {
    let parameters = [(FILESYSTEM.to_owned(), filesystem.to_owned())].into();
    let wanted = CreateVolume { parameters, ..request(name, size) };
    drives.create(wanted).await.unwrap_or_else(|error| panic!("{filesystem}: {error}"))
}

async fn stage(bench: &Bench, drives: &Drives, volume: &Volume) -> PathBuf {
    let at = bench.path(&format!("staged-{}", volume.name));
    drives.stage(&volume.id, &at, MountFlags::default()).await.expect("stage");
    at
}

/// Writes until that fails; returns how much went in.
fn fill_up(file: &Path) -> u64 {
    let mut open = File::options().append(true).create(true).open(file).expect("open");
    let (mut written, block) = (0, vec![7; 1 << 20]);
    while let Ok(count) = open.write(&block) {
        written += count as u64;
    }
    // btrfs tells here that there was no room.
    let _ = open.sync_all();
    written
}

fn nothing_is_left(bench: &Bench, drives: &Drives) {
    let drive = drives.drives().remove(0);
    assert_eq!((drive.allocated, drive.free), (0, drive.capacity));
    bench.leaves_nothing(drives);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_of_each_file_system_lives_grows_and_goes() {
    let Some(mut bench) = Bench::new() else { return };
    let Some(mut drives) = drive(&mut bench).await else { return };
    for (filesystem, size) in [("ext4", 64 * MIB), ("xfs", 320 * MIB), ("btrfs", 256 * MIB)] {
        let volume = create(&drives, filesystem, size, filesystem).await;
        assert_eq!(volume.size, size);
        assert_eq!(create(&drives, filesystem, size, filesystem).await, volume);
        let at = stage(&bench, &drives, &volume).await;
        let table = Kernel.mount_table().expect("mounts");
        let mount = table.at(&at).expect("staged");
        assert_eq!(mount.filesystem, filesystem);
        let device = Kernel.block_device(&mount.source).expect("device");
        assert_eq!(device.size, size, "the limit is the device");

        // Somebody writes, waiting for room, while it grows.
        let stop = AtomicBool::new(false);
        let written = std::thread::scope(|scope| {
            let stop_on_drop = StopOnDrop(&stop);
            let writer = scope.spawn(|| {
                let mut written = 0;
                while !stop.load(Ordering::Relaxed) {
                    written += fill_up(&at.join("data"));
                }
                written + fill_up(&at.join("data"))
            });
            let expand = async {
                let grown = drives.expand(&volume.id, size + 30 * MIB, None).await.expect("expand");
                assert_eq!(grown, size + 32 * MIB, "whole units");
            };
            tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(expand));
            drop(stop_on_drop);
            writer.join().expect("writer")
        });
        assert!(written <= size + 32 * MIB, "{filesystem}: {written}");
        let stats = drives.stats(&volume.id, &at).await.expect("stats");
        assert_eq!((stats.size, stats.used + stats.available), (size + 32 * MIB, size + 32 * MIB));
        fs::remove_file(at.join("data")).expect("a full volume can be cleared");
        fs::write(at.join("kept"), filesystem).expect("write");

        let used = drives.delete(&volume.id).await;
        assert!(matches!(used, Err(DeleteError::InUse { .. })), "{used:?}");
        drives.unstage(&volume.id, &at).await.expect("unstage");

        // As after kill -9, and as after an orderly stop.
        let volumes = drives.volumes();
        drop(drives);
        let killed = open(&bench).await;
        assert_eq!(killed.volumes(), volumes);
        killed.close().await.expect("close");
        let again = open(&bench).await;
        assert_eq!(again.drives()[0].state, DriveState::Ready);
        let at = stage(&bench, &again, &volume).await;
        assert_eq!(fs::read_to_string(at.join("kept")).expect("read"), filesystem);
        again.unstage(&volume.id, &at).await.expect("unstage");
        again.close().await.expect("close");
        let again = open(&bench).await;
        assert_eq!(again.drives()[0].state, DriveState::Ready);
        again.delete(&volume.id).await.expect("delete");
        nothing_is_left(&bench, &again);
        drives = again;
    }
    drives.close().await.expect("close");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_volume_is_a_logical_volume_and_shows_nothing_of_others() {
    let Some(mut bench) = Bench::new() else { return };
    let Some(drives) = drive(&mut bench).await else { return };
    // Others wrote everywhere before.
    let before = create(&drives, "before", 64 * MIB, "ext4").await;
    let at = stage(&bench, &drives, &before).await;
    fill_up(&at.join("data"));
    drives.unstage(&before.id, &at).await.expect("unstage");
    drives.delete(&before.id).await.expect("delete");

    let wanted = CreateVolume { access: AccessType::Block, ..request("block", 32 * MIB) };
    let volume = drives.create(wanted).await.expect("create");
    let (staging, device, reader) = (bench.path("staging"), bench.path("device"), bench.path("reader"));
    let too_soon = drives.publish_block(&volume.id, &staging, &device, false).await;
    assert!(matches!(too_soon, Err(MountError::NotStaged { .. })), "{too_soon:?}");
    drives.stage_block(&volume.id).await.expect("stage");
    drives.publish_block(&volume.id, &staging, &device, false).await.expect("publish");
    let size = || Kernel.block_device(&device).expect("device").size;
    let bytes = || fs::read(&device).expect("read");
    assert_eq!((size(), bytes().iter().all(|byte| *byte == 0)), (32 * MIB, true));
    let user = File::options().read(true).write(true).open(&device).expect("open");
    user.write_all_at(&vec![5; 32 << 20], 0).expect("all of it");
    user.sync_all().expect("sync");
    assert!(user.write_all_at(&[1], 32 * MIB).is_err(), "no further");

    assert_eq!(drives.expand(&volume.id, 64 * MIB, None).await.expect("grow"), 64 * MIB);
    assert_eq!(size(), 64 * MIB, "whoever has it sees it");
    let found = bytes();
    let (old, new) = found.split_at(32 << 20);
    assert!(old.iter().all(|byte| *byte == 5) && new.iter().all(|byte| *byte == 0));
    drop(user);
    drives.publish_block(&volume.id, &staging, &reader, true).await.expect("read-only");
    assert!(Kernel.block_device(&reader).expect("device").read_only);

    // As after kill -9.
    drop(drives);
    let drives = open(&bench).await;
    assert!(drives.close().await.is_err(), "it is in use");
    drop(drives);
    let drives = open(&bench).await;
    let used = drives.delete(&volume.id).await;
    assert!(matches!(used, Err(DeleteError::InUse { .. })), "{used:?}");
    for target in [&device, &reader] {
        drives.unpublish(&volume.id, target).await.expect("unpublish");
    }
    drives.unstage(&volume.id, &staging).await.expect("unstage");
    drives.close().await.expect("close");
    let drives = open(&bench).await;
    drives.stage_block(&volume.id).await.expect("stage");
    drives.publish_block(&volume.id, &staging, &device, false).await.expect("publish");
    assert!(bytes()[..32 << 20].iter().all(|byte| *byte == 5), "what was written is there");
    drives.unpublish(&volume.id, &device).await.expect("unpublish");
    drives.unstage(&volume.id, &staging).await.expect("unstage");
    drives.delete(&volume.id).await.expect("delete");
    nothing_is_left(&bench, &drives);
    drives.close().await.expect("close");
}

/// A drive of `lvm-thin`, told if another backend is asked for.
async fn thin(bench: &mut Bench) -> Option<Drives> {
    if bench.kind == BackendKind::Lvm {
        eprintln!("SKIPPED: thin volumes: ORLOP_BACKEND asks for lvm");
        return None;
    }
    bench.kind = BackendKind::LvmThin;
    drive(bench).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thin_snapshot_under_load_holds_one_moment() {
    let Some(mut bench) = Bench::new() else { return };
    let Some(mut drives) = thin(&mut bench).await else { return };
    let capacity = drives.capacity(None, &DriveSelector::default(), &Default::default()).available;
    for filesystem in ["ext4", "xfs"] {
        let volume = create(&drives, filesystem, 320 * MIB, filesystem).await;
        let at = stage(&bench, &drives, &volume).await;
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _stop_on_drop = StopOnDrop(&stop);
            // The second file is never ahead of the first.
            scope.spawn(|| {
                let file = |name: &str| File::create(at.join(name)).expect("create");
                let (first, second) = (file("first"), file("second"));
                for turn in 0_u64.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    for file in [&first, &second] {
                        file.write_all_at(&turn.to_le_bytes(), 0).expect("write");
                        file.sync_all().expect("sync");
                    }
                }
            });
            let name = format!("snap-{filesystem}");
            // A new file system still lays itself out: as a caller is told to, try again.
            let take = async {
                let mut taken = drives.create_snapshot(&volume.id, &name).await;
                for _ in 0..20 {
                    if !matches!(taken, Err(SnapshotError::Overflows { .. })) {
                        break;
                    }
                    taken = drives.create_snapshot(&volume.id, &name).await;
                }
                taken
            };
            let taken = tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(take));
            taken.expect("snapshot");
        });
        let snapshot = drives.snapshots().remove(0);
        assert!(snapshot.size < volume.size, "it counts what was written: {}", snapshot.size);
        let snapshots = drives.snapshots();
        drop(drives);
        let killed = open(&bench).await;
        assert_eq!(killed.snapshots(), snapshots);
        let origin = Some(Origin::Snapshot(snapshot.id.clone()));
        let wanted = CreateVolume { origin, ..request("restored", 352 * MIB) };
        let restored = killed.create(wanted.clone()).await.expect("restore");
        assert_eq!(killed.create(wanted).await.expect("again"), restored);
        assert_eq!((restored.filesystem(), restored.size), (filesystem, 352 * MIB));
        let back = stage(&bench, &killed, &restored).await;
        let number = |name: &str| {
            let bytes = fs::read(back.join(name)).expect("read");
            u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
        };
        let (first, second) = (number("first"), number("second"));
        assert!(first == second || first == second + 1, "{first} {second}");
        let [grown, before] = [&back, &at].map(|at| Kernel.space(at).expect("space").size);
        assert!(grown > before + 16 * MIB, "the file system has what was added: {before} {grown}");
        for (id, at) in [(&volume.id, &at), (&restored.id, &back)] {
            killed.unstage(id, at).await.expect("unstage");
            killed.delete(id).await.expect("delete");
        }
        killed.delete_snapshot(&snapshot.id).await.expect("delete");
        nothing_is_left(&bench, &killed);
        drop(killed);
        drives = open(&bench).await;
    }
    assert_eq!(drives.capacity(None, &DriveSelector::default(), &Default::default()).available, capacity);
    drives.close().await.expect("close");
}

/// What a program prints.
fn run(program: &str, words: &[&str]) -> linux::Result<String> {
    let words: Vec<_> = words.iter().map(AsRef::as_ref).collect();
    Kernel.run(program, &words, Duration::from_secs(60)).map(|output| output.stdout)
}

/// Power loss between the pool's taking a snapshot and LVM's noting that.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_the_pool_took_and_lvm_did_not_note_goes() {
    let Some(mut bench) = Bench::new() else { return };
    let Some(drives) = thin(&mut bench).await else { return };
    let volume = create(&drives, "pvc-1", 64 * MIB, "ext4").await;
    let at = stage(&bench, &drives, &volume).await;
    fs::write(at.join("kept"), "kept").expect("write");
    drives.unstage(&volume.id, &at).await.expect("unstage");

    let snapshot = drives.create_snapshot(&volume.id, "snap-1").await.expect("snapshot");
    let (drive, key) = (snapshot.id.drive(), snapshot.id.key());
    let record = bench.path(&format!("drives/{drive}/.orlop/volumes/{key}.json"));
    let text = fs::read_to_string(&record).expect("its record");
    assert!(text.contains("ready"), "{text}");
    // The format before had no sums.
    let mut half: serde_json::Value = serde_json::from_str(&text.replace("ready", "creating")).expect("JSON");
    half["format"] = 2.into();
    half.as_object_mut().expect("a record").remove("sum");
    fs::write(&record, half.to_string()).expect("write");
    let group = format!("orlop_{}", drive.as_str().replace('-', ""));
    // The pool did not get to count the transaction in which LVM asks for it, so LVM will ask again.
    let (half, pool) = (format!("{group}/v.{key}"), format!("{group}/pool"));
    run("lvm", &["lvchange", "-qq", "-an", &half]).expect("inactive");
    let told = run("lvm", &["lvs", "--noheadings", "-o", "transaction_id", &pool]).expect("a number");
    let now: u64 = told.trim().parse().expect("a number");
    let back = format!("set_transaction_id {now} {}", now - 1);
    run("dmsetup", &["message", &format!("/dev/mapper/{group}-pool-tpool"), "0", &back]).expect("set back");
    let notes = bench.path("group.txt");
    let file = notes.to_str().expect("plain");
    run("lvm", &["vgcfgbackup", "-qq", "-f", file, &group]).expect("read");
    let asked = format!("type = \"thin-pool\"\nmessage1 {{\ncreate = \"v.{key}\"\n}}\n");
    let text = fs::read_to_string(&notes).expect("read").replacen("type = \"thin-pool\"", &asked, 1);
    fs::write(&notes, text).expect("write");
    run("lvm", &["vgcfgrestore", "-qq", "-y", "--force", "-f", file, &group]).expect("noted");
    run("lvm", &["lvremove", "-qq", "-f", &half]).expect_err("the pool has it");
    drives.close().await.expect("close");

    let drives = open(&bench).await;
    assert_eq!(drives.drives()[0].state, DriveState::Ready);
    settle(&drives).await;
    assert_eq!((drives.volumes(), drives.snapshots()), (vec![volume.clone()], Vec::new()));
    let at = stage(&bench, &drives, &volume).await;
    assert_eq!(fs::read_to_string(at.join("kept")).expect("read"), "kept");
    drives.unstage(&volume.id, &at).await.expect("unstage");
    let snapshot = drives.create_snapshot(&volume.id, "snap-1").await.expect("snapshot");
    drives.delete_snapshot(&snapshot.id).await.expect("delete");
    drives.delete(&volume.id).await.expect("delete");
    nothing_is_left(&bench, &drives);
    drives.close().await.expect("close");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_promises_more_than_it_has_only_where_that_is_allowed() {
    let Some(mut bench) = Bench::new() else { return };
    let Some(drives) = thin(&mut bench).await else { return };
    let capacity = drives.capacity(None, &DriveSelector::default(), &Default::default()).available;
    let large = capacity / 4 * 3;
    let one = drives.create(request("one", large)).await.expect("create");
    let refused = drives.create(request("two", large)).await;
    assert!(matches!(refused, Err(CreateError::NoSpace { .. })), "{refused:?}");
    let times = |times: &str| [(OVERCOMMIT.to_owned(), times.to_owned())].into();
    let wanted = CreateVolume { parameters: times("2"), ..request("two", large) };
    let two = drives.create(wanted).await.expect("allowed");
    let refused = drives.create(CreateVolume { parameters: times("2"), ..request("three", large) }).await;
    assert!(matches!(refused, Err(CreateError::NoSpace { .. })), "{refused:?}");

    // The pool runs full: who writes is told, and nobody else is hurt.
    let at = [stage(&bench, &drives, &one).await, stage(&bench, &drives, &two).await];
    fs::write(at[0].join("kept"), "kept").expect("write");
    File::open(at[0].join("kept")).and_then(|file| file.sync_all()).expect("sync");
    let written = at.iter().map(|at| fill_up(&at.join("data"))).sum::<u64>();
    assert!(written < 2 * large, "{written}");
    assert_eq!(fs::read_to_string(at[0].join("kept")).expect("read"), "kept");
    let refused = drives.create(CreateVolume { parameters: times("9"), ..request("late", 64 * MIB) }).await;
    let Err(CreateError::Drive { error, .. }) = refused else { panic!("{refused:?}") };
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull, "{error}");
    for (volume, at) in [&one, &two].into_iter().zip(&at) {
        drives.unstage(&volume.id, at).await.expect("unstage");
        drives.delete(&volume.id).await.expect("delete");
    }
    nothing_is_left(&bench, &drives);
    drives.close().await.expect("close");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_refused_and_leaves_nothing() {
    let Some(mut bench) = Bench::new() else { return };
    let Some(drives) = drive(&mut bench).await else { return };
    let free = drives.capacity(None, &DriveSelector::default(), &Default::default()).available;
    let all = create(&drives, "all", free, "ext4").await;
    assert_eq!(drives.capacity(None, &DriveSelector::default(), &Default::default()).available, 0);
    let refused = drives.create(request("more", MIB)).await;
    assert!(matches!(refused, Err(CreateError::NoSpace { .. })), "{refused:?}");
    drives.delete(&all.id).await.expect("delete");
    let small = CreateVolume { limit: Some(MIB), ..request("small", MIB) };
    let refused = drives.create(small).await;
    assert!(matches!(refused, Err(CreateError::OutOfRange(_))), "{refused:?}");
    let wrong = [(FILESYSTEM.to_owned(), "minix".to_owned())].into();
    let refused = drives.create(CreateVolume { parameters: wrong, ..request("odd", MIB) }).await;
    assert!(matches!(refused, Err(CreateError::Drive { .. })), "{refused:?}");
    nothing_is_left(&bench, &drives);
    drives.close().await.expect("close");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "cargo xtask guest runs it on persistent memory"]
async fn on_persistent_memory_files_are_mapped_directly() {
    let Some(mut bench) = Bench::new() else { return };
    let Some(drives) = drive(&mut bench).await else { return };
    for (filesystem, size) in [("ext4", 64 * MIB), ("xfs", 320 * MIB)] {
        let volume = create(&drives, filesystem, size, filesystem).await;
        drives.expand(&volume.id, size + 16 * MIB, None).await.expect("expand");
        let at = stage(&bench, &drives, &volume).await;
        let table = Kernel.mount_table().expect("mounts");
        let mount = table.at(&at).expect("staged");
        let is_direct = mount.super_options.iter().any(|option| option == "dax=always");
        assert!(is_direct, "{filesystem}: {mount:?}");
        fs::write(at.join("kept"), filesystem).expect("write");
        drives.unstage(&volume.id, &at).await.expect("unstage");
    }
    drives.close().await.expect("close");
    let drives = open(&bench).await;
    for volume in drives.volumes() {
        let at = stage(&bench, &drives, &volume).await;
        assert_eq!(fs::read_to_string(at.join("kept")).expect("read"), volume.name);
        drives.unstage(&volume.id, &at).await.expect("unstage");
        drives.delete(&volume.id).await.expect("delete");
    }
    nothing_is_left(&bench, &drives);
    drives.close().await.expect("close");
}
