//! The collector against an API server.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod support;

use controllers::{Controller, run};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, PropagationPolicy};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use support::{World, claim, eventually, volume};

fn config(name: &str, owners: &[&ConfigMap]) -> Value {
    let owner = |owner: &&ConfigMap| {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "name": owner.name_any(), "uid": owner.uid(),
            "blockOwnerDeletion": true})
    };
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default",
        "ownerReferences": owners.iter().map(owner).collect::<Vec<_>>()}})
}

async fn delete(world: &World, name: &str, policy: PropagationPolicy) {
    let params = DeleteParams { propagation_policy: Some(policy), ..DeleteParams::default() };
    world.api::<ConfigMap>().delete(name, &params).await.expect("it can be deleted");
}

#[tokio::test]
async fn dependents_go_with_their_owners() {
    let world = World::start().await;
    tokio::spawn(run(world.context.clone(), &[Controller::Collect]));

    // In the background: owner first. What has another owner stays, and forgets the lost one.
    let top = world.create::<ConfigMap>(config("top", &[])).await;
    let other = world.create::<ConfigMap>(config("other", &[])).await;
    let middle = world.create::<ConfigMap>(config("middle", &[&top])).await;
    world.create::<ConfigMap>(config("leaf", &[&middle])).await;
    world.create::<ConfigMap>(config("shared", &[&top, &other])).await;
    delete(&world, "top", PropagationPolicy::Background).await;
    world.gone::<ConfigMap>("middle").await;
    world.gone::<ConfigMap>("leaf").await;
    eventually("shared disowned", || async {
        let shared = world.get::<ConfigMap>("shared").await.expect("shared stays");
        (shared.owner_references().len() == 1).then_some(())
    })
    .await;

    // In the foreground: dependents first.
    let top = world.create::<ConfigMap>(config("top", &[])).await;
    let middle = world.create::<ConfigMap>(config("middle", &[&top])).await;
    world.create::<ConfigMap>(config("leaf", &[&middle])).await;
    delete(&world, "top", PropagationPolicy::Foreground).await;
    world.gone::<ConfigMap>("top").await;
    assert!(world.get::<ConfigMap>("middle").await.is_none());
    assert!(world.get::<ConfigMap>("leaf").await.is_none());

    // Cut loose.
    let top = world.create::<ConfigMap>(config("top", &[])).await;
    world.create::<ConfigMap>(config("middle", &[&top])).await;
    delete(&world, "top", PropagationPolicy::Orphan).await;
    world.gone::<ConfigMap>("top").await;
    let middle = world.get::<ConfigMap>("middle").await.expect("it was cut loose");
    assert!(middle.owner_references().is_empty());

    // An owner that never was.
    let mut stray = config("stray", &[&top]);
    stray["metadata"]["ownerReferences"][0]["name"] = "never".into();
    world.create::<ConfigMap>(stray).await;
    world.gone::<ConfigMap>("stray").await;
}

#[tokio::test]
async fn custom_objects_own_and_are_owned() {
    let world = World::start().await;
    tokio::spawn(run(world.context.clone(), &[Controller::Collect]));
    let definition: CustomResourceDefinition = serde_json::from_value(json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "boxes.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "boxes", "singular": "box", "kind": "Box", "listKind": "BoxList"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                "type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]},
    }))
    .unwrap();
    Api::all(world.client.clone()).create(&Default::default(), &definition).await.unwrap();
    let resource =
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("example.com", "v1", "Box"), "boxes");
    let boxes = Api::<DynamicObject>::namespaced_with(world.client.clone(), "default", &resource);
    let top = world.create::<ConfigMap>(config("top", &[])).await;
    let owned = eventually("the new kind is served", || async {
        let mut one = DynamicObject::new("one", &resource);
        one.metadata.owner_references =
            serde_json::from_value(config("one", &[&top])["metadata"]["ownerReferences"].clone()).unwrap();
        boxes.create(&Default::default(), &one).await.ok()
    })
    .await;
    let mut inner = config("inner", &[]);
    inner["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "example.com/v1", "kind": "Box", "name": "one", "uid": owned.uid()}]);
    world.create::<ConfigMap>(inner).await;
    delete(&world, "top", PropagationPolicy::Background).await;
    world.gone::<ConfigMap>("inner").await;
    assert!(boxes.get_opt("one").await.unwrap().is_none());
}

#[tokio::test]
async fn a_namespace_goes_with_all_that_is_in_it() {
    let world = World::start().await;
    tokio::spawn(run(world.context.clone(), &Controller::ALL));
    let shop = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}});
    world.create::<Namespace>(shop).await;
    let configs = Api::<ConfigMap>::namespaced(world.client.clone(), "shop");
    let claims = Api::<PersistentVolumeClaim>::namespaced(world.client.clone(), "shop");
    let pods = Api::<Pod>::namespaced(world.client.clone(), "shop");
    let in_shop = |mut object: Value| {
        object["metadata"]["namespace"] = "shop".into();
        object
    };
    let held = {
        let mut held = in_shop(config("held", &[]));
        held["metadata"]["finalizers"] = json!(["example.com/keep"]);
        serde_json::from_value::<ConfigMap>(held).unwrap()
    };
    configs.create(&Default::default(), &held).await.unwrap();
    world.create::<PersistentVolume>(volume("disk", "1Gi", "")).await;
    let data = serde_json::from_value(in_shop(claim("data", "1Gi", Some("")))).unwrap();
    claims.create(&Default::default(), &data).await.unwrap();
    let pod: Pod = serde_json::from_value(in_shop(support::pod("user", &["data"]))).unwrap();
    pods.create(&Default::default(), &pod).await.unwrap();
    world.volume_phase("disk", "Bound").await;

    world.delete::<Namespace>("shop").await;
    eventually("the namespace says what remains", || async {
        let shop = world.get::<Namespace>("shop").await.expect("it waits for its content");
        let conditions = shop.status.and_then(|status| status.conditions).unwrap_or_default();
        let remaining =
            conditions.into_iter().find(|condition| condition.type_ == "NamespaceFinalizersRemaining");
        remaining.filter(|condition| {
            condition.message.as_ref().is_some_and(|text| text.contains("example.com/keep"))
        })
    })
    .await;
    runtime::edit(&configs, "held", |held| held.finalizers_mut().clear()).await.unwrap();
    world.gone::<Namespace>("shop").await;
    world.volume_phase("disk", "Released").await;
}

#[tokio::test]
async fn a_claim_is_made_for_an_ephemeral_volume_and_goes_with_its_pod() {
    let world = World::start().await;
    tokio::spawn(run(world.context.clone(), &Controller::ALL));
    let with_scratch = |name: &str| {
        let mut pod = support::pod(name, &[]);
        pod["spec"]["volumes"] = json!([{"name": "scratch", "ephemeral": {"volumeClaimTemplate": {
            "metadata": {"labels": {"for": "scratch"}},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}}}]);
        pod
    };
    world.create::<Pod>(with_scratch("job")).await;
    let made = eventually("the claim is made", || world.get::<PersistentVolumeClaim>("job-scratch")).await;
    assert_eq!(made.labels()["for"], "scratch");
    world.delete::<Pod>("job").await;
    world.gone::<PersistentVolumeClaim>("job-scratch").await;

    // A claim of that name which somebody else made is not touched.
    world.create::<PersistentVolumeClaim>(claim("other-scratch", "1Gi", Some(""))).await;
    world.create::<Pod>(with_scratch("other")).await;
    let event = world.event("other", "FailedBinding").await;
    assert!(event.message.unwrap_or_default().contains("was not made for this pod"));
}
