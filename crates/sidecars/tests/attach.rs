//! Volumes that are attached to nodes, against a real API server and a driver with faults.

#![allow(clippy::unwrap_used, reason = "a test says by its panic what went wrong")]

mod world;

use k8s_openapi::api::storage::v1::{CSINode, VolumeAttachment};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use resources::{annotations, attachment, finalizers};
use serde_json::json;
use tonic::Status;
use world::driver::Publishing;
use world::steps::When;
use world::{DRIVER, Steps, World, eventually, object};

fn attachments(world: &World) -> Api<VolumeAttachment> {
    Api::all(world.client.clone())
}

/// A node `n1` with the driver, and a bound volume `pv-data`.
async fn volume_world() -> World {
    let world = World::new(2).await;
    world.class("fast", |_| {}).await;
    world.bound_pair("data", "fast", None, "64Mi").await;
    register(&world, "n1").await;
    world
}

async fn register(world: &World, node: &str) {
    let csi_node: CSINode = object(json!({"metadata": {"name": node},
        "spec": {"drivers": [{"name": DRIVER, "nodeID": format!("id-of-{node}")}]}}));
    Api::all(world.client.clone()).create(&PostParams::default(), &csi_node).await.unwrap();
}

/// What the attach-detach controller makes.
async fn want(world: &World, volume: &str, node: &str) -> String {
    let name = attachment::name(volume, DRIVER, node);
    let wanted: VolumeAttachment = object(json!({"metadata": {"name": name}, "spec": {
        "attacher": DRIVER, "nodeName": node, "source": {"persistentVolumeName": volume}}}));
    attachments(world).create(&PostParams::default(), &wanted).await.unwrap();
    name
}

async fn attached(world: &World, name: &str) -> VolumeAttachment {
    let api = attachments(world);
    eventually("it is attached", async || attachment::is_attached(&api.get(name).await.unwrap())).await;
    api.get(name).await.unwrap()
}

async fn give_up(world: &World, name: &str) {
    attachments(world).delete(name, &DeleteParams::default()).await.unwrap();
}

async fn gone(world: &World, name: &str) {
    eventually("it is gone", async || attachments(world).get_opt(name).await.unwrap().is_none()).await;
}

/// The message of an error in the status.
async fn failed(world: &World, name: &str, field: &str, message: &str) {
    eventually(&format!("{field} says {message:?}"), async || {
        let one = serde_json::to_value(attachments(world).get(name).await.unwrap()).unwrap();
        one["status"][field]["message"].as_str().is_some_and(|told| told.contains(message))
    })
    .await;
}

fn on(node: &str) -> (String, String) {
    ("id-pv-data".to_owned(), format!("id-of-{node}"))
}

#[tokio::test]
async fn a_volume_is_attached_with_three_writes_and_detached_with_one() {
    let world = volume_world().await;
    let process = world.attach(&Steps::new()).await;
    let name = want(&world, "pv-data", "n1").await;
    let one = attached(&world, &name).await;
    assert_eq!(world.driver.published(), [on("n1")].into());
    assert_eq!(world.writes(), 3, "finalizer of the volume, intent, outcome");
    let finalizer = finalizers::attacher(DRIVER);
    assert_eq!(one.finalizers(), std::slice::from_ref(&finalizer));
    assert_eq!(one.annotations()[annotations::ATTACHMENT_NODE_ID], "id-of-n1");
    assert_eq!(one.status.unwrap().attachment_metadata.unwrap()["device"], "dev-id-pv-data");
    let volume = world.volumes().get("pv-data").await.unwrap();
    assert!(volume.finalizers().contains(&finalizer));

    // The object of an attached volume stays; its node's may go.
    world.volumes().delete("pv-data", &DeleteParams::default()).await.unwrap();
    let released = json!({"metadata": {"finalizers": [finalizer]}});
    world.volumes().patch("pv-data", &PatchParams::default(), &Patch::Merge(released)).await.unwrap();
    Api::<CSINode>::all(world.client.clone()).delete("n1", &DeleteParams::default()).await.unwrap();
    give_up(&world, &name).await;
    gone(&world, &name).await;
    assert!(world.driver.published().is_empty());
    eventually("the volume's object goes", async || {
        world.volumes().get_opt("pv-data").await.unwrap().is_none()
    })
    .await;
    assert_eq!(world.writes(), 5, "each finalizer");
    process.kill().await;
}

