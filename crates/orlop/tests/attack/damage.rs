//! Files that were cut short, emptied, overwritten or lost while Orlop was stopped: each start serves or says what is wrong.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::common::world::{self, is_running, wait_for};
use crate::common::{BINARY, Place, Random, run, seed};
use crate::tally::Tally;

const START: Duration = Duration::from_secs(60);
const FLIPS: usize = 40;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "an attack: cargo xtask attack"]
async fn a_start_on_damaged_files_serves_or_says_why_not() {
    let mut random = Random(seed());
    let place = Place::new();
    let orlop = place.up(&["--loop-drive", "512Mi"]);
    let client = orlop.client().await;
    for name in ["one", "two"] {
        world::create(&client, name).await.expect("created");
    }
    wait_for(&world::pods(&client), "the pods run", START, |pods| pods.iter().all(is_running)).await;
    orlop.stop();
    let mut tally = Tally::new("damaged files");
    for file in files(&place.data()) {
        // A start on damage may have made anew, or set aside, what the next file belongs to.
        let Ok(whole) = std::fs::read(&file) else {
            tally.count("gone meanwhile");
            continue;
        };
        for damage in damages(&whole, &file, &mut random) {
            match &damage {
                Some(bytes) => std::fs::write(&file, bytes).expect("written"),
                None => std::fs::remove_file(&file).expect("removed"),
            }
            tally.count(start(&place, &file));
            std::fs::write(&file, &whole).expect("put back");
        }
    }
    // With everything as it was, everything is there.
    let orlop = place.up(&[]);
    let client = orlop.client().await;
    wait_for(&world::pods(&client), "both pods run", START, |pods| {
        pods.len() == 2 && pods.iter().all(is_running)
    })
    .await;
    for name in ["one", "two"] {
        world::delete(&client, name).await.expect("deleted");
    }
    wait_for(&world::pods(&client), "the pods are gone", START, |pods| pods.is_empty()).await;
    wait_for(&world::volumes(&client), "the volumes are gone", START, |volumes| volumes.is_empty()).await;
    orlop.stop();
    run(BINARY, &["down", "--data-dir", &place.data().display().to_string()]);
    assert_eq!(place.leftovers(), Vec::<String>::new());
}

/// What Orlop wrote for itself: no images of drives, nothing below a mount.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let mut found = Vec::new();
    let mut left = vec![directory.to_owned()];
    while let Some(directory) = left.pop() {
        for path in world::children(&directory) {
            let Ok(metadata) = path.symlink_metadata() else { continue };
            if mounts.lines().any(|line| line.split(' ').nth(4) == path.to_str()) {
                continue;
            }
            if metadata.is_dir() {
                left.push(path);
            } else if metadata.is_file()
                && metadata.len() < 64 << 20
                && path.extension().is_none_or(|e| e != "img")
            {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn damages(whole: &[u8], file: &Path, random: &mut Random) -> Vec<Option<Vec<u8>>> {
    let mut damages = vec![
        None,
        Some(Vec::new()),
        Some(whole[..whole.len() / 2].to_vec()),
        Some(b"not what was here".to_vec()),
        Some(vec![0; whole.len()]),
    ];
    let flips = if file.extension().is_some_and(|extension| extension == "redb") { FLIPS } else { 2 };
    for _ in 0..flips {
        let mut bytes = whole.to_vec();
        if !bytes.is_empty() {
            let at = random.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << random.below(8);
            damages.push(Some(bytes));
        }
    }
    damages
}

/// Starts Orlop on what is there, and stops it if it serves.
fn start(place: &Place, file: &Path) -> &'static str {
    let log = place.path().join("damaged.log");
    let mut child = place
        .command(&[])
        .stdout(std::fs::File::create(place.path().join("damaged.out")).expect("a file"))
        .stderr(std::fs::File::create(&log).expect("a file"))
        .stdin(Stdio::null())
        .spawn()
        .expect("starting orlop");
    let end = Instant::now() + START;
    let said = |name: &str| std::fs::read_to_string(place.path().join(name)).unwrap_or_default();
    loop {
        let log = said("damaged.log");
        assert!(!log.contains("panicked at"), "a panic over {}:\n{log}", file.display());
        if let Some(status) = child.try_wait().expect("waiting") {
            assert_eq!(status.code(), Some(1), "{}:\n{log}", file.display());
            let error = log.lines().find(|line| line.starts_with("error: ")).unwrap_or_default();
            assert!(error.len() > 20, "no reason is given for {}:\n{log}", file.display());
            return "refused with a reason";
        }
        if said("damaged.out").contains("orlop is ready") {
            rustix::process::kill_process(
                rustix::process::Pid::from_child(&child),
                rustix::process::Signal::TERM,
            )
            .expect("signalling");
            let status = child.wait().expect("waiting");
            assert!(
                status.success(),
                "after damage to {}: {status}\n{}",
                file.display(),
                said("damaged.log")
            );
            return "served";
        }
        assert!(Instant::now() < end, "neither ready nor refused with {} damaged:\n{log}", file.display());
        std::thread::sleep(Duration::from_millis(20));
    }
}
