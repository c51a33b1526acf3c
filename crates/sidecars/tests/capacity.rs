//! Capacity as the scheduler sees it, written no more often than it changes.

#![allow(clippy::unwrap_used, reason = "a test says by its panic what went wrong")]

mod world;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::{CSIStorageCapacity, StorageClass};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use resources::labels;
use serde_json::json;
use sidecars::capacity::{Options, Signal, run};
use tokio::sync::watch;
use world::{DRIVER, KEY, Process, Steps, World, eventually};

async fn publish(world: &World, signal: &Signal, changes: watch::Receiver<u64>) -> Process {
    publish_as_asked(world, signal, changes, false).await
}

async fn publish_as_asked(
    world: &World,
    signal: &Signal,
    changes: watch::Receiver<u64>,
    immediate: bool,
) -> Process {
    let socket = world.socket("csi.sock");
    let serving = world.driver.serve(&socket, &Steps::new());
    let driver = sidecars::Driver::connect(&socket).await.unwrap();
    let context = world.context(&Steps::new());
    let (shutdown, signal) = (context.shutdown.clone(), signal.clone());
    let options = Options { node: "n1".to_owned(), namespace: "default".to_owned(), immediate };
    let task = tokio::spawn(async move {
        let _serving = serving;
        run(context, driver, options, signal, Some(changes)).await;
    });
    Process::new(shutdown, task)
}

async fn published(world: &World) -> Vec<CSIStorageCapacity> {
    let capacities: Api<CSIStorageCapacity> = Api::all(world.client.clone());
    capacities.list(&ListParams::default()).await.unwrap().items
}

/// Class, capacity and largest volume of what is published.
async fn figures(world: &World) -> Vec<(String, String, String)> {
    let quantity = |one: Option<k8s_openapi::apimachinery::pkg::api::resource::Quantity>| one.unwrap().0;
    let row = |one: CSIStorageCapacity| {
        (one.storage_class_name, quantity(one.capacity), quantity(one.maximum_volume_size))
    };
    let mut rows: Vec<_> = published(world).await.into_iter().map(row).collect();
    rows.sort();
    rows
}

fn figure(class: &str, capacity: &str, largest: &str) -> (String, String, String) {
    (class.to_owned(), capacity.to_owned(), largest.to_owned())
}

#[tokio::test]
async fn capacity_follows_classes_and_changes_and_is_written_only_when_it_differs() {
    let world = World::new(1).await;
    world.class("fast", |_| {}).await;
    world.class("other", |class| class["provisioner"] = json!("nfs.example.com")).await;
    let (signal, (change, changes)) = (Signal::new(), watch::channel(0));
    let process = publish(&world, &signal, changes.clone()).await;
    eventually("the class is published", async || figures(&world).await == [figure("fast", "100Gi", "50Gi")])
        .await;

    let one = published(&world).await.remove(0);
    assert_eq!(one.namespace().as_deref(), Some("default"));
    assert_eq!(one.labels()[labels::CAPACITY_DRIVER], DRIVER);
    assert_eq!(one.labels()[labels::CAPACITY_MANAGED_BY], "external-provisioner-n1");
    assert_eq!(one.node_topology.clone().unwrap().match_labels.unwrap()[KEY], "n1");
    assert_eq!(
        (one.owner_references()[0].kind.as_str(), one.owner_references()[0].name.as_str()),
        ("Node", "n1")
    );
    assert_eq!(world.writes(), 1);

    // Nothing changed: the driver is asked, the API is not written.
    let asked = world.driver.asked();
    signal.raise();
    eventually("the driver is asked", async || world.driver.asked() > asked).await;
    world.driver.set_capacity(60 << 30);
    change.send(1).unwrap();
    eventually("the change is published", async || figures(&world).await == [figure("fast", "60Gi", "30Gi")])
        .await;
    assert_eq!(world.writes(), 2);

    world.class("second", |_| {}).await;
    eventually("the second class is published", async || figures(&world).await.len() == 2).await;
    let classes: Api<StorageClass> = Api::all(world.client.clone());
    classes.delete("fast", &DeleteParams::default()).await.unwrap();
    eventually("the first is removed", async || figures(&world).await == [figure("second", "60Gi", "30Gi")])
        .await;
    assert_eq!(world.writes(), 4);

    // Somebody deletes it: it comes back.
    let name = published(&world).await[0].name_any();
    let capacities: Api<CSIStorageCapacity> = Api::namespaced(world.client.clone(), "default");
    capacities.delete(&name, &DeleteParams::default()).await.unwrap();
    eventually("it comes back", async || figures(&world).await.len() == 1).await;
    process.kill().await;

    // A restart finds what is there under the same name, and writes nothing.
    let before = world.writes();
    let asked = world.driver.asked();
    let process = publish(&world, &signal, changes).await;
    eventually("the driver is asked", async || world.driver.asked() > asked).await;
    world.driver.set_capacity(50 << 30);
    change.send(2).unwrap();
    eventually("the change is published", async || {
        figures(&world).await == [figure("second", "50Gi", "25Gi")]
    })
    .await;
    assert_eq!(world.writes(), before + 1);
    process.kill().await;
}

