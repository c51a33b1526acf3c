//! Devices that are not what they were: swapped, replaced, read-only, failing. Needs root.

mod bench;

use std::{fs, path::PathBuf, time::Duration};

use bench::{Bench, MIB, fill, request};
use drives::{CreateError, DriveState, Drives, Force, InitialiseError, MountFlags, Source};
use linux::{Kernel, LoopDevices, Programs};

const MINUTE: Duration = Duration::from_secs(60);

fn run(program: &str, words: &[&str]) -> String {
    let words: Vec<_> = words.iter().map(AsRef::as_ref).collect();
    Kernel.run(program, &words, MINUTE).expect(program).stdout.trim().to_owned()
}

fn text(path: PathBuf) -> String {
    path.to_str().expect("text").to_owned()
}

/// Why each drive that can't serve can't.
fn failures(drives: &Drives) -> Vec<String> {
    let reason = |drive: drives::Drive| match drive.state {
        DriveState::Failed { reason } => Some(reason),
        DriveState::Ready => None,
    };
    drives.drives().into_iter().filter_map(reason).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn drives_that_swapped_their_names_are_told_apart() {
    let Some(bench) = Bench::new() else { return };
    let drives = bench.fresh(&["a.img", "b.img"]).await;
    for number in 0..4 {
        drives.create(request(&format!("pvc-{number}"), 16 * MIB)).await.expect("create");
    }
    let before = drives.volumes();
    drives.close().await.expect("close");
    fs::rename(bench.path("a.img"), bench.path("c.img")).expect("a to c");
    fs::rename(bench.path("b.img"), bench.path("a.img")).expect("b to a");
    fs::rename(bench.path("c.img"), bench.path("b.img")).expect("c to b");
    let drives = bench.open(&["a.img", "b.img"]).await;
    assert_eq!(drives.volumes(), before, "by what is on them, not by their names");
    assert_eq!(failures(&drives), [""; 0]);
    drives.close().await.expect("close");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_device_under_the_name_of_a_drive_is_refused_and_left_alone() {
    let Some(bench) = Bench::new() else { return };
    let drives = bench.fresh(&["a.img", "b.img"]).await;
    let gone = drives.drives()[0].id.clone().expect("known");
    drives.close().await.expect("close");
    fs::rename(bench.path("a.img"), bench.path("pulled.img")).expect("pull");
    for foreign in ["ext4", "nothing"] {
        let _ = fs::remove_file(bench.path("a.img"));
        run("truncate", &["-s", "512M", &text(bench.path("a.img"))]);
        if foreign == "ext4" {
            run("mkfs.ext4", &["-q", "-F", &text(bench.path("a.img"))]);
        }
        let before = fs::read(bench.path("a.img")).expect("image");
        let drives = bench.open(&["a.img", "b.img"]).await;
        let reasons = failures(&drives);
        assert!(reasons.len() == 1 && reasons[0].contains(gone.as_str()), "{foreign}: {reasons:?}");
        let refused = drives.initialise(bench.source("a.img"), None, Force::No).await;
        assert!(matches!(refused, Err(InitialiseError::Missing { .. })), "{foreign}: {refused:?}");
        drives.create(request("pvc-1", MIB)).await.expect("the other goes on");
        drives.close().await.expect("close");
        if let Some(device) = Kernel.loop_of(&bench.path("a.img")).expect("loops") {
            Kernel.detach_loop(&device).expect("detach");
        }
        assert!(fs::read(bench.path("a.img")).expect("image") == before, "{foreign}: not one byte changed");
    }
    fs::rename(bench.path("pulled.img"), bench.path("a.img")).expect("bring it back");
    let drives = bench.open(&["a.img", "b.img"]).await;
    assert_eq!(failures(&drives), [""; 0]);
    drives.close().await.expect("close");
}

/// A read-only loop device that goes away with the test.
struct ReadOnly(String);

impl Drop for ReadOnly {
    fn drop(&mut self) {
        let _ = Kernel.detach_loop(self.0.as_ref());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_device_fails_alone() {
    let Some(bench) = Bench::new() else { return };
    let drives = bench.fresh(&["a.img", "b.img"]).await;
    drives.create(request("pvc-1", 16 * MIB)).await.expect("create");
    drives.close().await.expect("close");
    let before = fs::read(bench.path("a.img")).expect("image");
    let device = ReadOnly(run("losetup", &["--find", "--show", "--read-only", &text(bench.path("a.img"))]));
    let sources = vec![Source::Device(device.0.clone().into()), bench.source("b.img")];
    let drives =
        Drives::open(std::sync::Arc::new(Kernel), bench.path("drives"), sources).await.expect("open");
    let reasons = failures(&drives);
    assert!(reasons.len() == 1 && reasons[0].to_lowercase().contains("read-only"), "{reasons:?}");
    drives.create(request("pvc-2", 16 * MIB)).await.expect("the other goes on");
    let blank = Source::Device(device.0.clone().into());
    let refused = drives.initialise(blank, None, Force::OverwriteFileSystem).await;
    assert!(matches!(refused, Err(InitialiseError::ReadOnly(_))), "{refused:?}");
    drives.close().await.expect("close");
    drop(device);
    assert!(fs::read(bench.path("a.img")).expect("image") == before, "not one byte changed");
}

/// A small memory file system, whose files grow until it is full: then the device on such a file fails to write.
struct Medium(String);

impl Medium {
    fn new(bench: &Bench, size: &str) -> Self {
        let at = text(bench.path("medium"));
        fs::create_dir(&at).expect("directory");
        run("mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs", &at]);
        Self(at)
    }
}

impl Drop for Medium {
    fn drop(&mut self) {
        // Where the test did not get to its end; the mounts go with the bench.
        if let Ok(Some(device)) = Kernel.loop_of(&PathBuf::from(&self.0).join("a.img")) {
            let _ = Kernel.detach_loop(&device);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_fails_to_write_fails_alone_and_is_whole_when_it_works_again() {
    let Some(bench) = Bench::new() else { return };
    let medium = Medium::new(&bench, "80m");
    let failing = "medium/a.img";
    let drives = bench.fresh(&[failing, "b.img"]).await;
    let (one, other) = (drives.drives()[0].id.clone(), drives.drives()[1].id.clone());
    // The emptiest first, and in turn: one volume on each.
    let mut ids = Vec::new();
    for number in 0..2 {
        ids.push(drives.create(request(&format!("pvc-{number}"), 200 * MIB)).await.expect("create").id);
    }
    let broken = ids.iter().find(|id| Some(id.drive()) == one.as_ref()).expect("one on each").clone();
    let staging = bench.path("staging");
    drives.stage(&broken, &staging, MountFlags::default()).await.expect("stage");
    fs::write(staging.join("kept"), "from before").expect("write");
    fs::File::open(staging.join("kept")).and_then(|file| file.sync_all()).expect("sync");
    let error = fill(&staging.join("big"), 150 * MIB).expect_err("the device has no more room");
    eprintln!("the writer saw: {error}");

    // What lies on it is refused, with the drive's word; the other goes on.
    drives.expand(&broken, 220 * MIB, None).await.expect_err("its drive fails");
    let made = drives.create(request("pvc-3", 16 * MIB)).await;
    match made {
        Ok(volume) => assert_eq!(Some(volume.id.drive()), other.as_ref(), "the other has more room"),
        Err(error) => assert!(matches!(error, CreateError::Drive { .. }), "{error}"),
    }
    drives.unstage(&broken, &staging).await.expect("what is mounted comes away");
    drives.close().await.expect("close");

    run("mount", &["-o", "remount,size=600m", &medium.0]);
    let drives = bench.open(&[failing, "b.img"]).await;
    assert_eq!(failures(&drives), [""; 0]);
    assert_eq!(drives.volume(&broken).expect("it is there").size, 200 * MIB);
    drives.stage(&broken, &staging, MountFlags::default()).await.expect("stage");
    assert_eq!(fs::read_to_string(staging.join("kept")).expect("read"), "from before");
    fill(&staging.join("big"), 150 * MIB).expect("there is room now");
    drives.unstage(&broken, &staging).await.expect("unstage");
    assert_eq!(drives.expand(&broken, 220 * MIB, None).await.expect("grows"), 220 * MIB);
    for volume in drives.volumes() {
        drives.delete(&volume.id).await.expect("delete");
    }
    bench.leaves_nothing(&drives);
    drives.close().await.expect("close");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_deleted_or_cut_under_its_drive_takes_nothing_more() {
    let Some(bench) = Bench::new() else { return };
    for cut in [false, true] {
        let names = if cut { ["c.img", "d.img"] } else { ["e.img", "b.img"] };
        let drives = bench.fresh(&names).await;
        let file = bench.path(names[0]);
        let lost = drives.drives()[0].id.clone().expect("known");
        let free = drives.capacity(None, &drives::DriveSelector::default(), &Default::default()).available;
        match cut {
            true => fs::File::options().write(true).open(&file).and_then(|open| open.set_len(64 * MIB)),
            false => fs::rename(&file, bench.path("kept-aside")),
        }
        .expect("done to it");
        for number in 0..3 {
            let volume = drives.create(request(&format!("pvc-{number}"), 16 * MIB)).await.expect("the other");
            assert_ne!(*volume.id.drive(), lost);
        }
        let drive = drives.drives().remove(0);
        let trouble = drive.trouble.expect("people are told");
        assert!(trouble.contains(&text(file.clone())) && drive.free == 0, "{trouble}");
        assert!(
            drives.capacity(None, &drives::DriveSelector::default(), &Default::default()).available
                < free / 2
        );
        if let Err(error) = drives.close().await {
            assert!(cut, "{error}");
        }
        let left =
            [file.clone(), bench.path("kept-aside")].map(|file| Kernel.loops_of(&file).expect("loops"));
        assert!(cut || left.iter().flatten().all(|one| one.leaving), "no device is left: {left:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_loop_device_is_left_of_a_drive_that_failed() {
    let Some(bench) = Bench::new() else { return };
    let drives = bench.fresh(&["a.img"]).await;
    let own = drives.drives()[0].mount.clone().expect("mounted").join(".orlop");
    for record in ["drive.json", "drive.copy.json"] {
        fs::write(own.join(record), "{").expect("damage");
    }
    drives.close().await.expect("close");
    let drives = bench.open(&["a.img"]).await;
    assert_eq!(failures(&drives).len(), 1);
    assert_eq!(Kernel.loops_of(&bench.path("a.img")).expect("loops").len(), 1);
    drives.close().await.expect("close");
    let left = Kernel.loops_of(&bench.path("a.img")).expect("loops");
    assert!(left.iter().all(|one| one.leaving), "{left:?}");
}
