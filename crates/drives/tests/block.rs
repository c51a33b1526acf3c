//! Block volumes on a real btrfs drive: needs root.

mod bench;

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, FileTypeExt},
    path::Path,
    time::Duration,
};

use bench::{Bench, MIB, request};
use drives::{
    AccessType, CreateError, CreateVolume, DriveSelector, Drives, MountError, Origin, Volume, VolumeId,
};
use linux::{BlockDevices, Kernel, LoopDevices, Programs};

fn block(name: &str, size: u64) -> CreateVolume {
    CreateVolume { access: AccessType::Block, ..request(name, size) }
}

fn open(device: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(device).expect("open")
}

fn write(device: &Path, at: u64, byte: u8, length: u64) -> io::Result<()> {
    let open = OpenOptions::new().write(true).open(device)?;
    let piece = vec![byte; MIB as usize];
    for offset in (at..at + length).step_by(MIB as usize) {
        open.write_all_at(&piece, offset)?;
    }
    open.sync_all()
}

fn holds(device: &Path, at: u64, byte: u8) -> bool {
    let mut piece = vec![0; MIB as usize];
    File::open(device).and_then(|open| open.read_exact_at(&mut piece, at)).expect("read");
    piece.iter().all(|found| *found == byte)
}

fn size(device: &Path) -> u64 {
    Kernel.block_device(device).expect("a block device").size
}

/// Staged and published for writing.
async fn show(bench: &Bench, drives: &Drives, id: &VolumeId, name: &str) -> std::path::PathBuf {
    let target = bench.path(name);
    drives.stage_block(id).await.expect("stage");
    drives.publish_block(id, &bench.path("staging"), &target, false).await.expect("publish");
    target
}

async fn hide(bench: &Bench, drives: &Drives, id: &VolumeId, name: &str) {
    drives.unpublish(id, &bench.path(name)).await.expect("unpublish");
    drives.unstage(id, &bench.path("staging")).await.expect("unstage");
}