/// Kills the process at every step in turn, before and after the step's effect, and starts another one; in the second
/// round nobody wants the attachment any more when that one starts.
#[tokio::test]
async fn a_crash_at_any_step_is_made_good() {
    for changed in [false, true] {
        for when in [When::Before, When::After] {
            let mut step = 0;
            while attachment_with_a_crash(step, when, changed).await {
                step += 1;
            }
            assert_eq!(step, 6, "volume, intent, call, outcome; call, release");
        }
    }
}

async fn attachment_with_a_crash(step: usize, when: When, changed: bool) -> bool {
    let world = volume_world().await;
    let steps = Steps::crashing_at(step, when);
    let process = world.attach(&steps).await;
    let name = want(&world, "pv-data", "n1").await;
    let detaching = step > 3;
    let crashed = tokio::select! {
        _ = attached(&world, &name) => step == 3 && when == When::After,
        () = steps.crashed() => true,
    };
    let crashed = if detaching && !crashed {
        give_up(&world, &name).await;
        tokio::select! {
            () = gone(&world, &name) => step == 5 && when == When::After,
            () = steps.crashed() => true,
        }
    } else {
        crashed
    };
    process.kill().await;
    if crashed {
        let process = if changed && !detaching {
            give_up(&world, &name).await;
            world.attach(&Steps::new()).await
        } else {
            let process = world.attach(&Steps::new()).await;
            if !detaching {
                attached(&world, &name).await;
                assert_eq!(world.driver.published(), [on("n1")].into());
                give_up(&world, &name).await;
            }
            process
        };
        gone(&world, &name).await;
        assert!(world.driver.published().is_empty(), "step {step} {when:?}");
        process.kill().await;
    }
    crashed
}

#[tokio::test]
async fn failures_are_told_and_tried_again_without_haste() {
    let world = volume_world().await;
    world.driver.answer_publishing([
        Publishing::DoAndFail(Status::unavailable("busy")),
        Publishing::Refuse(Status::resource_exhausted("no slot left")),
    ]);
    let process = world.attach(&Steps::new()).await;
    let name = want(&world, "pv-data", "n1").await;
    failed(&world, &name, "attachError", "rpc error: code = Unavailable desc = busy").await;
    failed(&world, &name, "attachError", "no slot left").await;
    let one = serde_json::to_value(attachments(&world).get(&name).await.unwrap()).unwrap();
    assert_eq!(one["status"]["attachError"]["errorCode"], 8);
    // Three for the first attempt, and one for each further one.
    assert_eq!((world.driver.publish_calls().len(), world.writes()), (2, 4));
    let one = attached(&world, &name).await;
    assert_eq!(one.status.unwrap().attach_error, None);

    world.driver.answer_publishing([Publishing::Refuse(Status::not_found("no such volume"))]);
    give_up(&world, &name).await;
    failed(&world, &name, "detachError", "no such volume").await;
    assert_eq!(world.driver.published(), [on("n1")].into());
    gone(&world, &name).await;
    process.kill().await;
}

#[tokio::test]
async fn what_can_not_be_attached_calls_nobody() {
    let world = volume_world().await;
    let process = world.attach(&Steps::new()).await;
    let unknown = want(&world, "pv-none", "n1").await;
    failed(&world, &unknown, "attachError", "the PersistentVolume pv-none is not found").await;
    let unregistered = want(&world, "pv-data", "n2").await;
    failed(&world, &unregistered, "attachError", "the CSINode n2 does not name the driver").await;
    assert!(world.driver.publish_calls().is_empty());
    assert!(attachments(&world).get(&unregistered).await.unwrap().finalizers().is_empty());
    let kept = world.volumes().get("pv-data").await.unwrap();
    assert!(!kept.finalizers().contains(&finalizers::attacher(DRIVER)));
    // One attempt each, in less than the second before the next.
    assert!(world.writes() <= 4, "{} writes", world.writes());

    // What was missing comes.
    world.bound_pair("none", "fast", None, "64Mi").await;
    attached(&world, &unknown).await;
    give_up(&world, &unregistered).await;
    gone(&world, &unregistered).await;
    assert_eq!(world.driver.publish_calls(), ["publish id-pv-none id-of-n1"]);
    process.kill().await;
}

