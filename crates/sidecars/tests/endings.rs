//! How everything ends when what it was made with is gone: secrets, classes; and storage that several objects name.

#![allow(clippy::unwrap_used, reason = "a test says by its panic what went wrong")]

mod world;

use k8s_openapi::api::core::v1::{PersistentVolume, Secret};
use k8s_openapi::api::storage::v1::{CSINode, StorageClass, VolumeAttachment};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use resources::{VolumeSnapshotContent, annotations};
use serde_json::json;
use tonic::Status;
use world::driver::Answer;
use world::{DRIVER, Steps, World, eventually, has_intent, object};

/// A class whose calls to provision take a secret.
async fn class_with_secret(world: &World) {
    let parameters = json!({
        "csi.storage.k8s.io/provisioner-secret-name": "key",
        "csi.storage.k8s.io/provisioner-secret-namespace": "default",
    });
    world.class("fast", |class| class["parameters"] = parameters).await;
}

fn secrets(world: &World) -> Api<Secret> {
    Api::default_namespaced(world.client.clone())
}

async fn make_secret(world: &World) {
    let secret: Secret = object(json!({"metadata": {"name": "key"}, "stringData": {"password": "hush"}}));
    secrets(world).create(&PostParams::default(), &secret).await.unwrap();
}

async fn delete_secret(world: &World) {
    secrets(world).delete("key", &DeleteParams::default()).await.unwrap();
}

async fn delete_class(world: &World) {
    let classes: Api<StorageClass> = Api::all(world.client.clone());
    classes.delete("fast", &DeleteParams::default()).await.unwrap();
}

async fn told(world: &World, reason: &str, words: &str) {
    eventually(&format!("told: {words}"), async || {
        world.events(reason).await.iter().any(|message| message.contains(words))
    })
    .await;
}

#[tokio::test]
async fn a_claim_for_which_nothing_was_asked_goes_at_once() {
    for class_goes in [false, true] {
        let world = World::new(1).await;
        class_with_secret(&world).await;
        let process = world.provision(&Steps::new()).await;
        world.claim("data", "fast", Some("n1"), "1Gi").await;
        told(&world, "ProvisioningFailed", "the secret default/key does not exist").await;
        assert!(!has_intent(&world.claims().get("data").await.unwrap()), "the driver was not asked");
        if class_goes {
            delete_class(&world).await;
        }
        world.delete_claim("data").await;
        world.empty().await;
        assert!(world.driver.requests().is_empty());
        process.kill().await;
    }
}

#[tokio::test]
async fn a_volume_whose_secret_is_gone_is_deleted_without_it() {
    let world = World::new(1).await;
    class_with_secret(&world).await;
    make_secret(&world).await;
    let process = world.provision(&Steps::new()).await;
    world.claim("data", "fast", Some("n1"), "1Gi").await;
    world.bound("data").await;
    assert_eq!(world.driver.requests()[0].secrets["password"], "hush");
    delete_secret(&world).await;
    world.delete_claim("data").await;
    world.empty().await;
    process.kill().await;
}

#[tokio::test]
async fn an_open_matter_ends_without_its_secret_and_class() {
    for (at_last, left) in [(None, ""), (Some(Status::unauthenticated("no password")), "no password")] {
        let world = World::new(1).await;
        class_with_secret(&world).await;
        make_secret(&world).await;
        let open = |_| Answer::MakeAndFail(Status::unavailable("busy"));
        world.driver.answer_create((0..1).map(open));
        world.driver.answer_create(at_last.clone().map(Answer::Refuse));
        let process = world.provision(&Steps::new()).await;
        world.claim("data", "fast", Some("n1"), "1Gi").await;
        eventually("the volume is made", async || world.driver.volumes().len() == 1).await;
        process.kill().await;
        delete_secret(&world).await;
        delete_class(&world).await;
        world.delete_claim("data").await;
        let process = world.provision(&Steps::new()).await;
        eventually("the claim is gone", async || {
            world.bind().await;
            world.claims().get_opt("data").await.unwrap().is_none()
        })
        .await;
        match at_last {
            None => {
                assert!(world.driver.volumes().is_empty(), "found by the class that was noted, and deleted")
            }
            Some(_) => {
                told(&world, "ProvisioningFailed", left).await;
                told(&world, "ProvisioningFailed", "look for that volume by hand").await;
            }
        }
        process.kill().await;
    }
}

#[tokio::test]
async fn storage_that_another_volume_names_is_not_deleted() {
    let world = World::new(1).await;
    world.class("fast", |_| {}).await;
    let process = world.provision(&Steps::new()).await;
    world.claim("data", "fast", Some("n1"), "1Gi").await;
    world.bound("data").await;
    let real = world.volume_list().await.remove(0);
    let mut twin: PersistentVolume = real.clone();
    twin.metadata = object(json!({"name": "by-hand",
        "annotations": {annotations::PROVISIONED_BY: DRIVER}}));
    twin.status = None;
    let claim_ref = twin.spec.as_mut().unwrap().claim_ref.as_mut().unwrap();
    (claim_ref.name, claim_ref.uid) = (Some("never".to_owned()), Some("none".to_owned()));
    world.volumes().create(&PostParams::default(), &twin).await.unwrap();
    eventually("the twin goes alone", async || {
        world.bind().await;
        world.volumes().get_opt("by-hand").await.unwrap().is_none()
    })
    .await;
    assert_eq!(world.driver.volumes().len(), 1);
    told(&world, "VolumeShared", &format!("the PersistentVolume {} names the same volume", real.name_any()))
        .await;

    // Of two that both go, one deletes what is stored.
    world.volumes().create(&PostParams::default(), &twin).await.unwrap();
    world.delete_claim("data").await;
    world.empty().await;
    process.kill().await;
}

