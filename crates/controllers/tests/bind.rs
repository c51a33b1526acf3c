//! The binder against an API server, with writes failing in turn.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod support;

use std::collections::HashSet;
use std::time::Instant;

use controllers::{Controller, run};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use support::{Fault, World, claim, class, eventually, pod, volume};

async fn bound(world: &World, name: &str) -> String {
    let claim = world.claim_phase(name, "Bound").await;
    let volume = resources::claim::volume_name(&claim).to_owned();
    let is_back = world.volume_phase(&volume, "Bound").await;
    assert!(resources::volume::is_bound_to(&is_back, &claim));
    assert!(resources::claim::is_bind_completed(&claim));
    let reference = is_back.spec.unwrap().claim_ref.unwrap();
    assert!(reference.resource_version.is_some(), "as Kubernetes' binder has it: {reference:?}");
    volume
}

#[tokio::test]
async fn claim_and_volume_find_each_other_in_either_order() {
    let world = World::start().await;
    tokio::spawn(run(world.context.clone(), &[Controller::Bind]));
    world.create::<PersistentVolume>(volume("small", "1Gi", "")).await;
    world.create::<PersistentVolume>(volume("large", "5Gi", "")).await;
    world.volume_phase("large", "Available").await;
    world.create::<PersistentVolumeClaim>(claim("first", "2Gi", Some(""))).await;
    assert_eq!(bound(&world, "first").await, "large");

    world.create::<PersistentVolumeClaim>(claim("second", "3Gi", Some(""))).await;
    world.event("second", "FailedBinding").await;
    world.create::<PersistentVolume>(volume("late", "3Gi", "")).await;
    assert_eq!(bound(&world, "second").await, "late");
    assert_eq!(world.volume_phase("small", "Available").await.name_any(), "small");
}

#[tokio::test]
async fn claims_wait_for_their_class_consumer_or_provisioner() {
    let world = World::start().await;
    tokio::spawn(run(world.context.clone(), &[Controller::Bind]));
    world.create::<PersistentVolumeClaim>(claim("classless", "1Gi", Some("none"))).await;
    world.event("classless", "ProvisioningFailed").await;

    world.create::<StorageClass>(class("late", "driver.example.com", "WaitForFirstConsumer")).await;
    world.create::<PersistentVolumeClaim>(claim("delayed", "1Gi", Some("late"))).await;
    world.event("delayed", "WaitForFirstConsumer").await;
    world.create::<k8s_openapi::api::core::v1::Pod>(pod("user", &["delayed"])).await;
    world.event("delayed", "WaitForPodScheduled").await;

    // A class that appears later is noticed.
    world.create::<StorageClass>(class("none", "driver.example.com", "Immediate")).await;
    world.event("classless", "ExternalProvisioning").await;
    let handed = world.get::<PersistentVolumeClaim>("classless").await.unwrap();
    assert_eq!(resources::claim::provisioner(&handed), Some("driver.example.com"));

    // So is a default class, by a claim that names none.
    world.create::<PersistentVolumeClaim>(claim("any", "1Gi", None)).await;
    world.event("any", "FailedBinding").await;
    let mut default = class("default", "driver.example.com", "Immediate");
    default["metadata"]["annotations"] = json!({resources::annotations::IS_DEFAULT_CLASS: "true"});
    world.create::<StorageClass>(default).await;
    world.event("any", "ExternalProvisioning").await;
    assert_eq!(resources::claim::class(&world.get("any").await.unwrap()), "default");
}

#[tokio::test]
async fn a_volume_is_released_when_its_claim_is_gone_and_retained() {
    let world = World::start().await;
    tokio::spawn(run(world.context.clone(), &[Controller::Bind, Controller::Protect]));
    world.create::<PersistentVolume>(volume("kept", "1Gi", "")).await;
    world.create::<PersistentVolumeClaim>(claim("data", "1Gi", Some(""))).await;
    bound(&world, "data").await;
    world.delete::<PersistentVolumeClaim>("data").await;
    world.gone::<PersistentVolumeClaim>("data").await;
    world.volume_phase("kept", "Released").await;

    // A new claim of the same name is another claim: it does not get the data.
    world.create::<PersistentVolumeClaim>(claim("data", "1Gi", Some(""))).await;
    world.event("data", "FailedBinding").await;
    world.volume_phase("kept", "Released").await;

    // A bound volume that is deleted waits for its claim.
    world.create::<PersistentVolume>(volume("next", "1Gi", "")).await;
    assert_eq!(bound(&world, "data").await, "next");
    world.delete::<PersistentVolume>("next").await;
    assert!(world.get::<PersistentVolume>("next").await.is_some());
    world.delete::<PersistentVolumeClaim>("data").await;
    world.gone::<PersistentVolume>("next").await;
}

