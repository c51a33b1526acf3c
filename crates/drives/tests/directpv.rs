//! A drive as DirectPV v4 leaves it, made by hand: recognised everywhere, served where the kernel has XFS project
//! quotas, and untouched until a change is asked for. Needs root.

mod bench;

use std::{
    fs,
    os::unix::fs::{MetadataExt, symlink},
    path::{Path, PathBuf},
    time::Duration,
};

use bench::{Bench, MIB, fill, request};
use drives::{DriveState, Drives, Force, InitialiseError, MountFlags};
use linux::{
    Attributes, Files, FilesystemMount, Kernel, LoopDevices, Mounts, Programs, ProjectId, ProjectQuota,
    Unmount,
};

const UUID: &str = "6d9b8d5b-8a6e-4b9c-9a3e-2f6f2f3f4a5b";
const VOLUME: &str = "pvc-1b94751e-f97a-4cd0-89b6-af2c7657a8e7";
/// By DirectPV's rule for that name.
const PROJECT: ProjectId = ProjectId(578_818_258);

/// Mounts the image as DirectPV does, for as long as `work` takes.
fn mounted<T>(bench: &Bench, image: &str, quota: bool, work: impl FnOnce(&Path) -> T) -> T {
    let at = bench.path("by-hand");
    let device = Kernel.attach_loop(&bench.path(image)).expect("attach");
    fs::create_dir_all(&at).expect("directory");
    let source = device.to_string_lossy();
    let attributes = Attributes { no_atime: true, read_only: !quota, ..Attributes::default() };
    let plain = FilesystemMount { filesystem: "xfs", source: &source, options: Vec::new(), attributes };
    let counting = FilesystemMount { options: vec![("prjquota", None)], ..plain.clone() };
    if !quota || Kernel.mount(&counting, &at).is_err() {
        Kernel.mount(&plain, &at).expect("mount");
    }
    let done = work(&at);
    Kernel.unmount(&at, Unmount::Plain).expect("unmount");
    done
}

/// Formats and fills an image to DirectPV's format. Limits are set where the kernel has them.
fn format(bench: &Bench, image: &str, label: &str) {
    Kernel.make_image(&bench.path(image), 512 * MIB).expect("image");
    let device = Kernel.attach_loop(&bench.path(image)).expect("attach").to_string_lossy().into_owned();
    let uuid = format!("uuid={UUID}");
    let words = ["-q", "-i", "maxpct=50", "-m", &uuid, "-L", label, &device];
    Kernel.run("mkfs.xfs", &words.map(AsRef::as_ref), Duration::from_secs(60)).expect("mkfs.xfs");
    mounted(bench, image, true, |root| {
        if label == "DIRECTPV" {
            symlink(".", root.join(format!(".FSUUID.{UUID}"))).expect("link");
            fs::create_dir(root.join(".directpv")).expect("directory");
            let meta = format!("APP_NAME=directpv\nAPP_VERSION=v1beta1\nFSUUID={UUID}\n");
            fs::write(root.join(".directpv/meta.info"), meta).expect("meta.info");
        }
        let volume = root.join(VOLUME);
        fs::create_dir(&volume).expect("volume");
        Kernel.set_project(&volume, PROJECT).expect("project");
        fs::write(volume.join("kept"), "from before").expect("data");
        fs::create_dir(root.join("pvc-gone.deleted")).expect("leftover");
        if let Err(error) = Kernel.limit_project(root, PROJECT, Some(64 * MIB)) {
            eprintln!("this kernel enforces no limits on XFS: {error}");
        }
    });
}

