//! What durability costs: acknowledged creates per second, against appending to a file and syncing it, and the time to
//! open a store after an unclean stop.
//!
//! `cargo bench -p object-store` measures in a temporary directory, or in `ORLOP_BENCH_DIR`.
#![allow(clippy::unwrap_used, reason = "a benchmark that fails should stop")]

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use object_store::{Key, Options, Precondition, Store};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// A usual object's size.
const OBJECT: usize = 1500;
const WRITERS: [usize; 3] = [1, 16, 256];
const OBJECTS_TO_OPEN: usize = 20_000;

fn directory() -> TempDir {
    match std::env::var_os("ORLOP_BENCH_DIR") {
        Some(parent) => TempDir::new_in(parent).unwrap(),
        None => TempDir::new().unwrap(),
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap()
}

async fn create(store: &Store, number: u64) {
    let key = Key::new("pods", "default", format!("pod-{number}"));
    store.put(key, Precondition::Absent, Box::new(|_| Bytes::from(vec![b'x'; OBJECT]))).await.unwrap();
}

/// Creates by this many writers, each waiting for its own acknowledgement.
#[divan::bench(args = WRITERS, sample_count = 10, sample_size = 1)]
fn creates(bencher: divan::Bencher<'_, '_>, writers: usize) {
    let (runtime, directory) = (runtime(), directory());
    let store = Store::open(&directory.path().join("store.redb"), Options::default()).unwrap();
    let next = AtomicU64::new(0);
    bencher.counter(divan::counter::ItemsCount::new(writers)).bench(|| {
        runtime.block_on(futures::future::join_all((0..writers).map(|_| {
            let number = next.fetch_add(1, Ordering::Relaxed);
            create(&store, number)
        })))
    });
    runtime.block_on(store.close());
}

/// The floor: one object appended to a file and synced.
#[divan::bench(sample_count = 10, sample_size = 1)]
fn append_and_sync(bencher: divan::Bencher<'_, '_>) {
    let directory = directory();
    let mut file = File::create(directory.path().join("log")).unwrap();
    bencher.counter(divan::counter::ItemsCount::new(1_usize)).bench_local(|| append(&mut file));
}

fn append(file: &mut File) {
    file.write_all(&[b'x'; OBJECT]).unwrap();
    file.sync_data().unwrap();
}

/// Runs for `time`; how often per second `step` was done.
fn floor_rate(directory: &Path, time: Duration) -> f64 {
    let mut file = File::create(directory.join("log")).unwrap();
    let (start, mut count) = (Instant::now(), 0_u32);
    while start.elapsed() < time {
        append(&mut file);
        count += 1;
    }
    f64::from(count) / start.elapsed().as_secs_f64()
}

fn create_rate(runtime: &Runtime, directory: &Path, writers: usize, time: Duration) -> f64 {
    let store = Store::open(&directory.join(format!("store-{writers}.redb")), Options::default()).unwrap();
    let (start, next) = (Instant::now(), std::sync::Arc::new(AtomicU64::new(0)));
    runtime.block_on(async {
        let tasks = (0..writers).map(|_| {
            let (store, next) = (store.clone(), next.clone());
            tokio::spawn(async move {
                while start.elapsed() < time {
                    create(&store, next.fetch_add(1, Ordering::Relaxed)).await;
                }
            })
        });
        futures::future::join_all(tasks.collect::<Vec<_>>()).await;
    });
    let rate = next.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64();
    runtime.block_on(store.close());
    rate
}

/// Floor and store in turn, so that both see the same machine.
fn report_ratios() {
    let (runtime, directory, time) = (runtime(), directory(), Duration::from_secs(1));
    println!("\n{OBJECT} bytes per object, in {}", directory.path().display());
    println!("{:>8} {:>12} {:>14} {:>8}", "writers", "creates/s", "appends+sync/s", "ratio");
    for writers in WRITERS {
        let before = floor_rate(directory.path(), time / 2);
        let creates = create_rate(&runtime, directory.path(), writers, time);
        let floor = (before + floor_rate(directory.path(), time / 2)) / 2.0;
        println!("{writers:>8} {creates:>12.0} {floor:>14.0} {:>8.2}", creates / floor);
    }
}

fn report_opening() {
    let (runtime, directory) = (runtime(), directory());
    let path = directory.path().join("store.redb");
    let store = Store::open(&path, Options::default()).unwrap();
    let creates = (0..OBJECTS_TO_OPEN as u64).map(|number| create(&store, number));
    runtime.block_on(futures::future::join_all(creates));
    // A copy of an open store is what an unclean stop leaves.
    let unclean = directory.path().join("unclean.redb");
    std::fs::copy(&path, &unclean).unwrap();
    runtime.block_on(store.close());
    println!("\nopening {OBJECTS_TO_OPEN} objects, {} MiB:", std::fs::metadata(&path).unwrap().len() >> 20);
    for (what, path) in [("clean", &path), ("unclean", &unclean)] {
        let start = Instant::now();
        let store = Store::open(path, Options::default()).unwrap();
        println!("{what:>8} {:>7.1} ms", start.elapsed().as_secs_f64() * 1e3);
        runtime.block_on(store.close());
    }
}

fn main() {
    divan::main();
    if std::env::args().any(|argument| argument == "--bench") {
        report_ratios();
        report_opening();
    }
}
