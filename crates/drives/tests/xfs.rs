//! What XFS does with project quotas, on real drives: needs root and a kernel that has them.

mod bench;

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use bench::{Bench, MIB, StopOnDrop, fill, request};
use drives::{BackendKind, CreateVolume, Drives, Force, InitialiseError, MountFlags, Origin, VolumeId};

const BLOCK: usize = 4096;

/// A drive, unless the kernel has no project quotas.
async fn drive(bench: &mut Bench) -> Option<Drives> {
    bench.kind = BackendKind::Xfs;
    let drives = bench.open(&["a.img"]).await;
    match drives.initialise(bench.source("a.img"), Some(BackendKind::Xfs), Force::No).await {
        Err(InitialiseError::Backend { reason, .. }) => {
            eprintln!("SKIPPED: XFS on this kernel: {reason}");
            None
        }
        other => other.map(|_| Some(drives)).expect("initialise"),
    }
}

async fn stage(bench: &Bench, drives: &Drives, id: &VolumeId, name: &str) -> std::path::PathBuf {
    let at = bench.path(name);
    drives.stage(id, &at, MountFlags::default()).await.expect("stage");
    at
}

/// Writes until that fails; returns how much went in.
fn fill_up(file: &Path) -> u64 {
    let mut open = File::options().append(true).create(true).open(file).expect("open");
    let mut written = 0;
    while let Ok(count) = open.write(&[7; BLOCK]) {
        written += count as u64;
    }
    open.sync_all().expect("sync");
    written
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_holds_its_size_to_the_byte_and_grows_while_it_is_written() {
    let Some(mut bench) = Bench::new() else { return };
    let Some(drives) = drive(&mut bench).await else { return };
    let volume = drives.create(request("pvc-1", 64 * MIB)).await.expect("create");
    let at = stage(&bench, &drives, &volume.id, "live").await;
    // To make a file takes room too, for the directory.
    File::create(at.join("more")).expect("create");
    assert_eq!(fill_up(&at.join("data")), 64 * MIB);
    let stats = drives.stats(&volume.id, &at).await.expect("stats");
    assert_eq!((stats.size, stats.used, stats.available), (64 * MIB, 64 * MIB, 0));

    // Somebody writes, waiting for room, while it grows.
    let stop = AtomicBool::new(false);
    let grown = std::thread::scope(|scope| {
        let stop_on_drop = StopOnDrop(&stop);
        let writer = scope.spawn(|| {
            let mut written = 0;
            while !stop.load(Ordering::Relaxed) {
                written += fill_up(&at.join("more"));
            }
            written + fill_up(&at.join("more"))
        });
        let expand = async {
            for size in [80, 96, 128] {
                let now = drives.expand(&volume.id, size * MIB, None).await.expect("expand");
                assert_eq!(now, size * MIB);
            }
        };
        tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(expand));
        drop(stop_on_drop);
        writer.join().expect("writer")
    });
    assert_eq!(grown, 64 * MIB);
    assert_eq!(drives.stats(&volume.id, &at).await.expect("stats").used, 128 * MIB);
    fs::remove_file(at.join("data")).expect("a full volume can be cleared");
    assert_eq!(fill_up(&at.join("again")), 64 * MIB);
    drives.unstage(&volume.id, &at).await.expect("unstage");
    drives.delete(&volume.id).await.expect("delete");
    bench.leaves_nothing(&drives);
    drives.close().await.expect("close");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_under_load_has_each_file_of_one_moment() {
    let Some(mut bench) = Bench::new() else { return };
    let Some(drives) = drive(&mut bench).await else { return };
    let volume = drives.create(request("pvc-1", 128 * MIB)).await.expect("create").id;
    let live = stage(&bench, &drives, &volume, "live").await;
    let still: Vec<u8> = (0..8 << 20).map(|at: u64| (at.wrapping_mul(2_654_435_761) >> 7) as u8).collect();
    fs::write(live.join("still"), &still).expect("write");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop_on_drop = StopOnDrop(&stop);
        // Each turn writes one byte over the whole file in one call, which the kernel does not let a copy into.
        scope.spawn(|| {
            let file = File::create(live.join("changing")).expect("create");
            let mut turn = 0_u8;
            while !stop.load(Ordering::Relaxed) {
                turn = turn.wrapping_add(1);
                file.write_all_at(&vec![turn; 1 << 20], 0).expect("write");
            }
        });
        // Directories and files come, move and go.
        scope.spawn(|| {
            for turn in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let (one, other) = (live.join("tree/one/deep/er"), live.join(format!("moved-{}", turn % 3)));
                fs::create_dir_all(&one).expect("make");
                fs::write(one.join("file"), "x").expect("write");
                let _ = fs::remove_dir_all(&other);
                fs::rename(live.join("tree/one/deep"), &other).expect("move");
            }
        });
        let take = async {
            for number in 0..5 {
                drives.create_snapshot(&volume, &format!("snap-{number}")).await.expect("snapshot");
            }
        };
        tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(take));
    });
    for snapshot in drives.snapshots() {
        let origin = Some(Origin::Snapshot(snapshot.id.clone()));
        let wanted = CreateVolume { origin, ..request(&format!("from-{}", snapshot.name), 0) };
        let restored = drives.create(wanted).await.expect("restore");
        let at = stage(&bench, &drives, &restored.id, &snapshot.name).await;
        assert!(fs::read(at.join("still")).expect("read") == still, "what stood still is whole");
        let changing = fs::read(at.join("changing")).unwrap_or_default();
        assert!(changing.iter().all(|byte| *byte == changing[0]), "{}: a file of two moments", snapshot.name);
        fs::write(at.join("still"), "mine").expect("a copy of one's own");
        drives.unstage(&restored.id, &at).await.expect("unstage");
        drives.delete(&restored.id).await.expect("delete");
        drives.delete_snapshot(&snapshot.id).await.expect("delete");
    }
    assert!(fs::read(live.join("still")).expect("read") == still, "the volume has what it had");
    drives.unstage(&volume, &live).await.expect("unstage");
    drives.delete(&volume).await.expect("delete");
    bench.leaves_nothing(&drives);
    drives.close().await.expect("close");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_shares_space_with_its_source_and_counts_in_full() {
    let Some(mut bench) = Bench::new() else { return };
    let Some(drives) = drive(&mut bench).await else { return };
    let mount = drives.drives()[0].mount.clone().expect("mounted");
    let volume = drives.create(request("pvc-1", 100 * MIB)).await.expect("create").id;
    let live = stage(&bench, &drives, &volume, "live").await;
    fill(&live.join("data"), 90 * MIB).expect("room");
    let free = |mount: &Path| linux::Files::space(&linux::Kernel, mount).expect("space").available;
    let before = free(&mount);
    let wanted = CreateVolume { origin: Some(Origin::Volume(volume.clone())), ..request("clone", 0) };
    let clone = drives.create(wanted).await.expect("clone").id;
    assert!(free(&mount) + 20 * MIB > before, "nothing was copied");
    let at = stage(&bench, &drives, &clone, "clone").await;
    assert!(drives.stats(&clone, &at).await.expect("stats").used >= 90 * MIB, "it counts in full");
    assert_eq!(fs::metadata(at.join("data")).expect("there").len(), 90 * MIB);
    // Written over as a whole, both keep to their sizes.
    for place in [&live, &at] {
        fs::write(place.join("data"), vec![1; 90 << 20]).expect("room for its own");
        assert!(fill_up(&place.join("rest")) <= 10 * MIB);
    }
    for (id, place) in [(&volume, &live), (&clone, &at)] {
        drives.unstage(id, place).await.expect("unstage");
        drives.delete(id).await.expect("delete");
    }
    bench.leaves_nothing(&drives);
    drives.close().await.expect("close");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_volumes_share_a_drive_and_a_restart_finds_them() {
    let Some(mut bench) = Bench::new() else { return };
    let Some(drives) = drive(&mut bench).await else { return };
    let free = drives.capacity(None, &drives::DriveSelector::default(), &Default::default()).available;
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..200 {
        let drives = drives.clone();
        calls.spawn(
            async move { drives.create(request(&format!("pvc-{number}"), MIB)).await.expect("create") },
        );
    }
    let volumes = calls.join_all().await;
    assert_eq!(
        drives.capacity(None, &drives::DriveSelector::default(), &Default::default()).available,
        free - 200 * MIB
    );
    let at = stage(&bench, &drives, &volumes[117].id, "one").await;
    assert_eq!(fill_up(&at.join("data")), MIB);
    assert_eq!(fs::metadata(at.join("data")).expect("there").size(), MIB);
    drives.unstage(&volumes[117].id, &at).await.expect("unstage");
    drives.close().await.expect("close");
    let drives = bench.open(&["a.img"]).await;
    assert_eq!(drives.volumes().len(), 200);
    let mut calls = tokio::task::JoinSet::new();
    for volume in volumes {
        let drives = drives.clone();
        calls.spawn(async move { drives.delete(&volume.id).await.expect("delete") });
    }
    calls.join_all().await;
    assert_eq!(drives.capacity(None, &drives::DriveSelector::default(), &Default::default()).available, free);
    bench.leaves_nothing(&drives);
    drives.close().await.expect("close");
}