/// What a binder leaves that stopped between its two writes, and a user who then deletes the volume.
#[tokio::test]
async fn a_volume_deleted_before_its_claim_took_it_goes_and_the_claim_takes_another() {
    let world = World::start().await;
    world.create::<PersistentVolumeClaim>(claim("data", "1Gi", Some(""))).await;
    let uid = world.get::<PersistentVolumeClaim>("data").await.unwrap().metadata.uid;
    let mut begun = volume("begun", "1Gi", "");
    begun["metadata"]["finalizers"] = json!([resources::finalizers::VOLUME_PROTECTION]);
    begun["spec"]["claimRef"] =
        json!({"kind": "PersistentVolumeClaim", "namespace": "default", "name": "data", "uid": uid});
    world.create::<PersistentVolume>(begun).await;
    let phase = Patch::Merge(json!({"status": {"phase": "Bound"}}));
    let volumes = Api::<PersistentVolume>::all(world.context.client.clone());
    volumes.patch_status("begun", &PatchParams::default(), &phase).await.unwrap();
    world.delete::<PersistentVolume>("begun").await;

    tokio::spawn(run(world.context.clone(), &[Controller::Bind, Controller::Protect]));
    world.gone::<PersistentVolume>("begun").await;
    world.create::<PersistentVolume>(volume("other", "1Gi", "")).await;
    assert_eq!(bound(&world, "data").await, "other");
}

/// The world of the scenario that is played with every write failing in turn.
async fn scenario(world: &World) {
    world.create::<PersistentVolume>(volume("v1", "1Gi", "")).await;
    world.create::<PersistentVolume>(volume("v2", "2Gi", "")).await;
    let mut reserved = volume("v3", "1Gi", "");
    reserved["spec"]["claimRef"] =
        json!({"kind": "PersistentVolumeClaim", "namespace": "default", "name": "c3"});
    world.create::<PersistentVolume>(reserved).await;
    for name in ["c1", "c2", "c3"] {
        world.create::<PersistentVolumeClaim>(claim(name, "1Gi", Some(""))).await;
    }
    let mut volumes = HashSet::new();
    for name in ["c1", "c2", "c3"] {
        assert!(volumes.insert(bound(world, name).await), "{name} got a volume that another claim has");
    }
    assert_eq!(resources::claim::volume_name(&world.get("c3").await.unwrap()), "v3");
    world.delete::<PersistentVolumeClaim>("c1").await;
    world.gone::<PersistentVolumeClaim>("c1").await;
    eventually("one volume released", || async {
        let volumes = world.list::<PersistentVolume>().await;
        let released = volumes.iter().filter(|volume| resources::volume::phase(volume) == "Released").count();
        (released == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn every_write_may_fail_once() {
    let world = World::start().await;
    tokio::spawn(run(world.context.clone(), &[Controller::Bind, Controller::Protect]));
    scenario(&world).await;
    let writes = world.writes();
    assert!(writes < 30, "{writes} writes");
    for fault in [Fault::Conflict, Fault::Refused, Fault::AnswerLost] {
        for number in 0..writes {
            println!("write {number}: {fault:?}");
            let world = World::with_fault(Some((number, fault))).await;
            let running = tokio::spawn(run(world.context.clone(), &[Controller::Bind, Controller::Protect]));
            scenario(&world).await;
            world.context.shutdown.cancel();
            running.await.unwrap().unwrap();
        }
    }
}

#[tokio::test]
async fn a_thousand_claims_are_bound_in_four_writes_each() {
    const COUNT: usize = 1000;
    let world = World::start().await;
    for number in 0..COUNT {
        world.create::<PersistentVolume>(volume(&format!("v{number}"), "1Gi", "")).await;
        world.create::<PersistentVolumeClaim>(claim(&format!("c{number}"), "1Gi", Some(""))).await;
    }
    let start = Instant::now();
    tokio::spawn(run(world.context.clone(), &[Controller::Bind]));
    let informer = world.context.informers.claims();
    let claims = eventually("all claims bound", || async {
        let claims = informer.all();
        let bound = claims.iter().filter(|claim| resources::claim::phase(claim) == "Bound").count();
        (bound == COUNT).then_some(claims)
    })
    .await;
    let took = start.elapsed();
    eprintln!("{COUNT} claims bound in {took:?}, {} writes", world.writes());
    let volumes: HashSet<_> =
        claims.iter().map(|claim| resources::claim::volume_name(claim).to_owned()).collect();
    assert_eq!(volumes.len(), COUNT);
    // Four for each claim, and one that makes each volume Available.
    assert!(world.writes() <= 5 * COUNT + 20, "{} writes", world.writes());
}
