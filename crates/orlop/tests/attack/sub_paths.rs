//! A container that turns a directory into a link, back and forth, while its neighbours are mounted from there.

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, LogParams};
use serde_json::json;

use crate::common::Place;
use crate::common::world::{self, is_running, wait_for};
use crate::tally::Tally;

const ROUNDS: usize = 20;
const AT_ONCE: usize = 5;
const PATIENCE: Duration = Duration::from_secs(60);
const SECRET: &str = "the content of a file outside the volume";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "an attack: cargo xtask attack"]
async fn no_race_leads_out_of_a_volume() {
    let place = Place::new();
    let orlop = place.up(&["--loop-drive", "512Mi"]);
    let client = orlop.client().await;
    let outside = place.path().join("outside");
    std::fs::create_dir(&outside).expect("a directory");
    std::fs::write(outside.join("secret"), SECRET).expect("a file");
    world::create(&client, "attacker").await.expect("created");
    wait_for(&world::pods(&client), "the attacker runs", PATIENCE, |pods| pods.iter().all(is_running)).await;
    let volume = volume(&place);
    let stop = Arc::new(AtomicBool::new(false));
    let swapping = std::thread::spawn({
        let (volume, outside, stop) = (volume.clone(), outside.clone(), stop.clone());
        move || {
            let at = |name: &str| volume.join(name);
            std::fs::create_dir(at("real")).expect("a directory");
            std::fs::write(at("real/secret"), "harmless").expect("a file");
            symlink(&outside, at("evil")).expect("a link");
            std::fs::rename(at("real"), at("part")).expect("renamed");
            while !stop.load(Ordering::Relaxed) {
                // The directory is a link for a moment, and a directory again.
                std::fs::rename(at("part"), at("real")).ok();
                std::fs::rename(at("evil"), at("part")).ok();
                std::fs::rename(at("part"), at("evil")).ok();
                std::fs::rename(at("real"), at("part")).ok();
            }
        }
    });
    let mut tally = Tally::new("sub-path races");
    for round in 0..ROUNDS {
        let names: Vec<String> = (0..AT_ONCE).map(|number| format!("victim-{round}-{number}")).collect();
        for name in &names {
            world::make(&client, &victim(name)).await.expect("created");
        }
        for name in &names {
            let pods = world::pods(&client);
            let settled = |pods: &[Pod]| {
                pods.iter()
                    .any(|pod| pod.metadata.name.as_deref() == Some(name) && (ended(pod) || refused(pod)))
            };
            wait_for(&pods, "the victim ends or is refused", PATIENCE, settled).await;
            let log = pods.logs(name, &LogParams::default()).await.unwrap_or_default();
            assert!(!log.contains(SECRET), "{name} reads what lies outside its volume");
            tally.count(if log.is_empty() { "refused" } else { "mounted what is inside" });
            pods.delete(name, &DeleteParams::default()).await.expect("deleted");
        }
    }
    stop.store(true, Ordering::Relaxed);
    swapping.join().expect("the attacker");
    world::delete(&client, "attacker").await.expect("deleted");
    wait_for(&world::pods(&client), "all pods are gone", PATIENCE, |pods| pods.is_empty()).await;
    orlop.stop();
}

/// Prints the file that the race is for.
fn victim(name: &str) -> Pod {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never", "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "main", "image": "host", "command": ["cat", "/data/secret"],
                "volumeMounts": [{"name": "data", "mountPath": "/data", "subPath": "part"}],
            }],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "attacker"}}],
        },
    });
    serde_json::from_value(pod).expect("a pod")
}

fn ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Whether a container waits with a reason, which is told as it is refused.
fn refused(pod: &Pod) -> bool {
    let containers = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    let waiting =
        containers.into_iter().flatten().filter_map(|status| status.state.as_ref()?.waiting.as_ref());
    waiting.filter_map(|waiting| waiting.reason.as_deref()).any(|reason| reason.contains("Error"))
}

/// The attacker's volume, as it is mounted for its pod.
fn volume(place: &Place) -> PathBuf {
    let mounts = world::volume_mounts(&place.data());
    let published =
        mounts.iter().find(|mount| mount.contains("/pods/") && mount.contains("kubernetes.io~csi"));
    published.unwrap_or_else(|| panic!("no volume is published: {mounts:?}")).into()
}
