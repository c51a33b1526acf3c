//! Pods with a claim each, placed over many nodes: `cargo bench --package scheduler`. Prints one line a figure.
//!
//! The scheduler, the binder and a driver without a disk work against the API server in this process, whose store is in
//! memory.

#![allow(clippy::unwrap_used, reason = "a figure that can't be taken is none")]

#[path = "../tests/driver/mod.rs"]
mod driver;
#[path = "../../controllers/tests/support/mod.rs"]
mod support;

use std::time::Instant;

use controllers::Controller;
use driver::{CLASS, Driver};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use support::{World, await_each, claim, pod};

/// MiB of each drive of each node.
const DRIVES: [u64; 10] = [100_000; 10];

fn main() {
    // `cargo test --benches` runs every bench target once; these figures mean nothing there.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for (pods, nodes) in [(500, 100), (5_000, 1_000), (50_000, 1_000), (5_000, 10_000)] {
        runtime.block_on(placement(pods, nodes));
    }
}

/// Creates all pods and claims, then lets the scheduler begin.
#[expect(clippy::cast_precision_loss, reason = "figures")]
async fn placement(pods: usize, nodes: usize) {
    let world = World::start().await;
    let names: Vec<String> = (0..nodes).map(|number| format!("node-{number:05}")).collect();
    let nodes_with_drives: Vec<(&str, &[u64])> =
        names.iter().map(|name| (name.as_str(), &DRIVES[..])).collect();
    let driver = Driver::install(&world, &nodes_with_drives).await;
    let made = futures::stream::iter(0..pods).map(|number| {
        let world = &world;
        async move {
            let name = format!("data-{number}");
            world.create::<PersistentVolumeClaim>(claim(&name, "1000Mi", Some(CLASS))).await;
            world.create::<Pod>(pod(&format!("pod-{number}"), &[&name])).await;
        }
    });
    made.buffer_unordered(64).collect::<()>().await;

    let placed = await_each(&world.context.informers.pods(), pods, |pod: &Pod| {
        pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some())
    });
    let began = Instant::now();
    tokio::spawn(controllers::run(world.context.clone(), &[Controller::Bind]));
    tokio::spawn(scheduler::run(world.context.clone()));
    tokio::spawn(driver.clone().run(world.context.clone()));
    placed.await;
    println!(
        "{pods} pods with a claim each over {nodes} nodes with {} drives each: {:.0} pods per second, {:.2} API \
         writes per pod, {} refused by the driver",
        DRIVES.len(),
        pods as f64 / began.elapsed().as_secs_f64(),
        world.writes() as f64 / pods as f64,
        driver.refused(),
    );
}
