//! The figures of the whole: `cargo bench --package orlop`. Prints one line a figure; compares nothing with a clock.

#[path = "../tests/common/mod.rs"]
mod common;

use std::time::{Duration, Instant};

use common::world::{self, is_running, wait_for};
use common::{BINARY, Place};
use futures::StreamExt;
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{DeleteParams, PostParams, WatchEvent, WatchParams};
use kube::{Api, Client};

const PODS: usize = 50;
const CLAIMS: usize = 1_000;
const CREATES: usize = 2_000;
const AT_ONCE: usize = 500;
const ROUNDS: usize = 6;
const PODS_AT_ONCE: usize = 200;
const PATIENCE: Duration = Duration::from_secs(600);

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
        crowds().await;
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

/// Many claims at once until all are bound, and until all are gone, again and again; then many pods, each with its claim.
async fn crowds() {
    let place = Place::new();
    let orlop = place.up(&["--loop-drive", "60Gi"]);
    let client = orlop.client().await;
    let class: StorageClass = serde_json::from_value(serde_json::json!({
        "metadata": {"name": "at-once"}, "provisioner": "orlop.dev", "volumeBindingMode": "Immediate"}))
    .expect("a class");
    Api::<StorageClass>::all(client.clone()).create(&PostParams::default(), &class).await.expect("created");
    let (claims, volumes, pods) = (world::claims(&client), world::volumes(&client), world::pods(&client));
    let before = memory(orlop.pid());
    let (mut bound, mut gone) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let names: Vec<String> = (0..AT_ONCE).map(|number| format!("claim-{round}-{number}")).collect();
        let began = Instant::now();
        try_join_all(names.iter().map(async |name| {
            let mut claim = world::claim(name);
            claim.spec.get_or_insert_default().storage_class_name = Some("at-once".to_owned());
            world::make(&client, &claim).await
        }))
        .await
        .expect("claims");
        wait_for(&claims, "all claims are bound", PATIENCE, |claims| {
            claims
                .iter()
                .all(|claim| claim.status.as_ref().is_some_and(|it| it.phase.as_deref() == Some("Bound")))
        })
        .await;
        bound.push(began.elapsed());
        let began = Instant::now();
        try_join_all(names.iter().map(async |name| claims.delete(name, &DeleteParams::default()).await))
            .await
            .expect("deleting");
        wait_for(&volumes, "all volumes are gone", PATIENCE, <[_]>::is_empty).await;
        gone.push(began.elapsed());
    }
    println!(
        "{AT_ONCE} claims of the own driver at once: all bound after {}, all gone {} after deletion (median of {ROUNDS})",
        millis(percentile(&mut bound, 50)),
        millis(percentile(&mut gone, 50))
    );
    println!(
        "resident memory before and after {ROUNDS} rounds of {AT_ONCE} claims: {before}, {}",
        memory(orlop.pid())
    );

    let names: Vec<String> = (0..PODS_AT_ONCE).map(|number| format!("crowd-{number}")).collect();
    let began = Instant::now();
    try_join_all(names.iter().map(|name| world::create(&client, name))).await.expect("creating");
    wait_for(&pods, "all pods run", PATIENCE, |pods| {
        pods.len() == PODS_AT_ONCE && pods.iter().all(is_running)
    })
    .await;
    let running = began.elapsed();
    let began = Instant::now();
    try_join_all(names.iter().map(|name| world::delete(&client, name))).await.expect("deleting");
    wait_for(&volumes, "all volumes are gone", PATIENCE, <[_]>::is_empty).await;
    println!(
        "{PODS_AT_ONCE} pods with a claim each at once: all running after {}, all gone {} after deletion",
        millis(running),
        millis(began.elapsed())
    );
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
