//! The attach-detach controller against an API server, with the attacher and the nodes played by the tests.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod support;

use controllers::attach_detach;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Event, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams};
use resources::{annotations, attachment, node};
use runtime::{Context, Metrics};
use serde_json::{Value, json};
use support::{Fault, Resource, World, claim, eventually, pod, volume};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const DRIVER: &str = "driver.example.com";

/// The controller as a process that is started again whenever the test ends it.
fn start(world: &World) -> JoinHandle<()> {
    let (client, cut) = (world.context.client.clone(), world.cut.clone());
    tokio::spawn(async move {
        loop {
            let shutdown = CancellationToken::new();
            let context = Context::new(client.clone(), Metrics::new(), shutdown.clone());
            tokio::select! {
                () = attach_detach::run(context) => {}
                () = cut.notified() => {}
            }
            shutdown.cancel();
        }
    })
}

fn ready(name: &str, status: &str) -> Value {
    json!({
        "metadata": {"name": name, "annotations": {annotations::CONTROLLER_MANAGED_ATTACH: "true"}},
        "status": {"conditions": [{"type": "Ready", "status": status}]},
    })
}

async fn patch_status<K>(world: &World, name: &str, status: Value)
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned + Resource,
{
    let patch = Patch::Merge(json!({"status": status}));
    world.api::<K>().patch_status(name, &PatchParams::default(), &patch).await.unwrap();
}

/// A claim with a volume of its name, bound to each other.
async fn bound(world: &World, name: &str) {
    let claim: PersistentVolumeClaim = world.create(claim(name, "1Gi", Some(""))).await;
    let mut volume = volume(name, "1Gi", "");
    volume["spec"]["claimRef"] = json!({"namespace": "default", "name": name, "uid": claim.metadata.uid});
    world.create::<PersistentVolume>(volume).await;
    let named = Patch::Merge(json!({"spec": {"volumeName": name}}));
    world.api::<PersistentVolumeClaim>().patch(name, &PatchParams::default(), &named).await.unwrap();
    patch_status::<PersistentVolumeClaim>(world, name, json!({"phase": "Bound"})).await;
}

async fn pod_on(world: &World, name: &str, node: &str, claim: &str) -> Pod {
    let mut pod = pod(name, &[claim]);
    pod["spec"]["nodeName"] = node.into();
    world.create(pod).await
}

/// Deletes a pod as its node does at the end.
async fn remove_pod(world: &World, name: &str) {
    world.api::<Pod>().delete(name, &DeleteParams::default().grace_period(0)).await.unwrap();
}

fn name_of(volume: &str, node: &str) -> String {
    attachment::name(volume, DRIVER, node)
}

async fn wanted(world: &World, volume: &str, node: &str) -> VolumeAttachment {
    let name = name_of(volume, node);
    eventually(&format!("{volume} is wanted on {node}"), || world.get::<VolumeAttachment>(&name)).await
}

/// Does what the attacher does.
async fn attach(world: &World, volume: &str, node: &str) {
    wanted(world, volume, node).await;
    patch_status::<VolumeAttachment>(world, &name_of(volume, node), json!({"attached": true})).await;
}

async fn no_more_wanted(world: &World, volume: &str, node: &str) {
    world.gone::<VolumeAttachment>(&name_of(volume, node)).await;
}

async fn uses(world: &World, node: &str, volumes: &[&str]) {
    let names: Vec<_> = volumes.iter().map(|volume| attachment::status_name(DRIVER, volume)).collect();
    patch_status::<Node>(world, node, json!({"volumesInUse": names})).await;
}

async fn reported(world: &World, node: &str, volumes: &[&str]) {
    let names: Vec<_> = volumes.iter().map(|volume| attachment::status_name(DRIVER, volume)).collect();
    eventually(&format!("{node} is told of {volumes:?}"), || async {
        let node = world.get::<Node>(node).await.unwrap();
        (node::volumes_attached(&node).collect::<Vec<_>>() == names).then_some(())
    })
    .await;
}

async fn told(world: &World, pod: &str, reason: &str, text: &str) {
    eventually(&format!("{pod} is told {text:?}"), || async {
        let events = world.list::<Event>().await;
        let found = events.iter().any(|event| {
            event.involved_object.name.as_deref() == Some(pod)
                && event.reason.as_deref() == Some(reason)
                && event.message.as_deref().is_some_and(|message| message.contains(text))
        });
        found.then_some(())
    })
    .await;
}

