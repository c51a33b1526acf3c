//! Claims bound to volumes that exist: `cargo bench --package controllers`. Prints one line a figure.
//!
//! The binder works against the API server in this process, whose store is in memory: what is measured is the two
//! together, without a network between them. Memory is of both as well.

#![allow(clippy::unwrap_used, reason = "a figure that can't be taken is none")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use controllers::Controller;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use support::{World, await_each, claim, volume};

fn main() {
    // `cargo test --benches` runs every bench target once; these figures mean nothing there.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for count in [1_000, 10_000, 100_000] {
        runtime.block_on(static_binding(count));
    }
}

/// Binds as many claims as volumes, of ten sizes, each of a class of its own: a claim that came before the volumes of its
/// size were Available would take a larger one, and leave none for another.
async fn static_binding(count: usize) {
    let empty = anonymous_memory();
    let world = World::start().await;
    let size = |number: usize| format!("{}Gi", 1 + number % 10);
    let class = |number: usize| format!("static-{}", number % 10);
    let made = futures::stream::iter(0..count).map(|number| {
        let world = &world;
        async move {
            world
                .create::<PersistentVolume>(volume(
                    &format!("volume-{number}"),
                    &size(number),
                    &class(number),
                ))
                .await;
            let claim = claim(&format!("claim-{number}"), &size(number), Some(&class(number)));
            world.create::<PersistentVolumeClaim>(claim).await;
        }
    });
    made.buffer_unordered(64).collect::<()>().await;
    let stored = anonymous_memory();

    let began = Instant::now();
    let bound = await_each(&world.context.informers.claims(), count, |claim: &PersistentVolumeClaim| {
        resources::claim::phase(claim) == "Bound"
    });
    tokio::spawn(controllers::run(world.context.clone(), &[Controller::Bind]));
    bound.await;
    report(count, began.elapsed(), world.writes(), stored - empty, anonymous_memory() - empty);
}

#[expect(clippy::cast_precision_loss, reason = "figures")]
fn report(count: usize, took: Duration, writes: usize, stored: f64, working: f64) {
    let claims = count as f64;
    println!(
        "{count} claims to {count} volumes: {:.0} claims per second, {:.2} API writes per claim; memory per 10,000 \
         claims and their volumes: {:.0} MiB, of which {:.0} MiB the API server's before binding",
        claims / took.as_secs_f64(),
        writes as f64 / claims,
        working / claims * 1e4,
        stored / claims * 1e4,
    );
}

/// MiB of this process that no file backs.
fn anonymous_memory() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<f64>().unwrap() / 1024.0
}
