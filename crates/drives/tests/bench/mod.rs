//! A machine's directory with drives on loop devices.
#![allow(dead_code, reason = "a module of several test binaries, and each uses its part")]

pub(crate) mod journal;
pub(crate) mod mapper;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use drives::{BackendKind, CreateVolume, Drives, Force, Source};
use linux::{
    Files, Kernel, LogicalVolumes, LoopDevices, Mounts, Programs, ProjectId, ProjectQuota, ProjectUsage,
    Unmount,
};

pub(crate) const MIB: u64 = 1 << 20;

/// A machine's directory with its drives; whatever a failed test left is taken down.
pub(crate) struct Bench {
    pub(crate) kind: BackendKind,
    directory: tempfile::TempDir,
}

impl Bench {
    /// With drives of the backend that `$ORLOP_BACKEND` names, or else of btrfs.
    pub(crate) fn new() -> Option<Self> {
        if !rustix_is_root() {
            eprintln!("SKIPPED: drives on loop devices need root");
            assert!(std::env::var_os("CI").is_none(), "CI has to run this as root");
            return None;
        }
        let kind = std::env::var("ORLOP_BACKEND").unwrap_or_else(|_| "btrfs".to_owned());
        let kind = kind.parse().expect("$ORLOP_BACKEND names a backend");
        Some(Self { kind, directory: tempfile::tempdir().expect("temporary directory") })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn source(&self, name: &str) -> Source {
        self.source_of(name, 512 * MIB)
    }

    /// A loop device of a sparse file; the first drive is the device that `$ORLOP_DEVICE` names, if any, which is blank
    /// and not smaller.
    pub(crate) fn source_of(&self, name: &str, size: u64) -> Source {
        match std::env::var_os("ORLOP_DEVICE") {
            Some(device) if name == "a.img" => Source::Device(device.into()),
            _ => Source::LoopFile { path: self.path(name), size },
        }
    }

    pub(crate) async fn open(&self, names: &[&str]) -> Drives {
        let sources = names.iter().map(|name| self.source(name)).collect();
        Drives::open(Arc::new(Kernel), self.path("drives"), sources).await.expect("open")
    }

    /// Drives on fresh files.
    pub(crate) async fn fresh(&self, names: &[&str]) -> Drives {
        let drives = self.open(names).await;
        for source in drives.uninitialised() {
            drives.initialise(source, Some(self.kind), Force::No).await.expect("initialise");
        }
        drives
    }

    /// What writing to a full volume fails with.
    pub(crate) fn full(&self) -> Option<i32> {
        Some(if self.kind == BackendKind::Btrfs { 122 } else { 28 })
    }

    /// No subvolume, quota group or project is left on any drive, nor space that nobody has.
    pub(crate) fn leaves_nothing(&self, drives: &Drives) {
        match self.kind {
            BackendKind::Btrfs => {}
            BackendKind::Xfs => return self.leaves_no_project(drives),
            BackendKind::Lvm | BackendKind::LvmThin => return self.leaves_no_logical_volume(drives),
        }
        for drive in drives.drives() {
            let mount = drive.mount.expect("mounted");
            let run = |words: [&str; 2]| {
                let words = [words[0].as_ref(), words[1].as_ref(), mount.as_os_str()];
                Kernel.run("btrfs", &words, Duration::from_secs(60)).expect("list").stdout
            };
            assert_eq!(run(["subvolume", "list"]), "");
            let groups = run(["qgroup", "show"]);
            assert_eq!(groups.lines().filter(|line| line.contains('/')).count(), 1, "{groups}");
            let used = drive.size - Kernel.space(&mount).expect("space").available;
            assert!(used < 200 * MIB, "the space is back: {used} bytes used");
        }
    }

    fn leaves_no_logical_volume(&self, drives: &Drives) {
        for drive in drives.drives() {
            let group = format!("orlop_{}", drive.id.expect("known").as_str().replace('-', ""));
            let left = Kernel.logical_volumes(&group).expect("lvs");
            let mut left: Vec<&str> = left.iter().map(|volume| volume.name.as_str()).collect();
            left.retain(|name| *name != "pool");
            assert_eq!(left, ["records"]);
        }
    }

    fn leaves_no_project(&self, drives: &Drives) {
        for drive in drives.drives() {
            let mount = drive.mount.expect("mounted");
            for project in 1..20 {
                let usage = Kernel.project_usage(&mount, ProjectId(project)).expect("project");
                assert_eq!(usage, ProjectUsage::default(), "project {project}");
            }
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let table = Kernel.mount_table().expect("mount table");
        let drives = || fs::read_dir(self.path("drives")).into_iter().flatten().flatten();
        let volumes =
            drives().flat_map(|drive| fs::read_dir(drive.path().join("volumes")).into_iter().flatten());
        let attached = volumes.flatten().flat_map(|volume| Kernel.loops_of(&volume.path().join("image")));
        let attached: Vec<_> = attached.flatten().collect();
        for mount in table.below(self.directory.path()) {
            let _ = Kernel.unmount(&mount.target, Unmount::Detach);
        }
        for volume in attached {
            let _ = Kernel.detach_loop(&volume.device);
        }
        for entry in fs::read_dir(self.directory.path()).into_iter().flatten().flatten() {
            if let Ok(Some(device)) = Kernel.loop_of(&entry.path()) {
                let _ = Kernel.detach_loop(&device);
            }
        }
    }
}

/// Tells those who write beside a test to stop, when the test fails too: its scope waits for them.
pub(crate) struct StopOnDrop<'a>(pub(crate) &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn rustix_is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|it| std::os::unix::fs::MetadataExt::uid(&it) == 0)
}

pub(crate) fn request(name: &str, size: u64) -> CreateVolume {
    CreateVolume { name: name.to_owned(), required: size, ..CreateVolume::default() }
}

pub(crate) fn fill(file: &Path, bytes: u64) -> std::io::Result<()> {
    use std::io::Write;
    let mut open = fs::File::create(file)?;
    // Not compressible, in case somebody mounts with compression.
    let block: Vec<u8> = (0..MIB).map(|at| ((at * 2_654_435_761) >> 7) as u8).collect();
    for _ in 0..bytes / MIB {
        open.write_all(&block)?;
    }
    open.sync_all()
}
