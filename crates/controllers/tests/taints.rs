//! Nodes are tainted by their conditions, and pods leave nodes whose taints they don't tolerate.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod support;

use controllers::Controller;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use support::{World, eventually, node, pod};

async fn taint(world: &World, taints: Value) {
    let patch = json!({"spec": {"taints": taints}});
    world.api::<Node>().patch("a", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
}

async fn is_deleting(world: &World, name: &str) -> bool {
    world.get::<Pod>(name).await.is_some_and(|pod| pod.metadata.deletion_timestamp.is_some())
}

#[tokio::test]
async fn pods_go_when_their_patience_ends() {
    let world = World::start().await;
    world.create::<Node>(node("a")).await;
    let tolerates = |seconds: Option<i64>| json!([{"key": "off", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}]);
    for (name, tolerations) in [
        ("none", json!([])),
        ("ever", tolerates(None)),
        ("short", tolerates(Some(1))),
        ("long", tolerates(Some(3600))),
    ] {
        let mut pod = pod(name, &[]);
        pod["spec"]["nodeName"] = "a".into();
        pod["spec"]["tolerations"] = tolerations;
        world.create::<Pod>(pod).await;
    }
    world.run_well(&[Controller::Taints]);
    taint(&world, json!([{"key": "off", "effect": "NoExecute"}])).await;
    for name in ["none", "short"] {
        eventually(&format!("pod {name} evicted"), || async {
            is_deleting(&world, name).await.then_some(())
        })
        .await;
        world.event(name, "TaintManagerEviction").await;
        let pod = world.get::<Pod>(name).await.unwrap();
        let conditions = pod.status.unwrap().conditions.unwrap();
        let target = conditions.iter().find(|condition| condition.type_ == "DisruptionTarget").unwrap();
        assert_eq!(target.reason.as_deref(), Some("DeletionByTaintManager"));
    }
    // The taint goes: who had patience is told.
    taint(&world, json!([])).await;
    let event = world.event("long", "TaintManagerEviction").await;
    assert_eq!(event.message.as_deref(), Some("Cancelling deletion of Pod default/long"));
    assert!(!is_deleting(&world, "ever").await && !is_deleting(&world, "long").await);
    // A pod that comes to a tainted node goes at once.
    taint(&world, json!([{"key": "off", "effect": "NoExecute"}])).await;
    let mut late = pod("late", &[]);
    late["spec"]["nodeName"] = "a".into();
    world.create::<Pod>(late).await;
    eventually("pod late evicted", || async { is_deleting(&world, "late").await.then_some(()) }).await;
}

#[tokio::test]
async fn conditions_come_and_go_as_taints() {
    let world = World::start().await;
    world.create::<Node>(node("a")).await;
    world.run_well(&[Controller::Taints]);
    for (status, keys) in [("False", &["node.kubernetes.io/not-ready"][..]), ("True", &[])] {
        let patch = json!({"status": {"conditions": [{"type": "Ready", "status": status}]}});
        world.api::<Node>().patch_status("a", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
        eventually(&format!("taints {keys:?}"), || async {
            let taints = world.get::<Node>("a").await?.spec.and_then(|spec| spec.taints).unwrap_or_default();
            taints.iter().map(|taint| taint.key.as_str()).eq(keys.iter().copied()).then_some(())
        })
        .await;
    }
}