/// A content for a snapshot that exists, with a handle.
async fn content(world: &World, name: &str, handle: &str) {
    let content: VolumeSnapshotContent = object(json!({"metadata": {"name": name, "finalizers": [
            resources::finalizers::SNAPSHOT_CONTENT]},
        "spec": {"driver": DRIVER, "deletionPolicy": "Delete", "source": {"snapshotHandle": handle},
                 "volumeSnapshotRef": {"name": "nobody", "namespace": "default"}}}));
    world.contents().create(&PostParams::default(), &content).await.unwrap();
}

#[tokio::test]
async fn contents_made_by_hand_can_be_deleted() {
    let world = World::new(1).await;
    world.define_snapshots(|_| {}).await;
    world.driver.add_snapshot("kept", "id-v");
    content(&world, "one", "id-kept").await;
    content(&world, "other", "id-kept").await;
    content(&world, "nonsense", "id-x/y").await;
    let process = world.take_snapshots(&Steps::new()).await;
    let gone = async |name: &str| {
        world.contents().delete(name, &DeleteParams::default()).await.unwrap();
        eventually(&format!("{name} is gone"), async || {
            world.contents().get_opt(name).await.unwrap().is_none()
        })
        .await;
    };
    gone("nonsense").await;
    gone("one").await;
    assert_eq!(world.driver.snapshots(), ["kept"], "the other content names it");
    told(&world, "SnapshotShared", "other names the same one").await;
    gone("other").await;
    assert!(world.driver.snapshots().is_empty());
    process.kill().await;
}

#[tokio::test]
async fn a_snapshot_is_deleted_without_the_secret_and_class_that_are_gone() {
    let world = World::new(1).await;
    world
        .define_snapshots(|class| {
            class.parameters = [
                ("csi.storage.k8s.io/snapshotter-secret-name", "key"),
                ("csi.storage.k8s.io/snapshotter-secret-namespace", "default"),
            ]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
        })
        .await;
    make_secret(&world).await;
    world.class("fast", |_| {}).await;
    world.bound_pair("data", "fast", Some("n1"), "1Mi").await;
    let process = world.take_snapshots(&Steps::new()).await;
    world.snapshot("before", "data").await;
    eventually("the snapshot is ready", async || {
        let snapshot = world.snapshots().get("before").await.unwrap();
        resources::snapshot::is_ready(&snapshot)
    })
    .await;
    delete_secret(&world).await;
    let classes: Api<resources::VolumeSnapshotClass> = Api::all(world.client.clone());
    classes.delete("shots", &DeleteParams::default()).await.unwrap();
    world.snapshots().delete("before", &DeleteParams::default()).await.unwrap();
    eventually("everything is gone", async || {
        let contents = world.contents().list(&ListParams::default()).await.unwrap();
        contents.items.is_empty() && world.driver.snapshots().is_empty()
    })
    .await;
    process.kill().await;
}

#[tokio::test]
async fn an_attachment_goes_without_the_secret_that_is_gone() {
    let world = World::new(1).await;
    make_secret(&world).await;
    let volume = json!({"metadata": {"name": "pv-data"}, "spec": {"capacity": {"storage": "1Mi"},
        "accessModes": ["ReadWriteOnce"], "csi": {"driver": DRIVER, "volumeHandle": "id-pv-data",
            "controllerPublishSecretRef": {"name": "key", "namespace": "default"}}}});
    world.volumes().create(&PostParams::default(), &object(volume)).await.unwrap();
    let csi_node: CSINode = object(json!({"metadata": {"name": "n1"},
        "spec": {"drivers": [{"name": DRIVER, "nodeID": "n1", "topologyKeys": []}]}}));
    Api::all(world.client.clone()).create(&PostParams::default(), &csi_node).await.unwrap();
    let process = world.attach(&Steps::new()).await;
    let attachments: Api<VolumeAttachment> = Api::all(world.client.clone());
    let attachment: VolumeAttachment = object(json!({"metadata": {"name": "a"}, "spec": {
        "attacher": DRIVER, "nodeName": "n1", "source": {"persistentVolumeName": "pv-data"}}}));
    attachments.create(&PostParams::default(), &attachment).await.unwrap();
    eventually("attached", async || {
        attachments.get("a").await.unwrap().status.is_some_and(|status| status.attached)
    })
    .await;
    delete_secret(&world).await;
    attachments.delete("a", &DeleteParams::default()).await.unwrap();
    eventually("detached", async || {
        attachments.get_opt("a").await.unwrap().is_none() && world.driver.published().is_empty()
    })
    .await;
    process.kill().await;
}