#[tokio::test]
async fn a_driver_that_attaches_nothing_is_not_called() {
    let world = volume_world().await;
    world.driver.attaches_nothing();
    let process = world.attach(&Steps::new()).await;
    let name = want(&world, "pv-data", "n1").await;
    let one = attached(&world, &name).await;
    assert!(one.finalizers().is_empty());
    give_up(&world, &name).await;
    gone(&world, &name).await;
    assert_eq!((world.driver.publish_calls().len(), world.writes()), (0, 1));
    process.kill().await;
}

#[tokio::test]
async fn a_read_only_volume_is_published_as_such() {
    let world = volume_world().await;
    let process = world.attach(&Steps::new()).await;
    let volume = json!({"metadata": {"name": "pv-read"}, "spec": {"capacity": {"storage": "1Mi"},
        "accessModes": ["ReadOnlyMany"], "csi": {"driver": DRIVER, "volumeHandle": "read", "readOnly": true,
            "controllerPublishSecretRef": {"name": "key", "namespace": "default"}}}});
    world.volumes().create(&PostParams::default(), &object(volume)).await.unwrap();
    let name = want(&world, "pv-read", "n1").await;
    failed(&world, &name, "attachError", "the secret default/key does not exist; create it").await;
    let secret: k8s_openapi::api::core::v1::Secret = object(json!({"metadata": {"name": "key"}}));
    Api::default_namespaced(world.client.clone()).create(&PostParams::default(), &secret).await.unwrap();
    attached(&world, &name).await;
    assert_eq!(world.driver.publish_calls(), ["publish read-only read id-of-n1"]);
    process.kill().await;
}

/// Lets a minute pass in no time.
async fn pass_a_minute() {
    tokio::time::pause();
    tokio::time::advance(std::time::Duration::from_secs(60)).await;
    tokio::time::resume();
}

#[tokio::test]
async fn a_volume_that_the_driver_has_lost_is_attached_again() {
    let world = volume_world().await;
    world.bound_pair("other", "fast", None, "64Mi").await;
    let process = world.attach(&Steps::new()).await;
    let name = want(&world, "pv-data", "n1").await;
    let other = want(&world, "pv-other", "n1").await;
    attached(&world, &name).await;
    attached(&world, &other).await;
    let before = world.writes();
    world.driver.lose_publications();
    pass_a_minute().await;
    eventually("both are published again", async || world.driver.published().len() == 2).await;
    let calls = world.driver.publish_calls().len();
    let listed = world.driver.listed();
    pass_a_minute().await;
    eventually("the driver is asked again", async || world.driver.listed() > listed).await;
    assert_eq!(world.driver.publish_calls().len(), calls, "what is listed is left alone");
    assert_eq!(world.writes(), before, "nothing to write");
    process.kill().await;
}

#[tokio::test]
async fn an_attachment_is_taken_care_of_on_one_node() {
    let world = volume_world().await;
    register(&world, "n2").await;
    let drivers = ["n1", "n2"].map(world::FakeDriver::new);
    let (mut guards, mut processes) = (Vec::new(), Vec::new());
    for (node, driver) in ["n1", "n2"].into_iter().zip(&drivers) {
        let socket = world.socket(&format!("{node}.sock"));
        guards.push(driver.serve(&socket, &Steps::new()));
        let driver = sidecars::Driver::connect(&socket).await.unwrap();
        let context = world.context(&Steps::new());
        let shutdown = context.shutdown.clone();
        let task = tokio::spawn(async move { sidecars::attach::run(context, driver, node).await });
        processes.push(world::Process::new(shutdown, task));
    }
    for node in ["n1", "n2"] {
        let name = want(&world, "pv-data", node).await;
        attached(&world, &name).await;
    }
    assert_eq!(drivers[0].published(), [on("n1")].into());
    assert_eq!(drivers[1].published(), [on("n2")].into());
    // A node without the driver: one of the others says so.
    let name = want(&world, "pv-data", "n3").await;
    failed(&world, &name, "attachError", "the CSINode n3 does not name the driver").await;
    for process in processes {
        process.kill().await;
    }
}
