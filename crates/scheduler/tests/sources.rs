//! Pods whose claims are to be filled from snapshots and other claims go where those are.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod driver;
#[path = "../../controllers/tests/support/mod.rs"]
mod support;

use controllers::Controller;
use driver::{CLASS, Driver, NAME};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use resources::{VolumeSnapshot, VolumeSnapshotContent, snapshot};
use serde_json::json;
use support::{World, claim, eventually, pod};

async fn refusal(world: &World, name: &str) -> String {
    eventually(&format!("pod {name} refused"), || async {
        let conditions = world.get::<Pod>(name).await?.status?.conditions?;
        conditions.into_iter().find(|one| one.type_ == "PodScheduled" && one.status == "False")?.message
    })
    .await
}

#[tokio::test]
async fn volumes_are_made_where_their_sources_are() {
    let world = World::start().await;
    let definitions: Api<CustomResourceDefinition> = Api::all(world.client.clone());
    for definition in snapshot::definitions() {
        definitions.create(&PostParams::default(), &definition).await.unwrap();
    }
    // The node of the sources has the least free storage.
    let driver = Driver::install(&world, &[("a", &[900]), ("b", &[100]), ("c", &[900])]).await;
    tokio::spawn(controllers::run(world.context.clone(), &[Controller::Bind]));
    tokio::spawn(scheduler::run(world.context.clone()));
    tokio::spawn(driver.clone().run(world.context.clone()));

    let from = |name: &str, size: &str, source: serde_json::Value| {
        let mut claim = claim(name, size, Some(CLASS));
        claim["spec"]["dataSource"] = source;
        claim
    };
    let of_snapshot = json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "s"});
    world.create::<PersistentVolumeClaim>(from("restored", "10Mi", of_snapshot.clone())).await;
    world.create::<Pod>(pod("restorer", &["restored"])).await;
    let message = refusal(&world, "restorer").await;
    assert!(
        message.contains("waits for its data source VolumeSnapshot default/s, which does not exist"),
        "{message}"
    );
    let clone = json!({"kind": "PersistentVolumeClaim", "name": "restored"});
    world.create::<PersistentVolumeClaim>(from("clone", "10Mi", clone)).await;
    world.create::<Pod>(pod("cloner", &["clone"])).await;
    assert!(refusal(&world, "cloner").await.contains("which has no volume yet"));

    let snapshots: Api<VolumeSnapshot> = Api::default_namespaced(world.client.clone());
    let taken: VolumeSnapshot = serde_json::from_value(json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot", "metadata": {"name": "s"},
        "spec": {"source": {"persistentVolumeClaimName": "old"}},
    }))
    .unwrap();
    let taken = snapshots.create(&PostParams::default(), &taken).await.unwrap();
    let contents: Api<VolumeSnapshotContent> = Api::all(world.client.clone());
    let content: VolumeSnapshotContent = serde_json::from_value(json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotContent",
        "metadata": {"name": "c", "labels": {"snapshot.storage.kubernetes.io/managed-by": "b"}},
        "spec": {"driver": NAME, "deletionPolicy": "Delete", "source": {"volumeHandle": "old"},
                 "volumeSnapshotRef": {"name": "s", "namespace": "default", "uid": taken.metadata.uid}},
    }))
    .unwrap();
    contents.create(&PostParams::default(), &content).await.unwrap();
    let ready = json!({"status": {"boundVolumeSnapshotContentName": "c", "readyToUse": true}});
    snapshots.patch_status("s", &PatchParams::default(), &Patch::Merge(&ready)).await.unwrap();

    assert_eq!(world.pod_on("restorer").await, "b");
    assert_eq!(world.pod_on("cloner").await, "b");
    // The source is where there is not enough room: it is not made elsewhere.
    world.create::<PersistentVolumeClaim>(from("large", "500Mi", of_snapshot)).await;
    world.create::<Pod>(pod("greedy", &["large"])).await;
    let message = refusal(&world, "greedy").await;
    assert!(message.contains("2 node(s) didn't have the data source of a claim"), "{message}");
    assert!(message.contains("1 node(s) did not have enough free storage"), "{message}");
}