/// A pod moves from one node to another, before the first has unmounted its volume.
async fn a_move(world: &World) {
    for name in ["n1", "n2"] {
        world.create::<Node>(ready(name, "True")).await;
    }
    bound(world, "data").await;
    pod_on(world, "first", "n1", "data").await;
    attach(world, "data", "n1").await;
    reported(world, "n1", &["data"]).await;
    uses(world, "n1", &["data"]).await;

    pod_on(world, "second", "n2", "data").await;
    told(world, "second", "FailedAttachVolume", "Volume is already used by pod(s) first").await;
    remove_pod(world, "first").await;
    told(world, "second", "FailedAttachVolume", "already exclusively attached to one node").await;
    assert!(world.get::<VolumeAttachment>(&name_of("data", "n1")).await.is_some(), "n1 has it mounted");
    assert!(world.get::<VolumeAttachment>(&name_of("data", "n2")).await.is_none());
    reported(world, "n1", &["data"]).await;

    uses(world, "n1", &[]).await;
    no_more_wanted(world, "data", "n1").await;
    reported(world, "n1", &[]).await;
    attach(world, "data", "n2").await;
    reported(world, "n2", &["data"]).await;
    remove_pod(world, "second").await;
    no_more_wanted(world, "data", "n2").await;
    reported(world, "n2", &[]).await;
}

#[tokio::test]
async fn a_volume_moves_with_its_pod_and_every_write_may_fail_or_be_the_last() {
    let world = World::start().await;
    let running = start(&world);
    a_move(&world).await;
    for pod in ["first", "second"] {
        told(&world, pod, "SuccessfulAttachVolume", "AttachVolume.Attach succeeded for volume \"data\" ")
            .await;
    }
    let writes = world.writes();
    assert_eq!(writes, 8, "make, report, report and delete; twice");
    running.abort();
    for fault in [Fault::Conflict, Fault::Refused, Fault::AnswerLost, Fault::CutBefore, Fault::CutAfter] {
        for number in 0..writes {
            println!("write {number}: {fault:?}");
            let world = World::with_fault(Some((number, fault))).await;
            let running = start(&world);
            a_move(&world).await;
            running.abort();
            assert!(world.writes() <= writes + 3, "{} writes", world.writes());
        }
    }
}

#[tokio::test]
async fn failures_of_the_attacher_reach_the_pod() {
    let world = World::start().await;
    let _running = start(&world);
    world.create::<Node>(ready("n1", "True")).await;
    bound(&world, "data").await;
    pod_on(&world, "user", "n1", "data").await;
    wanted(&world, "data", "n1").await;
    let error = json!({"attachError": {"time": "2026-01-01T00:00:00Z", "message": "no slot left"}});
    patch_status::<VolumeAttachment>(&world, &name_of("data", "n1"), error).await;
    told(
        &world,
        "user",
        "FailedAttachVolume",
        "AttachVolume.Attach failed for volume \"data\" : no slot left",
    )
    .await;
    assert_eq!(world.writes(), 1, "nothing is written for what others try again");
    // Somebody deletes the attachment: it is made again.
    world.delete::<VolumeAttachment>(&name_of("data", "n1")).await;
    attach(&world, "data", "n1").await;
    told(&world, "user", "SuccessfulAttachVolume", "data").await;
}

#[tokio::test]
async fn what_needs_no_attaching_or_is_not_ours_costs_nothing() {
    let world = World::start().await;
    let _running = start(&world);
    let driver = json!({"metadata": {"name": DRIVER}, "spec": {"attachRequired": false}});
    world.create::<CSIDriver>(driver).await;
    world.create::<Node>(ready("n1", "True")).await;
    let mut unmanaged = ready("n2", "True");
    unmanaged["metadata"]["annotations"] = json!({});
    world.create::<Node>(unmanaged).await;
    for name in ["a", "b"] {
        bound(&world, name).await;
    }
    pod_on(&world, "here", "n1", "a").await;
    pod_on(&world, "there", "n2", "b").await;
    // The driver is made anew and needs attaching now; for one node that is somebody else's business.
    world.delete::<CSIDriver>(DRIVER).await;
    wanted(&world, "a", "n1").await;
    assert_eq!(world.writes(), 1);
    assert_eq!(world.list::<VolumeAttachment>().await.len(), 1);
}

/// An attachment of a volume to a node, made before the controller starts, with the time since when nobody wanted it.
async fn left_over(world: &World, volume: &str, node: &str, unwanted: Option<Timestamp>) {
    let mut left = json!({
        "metadata": {"name": name_of(volume, node), "annotations": {}},
        "spec": {"attacher": DRIVER, "nodeName": node, "source": {"persistentVolumeName": volume}},
    });
    if let Some(since) = unwanted {
        left["metadata"]["annotations"][annotations::DETACH_WANTED] = since.to_string().into();
    }
    world.create::<VolumeAttachment>(left).await;
    patch_status::<VolumeAttachment>(world, &name_of(volume, node), json!({"attached": true})).await;
}

