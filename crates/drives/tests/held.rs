//! A drive serves one process: a second one, with a data directory, a mount or a loop device of its own, is refused and
//! changes nothing, until the first has let go, in whatever way. Needs root.

mod bench;

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use bench::{Bench, MIB, request};
use drives::{CreateError, DriveState, Drives, Force, InitialiseError, Source};
use linux::{Kernel, LoopDevices, Programs};
use tokio::time::timeout;

const FILE: &str = "ORLOP_HELD_FILE";
const ROOT: &str = "ORLOP_HELD_ROOT";

async fn open(root: PathBuf, source: Source) -> Drives {
    Drives::open(Arc::new(Kernel), root, vec![source]).await.expect("open")
}

fn file(path: &Path) -> Source {
    Source::LoopFile { path: path.to_owned(), size: 512 * MIB }
}

fn why_not(drives: &Drives) -> String {
    match drives.drives().remove(0).state {
        DriveState::Failed { reason } => reason,
        DriveState::Ready => panic!("it serves"),
    }
}

async fn taken_over(drives: &Drives) {
    let mut changed = drives.changed();
    let ready = async {
        while drives.drives()[0].state != DriveState::Ready {
            changed.changed().await.expect("open");
        }
    };
    timeout(Duration::from_secs(60), ready).await.expect("it is taken over");
}

/// A process that has a drive; it goes with this.
struct Holder(Child);

impl Holder {
    /// Begun, and its drive is ready.
    fn new(root: &Path, file: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "holds", "--ignored", "--nocapture"])
            .env(FILE, file)
            .env(ROOT, root)
            .stdout(Stdio::piped())
            .spawn()
            .expect("begun");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut ready = lines.map_while(Result::ok);
        assert!(ready.any(|line| line.contains("ready")), "it has the drive");
        Self(child)
    }

    fn kill(&mut self) {
        let _ = self.0.kill();
        self.0.wait().expect("ended");
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.kill();
    }
}

#[tokio::test]
#[ignore = "the process that others begin"]
async fn holds() {
    let setting = |name| PathBuf::from(std::env::var_os(name).expect(name));
    let drives = open(setting(ROOT), file(&setting(FILE))).await;
    for source in drives.uninitialised() {
        drives
            .initialise(source, Some("btrfs".parse().expect("a backend")), Force::No)
            .await
            .expect("initialise");
    }
    drives.create(request("first", 16 * MIB)).await.expect("create");
    println!("ready");
    std::future::pending::<()>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drive_that_another_process_has_is_refused_and_taken_over_when_that_is_killed() {
    let Some(bench) = Bench::new() else { return };
    let image = bench.path("a.img");
    let mut holder = Holder::new(&bench.path("drives"), &image);
    // As a copy of the data directory would.
    let drives = open(bench.path("other"), file(&image)).await;
    let reason = why_not(&drives);
    let pid = format!("process {} ", holder.0.id());
    let root = bench.path("drives").display().to_string();
    assert!(reason.contains(&pid) && reason.contains(&root), "{reason}");
    let refused = drives.initialise(file(&image), None, Force::OverwriteFileSystem).await;
    assert!(matches!(refused, Err(InitialiseError::Taken { .. })), "{refused:?}");
    holder.kill();
    taken_over(&drives).await;
    assert_eq!(drives.volumes().len(), 1, "what the first one made");
    drives.create(request("second", 16 * MIB)).await.expect("create");
    drives.close().await.expect("close");
}

/// Another loop device on the same file, under another name, and the same device by its own name.
#[tokio::test(flavor = "multi_thread")]
async fn no_second_device_or_name_gets_at_a_drive() {
    let Some(bench) = Bench::new() else { return };
    let drives = bench.fresh(&["a.img"]).await;
    let device = drives.drives()[0].device.clone().expect("a device");
    let (image, link, hard) = (bench.path("a.img"), bench.path("link.img"), bench.path("hard.img"));
    std::os::unix::fs::symlink(&image, &link).expect("link");
    fs::hard_link(&image, &hard).expect("link");
    for (at, source) in [file(&link), file(&hard), Source::Device(device)].into_iter().enumerate() {
        let second = open(bench.path(&format!("second-{at}")), source.clone()).await;
        let reason = why_not(&second);
        assert!(reason.contains(&format!("process {} ", std::process::id())), "{source}: {reason}");
        assert!(second.close().await.is_ok(), "nothing of it is in use");
    }
    // One that somebody made by hand would write beside the first.
    let words = ["--find", "--show"].map(AsRef::as_ref);
    let words = [&words[..], &[image.as_os_str()]].concat();
    let other = Kernel.run("losetup", &words, Duration::from_secs(60)).expect("losetup").stdout;
    let other = PathBuf::from(other.trim());
    drives.create(request("pvc-1", 16 * MIB)).await.expect("the first goes on");
    drop(drives);
    let second = open(bench.path("drives"), Source::Device(other.clone())).await;
    let reason = why_not(&second);
    assert!(reason.contains("two that write") && reason.contains(&other.display().to_string()), "{reason}");
    drop(second);
    Kernel.detach_loop(&other).expect("detach");
    let drives = bench.open(&["a.img"]).await;
    assert_eq!(drives.volumes().len(), 1);
    drives.close().await.expect("close");
}

/// What counts as lost without claims: the second one rolls back what the first has under way, and gives its space out
/// again.
#[tokio::test(flavor = "multi_thread")]
async fn processes_that_merely_start_take_nothing_from_the_one_that_serves() {
    let Some(bench) = Bench::new() else { return };
    let drives = bench.fresh(&["a.img"]).await;
    let image = bench.path("a.img");
    let mut lanes = tokio::task::JoinSet::new();
    for lane in 0..8 {
        let drives = drives.clone();
        lanes.spawn(async move {
            let mut kept = Vec::new();
            for turn in 0..24 {
                let wanted = request(&format!("pvc-{lane}-{turn}"), MIB);
                let volume = match drives.create(wanted).await {
                    Ok(volume) => volume,
                    Err(CreateError::NoSpace { .. }) => break,
                    Err(error) => panic!("{error}"),
                };
                match turn % 3 {
                    0 => drives.delete(&volume.id).await.expect("delete"),
                    _ => kept.push(volume),
                }
            }
            kept
        });
    }
    let mut starts = 0;
    let mut acknowledged = Vec::new();
    while !lanes.is_empty() {
        let second = open(bench.path("other"), file(&image)).await;
        assert!(why_not(&second).contains("held by"), "{}", why_not(&second));
        starts += 1;
        drop(second);
        while let Some(lane) = lanes.try_join_next() {
            acknowledged.extend(lane.expect("no panic"));
        }
    }
    assert!(starts > 0 && acknowledged.len() > 50, "{starts} starts beside {} volumes", acknowledged.len());
    acknowledged.sort_by(|one, other| one.name.cmp(&other.name));
    assert_eq!(drives.volumes(), acknowledged);
    drop(drives);
    let drives = bench.open(&["a.img"]).await;
    assert_eq!(drives.volumes(), acknowledged, "after {starts} starts");
    drives.close().await.expect("close");
}
