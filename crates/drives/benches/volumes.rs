//! Volumes created and deleted per second on a btrfs loop drive. Needs root.

use std::{path::PathBuf, sync::Arc};

use drives::{BackendKind, CreateVolume, Drives, Force, Source};
use linux::Kernel;
use tokio::{runtime::Runtime, task::JoinSet};

fn main() {
    divan::main();
}

struct Bench {
    runtime: Runtime,
    drives: Drives,
    _directory: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let runtime = Runtime::new().expect("runtime");
        let source = Source::LoopFile { path: directory.path().join("a.img"), size: 2 << 30 };
        let root: PathBuf = directory.path().join("drives");
        let drives = runtime.block_on(async {
            let drives = Drives::open(Arc::new(Kernel), root, vec![source.clone()]).await.expect("open");
            drives.initialise(source, Some(BackendKind::Btrfs), Force::No).await.expect("initialise");
            drives
        });
        Self { runtime, drives, _directory: directory }
    }

    /// Creates and deletes this many volumes at once.
    fn create_and_delete(&self, at_once: usize) {
        self.runtime.block_on(async {
            let mut lives = JoinSet::new();
            for number in 0..at_once {
                let drives = self.drives.clone();
                lives.spawn(async move {
                    let request = CreateVolume {
                        name: format!("pvc-{number}"),
                        required: 16 << 20,
                        ..CreateVolume::default()
                    };
                    let volume = drives.create(request).await.expect("create");
                    drives.delete(&volume.id).await.expect("delete");
                });
            }
            lives.join_all().await;
        });
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Err(error) = self.runtime.block_on(self.drives.close()) {
            eprintln!("{error}");
        }
    }
}

#[divan::bench(args = [1, 16, 64], sample_count = 10, sample_size = 1)]
fn create_and_delete(bencher: divan::Bencher<'_, '_>, at_once: usize) {
    let bench = Bench::new();
    bencher
        .counter(divan::counter::ItemsCount::new(at_once))
        .bench_local(|| bench.create_and_delete(at_once));
}