#[tokio::test]
async fn a_class_that_the_driver_refuses_keeps_no_other_from_being_published() {
    let world = World::new(1).await;
    for (name, bad) in [("a-refused", true), ("fast", false), ("z-refused", true)] {
        world
            .class(name, |class| {
                if bad {
                    class["parameters"] = json!({"unknown": "x"});
                }
            })
            .await;
    }
    let (signal, (_change, changes)) = (Signal::new(), watch::channel(0));
    let process = publish(&world, &signal, changes).await;
    let none = |class: &str| figure(class, "0", "0");
    eventually("the good class is published, and nothing of the others", async || {
        figures(&world).await == [none("a-refused"), figure("fast", "100Gi", "50Gi"), none("z-refused")]
    })
    .await;
    for one in published(&world).await {
        let why = one.annotations().get(resources::annotations::NO_CAPACITY);
        assert_eq!(why.is_some(), one.storage_class_name != "fast", "{why:?}");
        assert!(why.is_none_or(|why| why.contains("parameter unknown is unknown")), "{why:?}");
    }
    process.kill().await;
}

#[tokio::test]
async fn capacity_waits_for_the_node_that_owns_it() {
    let world = World::new(0).await;
    world.class("fast", |_| {}).await;
    let (_change, changes) = watch::channel(0);
    let process = publish(&world, &Signal::new(), changes).await;
    let node: Node = world::object(json!({"metadata": {"name": "n1"}}));
    Api::all(world.client.clone()).create(&PostParams::default(), &node).await.unwrap();
    eventually("it is published", async || figures(&world).await.len() == 1).await;
    process.kill().await;
}

#[tokio::test]
async fn a_class_that_the_driver_makes_nothing_of_is_told_of_on_its_claims() {
    let world = World::new(1).await;
    world.class("typo", |class| class["parameters"] = json!({"unknown": "1"})).await;
    world.class("fast", |_| {}).await;
    world.claim("before", "typo", None, "1Gi").await;
    let (signal, (_change, changes)) = (Signal::new(), watch::channel(0));
    let process = publish(&world, &signal, changes).await;
    eventually("both classes are published", async || figures(&world).await.len() == 2).await;
    world.claim("after", "typo", None, "1Gi").await;
    world.claim("fine", "fast", None, "1Gi").await;
    eventually("both are told, and the third is not", async || {
        let told = world.events("ProvisioningFailed").await;
        told.len() == 2
            && told.iter().all(|message| {
                message.starts_with("failed to provision volume with StorageClass \"typo\": ")
                    && message.contains("parameter unknown is unknown")
            })
    })
    .await;
    process.kill().await;
}

#[tokio::test]
async fn classes_that_bind_at_once_are_published_where_that_is_asked_for() {
    for asked in [false, true] {
        let world = World::new(1).await;
        world.class("late", |_| {}).await;
        world.class("now", |class| class["volumeBindingMode"] = json!("Immediate")).await;
        let (signal, (_change, changes)) = (Signal::new(), watch::channel(0));
        let process = publish_as_asked(&world, &signal, changes, asked).await;
        let wanted = if asked { vec!["late", "now"] } else { vec!["late"] };
        eventually("capacity is published", async || figures(&world).await.len() >= wanted.len()).await;
        // One write for each class: all were looked at in one go.
        assert_eq!(world.writes(), wanted.len());
        let classes: Vec<_> = figures(&world).await.into_iter().map(|(class, ..)| class).collect();
        assert_eq!(classes, wanted, "asked: {asked}");
        process.kill().await;
    }
}

#[tokio::test]
async fn what_was_published_in_another_namespace_goes() {
    let world = World::new(1).await;
    world.class("late", |_| {}).await;
    let (signal, (_change, changes)) = (Signal::new(), watch::channel(0));
    let process = publish(&world, &signal, changes.clone()).await;
    eventually("capacity is published", async || published(&world).await.len() == 1).await;
    process.kill().await;

    // As an earlier version left it.
    let mut moved = published(&world).await.remove(0);
    moved.metadata.resource_version = None;
    moved.metadata.namespace = Some("kube-system".to_owned());
    let capacities: Api<CSIStorageCapacity> = Api::namespaced(world.client.clone(), "kube-system");
    capacities.create(&PostParams::default(), &moved).await.unwrap();
    let process = publish(&world, &signal, changes).await;
    eventually("one is left", async || published(&world).await.len() == 1).await;
    assert_eq!(published(&world).await[0].namespace().as_deref(), Some("default"));
    process.kill().await;
}
