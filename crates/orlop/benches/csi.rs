//! The figures of a driver on its socket: `cargo bench --package orlop --bench csi`. With `-- --volumes 10000` as many
//! volumes on one node, and with `-- --beside unix:///PATH PID` another driver that runs already, by the same calls.
//! Prints one line a figure; compares nothing with a clock.

#[path = "../tests/common/mod.rs"]
mod common;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::caller::{self, Caller, Volume, driver, faults_of_children, stop};
use common::{Place, wait_until, world};
use futures::StreamExt;
use futures::stream;

const SIZE: i64 = 4 << 20;
const DRIVE: &str = "128Gi";
const ALONE: usize = 200;
const AT_ONCE: usize = 32;
const SHOWN: usize = 100;
const MIB: f64 = 1024.0 * 1024.0;

struct Options {
    volumes: usize,
    beside: Option<(PathBuf, u32)>,
}

impl Options {
    /// What the command line asks for; none if no figures are wanted.
    fn read() -> Option<Options> {
        let words: Vec<String> = std::env::args().skip(1).collect();
        // `cargo test --benches` runs every bench target once; these figures take minutes and mean nothing there.
        if !words.iter().any(|word| word == "--bench") {
            return None;
        }
        let after = |flag: &str, at: usize| {
            let found = words.iter().position(|word| word == flag)?;
            Some(words.get(found + at).unwrap_or_else(|| panic!("{flag} needs more words")).clone())
        };
        let number = |text: String| text.parse().unwrap_or_else(|_| panic!("{text} is no number"));
        Some(Options {
            volumes: after("--volumes", 1).map_or(1_000, |text| number(text) as usize),
            beside: after("--beside", 1).map(|socket| {
                let socket = PathBuf::from(socket.strip_prefix("unix://").expect("unix:///PATH"));
                (socket, number(after("--beside", 2).unwrap_or_default()))
            }),
        })
    }
}

fn main() {
    let Some(options) = Options::read() else { return };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let place = Place::new();
        if let Some((socket, pid)) = &options.beside {
            println!("driver on {}:", socket.display());
            let caller = Caller::connect(socket, place.path()).await;
            of_calls(&caller, *pid).await;
            return;
        }
        own(&place, options.volumes).await;
    });
}

async fn own(place: &Place, volumes: usize) {
    let socket = caller::socket(place);
    let child = driver(place, &["--loop-drive", DRIVE]).spawn().expect("started");
    wait_until("the driver serves", || socket.exists());
    let caller = Caller::connect(&socket, place.path()).await;
    caller.probe().await.expect("well");
    println!("resident memory with 0 volumes: {}", memory(child.id()));
    let before = faults_of_children(child.id());
    of_calls(&caller, child.id()).await;
    throughput(place, &caller).await;
    let none = faults_of_children(child.id()) == before;
    println!(
        "processes started by create, stage, publish, expand, unpublish, unstage, delete: {}",
        match none {
            true => "none",
            false => "some",
        }
    );

    let began = Instant::now();
    let made = create(&caller, "many", volumes, AT_ONCE).await;
    println!("{volumes} volumes made in {}", millis(began.elapsed()));
    println!("resident memory with {volumes} volumes: {}", memory(child.id()));
    stop(child);

    let began = Instant::now();
    let child = driver(place, &[]).spawn().expect("started");
    while !socket.exists() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let caller = Caller::connect(&socket, place.path()).await;
    caller.probe().await.expect("well");
    println!("start to ready with {volumes} volumes on the drive: {}", millis(began.elapsed()));
    println!("resident memory after that: {}", memory(child.id()));
    drop(made);
    stop(child);
}

/// Sequential and random writes in a volume and on its drive's own file system, by `fio`: they should be equally fast.
async fn throughput(place: &Place, caller: &Caller) {
    let volume = caller.create("speed", 1 << 30).await.expect("created");
    let shown = caller.show(&volume, "speed").await.expect("published");
    let bare = world::drives(&place.data()).first().expect("a drive").join("bare");
    std::fs::create_dir(&bare).expect("made");
    for (what, block, order) in [("sequential", "1M", "write"), ("random", "4k", "randwrite")] {
        let speeds = [&shown, &bare].map(|at| fio(at, block, order));
        match speeds {
            [Some(volume), Some(bare)] => println!(
                "{what} writes of {block}: {:.0} MiB/s in a volume, {:.0} MiB/s on the bare file system",
                volume / MIB,
                bare / MIB
            ),
            _ => println!("{what} writes of {block}: not measured, fio is not installed"),
        }
    }
    std::fs::remove_dir_all(&bare).expect("removed");
    caller.hide(&volume, "speed").await.expect("unstaged");
    caller.delete(&volume).await.expect("deleted");
}

