//! What a caller names as a target and is not ours: it is neither mounted over nor removed.

mod world;

use linux::{Kernel, Mounts, Unmount};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use tonic::{Code, Status};
use world::{GI, MI, World, code};

/// Volumes that a caller may speak of: one there, one that never was, and what is no identity at all.
fn ids(there: &str) -> [String; 6] {
    let never = "6d9b8d5b-8a6e-4b9c-9a3e-2f6f2f3f4a5b/pvc-1";
    [there, never, "x/y", "csi-0a1b", "ü/†", &"x".repeat(3000)].map(str::to_owned)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_ours_is_not_removed() {
    let Some(mut world) = World::with_drive(GI).await else { return };
    let volume = world.create("pvc-1", 64 * MI).await.expect("created").volume_id;
    let (null, fifo, socket) = (world.path("null"), world.path("fifo"), world.path("socket"));
    let node = |path, kind, device| mknodat(CWD, path, kind, Mode::RUSR, device).expect("a special file");
    node(&null, FileType::CharacterDevice, rustix::fs::makedev(1, 3));
    node(&fifo, FileType::Fifo, 0);
    let _listener = UnixListener::bind(&socket).expect("a socket");
    let (empty, file, full, link) =
        (world.path("empty"), world.path("file"), world.path("full"), world.path("link"));
    fs::create_dir(&empty).expect("a directory");
    fs::write(&file, "").expect("a file");
    fs::create_dir_all(full.join("inside")).expect("a directory");
    symlink(&empty, &link).expect("a link");
    let foreign = [&null, &fifo, &socket, &empty, &file, &full, &link].map(|at| at.clone());
    let system = ["/proc", "/proc/1", "/sys", "/dev", "/dev/null", "/etc"].map(|at| Path::new(at).to_owned());
    for id in ids(&volume) {
        for at in foreign.iter().chain(&system) {
            world.unpublish(&id, at).await.unwrap_or_else(|error| panic!("{id} at {at:?}: {error}"));
            world.unstage(&id, at).await.unwrap_or_else(|error| panic!("{id} at {at:?}: {error}"));
            assert!(at.symlink_metadata().is_ok(), "{at:?} is left");
        }
    }
    assert!(fs::symlink_metadata(&null).expect("a device").file_type().is_char_device());

    // An empty directory is ours once the volume is shown there, whoever made it.
    world.stage(&volume, &empty).await.expect("staged");
    world.unstage(&volume, &empty).await.expect("unstaged");
    assert!(!empty.exists());
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_whose_mount_the_power_took_is_still_ours() {
    let Some(mut world) = World::with_drive(GI).await else { return };
    let volume = world.create("pvc-1", 64 * MI).await.expect("created").volume_id;
    let other = world.create("pvc-2", 64 * MI).await.expect("created").volume_id;
    let (staging, target) = (world.path("staging"), world.path("pod/target"));
    world.stage(&volume, &staging).await.expect("staged");
    world.publish(&volume, &staging, &target, false).await.expect("published");
    for at in [&target, &staging] {
        Kernel.unmount(at, Unmount::Plain).expect("unmounted");
    }
    for id in [other.as_str(), "csi-0a1b"] {
        world.unpublish(id, &target).await.expect("nothing of it is there");
        assert!(target.exists(), "it is another volume's");
    }
    fs::write(target.join("precious"), "by hand").expect("written");
    world.unpublish(&volume, &target).await.expect("what somebody put there is left");
    assert!(target.join("precious").exists());
    fs::remove_file(target.join("precious")).expect("removed");
    world.unpublish(&volume, &target).await.expect("unpublished");
    world.unstage(&volume, &staging).await.expect("unstaged");
    assert!(!target.exists() && !staging.exists());
    world.end().await;
}

fn refused(answer: Result<(), Status>, expected: Code, words: &str) {
    let status = answer.expect_err(words);
    assert_eq!(status.code(), expected, "{status}");
    assert!(status.message().contains(words), "{status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_ours_is_not_mounted_over() {
    let Some(mut world) = World::with_drive(GI).await else { return };
    let volume = world.create("pvc-1", 64 * MI).await.expect("created").volume_id;
    let staging = world.path("staging");
    world.stage(&volume, &staging).await.expect("staged");
    let (full, file, fifo, link, away) =
        (world.path("full"), world.path("file"), world.path("fifo"), world.path("link"), world.path("away"));
    fs::create_dir_all(full.join("inside")).expect("a directory");
    fs::write(&file, "").expect("a file");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR, 0).expect("a FIFO");
    fs::create_dir(&away).expect("a directory");
    symlink(&away, &link).expect("a link");
    let drives = world.path("drives");
    let own = fs::read_dir(&drives).expect("drives").next().expect("one").expect("readable").path();
    let mounts = |below: &Path| Kernel.mount_table().expect("readable").below(below).len();
    let before = mounts(&world.path(""));
    for (at, expected, words) in [
        (full, Code::FailedPrecondition, "a directory that is not empty"),
        (file.clone(), Code::FailedPrecondition, "a file, and a directory is needed"),
        (fifo, Code::FailedPrecondition, "a device, FIFO, socket or symbolic link"),
        (link, Code::FailedPrecondition, "a device, FIFO, socket or symbolic link"),
        ("/etc".into(), Code::InvalidArgument, "belongs to the system"),
        ("/etc/orlop-test-new".into(), Code::InvalidArgument, "belongs to the system"),
        ("/proc/1".into(), Code::InvalidArgument, "belongs to the system"),
        ("/dev/shm".into(), Code::InvalidArgument, "belongs to the system"),
        (own.join("volumes"), Code::InvalidArgument, "belongs to the driver"),
        (drives.join("new"), Code::InvalidArgument, "belongs to the driver"),
        (file.join("below"), Code::InvalidArgument, "no directory"),
        ("/".into(), Code::InvalidArgument, "not an absolute plain path"),
        (world.path("x/../y"), Code::InvalidArgument, "not an absolute plain path"),
        (world.path(&"x".repeat(256)), Code::InvalidArgument, "255 bytes"),
    ] {
        refused(world.publish(&volume, &staging, &at, false).await, expected, words);
        refused(world.stage(&volume, &at).await, expected, words);
    }
    assert_eq!(mounts(&world.path("")), before, "nothing was mounted");
    for at in ["/etc", "/proc/1"] {
        assert_eq!(mounts(Path::new(at)), 0, "nothing was mounted at {at}");
    }
    assert!(!Path::new("/etc/orlop-test-new").exists());

    // Told of kubelet's directories, it keeps to them, by whatever way they are named.
    fs::create_dir(world.path("real")).expect("a directory");
    symlink(world.path("real"), world.path("kubelet")).expect("a link");
    symlink(&away, world.path("real/out")).expect("a link");
    world.confine(&["kubelet"]);
    for outside in ["elsewhere", "kubelet/out/pod", "real", "kubeletter"] {
        let at = world.path(outside);
        refused(
            world.publish(&volume, &staging, &at, false).await,
            Code::InvalidArgument,
            "name another place",
        );
    }
    assert!(fs::read_dir(&away).expect("readable").next().is_none(), "nothing was made through the link");
    let inside = world.path("kubelet/pods/1/mount");
    world.publish(&volume, &staging, &inside, false).await.expect("published");
    let volume_device = fs::metadata(&staging).expect("staged").dev();
    assert_eq!(fs::metadata(&inside).expect("shown").dev(), volume_device);
    world.unpublish(&volume, &inside).await.expect("unpublished");
    world.unstage(&volume, &staging).await.expect("what was mounted before comes away");
    assert!(!staging.exists());
    assert_eq!(code(world.stage(&volume, &staging).await), Code::InvalidArgument);
    world.end().await;
}
