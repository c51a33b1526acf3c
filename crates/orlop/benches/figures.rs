//! The figures of the whole: `cargo bench --package orlop`. Prints one line a figure; compares nothing with a clock.

#[path = "../tests/common/mod.rs"]
mod common;

use std::time::{Duration, Instant};

use common::world::{self, is_running};
use common::{BINARY, Place};
use futures::StreamExt;
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{DeleteParams, PostParams, WatchEvent, WatchParams};
use kube::{Api, Client};

const PODS: usize = 50;
const CLAIMS: usize = 1_000;
const CREATES: usize = 2_000;

fn main() {
    // `cargo test --benches` runs every bench target once; these figures take minutes and mean nothing there.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        println!("release binary: {:.1} MiB", std::fs::metadata(BINARY).expect("built").len() as f64 / MIB);
        starts();
        figures().await;
    });
}

const MIB: f64 = 1024.0 * 1024.0;

/// From exec to the ready line: on an empty data directory, and again on the same.
fn starts() {
    let place = Place::new();
    let mut first = Vec::new();
    let mut again = Vec::new();
    for run in 0..6 {
        let began = Instant::now();
        let orlop = place.up(&["--loop-drive", "1Gi"]);
        if run == 0 { &mut first } else { &mut again }.push(began.elapsed());
        orlop.stop();
    }
    println!(
        "start to ready: new data directory {}, restart p50 {}",
        millis(first[0]),
        millis(percentile(&mut again, 50))
    );
}

async fn figures() {
    let place = Place::new();
    let orlop = place.up(&["--loop-drive", "20Gi"]);
    let client = orlop.client().await;
    println!("resident memory idle: {}", memory(orlop.pid()));

    let mut running = Vec::new();
    for number in 0..PODS {
        running.push(single_pod(&client, &format!("single-{number}")).await);
    }
    let (p50, p99) = (percentile(&mut running, 50), percentile(&mut running, 99));
    println!(
        "apply to container running, {PODS} single pods with a new claim each: p50 {}, p99 {}",
        millis(p50),
        millis(p99)
    );

    for writers in [1, 16, 256] {
        println!(
            "acknowledged creates per second over TLS, {writers} writers: {:.0}",
            creates(&client, writers).await
        );
    }
    let names: Vec<String> = (0..CLAIMS).map(|number| format!("waiting-{number}")).collect();
    for names in names.chunks(50) {
        try_join_all(names.iter().map(async |name| world::make(&client, &world::claim(name)).await))
            .await
            .expect("claims");
    }
    println!("resident memory with {CLAIMS} claims: {}", memory(orlop.pid()));
    orlop.stop();
}

/// Creates a claim and a pod and gives the time until the watch shows the container running; deletes both.
async fn single_pod(client: &Client, name: &str) -> Duration {
    let pods = world::pods(client);
    let watched = WatchParams::default().fields(&format!("metadata.name={name}"));
    let mut events = pods.watch(&watched, "0").await.expect("watching").boxed();
    let began = Instant::now();
    world::create(client, name).await.expect("creating");
    let mut taken = None;
    while taken.is_none() {
        match events.next().await.expect("the watch goes on").expect("an event") {
            WatchEvent::Added(pod) | WatchEvent::Modified(pod) if is_running(&pod) => {
                taken = Some(began.elapsed())
            }
            _ => {}
        }
    }
    pods.delete(name, &DeleteParams::default()).await.expect("deleting");
    while !matches!(
        events.next().await.expect("the watch goes on").expect("an event"),
        WatchEvent::<Pod>::Deleted(_)
    ) {}
    world::claims(client).delete(name, &DeleteParams::default()).await.expect("deleting");
    taken.expect("it ran")
}

async fn creates(client: &Client, writers: usize) -> f64 {
    let notes: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let total = if writers == 1 { CREATES / 4 } else { CREATES };
    let began = Instant::now();
    let write = async |writer: usize| {
        for number in 0..total / writers {
            let mut note = ConfigMap::default();
            note.metadata.name = Some(format!("note-{writers}-{writer}-{number}"));
            note.data = Some([("text".to_owned(), "x".repeat(100))].into());
            notes.create(&PostParams::default(), &note).await.expect("creating");
        }
    };
    futures::future::join_all((0..writers).map(write)).await;
    (total / writers * writers) as f64 / began.elapsed().as_secs_f64()
}

/// Resident memory, with the anonymous part in brackets, as the kernel tells.
fn memory(pid: u32) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a running process");
    let kib = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).expect("the kernel tells");
        line.trim().trim_end_matches(" kB").trim().parse::<f64>().expect("a number") / 1024.0
    };
    format!("{:.1} MiB ({:.1})", kib("VmRSS:"), kib("RssAnon:"))
}

fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort();
    times[(times.len() * percent / 100).min(times.len() - 1)]
}

fn millis(time: Duration) -> String {
    format!("{:.0} ms", time.as_secs_f64() * 1e3)
}
