//! A drive that is pulled out while its volumes are used, and comes back under another name. `cargo xtask guest` runs
//! this in an emulated machine, pulls the drive when it is told to, and plugs it in again elsewhere.

mod bench;

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use bench::{MIB, request};
use drives::{DriveState, Drives, Force, MountFlags, Source, Volume};
use linux::Kernel;

/// The serial number of the drive that is pulled.
const PULLED: &str = "drive0";

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "@ {line}").and_then(|()| out.flush()).expect("standard output");
}

/// The device of an NVMe drive, while it is plugged in.
fn device(serial: &str) -> Option<PathBuf> {
    let has = |file: PathBuf| fs::read_to_string(file).is_ok_and(|text| text.trim() == serial);
    let names = fs::read_dir("/sys/block").expect("sysfs").flatten().map(|entry| entry.file_name());
    let name = names.filter(|name| name.to_string_lossy().starts_with("nvme"));
    let mut found = name.filter(|name| has(Path::new("/sys/block").join(name).join("device/serial")));
    found.next().map(|name| Path::new("/dev").join(name))
}

fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match look() {
            Some(found) => return found,
            None if Instant::now() > deadline => panic!("not within a minute: {what}"),
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

async fn open(devices: &[&Path]) -> Drives {
    let sources = devices.iter().map(|device| Source::Device((*device).to_owned())).collect();
    Drives::open(Arc::new(Kernel), "/var/orlop/drives".into(), sources).await.expect("open")
}

async fn keep(drives: &Drives, volume: &Volume, at: &Path) {
    drives.stage(&volume.id, at, MountFlags::default()).await.expect("stage");
    let mut file = File::create(at.join("kept")).expect("create");
    file.write_all(volume.name.as_bytes()).and_then(|()| file.sync_all()).expect("write");
    File::open(at).and_then(|directory| directory.sync_all()).expect("sync");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "cargo xtask guest pulls the drive"]
async fn a_drive_is_pulled_and_comes_back_under_another_name() {
    let kind = std::env::var("ORLOP_BACKEND").expect("backend").parse().expect("backend");
    let (first, second) = (device("drive0").expect("drive0"), device("drive1").expect("drive1"));
    let drives = open(&[&first, &second]).await;
    for source in drives.uninitialised() {
        drives.initialise(source, Some(kind), Force::No).await.expect("initialise");
    }
    let pulled = drives.drives()[0].id.clone().expect("known");
    let mut volumes = Vec::new();
    for number in 0..4 {
        volumes.push(drives.create(request(&format!("pvc-{number}"), 48 * MIB)).await.expect("create"));
    }
    let (lost, kept): (Vec<_>, Vec<_>) = volumes.iter().partition(|volume| *volume.id.drive() == pulled);
    assert_eq!((lost.len(), kept.len()), (2, 2), "the emptiest first");
    let staged = |name: &str| Path::new("/var/orlop/staged").join(name);
    for volume in &volumes {
        keep(&drives, volume, &staged(&volume.name)).await;
    }
    let mut written = File::create(staged(&lost[0].name).join("written")).expect("create");

    say("pull");
    let error = eventually("a write fails", || {
        written.write_all(&[7; 65_536]).and_then(|()| written.sync_data()).err()
    });
    println!("the writer saw: {error}");
    drop(written);
    eventually("the device goes away", || device(PULLED).is_none().then_some(()));

    // What lies on it is refused, in time and with words; everything else goes on.
    let refused = drives.expand(&lost[0].id, 64 * MIB, None).await.expect_err("its drive is gone");
    println!("growing: {refused}");
    println!("stats: {:?}", drives.stats(&lost[0].id, &staged(&lost[0].name)).await);
    for number in 4..8 {
        let volume = drives.create(request(&format!("pvc-{number}"), 16 * MIB)).await;
        let volume = match volume {
            Ok(volume) => volume,
            Err(error) => {
                println!("creating: {error}");
                drives.create(request(&format!("pvc-{number}"), 16 * MIB)).await.expect("the other drive")
            }
        };
        assert_ne!(*volume.id.drive(), pulled);
        drives.delete(&volume.id).await.expect("delete");
    }
    fs::write(staged(&kept[0].name).join("more"), "more").expect("the other drive works");
    let trouble = drives.volume(&lost[0].id).expect("known").trouble.expect("it is in trouble");
    println!("volume: {trouble}");

    // It comes back while its old self is mounted still.
    say("plug");
    let other = eventually("the drive comes back", || device(PULLED));
    assert_ne!(other, first, "under another name");
    drives.unstage(&lost[1].id, &staged(&lost[1].name)).await.expect("what is mounted comes away");
    drop(drives);
    let drives = open(&[&other, &second]).await;
    let states: Vec<_> = drives.drives().into_iter().map(|drive| drive.state).collect();
    println!("{states:?}");
    let still_used = staged(&lost[0].name).display().to_string();
    assert!(matches!(&states[0], DriveState::Failed { reason } if reason.contains(&still_used)));
    assert_eq!(states[1], DriveState::Ready);
    drives.unstage(&lost[0].id, &staged(&lost[0].name)).await.expect("what is mounted comes away");
    drop(drives);

    let drives = open(&[&other, &second]).await;
    for drive in drives.drives() {
        assert_eq!(drive.state, DriveState::Ready, "{}", drive.source);
    }
    for volume in &volumes {
        assert_eq!(drives.volume(&volume.id).as_ref(), Some(volume));
        let at = staged(&volume.name);
        drives.unstage(&volume.id, &at).await.expect("unstage");
        drives.stage(&volume.id, &at, MountFlags::default()).await.expect("stage");
        assert_eq!(fs::read_to_string(at.join("kept")).expect("read"), volume.name);
        fs::write(at.join("more"), "more").expect("it works");
        drives.unstage(&volume.id, &at).await.expect("unstage");
        drives.delete(&volume.id).await.expect("delete");
    }
    drives.close().await.expect("close");
}
