//! Events and their watchers: `cargo bench --package api-server`. Prints one line a figure.
//!
//! Each watcher selects by a field, as nodes do for their pods, or reads everything; the store is in memory.

#![allow(clippy::unwrap_used, reason = "a figure that can't be taken is none")]

use std::time::Instant;

use api_server::{ApiServer, Options};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, PostParams, WatchEvent, WatchParams};
use kube::{Client, ResourceExt};
use object_store::Store;
use serde_json::json;

/// Pods that come and change.
const PODS: usize = 500;

fn main() {
    // `cargo test --benches` runs every bench target once; these figures mean nothing there.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for watchers in [1, 100, 900] {
        runtime.block_on(selecting(watchers));
    }
    for watchers in [1, 100] {
        runtime.block_on(reading(watchers));
    }
}

/// One watcher is the last pod's node; all the others see nothing.
async fn selecting(watchers: usize) {
    let client = server().await;
    let pods: Api<Pod> = Api::default_namespaced(client);
    let others = futures::future::join_all((1..watchers).map(|number| {
        let pods = pods.clone();
        async move {
            let selector = format!("spec.nodeName=other-{number}");
            pods.watch(&WatchParams::default().fields(&selector), "0").await.unwrap().boxed()
        }
    }))
    .await;
    let others: Vec<_> = others.into_iter().map(|watch| tokio::spawn(watch.count())).collect();
    let last = format!("metadata.name=pod-{},spec.nodeName=here", PODS - 1);
    let watch = pods.watch(&WatchParams::default().fields(&last), "0").await.unwrap();
    let took = change_all(&pods, async {
        let mut watch = std::pin::pin!(watch);
        while !matches!(watch.try_next().await.unwrap(), Some(WatchEvent::Deleted(_))) {}
    });
    report(&format!("{watchers} watchers by field"), took.await);
    others.iter().for_each(tokio::task::JoinHandle::abort);
}

/// All watchers read everything.
async fn reading(watchers: usize) {
    let client = server().await;
    let pods: Api<Pod> = Api::default_namespaced(client);
    let mut readers = Vec::new();
    for _ in 0..watchers {
        let watch = pods.watch(&WatchParams::default(), "0").await.unwrap().boxed();
        readers.push(tokio::spawn(async move {
            let last = format!("pod-{}", PODS - 1);
            let mut watch = watch;
            loop {
                match watch.try_next().await.unwrap() {
                    Some(WatchEvent::Deleted(pod)) if pod.name_any() == last => return,
                    Some(_) => {}
                    None => panic!("the watch ended"),
                }
            }
        }));
    }
    let took = change_all(&pods, async {
        for reader in readers {
            reader.await.unwrap();
        }
    });
    report(&format!("{watchers} watchers of everything"), took.await);
}

async fn server() -> Client {
    let api = ApiServer::start(Store::in_memory(), Options::default()).await.unwrap();
    Client::new(api.in_process("bench"), "default")
}

/// Creates and deletes every pod; the seconds until `seen`.
async fn change_all(pods: &Api<Pod>, seen: impl Future<Output = ()>) -> f64 {
    let began = Instant::now();
    for number in 0..PODS {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": format!("pod-{number}"), "labels": {"app": "db", "tier": "back"}},
            "spec": {"nodeName": "here", "terminationGracePeriodSeconds": 0, "containers": [{"name": "main", "image": "host",
                "env": (0..20).map(|at| json!({"name": format!("NAME_{at}"), "value": "value"})).collect::<Vec<_>>()}]},
        }))
        .unwrap();
        pods.create(&PostParams::default(), &pod).await.unwrap();
    }
    for number in 0..PODS {
        pods.delete(&format!("pod-{number}"), &kube::api::DeleteParams::default().grace_period(0))
            .await
            .unwrap();
    }
    seen.await;
    began.elapsed().as_secs_f64()
}

#[expect(clippy::cast_precision_loss, reason = "figures")]
fn report(what: &str, seconds: f64) {
    println!("{what}: {:.0} changes a second until the last one is seen", 2.0 * PODS as f64 / seconds);
}
