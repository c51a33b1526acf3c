//! Volumes made and deleted per second on one loop drive, by one caller and by 32 at once, and how often the device is
//! flushed for each. Needs root; `$ORLOP_BACKEND` names another backend than btrfs.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use drives::{BackendKind, CreateVolume, Drives, Force, Source, VolumeId};
use linux::{Kernel, LoopDevices};
use tokio::{runtime::Runtime, task::JoinSet};

const VOLUMES: usize = 320;
const CALLERS: [usize; 2] = [1, 32];

fn main() {
    let backend = std::env::var("ORLOP_BACKEND").unwrap_or_else(|_| "btrfs".to_owned());
    let backend: BackendKind = backend.parse().expect("$ORLOP_BACKEND names a backend");
    Runtime::new().expect("runtime").block_on(async {
        for callers in CALLERS {
            run(backend, callers).await;
        }
    });
}

async fn run(backend: BackendKind, callers: usize) {
    let directory = tempfile::tempdir().expect("temporary directory");
    let file = directory.path().join("a.img");
    let source = Source::LoopFile { path: file.clone(), size: 8 << 30 };
    let root: PathBuf = directory.path().join("drives");
    let drives = Drives::open(Arc::new(Kernel), root, vec![source.clone()]).await.expect("open");
    drives.initialise(source, Some(backend), Force::No).await.expect("initialise");

    let ids = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let (made, to) = (drives.clone(), ids.clone());
    measure("create", callers, &file, move |number| {
        let (drives, ids) = (made.clone(), to.clone());
        async move {
            let name = format!("pvc-{number}");
            let request = CreateVolume { name, required: 16 << 20, ..CreateVolume::default() };
            let volume = drives.create(request).await.expect("create");
            ids.lock().push(volume.id);
        }
    })
    .await;
    let ids: Arc<Vec<VolumeId>> = Arc::new(std::mem::take(&mut ids.lock()));
    let gone = drives.clone();
    measure("delete", callers, &file, move |number| {
        let (drives, ids) = (gone.clone(), ids.clone());
        async move { drives.delete(&ids[number]).await.expect("delete") }
    })
    .await;
    drives.close().await.expect("close");
}

/// Does something for every volume, by so many callers at once.
async fn measure<Fut: Future<Output = ()> + Send + 'static>(
    what: &str,
    callers: usize,
    file: &Path,
    act: impl Fn(usize) -> Fut + Clone + Send + Sync + 'static,
) {
    let (next, flushes, begun) = (Arc::new(AtomicUsize::new(0)), flushes(file), Instant::now());
    let mut all = JoinSet::new();
    for _ in 0..callers {
        let (next, act) = (next.clone(), act.clone());
        all.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= VOLUMES {
                    return;
                }
                act(number).await;
            }
        });
    }
    all.join_all().await;
    let rate = VOLUMES as f64 / begun.elapsed().as_secs_f64();
    let flushed = (self::flushes(file) - flushes) as f64 / VOLUMES as f64;
    println!("{what:8} {callers:3} callers {rate:8.0} per second {flushed:6.2} flushes each");
}

/// How many flushes the loop device of this file has done.
fn flushes(file: &Path) -> u64 {
    let device = Kernel.loop_of(file).expect("loop devices").expect("attached");
    let name = device.file_name().expect("a device").to_string_lossy().into_owned();
    let stat = std::fs::read_to_string(format!("/sys/block/{name}/stat")).expect("counters");
    stat.split_whitespace().nth(15).and_then(|count| count.parse().ok()).unwrap_or(0)
}
