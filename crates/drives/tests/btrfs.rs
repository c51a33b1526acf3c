//! Drives on real loop devices with btrfs: needs root.

mod bench;

use std::{fs, path::Path, time::Duration};

use bench::{Bench, MIB, fill, request};
use drives::{
    BackendKind, CreateError, DeleteError, DriveSelector, DriveState, Force, InitialiseError, MountError,
    MountFlags, Source,
};
use linux::{Btrfs, Files, Kernel, LoopDevices, Mounts, Programs, Unmount};

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_lives_from_creation_to_deletion() {
    let Some(bench) = Bench::new() else { return };
    let drives = bench.fresh(&["a.img"]).await;
    let before = drives.capacity(None, &DriveSelector::default(), &Default::default());
    let volume = drives.create(request("pvc-1", 64 * MIB)).await.expect("create");
    assert_eq!(volume.size, 64 * MIB);
    assert_eq!(
        drives.capacity(None, &DriveSelector::default(), &Default::default()).available,
        before.available - 64 * MIB
    );
    assert_eq!(drives.create(request("pvc-1", 64 * MIB)).await.expect("again"), volume);
    let refused = drives.create(request("pvc-1", 65 * MIB)).await;
    assert!(matches!(refused, Err(CreateError::Incompatible { .. })), "{refused:?}");

    let (staging, target, reader) = (bench.path("staging"), bench.path("pods/x/mount"), bench.path("reader"));
    let flags = MountFlags::parse(&["nodev,nosuid"]).expect("flags");
    let unstaged = drives.publish(&volume.id, &staging, &target, false, flags).await;
    assert!(matches!(unstaged, Err(MountError::NotStaged { .. })), "{unstaged:?}");
    for _ in 0..2 {
        drives.stage(&volume.id, &staging, flags).await.expect("stage");
        drives.publish(&volume.id, &staging, &target, false, flags).await.expect("publish");
        drives.publish(&volume.id, &staging, &reader, true, flags).await.expect("publish read-only");
    }
    fs::write(target.join("hello"), "world").expect("write");
    assert_eq!(fs::read_to_string(reader.join("hello")).expect("read"), "world");
    assert_eq!(fs::write(reader.join("no"), "").expect_err("read-only").raw_os_error(), Some(30));
    let changed = drives.publish(&volume.id, &staging, &reader, false, flags).await;
    assert!(matches!(changed, Err(MountError::Taken { .. })), "{changed:?}");

    let too_much = fill(&target.join("big"), 80 * MIB).expect_err("the size is a limit");
    assert_eq!(too_much.raw_os_error(), bench.full(), "{too_much}");
    let stats = drives.stats(&volume.id, &target).await.expect("stats");
    assert!(stats.used <= stats.size && stats.used > 60 * MIB, "{stats:?}");
    assert_eq!(drives.expand(&volume.id, 128 * MIB, None).await.expect("expand"), 128 * MIB);
    fill(&target.join("big"), 80 * MIB).expect("it fits now");

    let used = drives.delete(&volume.id).await;
    assert!(matches!(used, Err(DeleteError::InUse { .. })), "{used:?}");
    for _ in 0..2 {
        drives.unpublish(&volume.id, &target).await.expect("unpublish");
        drives.unpublish(&volume.id, &reader).await.expect("unpublish");
        drives.unstage(&volume.id, &staging).await.expect("unstage");
        drives.delete(&volume.id).await.expect("delete");
    }
    assert!(!target.exists() && !staging.exists());
    assert_eq!(drives.capacity(None, &DriveSelector::default(), &Default::default()), before);
    drives.close().await.expect("close");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_finds_everything_on_the_drives_and_puts_a_lost_limit_back() {
    let Some(bench) = Bench::new() else { return };
    let drives = bench.fresh(&["a.img", "b.img"]).await;
    for number in 0..4 {
        drives.create(request(&format!("pvc-{number}"), 32 * MIB)).await.expect("create");
    }
    drives.create(request("an odd/näme", 32 * MIB)).await.expect("create");
    let before = drives.volumes();
    assert_eq!(before.iter().filter(|volume| volume.id.drive() == before[0].id.drive()).count(), 3, "spread");
    let mount = drives.drives()[0].mount.clone().expect("mounted");
    let key = fs::read_dir(mount.join("volumes"))
        .expect("list")
        .next()
        .expect("a volume")
        .expect("a volume")
        .path();
    let id = Kernel.subvolume_id(&key).expect("subvolume");
    Kernel.limit_subvolume(&mount, id, None).expect("lose the limit");

    // As after kill -9: mounted still.
    let capacity = drives.capacity(None, &DriveSelector::default(), &Default::default());
    drop(drives);
    let killed = bench.open(&["a.img", "b.img"]).await;
    assert_eq!(killed.volumes(), before);
    assert_eq!(killed.capacity(None, &DriveSelector::default(), &Default::default()), capacity);
    assert_eq!(Kernel.subvolume_quota(&mount, id).expect("quota").expect("quota").limit, Some(32 * MIB));
    // As after a reboot, with the devices in another order.
    killed.close().await.expect("close");
    let devices = Kernel.loops_of(&bench.path("a.img")).expect("loops");
    assert!(devices.iter().all(|device| device.leaving), "detached: {devices:?}");
    let rebooted = bench.open(&["b.img", "a.img"]).await;
    assert_eq!(rebooted.volumes(), before);
    let found = rebooted.create(request("an odd/näme", 32 * MIB)).await.expect("found");
    assert!(before.contains(&found));
    rebooted.close().await.expect("close");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drive_whose_file_went_away_while_it_was_mounted_is_not_let_go_silently() {
    let Some(bench) = Bench::new() else { return };
    let drives = bench.fresh(&["a.img"]).await;
    let mount = drives.drives()[0].mount.clone().expect("mounted");
    drop(drives);
    fs::rename(bench.path("a.img"), bench.path("moved.img")).expect("take the file away");

    let lost = bench.open(&["a.img"]).await;
    assert!(matches!(lost.drives()[0].state, DriveState::Failed { .. }));
    let refused = lost.close().await.expect_err("mounted still").to_string();
    assert!(refused.contains(&format!("umount {}", mount.display())), "{refused}");
    assert!(Kernel.mount_table().expect("mounts").at(&mount).is_some());

    fs::rename(bench.path("moved.img"), bench.path("a.img")).expect("bring the file back");
    bench.open(&["a.img"]).await.close().await.expect("close");
    assert!(Kernel.mount_table().expect("mounts").at(&mount).is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_a_container_does_gets_past_the_size_or_in_the_way_of_deletion() {
    let Some(bench) = Bench::new() else { return };
    let drives = bench.fresh(&["a.img"]).await;
    let empty = drives.capacity(None, &DriveSelector::default(), &Default::default());
    let volume = drives.create(request("pvc-1", 64 * MIB)).await.expect("create");
    let target = bench.path("staging");
    drives.stage(&volume.id, &target, MountFlags::default()).await.expect("stage");
    // Subvolumes and snapshots can be made by anyone who may write.
    fill(&target.join("base"), 20 * MIB).expect("room");
    fs::create_dir(target.join("below")).expect("directory");
    Kernel.create_subvolume(&target.join("below/nested"), 0o755).expect("subvolume");
    Kernel.create_subvolume(&target.join("below/nested/deeper"), 0o755).expect("subvolume");
    let minute = Duration::from_secs(60);
    let paths = [target.clone(), target.join("copy")];
    let snapshot = ["subvolume".as_ref(), "snapshot".as_ref(), paths[0].as_os_str(), paths[1].as_os_str()];
    Kernel.run("btrfs", &snapshot, minute).expect("snapshot");
    let wrote: u64 = ["below/nested", "below/nested/deeper", "copy", "."]
        .iter()
        .map(|place| {
            let _ = fill(&target.join(place).join("more"), 60 * MIB);
            fs::metadata(target.join(place).join("more")).map_or(0, |file| file.len())
        })
        .sum();
    assert!(wrote <= 44 * MIB, "{wrote} bytes got into a volume of 64 MiB that held 20 MiB");
    let stats = drives.stats(&volume.id, &target).await.expect("stats");
    assert!(stats.used <= stats.size, "{stats:?}");
    drives.unstage(&volume.id, &target).await.expect("unstage");
    drives.delete(&volume.id).await.expect("delete");
    assert_eq!(drives.capacity(None, &DriveSelector::default(), &Default::default()), empty);
    bench.leaves_nothing(&drives);
    drives.close().await.expect("close");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_volume_of_a_full_drive_can_be_filled() {
    let Some(bench) = Bench::new() else { return };
    let drives = bench.fresh(&["a.img"]).await;
    let capacity = drives.capacity(None, &DriveSelector::default(), &Default::default()).available;
    let size = capacity / 3 / 4096 * 4096;
    let refused =
        drives.create(request("too-large", capacity + 4096)).await.expect_err("too large").to_string();
    assert!(refused.contains(&capacity.to_string()) && refused.contains("add a drive"), "{refused}");
    let mut staged = Vec::new();
    for number in 0..3 {
        let volume = drives.create(request(&format!("pvc-{number}"), size)).await.expect("create");
        let at = bench.path(&format!("staging-{number}"));
        drives.stage(&volume.id, &at, MountFlags::default()).await.expect("stage");
        staged.push((volume.id, at));
    }
    assert!(matches!(drives.create(request("more", MIB)).await, Err(CreateError::NoSpace { .. })));
    for (_, at) in &staged {
        // Two mebibytes for the volume's own tree and what is reserved while writing.
        fill(&at.join("file"), size - 2 * MIB).unwrap_or_else(|error| panic!("{}: {error}", at.display()));
        assert_eq!(fill(&at.join("excess"), 4 * MIB).expect_err("full").raw_os_error(), bench.full());
    }
    for (id, at) in &staged {
        drives.unstage(id, at).await.expect("unstage");
        drives.delete(id).await.expect("delete");
    }
    assert_eq!(drives.capacity(None, &DriveSelector::default(), &Default::default()).available, capacity);
    drives.close().await.expect("close");
}

#[tokio::test(flavor = "multi_thread")]
async fn creations_at_once_give_out_exactly_what_there_is() {
    let Some(bench) = Bench::new() else { return };
    let drives = bench.fresh(&["a.img", "b.img"]).await;
    let size = 32 * MIB;
    let room: u64 = drives.drives().iter().map(|drive| drive.free / size).sum();
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..40 {
        let drives = drives.clone();
        // Every name twice: the second call finds the first or is told to come back.
        calls.spawn(async move { drives.create(request(&format!("pvc-{}", number / 2), size)).await });
    }
    for answer in calls.join_all().await {
        if let Err(error) = answer {
            assert!(matches!(error, CreateError::NoSpace { .. } | CreateError::Busy(_)), "{error}");
        }
    }
    let volumes = drives.volumes();
    assert_eq!(volumes.len() as u64, room.min(20));
    let mut deletions = tokio::task::JoinSet::new();
    for volume in volumes {
        let drives = drives.clone();
        deletions.spawn(async move { drives.delete(&volume.id).await });
    }
    for answer in deletions.join_all().await {
        answer.expect("delete");
    }
    assert!(drives.drives().iter().all(|drive| drive.free == drive.capacity && drive.volumes == 0));
    drives.close().await.expect("close");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_formatted_that_is_in_use_or_carries_something() {
    let Some(bench) = Bench::new() else { return };
    let file = bench.path("a.img");
    Kernel.make_image(&file, 512 * MIB).expect("image");
    let device = Kernel.attach_loop(&file).expect("attach");
    let minute = Duration::from_secs(60);
    Kernel.run("mkfs.ext4", &["-q".as_ref(), device.as_os_str()], minute).expect("mkfs");
    let drives = bench.open(&["a.img"]).await;
    assert_eq!(drives.uninitialised(), [bench.source("a.img")]);
    assert!(drives.drives().is_empty());
    let source = Source::Device(device.clone());
    let initialise = |force| drives.initialise(source.clone(), None, force);
    let refused = initialise(Force::No).await.expect_err("ext4");
    assert!(
        matches!(&refused, InitialiseError::Carries { signature, .. } if signature.kind == "ext4"),
        "{refused}"
    );

    let at = bench.path("mounted");
    fs::create_dir(&at).expect("directory");
    let name = device.to_string_lossy();
    let ext4 =
        linux::FilesystemMount { filesystem: "ext4", source: &name, ..linux::FilesystemMount::default() };
    Kernel.mount(&ext4, &at).expect("mount");
    let refused = initialise(Force::OverwriteFileSystem).await.expect_err("mounted");
    assert!(matches!(refused, InitialiseError::Mounted { .. }), "{refused}");
    Kernel.unmount(&at, Unmount::Plain).expect("unmount");

    match drives.initialise(source.clone(), Some(BackendKind::Xfs), Force::OverwriteFileSystem).await {
        Ok(_) => eprintln!("this kernel has XFS project quotas"),
        Err(refused) => {
            assert!(matches!(refused, InitialiseError::Backend { .. }), "{refused}");
            eprintln!("SKIPPED: drives with XFS: {refused}");
            let id = initialise(Force::OverwriteFileSystem).await.expect("asked for");
            assert_eq!(drives.drives()[0].id.as_ref(), Some(&id));
        }
    }
    let refused = initialise(Force::OverwriteFileSystem).await.expect_err("it is a drive");
    assert!(matches!(refused, InitialiseError::Mounted { .. }), "{refused}");
    let small = Source::LoopFile { path: bench.path("small.img"), size: 16 * MIB };
    let refused = drives.initialise(small, None, Force::No).await.expect_err("small");
    assert!(
        matches!(refused, InitialiseError::TooSmall { .. }) && !bench.path("small.img").exists(),
        "{refused}"
    );
    let missing = drives.initialise(Source::Device("/dev/no-such-disk".into()), None, Force::No).await;
    assert!(matches!(missing, Err(InitialiseError::NoDevice { .. })), "{missing:?}");
    drives.close().await.expect("close");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copied_drive_is_refused_and_both_are_named() {
    let Some(bench) = Bench::new() else { return };
    let drives = bench.fresh(&["a.img", "b.img"]).await;
    drives.close().await.expect("close");
    let copied = [bench.path("a.img"), bench.path("copy.img")];
    fs::copy(&copied[0], &copied[1]).expect("copy");
    let drives = bench.open(&["a.img", "copy.img", "b.img"]).await;
    let reasons: Vec<String> = drives
        .drives()
        .into_iter()
        .filter_map(|drive| match drive.state {
            DriveState::Failed { reason } => Some(reason),
            DriveState::Ready => None,
        })
        .collect();
    assert_eq!(reasons.len(), 2);
    for reason in reasons {
        assert!(copied.iter().all(|path| reason.contains(path.to_str().expect("text"))), "{reason}");
    }
    drives.create(request("pvc-1", MIB)).await.expect("the third goes on");
    drives.close().await.expect("close");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_drive_is_not_replaced_and_the_others_go_on() {
    let Some(bench) = Bench::new() else { return };
    let drives = bench.fresh(&["a.img", "b.img"]).await;
    let gone = drives.drives()[0].id.clone().expect("known");
    drives.close().await.expect("close");
    fs::remove_file(bench.path("a.img")).expect("remove");
    let drives = bench.open(&["a.img", "b.img"]).await;
    assert!(drives.uninitialised().is_empty());
    let failed = &drives.drives()[0];
    assert!(
        matches!(&failed.state, DriveState::Failed { reason } if reason.contains(gone.as_str())),
        "{failed:?}"
    );
    let refused = drives.initialise(bench.source("a.img"), None, Force::No).await.expect_err("missing");
    assert!(matches!(refused, InitialiseError::Missing { .. }) && !bench.path("a.img").exists(), "{refused}");
    drives.create(request("pvc-1", MIB)).await.expect("the other goes on");
    drives.forget(&gone).await.expect("forget");
    drives.initialise(bench.source("a.img"), None, Force::No).await.expect("now it is wanted");
    assert!(drives.drives().iter().all(|drive| drive.state == DriveState::Ready));
    drives.close().await.expect("close");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drive_of_a_newer_format_is_refused_untouched() {
    let Some(bench) = Bench::new() else { return };
    let drives = bench.fresh(&["a.img"]).await;
    let record = drives.drives()[0].mount.clone().expect("mounted").join(".orlop/drive.json");
    fs::write(&record, r#"{"format": 9, "unheard": "of"}"#).expect("write");
    drives.close().await.expect("close");
    let before = fs::read(bench.path("a.img")).expect("image");
    let drives = bench.open(&["a.img"]).await;
    let state = drives.drives()[0].state.clone();
    assert!(matches!(&state, DriveState::Failed { reason } if reason.contains("format 9")), "{state:?}");
    drives.close().await.expect("close");
    assert!(fs::read(bench.path("a.img")).expect("image") == before, "not one byte changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_the_volumes_is_not_unmounted() {
    let Some(bench) = Bench::new() else { return };
    let drives = bench.fresh(&["a.img"]).await;
    let one = drives.create(request("pvc-1", MIB)).await.expect("create");
    let other = drives.create(request("pvc-2", MIB)).await.expect("create");
    let at = bench.path("staging");
    drives.stage(&one.id, &at, MountFlags::default()).await.expect("stage");
    for answer in
        [drives.unstage(&other.id, &at).await, drives.stage(&other.id, &at, MountFlags::default()).await]
    {
        assert!(matches!(answer, Err(MountError::Taken { .. })), "{answer:?}");
    }
    let relative = drives.unstage(&one.id, Path::new("staging")).await;
    assert!(matches!(relative, Err(MountError::Path { .. })), "{relative:?}");
    let up = drives.unstage(&one.id, Path::new("/tmp/../tmp")).await;
    assert!(matches!(up, Err(MountError::Path { .. })), "{up:?}");
    fs::write(at.join("kept"), "").expect("still mounted");
    let refused = drives.close().await.expect_err("a volume is mounted").to_string();
    assert!(refused.contains(at.to_str().expect("text")), "{refused}");
    drives.unstage(&one.id, &at).await.expect("unstage");
    drives.close().await.expect("close");
}
