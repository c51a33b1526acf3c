//! Populators: whose claims nobody fills, and how a filled volume changes hands.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod support;

use controllers::{Controller, run};
use k8s_openapi::api::core::v1::{Event, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use resources::populator::{self, GroupKind, VolumePopulator};
use serde_json::{Value, json};
use support::{Fault, World, claim, class, eventually, volume};

const BACKUP: &str = "backups.example.com";

fn from(name: &str, kind: &str, source: &str) -> Value {
    let mut claim = claim(name, "1Gi", Some("fast"));
    let group = if kind == "PersistentVolumeClaim" { Value::Null } else { json!("example.com") };
    claim["spec"]["dataSourceRef"] = json!({"apiGroup": group, "kind": kind, "name": source});
    claim
}

async fn define(world: &World) {
    let definitions: Api<CustomResourceDefinition> = Api::all(world.client.clone());
    definitions.create(&PostParams::default(), &populator::definition()).await.unwrap();
}

fn populators(world: &World) -> Api<VolumePopulator> {
    Api::all(world.client.clone())
}

async fn register(world: &World) {
    let kind = GroupKind { group: "example.com".to_owned(), kind: "Backup".to_owned() };
    let populator = VolumePopulator::new(BACKUP, kind);
    eventually("populators are served", || async {
        populators(world).create(&PostParams::default(), &populator).await.ok()
    })
    .await;
}

async fn warnings(world: &World, about: &str, reason: &str) -> i32 {
    let events = world.list::<Event>().await;
    let same = |event: &&Event| {
        event.involved_object.name.as_deref() == Some(about) && event.reason.as_deref() == Some(reason)
    };
    events.iter().filter(same).map(|event| event.count.unwrap_or(0)).sum()
}

#[tokio::test]
async fn claims_that_nobody_can_fill_are_told_so_once() {
    let world = World::start().await;
    tokio::spawn(run(world.context.clone(), &[Controller::Populate, Controller::Bind]));
    world
        .create::<k8s_openapi::api::storage::v1::StorageClass>(class(
            "fast",
            "example.com/disks",
            "Immediate",
        ))
        .await;
    world.create::<PersistentVolumeClaim>(from("a", "PersistentVolumeClaim", "b")).await;
    world.create::<PersistentVolumeClaim>(from("b", "PersistentVolumeClaim", "a")).await;
    // As long as there is no registry, nobody has to be registered.
    world.create::<PersistentVolumeClaim>(from("early", "Tape", "x")).await;
    define(&world).await;
    register(&world).await;
    world.create::<PersistentVolumeClaim>(from("known", "Backup", "x")).await;
    world.create::<PersistentVolumeClaim>(from("unknown", "Tape", "x")).await;
    let event = world.event("unknown", "UnrecognizedDataSourceKind").await;
    assert!(event.message.unwrap().starts_with("The datasource for this PVC does not match any registered"));
    world.event("early", "UnrecognizedDataSourceKind").await;
    for name in ["a", "b"] {
        let event = world.event(name, "CircularDataSource").await;
        assert!(event.message.unwrap().contains("default/b"), "{name}");
    }

    // A populator that goes is missed by those who wait for it.
    assert_eq!(warnings(&world, "known", "UnrecognizedDataSourceKind").await, 0);
    eventually("the registry of known", || async {
        populators(&world).delete(BACKUP, &DeleteParams::default()).await.ok()
    })
    .await;
    world.event("known", "UnrecognizedDataSourceKind").await;
    let claims = world.api::<PersistentVolumeClaim>();
    for name in ["a", "b", "unknown"] {
        let label = Patch::Merge(json!({"metadata": {"labels": {"looked": "again"}}}));
        claims.patch(name, &PatchParams::default(), &label).await.unwrap();
    }
    world.create::<PersistentVolumeClaim>(from("last", "Tape", "x")).await;
    world.event("last", "UnrecognizedDataSourceKind").await;
    for (name, reason) in
        [("unknown", "UnrecognizedDataSourceKind"), ("a", "CircularDataSource"), ("b", "CircularDataSource")]
    {
        assert_eq!(warnings(&world, name, reason).await, 1, "{name}");
    }
    // The binder handed each claim over to its provisioner, and that was all.
    assert!(world.writes() <= 6 * 2, "{} writes", world.writes());
}

/// A populator fills the volume of a claim of its own and hands it over, while one write of the binder fails.
async fn hand_over(number: usize, fault: Fault) -> bool {
    let world = World::with_fault(Some((number, fault))).await;
    tokio::spawn(run(world.context.clone(), &[Controller::Bind]));
    world.run_well(&[Controller::Protect]);
    let immediate = class("fast", "example.com/disks", "Immediate");
    world.create::<k8s_openapi::api::storage::v1::StorageClass>(immediate).await;
    let wanted = world.create::<PersistentVolumeClaim>(from("wanted", "Backup", "x")).await;
    let prime = world.create::<PersistentVolumeClaim>(claim("prime", "1Gi", Some("fast"))).await;

    // The provisioner: for the populator's claim only.
    let mut made = volume("pv", "1Gi", "fast");
    made["metadata"]["annotations"] = json!({"pv.kubernetes.io/provisioned-by": "example.com/disks"});
    made["spec"]["persistentVolumeReclaimPolicy"] = json!("Delete");
    made["spec"]["claimRef"] = json!({"namespace": "default", "name": "prime", "uid": prime.uid()});
    world.create::<PersistentVolume>(made).await;
    world.claim_phase("prime", "Bound").await;

    // The populator: the volume is full, and the claim's now.
    let volumes = world.api::<PersistentVolume>();
    let to = json!({"spec": {"claimRef": {"namespace": "default", "name": "wanted", "uid": wanted.uid(),
        "resourceVersion": wanted.resource_version()}}});
    volumes.patch("pv", &PatchParams::default(), &Patch::Strategic(to)).await.unwrap();
    let bound = world.claim_phase("wanted", "Bound").await;
    assert_eq!(bound.spec.unwrap().volume_name.as_deref(), Some("pv"));
    world.delete::<PersistentVolumeClaim>("prime").await;
    world.gone::<PersistentVolumeClaim>("prime").await;
    let volume = world.volume_phase("pv", "Bound").await;
    assert_eq!(volume.spec.unwrap().claim_ref.unwrap().uid, wanted.uid());
    assert!(world.writes() <= 20, "{} writes", world.writes());
    world.writes() > number
}

#[tokio::test]
async fn a_filled_volume_changes_hands_whatever_write_fails() {
    for fault in [Fault::Conflict, Fault::Refused, Fault::AnswerLost] {
        let mut number = 0;
        while hand_over(number, fault).await {
            number += 1;
        }
        assert!(number > 5, "{fault:?}: only {number} writes were tried");
    }
}
