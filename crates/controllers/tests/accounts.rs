//! Every namespace has its service account `default`.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod support;

use controllers::Controller;
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::Api;
use kube::api::DeleteParams;
use serde_json::json;
use support::{World, eventually};

#[tokio::test]
async fn namespaces_have_their_account_and_get_it_again() {
    let world = World::start().await;
    let created = |name: &str| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    world.create::<Namespace>(created("before")).await;
    world.run_well(&[Controller::ServiceAccounts]);
    world.create::<Namespace>(created("after")).await;
    for namespace in ["default", "before", "after"] {
        let accounts = Api::<ServiceAccount>::namespaced(world.context.client.clone(), namespace);
        let there = || async { accounts.get_opt("default").await.unwrap()?.metadata.uid };
        let first = eventually(&format!("an account in {namespace}"), there).await;
        accounts.delete("default", &DeleteParams::default()).await.unwrap();
        eventually("another account", || async { there().await.filter(|uid| *uid != first) }).await;
    }
}
