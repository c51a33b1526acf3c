//! Snapshots and clones on a real drive: needs root.

mod bench;

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::Path,
};

use bench::{Bench, MIB, fill, request};
use drives::{
    CreateError, CreateVolume, DeleteError, DriveSelector, Drives, MountFlags, Origin, SnapshotError,
    VolumeId,
};

async fn stage(bench: &Bench, drives: &Drives, id: &VolumeId, name: &str) -> std::path::PathBuf {
    let at = bench.path(name);
    drives.stage(id, &at, MountFlags::default()).await.expect("stage");
    at
}

fn from(name: &str, size: u64, origin: &Origin) -> CreateVolume {
    CreateVolume { origin: Some(origin.clone()), ..request(name, size) }
}

async fn used(drives: &Drives, id: &VolumeId, at: &Path) -> u64 {
    drives.stats(id, at).await.expect("stats").used
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_keeps_what_was_there_and_costs_its_volume_nothing() {
    let Some(bench) = Bench::new() else { return };
    let drives = bench.fresh(&["a.img"]).await;
    let empty = drives.capacity(None, &DriveSelector::default(), &Default::default());
    let volume = drives.create(request("pvc-1", 64 * MIB)).await.expect("create").id;
    let live = stage(&bench, &drives, &volume, "live").await;
    fill(&live.join("data"), 30 * MIB).expect("room");
    fs::create_dir_all(live.join("some/where")).expect("directories");
    fs::write(live.join("some/where/file"), "old").expect("file");
    fs::set_permissions(live.join("some"), fs::Permissions::from_mode(0o2750)).expect("mode");
    fs::hard_link(live.join("some/where/file"), live.join("second-name")).expect("link");
    symlink("/etc", live.join("out")).expect("link");
    let before = fs::read(live.join("data")).expect("read");

    let snapshot = drives.create_snapshot(&volume, "snap-1").await.expect("snapshot");
    assert_eq!(drives.create_snapshot(&volume, "snap-1").await.expect("again"), snapshot);
    assert_eq!((snapshot.restore_size, &snapshot.source), (64 * MIB, &volume));
    assert!((30 * MIB..40 * MIB).contains(&snapshot.size), "it counts what was held: {snapshot:?}");
    assert_eq!(
        drives.capacity(None, &DriveSelector::default(), &Default::default()).available,
        empty.available - 64 * MIB - snapshot.size
    );

    // The volume can be written over as a whole, as without a snapshot.
    let held = used(&drives, &volume, &live).await;
    for _ in 0..3 {
        fs::write(live.join("data"), vec![7; 30 << 20]).expect("nothing old counts");
        fs::File::open(live.join("data")).expect("open").sync_all().expect("sync");
    }
    fs::write(live.join("some/where/file"), "new").expect("file");
    assert!(used(&drives, &volume, &live).await < held + 4 * MIB);
    fill(&live.join("rest"), 30 * MIB).expect("the whole size can be used");
    assert_eq!(fill(&live.join("excess"), 8 * MIB).expect_err("the size holds").raw_os_error(), bench.full());

    // Without its volume.
    drives.unstage(&volume, &live).await.expect("unstage");
    drives.delete(&volume).await.expect("delete");
    assert_eq!(
        drives.capacity(None, &DriveSelector::default(), &Default::default()).available,
        empty.available - snapshot.size
    );
    let origin = Origin::Snapshot(snapshot.id.clone());
    let refused = drives.create(from("small", 32 * MIB, &origin)).await;
    assert!(matches!(refused, Err(CreateError::OutOfRange(_))), "{refused:?}");
    let restored = drives.create(from("pvc-2", 96 * MIB, &origin)).await.expect("restore");
    assert_eq!((restored.size, restored.origin.as_ref()), (96 * MIB, Some(&origin)));
    let refused = drives.create(request("pvc-2", 96 * MIB)).await;
    assert!(matches!(refused, Err(CreateError::Incompatible { .. })), "{refused:?}");
    let at = stage(&bench, &drives, &restored.id, "restored").await;
    assert!(fs::read(at.join("data")).expect("read") == before, "the data of then");
    assert_eq!(fs::read_to_string(at.join("some/where/file")).expect("read"), "old");
    assert_eq!(fs::metadata(at.join("some")).expect("mode").permissions().mode() & 0o7777, 0o2750);
    let [one, other] =
        ["some/where/file", "second-name"].map(|name| fs::metadata(at.join(name)).expect("there"));
    assert_eq!((one.ino(), one.nlink()), (other.ino(), 2));
    assert_eq!(fs::read_link(at.join("out")).expect("link"), Path::new("/etc"));

    // What it holds counts, and its own size is its limit.
    assert!(used(&drives, &restored.id, &at).await > 30 * MIB);
    let _ = fill(&at.join("more"), 96 * MIB).expect_err("the size holds");
    assert!(fs::metadata(at.join("more")).expect("file").len() <= 66 * MIB);
    drives.delete_snapshot(&snapshot.id).await.expect("delete");
    assert!(fs::read(at.join("data")).expect("read") == before, "it needs no snapshot");
    assert!(used(&drives, &restored.id, &at).await > 30 * MIB);
    drives.unstage(&restored.id, &at).await.expect("unstage");
    drives.delete(&restored.id).await.expect("delete");
    for _ in 0..2 {
        drives.delete_snapshot(&snapshot.id).await.expect("gone");
    }
    assert_eq!(drives.capacity(None, &DriveSelector::default(), &Default::default()), empty);
    bench.leaves_nothing(&drives);
    drives.close().await.expect("close");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_volume_can_be_cloned_and_a_full_drive_refuses() {
    let Some(bench) = Bench::new() else { return };
    let drives = bench.fresh(&["a.img", "b.img"]).await;
    let volume = drives.create(request("pvc-1", 64 * MIB)).await.expect("create").id;
    let live = stage(&bench, &drives, &volume, "live").await;
    fs::create_dir(live.join("many")).expect("directory");
    for number in 0..2000 {
        fs::write(live.join(format!("many/{number}")), [1; 3000]).expect("file");
    }
    let _ = fill(&live.join("data"), 80 * MIB).expect_err("full");
    let origin = Origin::Volume(volume.clone());
    let snapshot = drives.create_snapshot(&volume, "snap-1").await.expect("a full volume");
    let clone = drives.create(from("clone", 0, &origin)).await.expect("a full volume");
    assert_eq!((clone.size, clone.id.drive()), (64 * MIB, volume.drive()));
    let restored = drives.create(from("restored", 0, &Origin::Snapshot(snapshot.id.clone()))).await;
    let restored = restored.expect("of the same size");
    assert_ne!(restored.id.drive(), volume.drive(), "where there is most room");
    for (id, name) in [(&clone.id, "clone"), (&restored.id, "restored")] {
        let at = stage(&bench, &drives, id, name).await;
        assert_eq!(fs::read_dir(at.join("many")).expect("list").count(), 2000);
        let same = fs::read(at.join("data")).expect("read") == fs::read(live.join("data")).expect("read");
        assert!(same, "{name}");
        fs::remove_file(at.join("many/7")).expect("a full volume can be cleared");
        drives.unstage(id, &at).await.expect("unstage");
    }

    let home = |drives: &Drives| {
        drives.drives().into_iter().find(|drive| drive.id.as_ref() == Some(volume.drive())).expect("there")
    };
    let rest = home(&drives).free;
    let other = drives.drives().into_iter().map(|drive| drive.free).max().expect("drives");
    let blocker = drives.create(request("blocker", other)).await.expect("create").id;
    let filler = drives.create(request("filler", rest / 4096 * 4096)).await.expect("create").id;
    let full = drives.create_snapshot(&volume, "snap-2").await;
    assert!(matches!(full, Err(SnapshotError::NoSpace { .. })), "{full:?}");
    let full = drives.create(from("clone-2", 0, &origin)).await;
    assert!(matches!(full, Err(CreateError::NoSpace { .. })), "{full:?}");
    let taken = drives.create_snapshot(&clone.id, "snap-1").await;
    assert!(matches!(taken, Err(SnapshotError::Incompatible { .. })), "{taken:?}");

    // A restart finds it all.
    let (volumes, snapshots) = (drives.volumes(), drives.snapshots());
    drop(drives);
    let drives = bench.open(&["a.img", "b.img"]).await;
    assert_eq!((drives.volumes(), drives.snapshots()), (volumes, snapshots));
    drives.unstage(&volume, &live).await.expect("unstage");
    let missing = drives.delete(&snapshot.id).await;
    assert!(matches!(missing, Ok(()) | Err(DeleteError::Busy(_))), "{missing:?}");
    assert!(drives.snapshot(&snapshot.id).is_some(), "a snapshot is no volume");
    for id in [&volume, &clone.id, &restored.id, &blocker, &filler] {
        drives.delete(id).await.expect("delete");
    }
    drives.delete_snapshot(&snapshot.id).await.expect("delete");
    assert!(drives.drives().iter().all(|drive| drive.free == drive.capacity));
    bench.leaves_nothing(&drives);
    drives.close().await.expect("close");
}
