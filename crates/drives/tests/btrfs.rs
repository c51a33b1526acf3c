//! Drives on real loop devices with btrfs: needs root.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use drives::{
    BackendKind, CreateError, CreateVolume, DeleteError, DriveState, Drives, Force, InitialiseError,
    MountError, MountFlags, Source,
};
use linux::{Kernel, Mounts, Unmount};

const MIB: u64 = 1 << 20;

/// A machine's directory with its drives; whatever a failed test left is taken down.
struct Bench {
    directory: tempfile::TempDir,
}

impl Bench {
    fn new() -> Option<Self> {
        if !rustix_is_root() {
            eprintln!("SKIPPED: drives on loop devices need root");
            assert!(std::env::var_os("CI").is_none(), "CI has to run this as root");
            return None;
        }
        Some(Self { directory: tempfile::tempdir().expect("temporary directory") })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn source(&self, name: &str) -> Source {
        Source::LoopFile { path: self.path(name), size: 512 * MIB }
    }

    async fn open(&self, names: &[&str]) -> Drives {
        let sources = names.iter().map(|name| self.source(name)).collect();
        Drives::open(Arc::new(Kernel), self.path("drives"), sources).await.expect("open")
    }

    /// Drives on fresh files.
    async fn fresh(&self, names: &[&str]) -> Drives {
        let drives = self.open(names).await;
        for source in drives.uninitialised() {
            drives.initialise(source, Some(BackendKind::Btrfs), Force::No).await.expect("initialise");
        }
        drives
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let table = Kernel.mount_table().expect("mount table");
        for mount in table.below(self.directory.path()) {
            let _ = Kernel.unmount(&mount.target, Unmount::Detach);
        }
        for entry in fs::read_dir(self.directory.path()).into_iter().flatten().flatten() {
            use linux::LoopDevices;
            if let Ok(Some(device)) = Kernel.loop_of(&entry.path()) {
                let _ = Kernel.detach_loop(&device);
            }
        }
    }
}

fn rustix_is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|it| std::os::unix::fs::MetadataExt::uid(&it) == 0)
}

fn request(name: &str, size: u64) -> CreateVolume {
    CreateVolume { name: name.to_owned(), required: size, ..CreateVolume::default() }
}

fn fill(file: &Path, bytes: u64) -> std::io::Result<()> {
    use std::io::Write;
    let mut open = fs::File::create(file)?;
    // Not compressible, in case somebody mounts with compression.
    let block: Vec<u8> = (0..MIB).map(|at| (at * 2_654_435_761 >> 7) as u8).collect();
    for _ in 0..bytes / MIB {
        open.write_all(&block)?;
    }
    open.sync_all()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_lives_from_creation_to_deletion() {
    let Some(bench) = Bench::new() else { return };
    let drives = bench.fresh(&["a.img"]).await;
    let before = drives.capacity(None);
    let volume = drives.create(request("pvc-1", 64 * MIB)).await.expect("create");
    assert_eq!(volume.size, 64 * MIB);
    assert_eq!(drives.capacity(None).available, before.available - 64 * MIB);
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
    assert_eq!(too_much.raw_os_error(), Some(122), "{too_much}");
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
    assert_eq!(drives.capacity(None), before);
    drives.close().await.expect("close");
}