#[tokio::test]
async fn a_restart_finds_what_is_to_be_taken_back() {
    let world = World::start().await;
    world.create::<Node>(ready("n1", "True")).await;
    bound(&world, "idle").await;
    bound(&world, "used").await;
    pod_on(&world, "user", "n1", "used").await;
    left_over(&world, "idle", "n1", None).await;
    left_over(&world, "used", "n1", None).await;
    left_over(&world, "volume-is-gone", "n1", None).await;
    let by_hand = json!({"metadata": {"name": "by-hand"}, "spec": {
        "attacher": DRIVER, "nodeName": "n1", "source": {"persistentVolumeName": "idle"}}});
    world.create::<VolumeAttachment>(by_hand).await;
    let _running = start(&world);
    no_more_wanted(&world, "idle", "n1").await;
    no_more_wanted(&world, "volume-is-gone", "n1").await;
    reported(&world, "n1", &["used"]).await;
    assert_eq!(world.list::<VolumeAttachment>().await.len(), 2, "one by hand, one in use");
    let told = world.list::<Event>().await;
    assert!(told.is_empty(), "the pod was told before the restart: {told:?}");
}

#[tokio::test]
async fn a_node_that_does_not_answer_is_waited_for_and_the_wait_is_shown() {
    let world = World::start().await;
    world.create::<Node>(ready("n1", "Unknown")).await;
    world.create::<Node>(ready("n2", "True")).await;
    bound(&world, "data").await;
    bound(&world, "fresh").await;
    uses(&world, "n1", &["data", "fresh"]).await;
    // Nearly six minutes ago, before the controller was started again.
    let since = clock::now() - SignedDuration::from_secs(360 - 3);
    left_over(&world, "data", "n1", Some(since)).await;
    left_over(&world, "fresh", "n1", None).await;
    pod_on(&world, "waiting", "n2", "data").await;
    let _running = start(&world);
    told(&world, "waiting", "FailedAttachVolume", "node n1 does not answer").await;
    told(&world, "waiting", "FailedAttachVolume", "it is detached by force in 0m0").await;
    no_more_wanted(&world, "data", "n1").await;
    assert!(clock::now() >= since + SignedDuration::from_secs(360));
    wanted(&world, "data", "n2").await;

    // The wait for the other has begun, and is written down for the next start.
    let marked = wanted(&world, "fresh", "n1").await;
    let mark: Timestamp = marked.annotations()[annotations::DETACH_WANTED].parse().unwrap();
    assert!(clock::now().duration_since(mark) < SignedDuration::from_secs(60));
    // A pod that comes back ends it.
    pod_on(&world, "back", "n1", "fresh").await;
    eventually("the mark is gone", || async {
        let one = world.get::<VolumeAttachment>(&name_of("fresh", "n1")).await.unwrap();
        (!one.annotations().contains_key(annotations::DETACH_WANTED)).then_some(())
    })
    .await;
    // Out of service: nobody waits.
    remove_pod(&world, "back").await;
    let taint =
        json!({"spec": {"taints": [{"key": node::OUT_OF_SERVICE, "value": "off", "effect": "NoExecute"}]}});
    world.api::<Node>().patch("n1", &PatchParams::default(), &Patch::Merge(taint)).await.unwrap();
    no_more_wanted(&world, "fresh", "n1").await;
}

#[tokio::test]
async fn volumes_of_a_deleted_node_are_taken_back() {
    let world = World::start().await;
    let _running = start(&world);
    for name in ["n1", "n2"] {
        world.create::<Node>(ready(name, "True")).await;
    }
    for name in ["idle", "mounted"] {
        bound(&world, name).await;
        pod_on(&world, &format!("{name}-user"), "n1", name).await;
        attach(&world, name, "n1").await;
    }
    reported(&world, "n1", &["idle", "mounted"]).await;
    uses(&world, "n1", &["mounted"]).await;
    pod_on(&world, "waiting", "n2", "mounted").await;
    world.delete::<Node>("n1").await;
    remove_pod(&world, "idle-user").await;
    remove_pod(&world, "mounted-user").await;
    no_more_wanted(&world, "idle", "n1").await;
    told(&world, "waiting", "FailedAttachVolume", "detached by force in").await;
    eventually("the wait is written down", || async {
        let marked = wanted(&world, "mounted", "n1").await;
        marked.annotations().contains_key(annotations::DETACH_WANTED).then_some(())
    })
    .await;
}

#[tokio::test]
async fn many_pods_cost_two_writes_each() {
    const COUNT: usize = 100;
    let world = World::start().await;
    world.create::<Node>(ready("n1", "True")).await;
    for number in 0..COUNT {
        bound(&world, &format!("v{number}")).await;
        pod_on(&world, &format!("p{number}"), "n1", &format!("v{number}")).await;
    }
    let _running = start(&world);
    for number in 0..COUNT {
        attach(&world, &format!("v{number}"), "n1").await;
    }
    eventually("all are reported", || async {
        let node = world.get::<Node>("n1").await.unwrap();
        (node::volumes_attached(&node).count() == COUNT).then_some(())
    })
    .await;
    assert!(world.writes() <= 2 * COUNT, "{} writes", world.writes());
}
