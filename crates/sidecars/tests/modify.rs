//! Volumes that change with their claims' VolumeAttributesClasses, against a real API server and a driver with faults.

#![allow(clippy::unwrap_used, reason = "a test says by its panic what went wrong")]

mod world;

use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tonic::Status;
use world::driver::Growth;
use world::steps::When;
use world::{DRIVER, Steps, World, eventually};

async fn bound_claim() -> World {
    let world = World::new(1).await;
    world.class("fast", |_| {}).await;
    world.bound_pair("data", "fast", Some("n1"), "64Mi").await;
    for name in ["silver", "gold"] {
        world.attributes_class(name, DRIVER).await;
    }
    world
}

async fn ask(world: &World, class: &str) {
    let change = Patch::Merge(json!({"spec": {"volumeAttributesClassName": class}}));
    world.claims().patch("data", &PatchParams::default(), &change).await.unwrap();
}

async fn status(world: &World) -> Value {
    serde_json::to_value(world.claims().get("data").await.unwrap().status.unwrap()).unwrap()
}

/// Waits until the volume is of the class and nothing is left of the change.
async fn has(world: &World, class: &str) {
    eventually(&format!("the claim has {class}"), async || {
        let status = status(world).await;
        status["currentVolumeAttributesClassName"] == class
            && status["modifyVolumeStatus"].is_null()
            && status["conditions"].is_null()
    })
    .await;
    let volume = world.volumes().get("pv-data").await.unwrap();
    assert_eq!(volume.spec.unwrap().volume_attributes_class_name.as_deref(), Some(class));
    assert_eq!(world.driver.modified().last().unwrap().mutable_parameters["tier"], class);
}

/// Waits until the change to the class stands like this, with the message.
async fn stands(world: &World, stage: &str, class: &str, message: &str) {
    eventually(&format!("{class} is {stage}"), async || {
        let status = status(world).await;
        let told = world.events("VolumeModifyFailed").await;
        status["modifyVolumeStatus"] == json!({"status": stage, "targetVolumeAttributesClassName": class})
            && status["conditions"].to_string().contains(message)
            && told.iter().any(|one| one.contains(message))
    })
    .await;
}

#[tokio::test]
async fn a_volume_changes_with_three_writes() {
    let world = bound_claim().await;
    let process = world.modify(&Steps::new()).await;
    ask(&world, "silver").await;
    has(&world, "silver").await;
    assert_eq!(world.driver.modified().len(), 1);
    assert_eq!(world.driver.modified()[0].volume_id, "id-pv-data");
    assert_eq!(world.writes(), 3, "intent, volume, claim");
    eventually("events are written", async || {
        world.events("VolumeModify").await == ["external resizer is modifying volume data with vac silver"]
            && world.events("VolumeModifySuccessful").await
                == ["external resizer modified volume data with vac silver successfully"]
    })
    .await;
    process.kill().await;
}

/// Kills the process at every step in turn, before and after the step's effect, and starts another one; in the second
/// round another class is asked for while nobody is there.
#[tokio::test]
async fn a_crash_at_any_step_is_made_good() {
    for other in [None, Some("gold")] {
        for when in [When::Before, When::After] {
            let mut step = 0;
            while change_with_a_crash(step, when, other).await {
                step += 1;
            }
            assert_eq!(step, 4, "intent, call, volume, claim");
        }
    }
}

async fn change_with_a_crash(step: usize, when: When, other: Option<&str>) -> bool {
    let world = bound_claim().await;
    let steps = Steps::crashing_at(step, when);
    let process = world.modify(&steps).await;
    ask(&world, "silver").await;
    let crashed = tokio::select! {
        () = has(&world, "silver") => step == 3 && when == When::After,
        () = steps.crashed() => true,
    };
    process.kill().await;
    if crashed {
        if let Some(other) = other {
            ask(&world, other).await;
        }
        let process = world.modify(&Steps::new()).await;
        has(&world, other.unwrap_or("silver")).await;
        process.kill().await;
    }
    crashed
}

#[tokio::test]
async fn what_can_t_be_had_is_told_and_another_class_tried() {
    let world = bound_claim().await;
    world.attributes_class("foreign", "other.example.com").await;
    world.driver.answer_modify([Growth::Refuse(Status::invalid_argument("no io controller"))]);
    let process = world.modify(&Steps::new()).await;
    ask(&world, "gold").await;
    stands(&world, "Infeasible", "gold", "no io controller").await;
    ask(&world, "silver").await;
    has(&world, "silver").await;
    ask(&world, "foreign").await;
    stands(&world, "Infeasible", "foreign", "is for the driver other.example.com").await;
    ask(&world, "late").await;
    stands(&world, "Pending", "late", "VAC late does not exist.").await;
    world.attributes_class("late", DRIVER).await;
    has(&world, "late").await;
    ask(&world, "missing").await;
    stands(&world, "Pending", "missing", "does not exist").await;
    ask(&world, "late").await;
    has(&world, "late").await;
    let asked: Vec<String> =
        world.driver.modified().iter().map(|one| one.mutable_parameters["tier"].clone()).collect();
    assert_eq!(asked, ["gold", "silver", "late"]);
    process.kill().await;
}

#[tokio::test]
async fn an_open_answer_is_followed_up_before_another_class_is_tried() {
    let world = bound_claim().await;
    world.driver.answer_modify([Growth::GrowAndFail(Status::unavailable("busy"))]);
    let process = world.modify(&Steps::new()).await;
    ask(&world, "silver").await;
    eventually("it was called", async || !world.driver.modified().is_empty()).await;
    ask(&world, "gold").await;
    has(&world, "gold").await;
    let asked: Vec<String> =
        world.driver.modified().iter().map(|one| one.mutable_parameters["tier"].clone()).collect();
    assert_eq!(asked, ["silver", "silver", "gold"]);
    process.kill().await;
}

#[tokio::test]
async fn a_new_volume_is_made_as_its_class_says() {
    let world = World::new(1).await;
    world.class("fast", |_| {}).await;
    let process = world.provision(&Steps::new()).await;
    let mut claim = serde_json::to_value(world.claim("plain", "fast", Some("n1"), "64Mi").await).unwrap();
    claim["metadata"] = json!({"name": "data", "annotations": claim["metadata"]["annotations"]});
    claim["spec"]["volumeAttributesClassName"] = json!("silver");
    claim.as_object_mut().unwrap().remove("status");
    world.claims().create(&PostParams::default(), &world::object(claim)).await.unwrap();
    eventually("the missing class is told", async || {
        let told = world.events("ProvisioningFailed").await;
        told.iter()
            .any(|one| one.contains("VolumeAttributesClass \"silver\" can't be used: it does not exist"))
    })
    .await;
    world.attributes_class("silver", DRIVER).await;
    world.bound("data").await;
    let volumes = world.volume_list().await;
    let of = |class: Option<&str>| {
        let named = |spec: &k8s_openapi::api::core::v1::PersistentVolumeSpec| {
            spec.volume_attributes_class_name.as_deref() == class
        };
        volumes.iter().filter(|volume| volume.spec.as_ref().is_some_and(named)).count()
    };
    assert_eq!((of(Some("silver")), of(None)), (1, 1));
    let asked: Vec<usize> =
        world.driver.requests().iter().map(|request| request.mutable_parameters.len()).collect();
    assert_eq!(asked, [0, 1]);
    process.kill().await;
}
