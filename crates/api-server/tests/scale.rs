//! The `scale` subresource of stateful sets.

#![allow(clippy::unwrap_used)]

use api_server::{ApiServer, Options};
use k8s_openapi::api::apps::v1::StatefulSet;
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use object_store::Store;
use serde_json::json;

fn code<T: std::fmt::Debug>(result: kube::Result<T>) -> (u16, String) {
    match result.unwrap_err() {
        kube::Error::Api(status) => (status.code, status.message.clone()),
        other => panic!("no Status: {other}"),
    }
}

#[tokio::test]
async fn a_set_is_scaled_through_its_scale() {
    let api = ApiServer::start(Store::in_memory(), Options::default()).await.unwrap();
    let sets: Api<StatefulSet> = Api::default_namespaced(Client::new(api.in_process("test"), "default"));
    let set: StatefulSet = serde_json::from_value(json!({
        "metadata": {"name": "db"},
        "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "db"}}, "template": {
            "metadata": {"labels": {"app": "db"}}, "spec": {"containers": [{"name": "c", "image": "host"}]}}},
    }))
    .unwrap();
    let (post, patch) = (PostParams::default(), PatchParams::default());
    let made = sets.create(&post, &set).await.unwrap();

    let mut scale = sets.get_scale("db").await.unwrap();
    assert_eq!(scale.spec.as_ref().unwrap().replicas, Some(3));
    assert_eq!(scale.status.as_ref().unwrap().selector.as_deref(), Some("app=db"));
    assert_eq!(scale.metadata.uid, made.metadata.uid);
    scale.spec.as_mut().unwrap().replicas = Some(5);
    let scaled = sets.replace_scale("db", &post, &scale).await.unwrap();
    assert_eq!(scaled.spec.unwrap().replicas, Some(5));
    let set = sets.get("db").await.unwrap();
    assert_eq!((set.spec.as_ref().unwrap().replicas, set.metadata.generation), (Some(5), Some(2)));

    // The revision that was seen has gone by.
    assert_eq!(code(sets.replace_scale("db", &post, &scale).await).0, 409);
    let to = |replicas: i32| Patch::Merge(json!({"spec": {"replicas": replicas}}));
    sets.patch_scale("db", &patch, &to(0)).await.unwrap();
    assert_eq!(sets.get("db").await.unwrap().spec.unwrap().replicas, Some(0));
    let (status, why) = code(sets.patch_scale("db", &patch, &to(-1)).await);
    assert!(status == 422 && why.contains("must be greater than or equal to 0"), "{status} {why}");
    let wrong = Patch::Merge(json!({"spec": {"replicas": "many"}}));
    let (status, why) = code(sets.patch_scale("db", &patch, &wrong).await);
    assert!(status == 400 && why.contains("is not a whole number"), "{status} {why}");
    let other = Patch::Merge(json!({"metadata": {"uid": "another"}, "spec": {"replicas": 1}}));
    assert_eq!(code(sets.patch_scale("db", &patch, &other).await).0, 409);
    assert_eq!(code(sets.get_scale("none").await).0, 404);
}