fn image(drives: &Drives, volume: &Volume) -> std::path::PathBuf {
    let mount = drives.drives().remove(0).mount.expect("mounted");
    mount.join("volumes").join(&volume.name).join("image")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_a_device_of_its_exact_size_that_grows_while_written() {
    let Some(bench) = Bench::new() else { return };
    let drives = bench.fresh(&["a.img"]).await;
    let empty = drives.capacity(None, &DriveSelector::default(), &Default::default());
    let volume = drives.create(block("pvc-1", 64 * MIB)).await.expect("create");
    assert_eq!(drives.create(block("pvc-1", 64 * MIB)).await.expect("again"), volume);
    let id = volume.id.clone();
    // What the file system notes about the bytes counts too.
    assert_eq!(
        drives.capacity(None, &DriveSelector::default(), &Default::default()).available,
        empty.available - (64 + 2 + 4) * MIB
    );

    let device = show(&bench, &drives, &id, "device").await;
    assert!(fs::metadata(&device).expect("there").file_type().is_block_device());
    assert_eq!(size(&device), 64 * MIB);
    for pass in 1..4 {
        write(&device, 0, pass, 64 * MIB).expect("all of it can be written, again and again");
    }
    let beyond = open(&device).write_all_at(&[1], 64 * MIB).expect_err("no further");
    assert_eq!(beyond.kind(), io::ErrorKind::StorageFull, "{beyond}");
    let sysfs = format!("/sys/block/{}", loop_name(&drives, &volume));
    assert_eq!(fs::read_to_string(format!("{sysfs}/loop/dio")).expect("sysfs").trim(), "1", "direct I/O");
    assert_eq!(fs::read_to_string(format!("{sysfs}/queue/discard_max_bytes")).expect("sysfs").trim(), "0");
    let stats = drives.stats(&id, &device).await.expect("stats");
    assert_eq!((stats.size, stats.access), (64 * MIB, AccessType::Block));

    let user = open(&device);
    assert_eq!(drives.expand(&id, 96 * MIB, None).await.expect("grow"), 96 * MIB);
    assert_eq!(size(&device), 96 * MIB);
    user.write_all_at(&[9; 4096], 96 * MIB - 4096).expect("the new end");
    user.sync_all().expect("sync");
    drop(user);
    assert!(holds(&device, 63 * MIB, 3) && holds(&device, 64 * MIB, 0), "the old bytes, and zeros");
    assert!(drives.expand(&id, 1024 * MIB, None).await.is_err());
    assert_eq!(size(&device), 96 * MIB);

    hide(&bench, &drives, &id, "device").await;
    drives.delete(&id).await.expect("delete");
    assert_eq!(drives.capacity(None, &DriveSelector::default(), &Default::default()), empty);
    bench.leaves_nothing(&drives);
    drives.close().await.expect("close");
}

fn loop_name(drives: &Drives, volume: &Volume) -> String {
    let found = Kernel.loops_of(&image(drives, volume)).expect("sysfs");
    let [one] = &found[..] else { panic!("one device: {found:?}") };
    one.device.file_name().expect("a name").to_string_lossy().into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_can_t_write_and_a_restart_finds_all_devices_again() {
    let Some(bench) = Bench::new() else { return };
    let drives = bench.fresh(&["a.img"]).await;
    let volume = drives.create(block("pvc-1", 16 * MIB)).await.expect("create");
    let id = volume.id.clone();
    let (staging, reader) = (bench.path("staging"), bench.path("reader"));
    let device = show(&bench, &drives, &id, "device").await;
    write(&device, 0, 5, 16 * MIB).expect("write");
    drives.publish_block(&id, &staging, &reader, true).await.expect("read-only");
    assert!(holds(&reader, MIB, 5));
    write(&reader, 0, 6, MIB).expect_err("read-only");
    // Nor by way of its node: that is not the writer's.
    assert!(Kernel.block_device(&reader).expect("device").read_only);
    assert!(!Kernel.block_device(&device).expect("device").read_only);

    // As after kill -9.
    drop(drives);
    let drives = bench.open(&["a.img"]).await;
    let devices = || Kernel.loops_of(&image(&drives, &volume)).expect("sysfs");
    assert_eq!(devices().len(), 2);
    drives.stage_block(&id).await.expect("stage again");
    drives.publish_block(&id, &staging, &device, false).await.expect("publish again");
    drives.publish_block(&id, &staging, &reader, true).await.expect("publish again");
    assert_eq!(devices().len(), 2);
    let refused = drives.publish_block(&id, &staging, &reader, false).await.expect_err("other access");
    assert!(matches!(refused, MountError::Taken { .. }), "{refused}");
    let refused = drives.unstage(&id, &staging).await.expect_err("published");
    assert!(matches!(refused, MountError::Published { .. }), "{refused}");
    drives.delete(&id).await.expect_err("in use");
    drives.close().await.expect_err("in use");

    drives.unpublish(&id, &reader).await.expect("unpublish");
    assert_eq!(devices().len(), 1, "the reader's device goes with the reader");
    drives.unpublish(&id, &device).await.expect("unpublish");
    assert!(!reader.exists() && !device.exists());
    drives.unstage(&id, &staging).await.expect("unstage");
    assert_eq!(devices(), []);
    drives.delete(&id).await.expect("delete");
    bench.leaves_nothing(&drives);
    drives.close().await.expect("close");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_holds_the_same_bytes_and_has_all_its_space() {
    let Some(bench) = Bench::new() else { return };
    let drives = bench.fresh(&["a.img"]).await;
    let volume = drives.create(block("pvc-1", 32 * MIB)).await.expect("create");
    let device = show(&bench, &drives, &volume.id, "device").await;
    write(&device, 8 * MIB, 7, 8 * MIB).expect("write");
    let origin = Origin::Volume(volume.id.clone());
    let clone = CreateVolume { origin: Some(origin.clone()), ..block("pvc-2", 48 * MIB) };
    let refused = drives.create(clone.clone()).await.expect_err("in use");
    assert!(matches!(refused, CreateError::Source(_)), "{refused}");
    hide(&bench, &drives, &volume.id, "device").await;

    let snapshot = drives.create_snapshot(&volume.id, "snap-1").await.expect("snapshot");
    let clone = drives.create(clone).await.expect("clone");
    drives.delete(&volume.id).await.expect("delete");
    let restored = CreateVolume { origin: Some(Origin::Snapshot(snapshot.id.clone())), ..block("pvc-3", 0) };
    let restored = drives.create(restored).await.expect("restore");
    assert_eq!((restored.size, clone.size), (32 * MIB, 48 * MIB));
    for copy in [&clone, &restored] {
        let device = show(&bench, &drives, &copy.id, &copy.name).await;
        assert!(holds(&device, 0, 0) && holds(&device, 8 * MIB, 7) && holds(&device, 15 * MIB, 7));
        assert!(holds(&device, 16 * MIB, 0));
        write(&device, 0, 1, copy.size).expect("all of it can be written");
        write(&device, 0, 2, copy.size).expect("and again");
        hide(&bench, &drives, &copy.id, &copy.name).await;
        drives.delete(&copy.id).await.expect("delete");
    }
    drives.delete_snapshot(&snapshot.id).await.expect("delete");
    bench.leaves_nothing(&drives);
    drives.close().await.expect("close");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_system_can_be_made_on_it_and_a_full_drive_keeps_its_word() {
    let Some(bench) = Bench::new() else { return };
    let drives = bench.fresh(&["a.img"]).await;
    let largest = drives.capacity(None, &DriveSelector::default(), &Default::default()).largest_block_volume;
    let volume = drives.create(block("pvc-1", largest)).await.expect("the largest");
    let device = show(&bench, &drives, &volume.id, "device").await;
    let run = |program: &str, words: &[&str]| {
        let mut words: Vec<&std::ffi::OsStr> = words.iter().map(AsRef::as_ref).collect();
        words.push(device.as_os_str());
        Kernel.run(program, &words, Duration::from_secs(60)).expect(program)
    };
    run("mkfs.ext4", &["-q", "-F"]);
    run("mkfs.xfs", &["-q", "-f"]);
    for pass in 1..3 {
        write(&device, 0, pass, largest / MIB * MIB).expect("every byte is there");
    }
    run("blkdiscard", &["-z"]);
    // Every other block alone: what the file system notes is most then.
    let user = open(&device);
    for at in (0..16 * MIB).step_by(8192) {
        user.write_all_at(&[3; 4096], at).expect("write");
    }
    user.sync_all().expect("sync");
    drop(user);
    hide(&bench, &drives, &volume.id, "device").await;
    drives.delete(&volume.id).await.expect("delete");
    bench.leaves_nothing(&drives);
    drives.close().await.expect("close");
}
