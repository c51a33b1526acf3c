//! Volumes that grow with their claims, against a real API server and a driver with faults.

#![allow(clippy::unwrap_used, reason = "a test says by its panic what went wrong")]

mod world;

use kube::ResourceExt;
use kube::api::{Patch, PatchParams, PostParams};
use resources::{annotations, volume};
use serde_json::{Value, json};
use tonic::{Code, Status};
use world::driver::Growth;
use world::steps::When;
use world::{DRIVER, Process, Steps, World, eventually};

const MI: i64 = 1 << 20;

async fn small_claim() -> World {
    let world = World::new(1).await;
    world.class("fast", |_| {}).await;
    world.bound_pair("data", "fast", Some("n1"), "64Mi").await;
    world
}

async fn status(world: &World) -> Value {
    serde_json::to_value(world.claims().get("data").await.unwrap().status.unwrap()).unwrap()
}

fn stage(status: &Value) -> &str {
    status["allocatedResourceStatuses"]["storage"].as_str().unwrap_or_default()
}

fn has_condition(status: &Value, kind: &str) -> bool {
    status["conditions"].as_array().is_some_and(|all| all.iter().any(|one| one["type"] == kind))
}

/// Waits until the claim has the size and nothing is left of the expansion.
async fn grown(world: &World, size: &str) {
    eventually(&format!("the claim has {size}"), async || {
        let status = status(world).await;
        status["capacity"]["storage"] == size && stage(&status).is_empty() && status["conditions"].is_null()
    })
    .await;
    let volume = world.volumes().get("pv-data").await.unwrap();
    assert_eq!(volume::capacity(&volume).unwrap().0, size);
}

async fn failed(world: &World, message: &str) {
    eventually("the failure is told", async || {
        let told = world.events("VolumeResizeFailed").await;
        told.iter().any(|one| one.contains(message))
            && has_condition(&status(world).await, "ControllerResizeError")
    })
    .await;
}

#[tokio::test]
async fn a_claim_grows_with_three_writes() {
    let world = small_claim().await;
    let process = world.resize(&Steps::new()).await;
    world.ask("data", "128Mi").await;
    grown(&world, "128Mi").await;
    assert_eq!(world.driver.expanded(), [128 * MI]);
    assert_eq!(world.writes(), 3, "intent, volume, claim");
    assert_eq!(status(&world).await["allocatedResources"]["storage"], "128Mi");
    let claim = world.claims().get("data").await.unwrap();
    assert_eq!(claim.annotations()[annotations::NODE_EXPANSION_NOT_REQUIRED], "true");
    eventually("events are written", async || {
        world.events("Resizing").await == ["External resizer is resizing volume pv-data"]
            && world.events("VolumeResizeSuccessful").await == ["Resize volume succeeded"]
    })
    .await;
    process.kill().await;
}

/// Kills the process at every step in turn, before and after the step's effect, and starts another one; in the second
/// round the request is raised while nobody is there.
#[tokio::test]
async fn a_crash_at_any_step_is_made_good() {
    for raised in [false, true] {
        for when in [When::Before, When::After] {
            let mut step = 0;
            while growth_with_a_crash(step, when, raised).await {
                step += 1;
            }
            assert_eq!(step, 4, "intent, call, volume, claim");
        }
    }
}

async fn growth_with_a_crash(step: usize, when: When, raised: bool) -> bool {
    let world = small_claim().await;
    let steps = Steps::crashing_at(step, when);
    let process = world.resize(&steps).await;
    world.ask("data", "128Mi").await;
    let crashed = tokio::select! {
        () = grown(&world, "128Mi") => step == 3 && when == When::After,
        () = steps.crashed() => true,
    };
    process.kill().await;
    if crashed {
        let process = world.resize(&Steps::new()).await;
        if raised {
            world.ask("data", "256Mi").await;
        }
        grown(&world, if raised { "256Mi" } else { "128Mi" }).await;
        process.kill().await;
    }
    crashed
}

#[tokio::test]
async fn after_a_final_error_the_request_can_be_lowered() {
    for (code, expected) in [
        (Code::ResourceExhausted, "ControllerResizeInProgress"),
        (Code::Internal, "ControllerResizeInProgress"),
        (Code::OutOfRange, "ControllerResizeInfeasible"),
    ] {
        let world = small_claim().await;
        world.driver.answer_expand([Growth::Refuse(Status::new(code, "the drive has 100Mi left"))]);
        let process = world.resize(&Steps::new()).await;
        world.ask("data", "1Gi").await;
        let message = format!(
            "resize volume \"pv-data\" by resizer \"{DRIVER}\" failed: rpc error: code = {code:?} desc = the drive has 100Mi left"
        );
        failed(&world, &message).await;
        assert_eq!(stage(&status(&world).await), expected);
        world.ask("data", "96Mi").await;
        grown(&world, "96Mi").await;
        assert_eq!(world.driver.expanded(), [1024 * MI, 96 * MI]);
        process.kill().await;
    }
}

#[tokio::test]
async fn an_open_answer_is_followed_up_before_another_size_is_tried() {
    let world = small_claim().await;
    world.driver.answer_expand([Growth::GrowAndFail(Status::unavailable("busy"))]);
    let process = world.resize(&Steps::new()).await;
    world.ask("data", "128Mi").await;
    eventually("it was called", async || !world.driver.expanded().is_empty()).await;
    world.ask("data", "96Mi").await;
    grown(&world, "128Mi").await;
    assert!(world.driver.expanded().iter().all(|size| *size == 128 * MI));
    process.kill().await;
}

