//! Many volumes on one drive. Needs root.

mod bench;

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use bench::{Bench, MIB, fill, request};
use drives::{BackendKind, Drives, Force, MountFlags};
use linux::Kernel;
use tokio::{sync::Semaphore, task::JoinSet};

const COUNT: u64 = 200;
/// More calls than that are not under way at once: each is answered within two minutes, and LVM takes its time.
const CALLS: usize = 16;

/// Does something for every number, many at once, and returns what came of each, in order.
async fn at_once<T, Fut>(act: impl Fn(u64) -> Fut) -> Vec<T>
where
    T: Send + 'static,
    Fut: Future<Output = T> + Send + 'static,
{
    let (mut acts, calls) = (JoinSet::new(), Arc::new(Semaphore::new(CALLS)));
    for number in 0..COUNT {
        let (act, calls) = (act(number), calls.clone());
        acts.spawn(async move {
            let _call = calls.acquire_owned().await.expect("open");
            (number, act.await)
        });
    }
    let mut done = acts.join_all().await;
    done.sort_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, outcome)| outcome).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_volumes_on_one_drive_hold_their_own() {
    let Some(bench) = Bench::new() else { return };
    // A file system of its own takes some room; the drive is a sparse file.
    let (size, whole) = match bench.kind {
        BackendKind::Xfs | BackendKind::Btrfs => (2 * MIB, 1024 * MIB),
        BackendKind::Lvm | BackendKind::LvmThin => (16 * MIB, 4096 * MIB),
    };
    let open = || async {
        let sources = vec![bench.source_of("a.img", whole)];
        Drives::open(Arc::new(Kernel), bench.path("drives"), sources).await.expect("open")
    };
    let drives = open().await;
    for source in drives.uninitialised() {
        drives.initialise(source, Some(bench.kind), Force::No).await.expect("initialise");
    }
    let made = at_once(|number| {
        let drives = drives.clone();
        async move { drives.create(request(&format!("pvc-{number}"), size)).await.expect("create") }
    });
    let volumes = made.await;
    let at = |number: u64| -> PathBuf { bench.path("staged").join(number.to_string()) };
    let staged = at_once(|number| {
        let (drives, id, at) = (drives.clone(), volumes[number as usize].id.clone(), at(number));
        async move {
            drives.stage(&id, &at, MountFlags::default()).await.expect("stage");
            fs::write(at.join("name"), number.to_string()).expect("write");
        }
    });
    staged.await;

    // One that is full is full alone.
    let full = fill(&at(7).join("big"), size + MIB).expect_err("the size is a limit");
    assert_eq!(full.raw_os_error(), if bench.kind.has_filesystems() { Some(28) } else { bench.full() });
    for number in 0..COUNT {
        let stats = drives.stats(&volumes[number as usize].id, &at(number)).await.expect("stats");
        assert!(stats.used <= size, "{number}: {stats:?}");
        if number != 7 {
            assert!(stats.used < size / 2, "{number}: {stats:?}");
            fs::write(at(number).join("more"), "more").expect("there is room");
        }
    }

    // As after kill -9: everything is known, mounted and served.
    drop(drives);
    let drives = open().await;
    let mut found = drives.volumes();
    found.sort_by_key(|volume| volume.name[4..].parse::<u64>().expect("a number"));
    assert_eq!(found, volumes);
    let gone = at_once(|number| {
        let (drives, id, at) = (drives.clone(), volumes[number as usize].id.clone(), at(number));
        async move {
            assert_eq!(fs::read_to_string(at.join("name")).expect("read"), number.to_string());
            drives.unstage(&id, &at).await.expect("unstage");
            drives.delete(&id).await.expect("delete");
        }
    });
    tokio::time::timeout(Duration::from_secs(300), gone).await.expect("deleted in time");
    let drive = drives.drives().remove(0);
    assert_eq!((drive.allocated, drive.volumes), (0, 0));
    bench.leaves_nothing(&drives);
    drives.close().await.expect("close");
}
