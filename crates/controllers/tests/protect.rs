//! VolumeAttributesClasses stay while something names them.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod support;

use controllers::protect;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams};
use resources::finalizers::ATTRIBUTES_CLASS_PROTECTION;
use serde_json::{Value, json};
use support::{Fault, World, claim, eventually, volume};

async fn class(world: &World, name: &str) {
    let class =
        json!({"metadata": {"name": name}, "driverName": "d.example.com", "parameters": {"iops": "1"}});
    world.create::<VolumeAttributesClass>(class).await;
}

/// Deletes a class, and says whether it went at once.
async fn is_kept(world: &World, name: &str) -> bool {
    world.delete::<VolumeAttributesClass>(name).await;
    let marker = format!("{name}-marker");
    class(world, &marker).await;
    // What is deleted later is gone: the first had its turn.
    world.delete::<VolumeAttributesClass>(&marker).await;
    world.gone::<VolumeAttributesClass>(&marker).await;
    world.get::<VolumeAttributesClass>(name).await.is_some()
}

async fn patch_claim(world: &World, part: &str, value: Value) {
    let (api, patch) = (world.api::<PersistentVolumeClaim>(), Patch::Merge(json!({part: value})));
    match part {
        "status" => api.patch_status("data", &PatchParams::default(), &patch).await.unwrap(),
        _ => api.patch("data", &PatchParams::default(), &patch).await.unwrap(),
    };
}

#[tokio::test]
async fn a_class_stays_while_a_claim_or_a_volume_names_it() {
    let world = World::start().await;
    tokio::spawn(protect::attributes_classes(world.context.clone()));
    for name in ["wanted", "current", "target", "of-volume", "unused"] {
        class(&world, name).await;
    }
    let mut data = claim("data", "1Gi", Some(""));
    data["spec"]["volumeAttributesClassName"] = "wanted".into();
    world.create::<PersistentVolumeClaim>(data).await;
    let status = json!({"currentVolumeAttributesClassName": "current",
        "modifyVolumeStatus": {"status": "InProgress", "targetVolumeAttributesClassName": "target"}});
    patch_claim(&world, "status", status).await;
    let mut disk = volume("disk", "1Gi", "");
    disk["spec"]["volumeAttributesClassName"] = "of-volume".into();
    world.create::<PersistentVolume>(disk).await;

    world.delete::<VolumeAttributesClass>("unused").await;
    world.gone::<VolumeAttributesClass>("unused").await;
    for name in ["wanted", "current", "target", "of-volume"] {
        assert!(is_kept(&world, name).await, "{name}");
    }
    patch_claim(&world, "status", json!({"modifyVolumeStatus": null})).await;
    world.gone::<VolumeAttributesClass>("target").await;
    patch_claim(&world, "status", json!({"currentVolumeAttributesClassName": "wanted"})).await;
    world.gone::<VolumeAttributesClass>("current").await;
    world.api::<PersistentVolume>().delete("disk", &DeleteParams::default()).await.unwrap();
    runtime::edit(&world.api::<PersistentVolume>(), "disk", |disk| disk.finalizers_mut().clear())
        .await
        .unwrap();
    world.gone::<VolumeAttributesClass>("of-volume").await;
    assert!(world.get::<VolumeAttributesClass>("wanted").await.is_some());
    world.api::<PersistentVolumeClaim>().delete("data", &DeleteParams::default()).await.unwrap();
    runtime::edit(&world.api::<PersistentVolumeClaim>(), "data", |data| data.finalizers_mut().clear())
        .await
        .unwrap();
    world.gone::<VolumeAttributesClass>("wanted").await;
    assert_eq!(world.writes(), 9, "one for each class that was let go, with the markers");
}

#[tokio::test]
async fn one_from_before_is_protected_and_a_lost_write_is_made_again() {
    for fault in [Fault::Conflict, Fault::Refused, Fault::AnswerLost] {
        for number in 0..2 {
            let world = World::with_fault(Some((number, fault))).await;
            class(&world, "old").await;
            let classes = world.api::<VolumeAttributesClass>();
            runtime::edit(&classes, "old", |old| old.finalizers_mut().clear()).await.unwrap();
            tokio::spawn(protect::attributes_classes(world.context.clone()));
            eventually("it is protected", || async {
                let old = world.get::<VolumeAttributesClass>("old").await.unwrap();
                (old.finalizers() == [ATTRIBUTES_CLASS_PROTECTION]).then_some(())
            })
            .await;
            world.delete::<VolumeAttributesClass>("old").await;
            world.gone::<VolumeAttributesClass>("old").await;
        }
    }
}