#[tokio::test]
async fn what_the_node_has_to_finish_is_left_to_it() {
    for node_only in [false, true] {
        let world = small_claim().await;
        world.driver.need_node();
        if node_only {
            world.driver.only_node_expands();
        }
        let process = world.resize(&Steps::new()).await;
        world.ask("data", "128Mi").await;
        eventually("it is the node's turn", async || {
            let status = status(&world).await;
            stage(&status) == "NodeResizePending" && has_condition(&status, "FileSystemResizePending")
        })
        .await;
        assert_eq!(world.driver.expanded().len(), usize::from(!node_only));
        let volume = world.volumes().get("pv-data").await.unwrap();
        assert_eq!(volume::capacity(&volume).unwrap().0, "128Mi");
        assert_eq!(volume.annotations()[annotations::PRE_RESIZE_CAPACITY], "64Mi");
        eventually("the event is written", async || {
            world.events("FileSystemResizeRequired").await == ["Require file system resize of volume on node"]
        })
        .await;
        let done = json!({"status": {"capacity": {"storage": "128Mi"}, "allocatedResourceStatuses": null,
                                     "conditions": null}});
        world.claims().patch_status("data", &PatchParams::default(), &Patch::Merge(done)).await.unwrap();
        eventually("the old size is forgotten", async || {
            let volume = world.volumes().get("pv-data").await.unwrap();
            !volume.annotations().contains_key(annotations::PRE_RESIZE_CAPACITY)
        })
        .await;
        process.kill().await;
    }
}

#[tokio::test]
async fn a_driver_that_expands_offline_waits_for_the_pod_to_end() {
    let world = small_claim().await;
    let pod: k8s_openapi::api::core::v1::Pod = world::object(json!({
        "metadata": {"name": "user"},
        "spec": {"nodeName": "n1", "containers": [{"name": "app", "image": "host"}],
                 "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]},
    }));
    let pods = kube::Api::default_namespaced(world.client.clone());
    pods.create(&PostParams::default(), &pod).await.unwrap();
    world.driver.answer_expand([Growth::Refuse(Status::failed_precondition("mounted"))]);
    let process = world.resize(&Steps::new()).await;
    world.ask("data", "128Mi").await;
    eventually("the reason is told", async || {
        let told = world.events("VolumeResizeFailed").await;
        told.iter().any(|message| message.contains("only supports offline expansion"))
    })
    .await;
    assert_eq!(world.driver.expanded().len(), 1);
    let ended = json!({"status": {"phase": "Succeeded"}});
    pods.patch_status("user", &PatchParams::default(), &Patch::Merge(ended)).await.unwrap();
    grown(&world, "128Mi").await;
    process.kill().await;
}

#[tokio::test]
async fn volumes_of_other_nodes_are_left_alone_and_shared_ones_have_one_owner() {
    let world = World::new(2).await;
    world.class("fast", |_| {}).await;
    world.bound_pair("elsewhere", "fast", Some("n2"), "64Mi").await;
    for number in 0..8 {
        world.bound_pair(&format!("shared-{number}"), "fast", None, "64Mi").await;
    }
    let csi_nodes = kube::Api::all(world.client.clone());
    for node in ["n1", "n2"] {
        let csi_node: k8s_openapi::api::storage::v1::CSINode = world::object(json!({
            "metadata": {"name": node}, "spec": {"drivers": [{"name": DRIVER, "nodeID": node}]},
        }));
        csi_nodes.create(&PostParams::default(), &csi_node).await.unwrap();
    }
    let mut processes: Vec<Process> = Vec::new();
    let drivers = ["n1", "n2"].map(world::FakeDriver::new);
    let mut guards = Vec::new();
    for (node, driver) in ["n1", "n2"].into_iter().zip(&drivers) {
        let socket = world.socket(&format!("{node}.sock"));
        guards.push(driver.serve(&socket, &Steps::new()));
        let driver = sidecars::Driver::connect(&socket).await.unwrap();
        let context = world.context(&Steps::new());
        let shutdown = context.shutdown.clone();
        let task = tokio::spawn(async move {
            sidecars::resize::run(context, driver, node, sidecars::capacity::Signal::new()).await;
        });
        processes.push(Process::new(shutdown, task));
    }
    world.ask("elsewhere", "128Mi").await;
    for number in 0..8 {
        world.ask(&format!("shared-{number}"), "128Mi").await;
    }
    eventually("all have grown", async || {
        let claims = world.claims().list(&Default::default()).await.unwrap();
        claims.iter().all(|claim| {
            claim.status.as_ref().and_then(|status| status.capacity.as_ref()).unwrap()["storage"].0 == "128Mi"
        })
    })
    .await;
    let counts = drivers.each_ref().map(|driver| driver.expanded().len());
    assert_eq!(counts[0] + counts[1], 9, "{counts:?}");
    assert!(!drivers[0].volumes().contains_key("pv-elsewhere"));
    for process in processes {
        process.kill().await;
    }
}

#[tokio::test]
async fn growth_that_the_class_does_not_allow_and_shrinking_are_refused() {
    let world = World::new(1).await;
    world.class("fixed", |class| class["allowVolumeExpansion"] = json!(false)).await;
    world.class("fast", |_| {}).await;
    world.bound_pair("data", "fast", Some("n1"), "64Mi").await;
    world.bound_pair("fixed", "fixed", Some("n1"), "64Mi").await;
    world.claim("pending", "fast", None, "64Mi").await;
    for (claim, size, expected) in [
        ("fixed", "128Mi", "the storageclass that provisions the pvc must support resize"),
        ("data", "32Mi", "field can not be less than status.capacity"),
        ("pending", "128Mi", "spec is immutable after creation"),
    ] {
        let change = json!({"spec": {"resources": {"requests": {"storage": size}}}});
        let refused = world.claims().patch(claim, &PatchParams::default(), &Patch::Merge(&change)).await;
        let message = refused.unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
}