/// Bytes written per second by direct I/O in a directory; none without the program.
fn fio(directory: &Path, block: &str, order: &str) -> Option<f64> {
    let output = Command::new("fio")
        .args(["--name=speed", "--size=512M", "--runtime=10", "--time_based", "--direct=1", "--iodepth=16"])
        .args([
            "--ioengine=libaio",
            "--output-format=json",
            &format!("--bs={block}"),
            &format!("--rw={order}"),
        ])
        .arg(format!("--directory={}", directory.display()))
        .output()
        .ok()?;
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("fio's report");
    report["jobs"][0]["write"]["bw_bytes"].as_f64()
}

/// What can be measured of any driver.
async fn of_calls(caller: &Caller, pid: u32) {
    for (at_once, total) in [(1, ALONE), (AT_ONCE, ALONE * 5)] {
        let began = Instant::now();
        let made = create(caller, &format!("by-{at_once}"), total, at_once).await;
        println!(
            "CreateVolume per second, {at_once} clients: {:.0}",
            total as f64 / began.elapsed().as_secs_f64()
        );
        let began = Instant::now();
        delete(caller, made, at_once).await;
        println!(
            "DeleteVolume per second, {at_once} clients: {:.0}",
            total as f64 / began.elapsed().as_secs_f64()
        );
    }
    let (mut shown, mut hidden) = (Vec::new(), Vec::new());
    for number in 0..SHOWN {
        let name = format!("shown-{number}");
        let volume = caller.create(&name, SIZE).await.expect("created");
        let began = Instant::now();
        caller.show(&volume, &name).await.expect("published");
        shown.push(began.elapsed());
        let _ = caller.expand(&volume, 2 * SIZE).await;
        let began = Instant::now();
        caller.hide(&volume, &name).await.expect("unstaged");
        hidden.push(began.elapsed());
        caller.delete(&volume).await.expect("deleted");
    }
    println!("stage and publish: {}", percentiles(&mut shown));
    println!("unpublish and unstage: {}", percentiles(&mut hidden));
    beside_a_writer(caller).await;
    println!("resident memory after {} volumes: {}", ALONE * 6 + 2 * SHOWN + 1, memory(pid));
}

/// Creations while a neighbour writes to its volume and leaves it to the kernel when that reaches the drive.
async fn beside_a_writer(caller: &Caller) {
    let volume = caller.create("busy", 4 << 30).await.expect("created");
    let file = caller.show(&volume, "busy").await.expect("published").join("file");
    let stop = Arc::new(AtomicBool::new(false));
    let told = stop.clone();
    let writer = std::thread::spawn(move || {
        let block = vec![7; 1 << 20];
        while !told.load(Ordering::Relaxed) {
            let mut file = std::fs::File::create(&file).expect("made");
            for _ in 0..2 << 10 {
                if !told.load(Ordering::Relaxed) {
                    file.write_all(&block).expect("written");
                }
            }
        }
    });
    let (mut times, mut made) = (Vec::new(), Vec::new());
    for number in 0..SHOWN {
        let began = Instant::now();
        made.push(caller.create(&format!("beside-{number}"), SIZE).await.expect("created"));
        times.push(began.elapsed());
    }
    stop.store(true, Ordering::Relaxed);
    writer.join().expect("it wrote");
    println!("CreateVolume beside a neighbour that writes: {}", percentiles(&mut times));
    delete(caller, made, 1).await;
    caller.hide(&volume, "busy").await.expect("unstaged");
    caller.delete(&volume).await.expect("deleted");
}

async fn create(caller: &Caller, prefix: &str, total: usize, at_once: usize) -> Vec<Volume> {
    let make = |number: usize| {
        let (caller, name) = (caller.clone(), format!("{prefix}-{number}"));
        async move { caller.create(&name, SIZE).await.expect("created") }
    };
    stream::iter((0..total).map(make)).buffer_unordered(at_once).collect().await
}

async fn delete(caller: &Caller, volumes: Vec<Volume>, at_once: usize) {
    let remove = |volume: Volume| {
        let caller = caller.clone();
        async move { caller.delete(&volume).await.expect("deleted") }
    };
    stream::iter(volumes.into_iter().map(remove)).buffer_unordered(at_once).collect::<()>().await;
}

/// Resident memory, with the anonymous part in brackets, as the kernel tells.
fn memory(pid: u32) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a running process");
    let bytes = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).expect("the kernel tells");
        line.trim().trim_end_matches(" kB").trim().parse::<f64>().expect("a number") * 1024.0
    };
    format!("{:.1} MiB ({:.1})", bytes("VmRSS:") / MIB, bytes("RssAnon:") / MIB)
}

fn percentiles(times: &mut [Duration]) -> String {
    times.sort();
    let at = |percent: usize| millis(times[(times.len() * percent / 100).min(times.len() - 1)]);
    format!("p50 {}, p99 {}", at(50), at(99))
}

fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}