/// All that is on the drive: path, project of directories, mode, and when it was changed.
fn content(bench: &Bench, image: &str) -> Vec<(PathBuf, u32, u32, i64, i64)> {
    fn walk(root: &Path, at: &Path, found: &mut Vec<(PathBuf, u32, u32, i64, i64)>) {
        for name in Kernel.list(at).expect("list") {
            let path = at.join(name);
            let facts = fs::symlink_metadata(&path).expect("facts");
            let project = match facts.is_dir() {
                true => Kernel.project(&path).expect("project").0,
                false => 0,
            };
            let inside = path.strip_prefix(root).expect("below").to_owned();
            found.push((inside, project, facts.mode(), facts.ctime(), facts.ctime_nsec()));
            if facts.is_dir() {
                walk(root, &path, found);
            }
        }
    }
    mounted(bench, image, false, |root| {
        let mut found = Vec::new();
        walk(root, root, &mut found);
        found
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drive_of_directpv_is_adopted_as_it_is() {
    let Some(bench) = Bench::new() else { return };
    for (image, label) in [("new.img", "DIRECTPV"), ("old.img", "DIRECTCSI")] {
        format(&bench, image, label);
        let before = content(&bench, image);
        let drives = bench.open(&[image]).await;
        assert_eq!(drives.uninitialised(), [], "it is a drive");
        let drive = drives.drives().remove(0);
        assert_eq!(drive.id.as_ref().map(|id| id.as_str()), Some(UUID));
        match &drive.state {
            DriveState::Ready => {
                serve(&bench, &drives).await;
                drives.close().await.expect("close");
                assert_eq!(content(&bench, image), before, "only looked at and mounted");
                let drives = bench.open(&[image]).await;
                change(&bench, &drives).await;
                drives.close().await.expect("close");
            }
            DriveState::Failed { reason } => {
                eprintln!("SKIPPED: serving a drive of DirectPV: {reason}");
                assert_ne!(std::env::var("ORLOP_BACKEND").as_deref(), Ok("xfs"), "this kernel has quotas");
                assert!(reason.contains("quota") || reason.contains("project"), "{reason}");
                let refused = drives.initialise(bench.source(image), None, Force::No).await;
                assert!(matches!(refused, Err(InitialiseError::AlreadyDrive { .. })), "{refused:?}");
                drives.close().await.expect("close");
                assert_eq!(content(&bench, image), before, "refused untouched");
            }
        }
    }
}

/// The volume is what it was: its content, its size, its limit.
async fn serve(bench: &Bench, drives: &Drives) {
    let volume = drives.volumes().remove(0);
    assert_eq!((volume.name.as_str(), volume.size), (VOLUME, 64 * MIB));
    let at = bench.path("staging");
    drives.stage(&volume.id, &at, MountFlags::default()).await.expect("stage");
    assert_eq!(fs::read_to_string(at.join("kept")).expect("read"), "from before");
    let stats = drives.stats(&volume.id, &at).await.expect("stats");
    assert_eq!(stats.size, 64 * MIB);
    drives.unstage(&volume.id, &at).await.expect("unstage");
}

/// Growth, creation and deletion, each found again.
async fn change(bench: &Bench, drives: &Drives) {
    let volume = drives.volumes().remove(0).id;
    let at = bench.path("staging");
    drives.stage(&volume, &at, MountFlags::default()).await.expect("stage");
    fill(&at.join("full"), 80 * MIB).expect_err("80 MiB in 64 MiB");
    assert_eq!(drives.expand(&volume, 96 * MIB, None).await.expect("grow"), 96 * MIB);
    fill(&at.join("full"), 80 * MIB).expect("80 MiB in 96 MiB");
    drives.unstage(&volume, &at).await.expect("unstage");
    let made = drives.create(request("pvc-new", 32 * MIB)).await.expect("create").id;
    drives.stage(&made, &at, MountFlags::default()).await.expect("stage");
    fill(&at.join("full"), 40 * MIB).expect_err("40 MiB in 32 MiB");
    drives.unstage(&made, &at).await.expect("unstage");
    drives.delete(&made).await.expect("delete");
    drives.delete(&volume).await.expect("delete");
    assert_eq!(drives.volumes(), []);
}
