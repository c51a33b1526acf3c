//! Volumes that grow on the node, while they are mounted and when they get mounted.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::atomic::Ordering;

use common::{World, driver::Driver, is_root};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tonic::Status;

async fn world(name: &str) -> (World, Driver) {
    let driver = Driver::default();
    driver.expands.store(true, Ordering::SeqCst);
    let (world, driver) = World::with_driver(name, driver, json!({"attachRequired": false})).await;
    world.bound_claim("data", "1Mi", json!({"accessModes": ["ReadWriteOnce"]})).await;
    (world, driver)
}

fn claims(world: &World) -> Api<PersistentVolumeClaim> {
    Api::namespaced(world.client.clone(), "default")
}

async fn set_status(world: &World, status: Value) {
    let patch = Patch::Merge(json!({"status": status}));
    claims(world).patch_status("data", &PatchParams::default(), &patch).await.unwrap();
}

/// What the resizer does before it is the node's turn.
async fn hand_over(world: &World) {
    let larger = Patch::Merge(json!({"spec": {"capacity": {"storage": "2Mi"}}}));
    let volumes = Api::<PersistentVolume>::all(world.client.clone());
    volumes.patch("pv-data", &PatchParams::default(), &larger).await.unwrap();
    set_status(
        world,
        json!({"allocatedResources": {"storage": "2Mi"},
               "allocatedResourceStatuses": {"storage": "NodeResizePending"},
               "conditions": [{"type": "FileSystemResizePending", "status": "True"}]}),
    )
    .await;
}

async fn use_it(world: &World) {
    let spec = json!({"containers": [{"image": "nginx", "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
                      "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]});
    world.pod("user", "", spec).await;
}

async fn until_status(world: &World, what: &str, holds: impl Fn(&Value) -> bool) {
    world
        .until(what, async || {
            let claim = claims(world).get("data").await.unwrap();
            holds(&serde_json::to_value(claim.status).unwrap()).then_some(())
        })
        .await;
}

async fn grown(world: &World) {
    until_status(world, "the claim has grown", |status| {
        status["capacity"]["storage"] == "2Mi"
            && status["allocatedResourceStatuses"].is_null()
            && status["conditions"].as_array().is_none_or(Vec::is_empty)
    })
    .await;
    world
        .until("it is told", async || {
            let told = world.events().await;
            told.iter().any(|(reason, _)| reason == "FileSystemResizeSuccessful").then_some(())
        })
        .await;
}

async fn mounted(world: &World, driver: &Driver) {
    world
        .until("the volume is published", async || {
            driver.calls.lock().iter().any(|call| call.starts_with("publish")).then_some(())
        })
        .await;
}

fn expansions(driver: &Driver) -> Vec<String> {
    driver.calls.lock().iter().filter(|call| call.starts_with("expand")).cloned().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mounted_volume_grows_and_a_failure_is_tried_again() {
    if !is_root() {
        return;
    }
    let (world, driver) = world("online").await;
    driver.refusals.lock().push(Status::internal("no"));
    use_it(&world).await;
    mounted(&world, &driver).await;
    assert!(expansions(&driver).is_empty());
    hand_over(&world).await;
    grown(&world).await;
    assert_eq!(expansions(&driver), ["expand data 2097152", "expand data 2097152"]);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_grows_before_it_is_used_and_not_before_it_is_mounted() {
    if !is_root() {
        return;
    }
    let (world, driver) = world("mount").await;
    hand_over(&world).await;
    use_it(&world).await;
    grown(&world).await;
    assert!(!expansions(&driver).is_empty());
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_driver_rules_out_goes_back_to_the_resizer() {
    if !is_root() {
        return;
    }
    let (world, driver) = world("infeasible").await;
    use_it(&world).await;
    mounted(&world, &driver).await;
    driver.refusals.lock().push(Status::out_of_range("too much"));
    hand_over(&world).await;
    until_status(&world, "the node gave up", |status| {
        status["allocatedResourceStatuses"]["storage"] == "NodeResizeInfeasible"
            && status["conditions"]
                .as_array()
                .is_some_and(|all| all.iter().any(|one| one["type"] == "NodeResizeError"))
    })
    .await;
    assert_eq!(expansions(&driver).len(), 1);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_driver_that_grows_unused_volumes_only_does_not_block_the_mount() {
    if !is_root() {
        return;
    }
    let (world, driver) = world("offline").await;
    driver.refusals.lock().push(Status::failed_precondition("in use"));
    hand_over(&world).await;
    use_it(&world).await;
    let pod = world.pods().get("user").await.unwrap();
    let volumes =
        format!("pods/{}/volumes/kubernetes.io~csi/pv-data/vol_data.json", pod.metadata.uid.unwrap());
    let record = world.root.join(volumes);
    world
        .until("the volume can be used", async || {
            std::fs::read_to_string(&record).is_ok_and(|text| text.contains(r#""ready":true"#)).then_some(())
        })
        .await;
    until_status(&world, "the claim says why", |status| {
        status["capacity"]["storage"] == "1Mi"
            && status["conditions"]
                .as_array()
                .is_some_and(|all| all.iter().any(|one| one["type"] == "NodeResizeError"))
    })
    .await;
    assert_eq!(expansions(&driver).len(), 1);
    world.end().await;
}
