//! Pods that find their nodes, against an API server, with the binder and a driver at work.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod driver;
#[path = "../../controllers/tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;

use controllers::Controller;
use driver::{CLASS, Driver};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;
use serde_json::json;
use support::{Fault, World, claim, class, eventually, node, pod, volume};

fn start(world: &World, driver: &Driver) {
    tokio::spawn(controllers::run(world.context.clone(), &[Controller::Bind]));
    tokio::spawn(scheduler::run(world.context.clone()));
    tokio::spawn(driver.clone().run(world.context.clone()));
}

async fn refusal(world: &World, name: &str) -> String {
    let pod: Pod = eventually(&format!("pod {name} refused"), || async {
        world
            .get::<Pod>(name)
            .await
            .filter(|pod| scheduled(pod).is_some_and(|condition| condition.status == "False"))
    })
    .await;
    scheduled(&pod).and_then(|condition| condition.message.clone()).unwrap_or_default()
}

fn scheduled(pod: &Pod) -> Option<&k8s_openapi::api::core::v1::PodCondition> {
    pod.status.as_ref()?.conditions.iter().flatten().find(|condition| condition.type_ == "PodScheduled")
}

#[tokio::test]
async fn pods_go_where_node_and_volumes_allow() {
    let world = World::start().await;
    let driver = Driver::install(&world, &[("a", &[1000]), ("b", &[2000]), ("c", &[3000])]).await;
    start(&world, &driver);
    // Without claims: by selector, taints and cordon.
    world.create::<Pod>(pod("anywhere", &[])).await;
    world.pod_on("anywhere").await;
    let mut picky = pod("picky", &[]);
    picky["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": "b"});
    world.create::<Pod>(picky).await;
    assert_eq!(world.pod_on("picky").await, "b");
    let mut nowhere = pod("nowhere", &[]);
    nowhere["spec"]["nodeSelector"] = json!({"disk": "none"});
    world.create::<Pod>(nowhere).await;
    assert_eq!(
        refusal(&world, "nowhere").await,
        "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector."
    );
    // The node that it waits for comes.
    let mut late = node("late");
    late["metadata"]["labels"]["disk"] = "none".into();
    world.create::<Node>(late).await;
    assert_eq!(world.pod_on("nowhere").await, "late");

    // With a claim to be provisioned: most free storage.
    world.create::<PersistentVolumeClaim>(claim("data", "500Mi", Some(CLASS))).await;
    world.create::<Pod>(pod("user", &["data"])).await;
    assert_eq!(world.pod_on("user").await, "c");
    world.event("user", "Scheduled").await;
    assert_eq!(resources::claim::selected_node(&world.claim_phase("data", "Bound").await), Some("c"));

    // Too large for every drive: the event says so.
    world.create::<PersistentVolumeClaim>(claim("huge", "9000Mi", Some(CLASS))).await;
    world.create::<Pod>(pod("greedy", &["huge"])).await;
    let message = refusal(&world, "greedy").await;
    assert!(message.contains("did not have enough free storage"), "{message}");
    assert!(message.contains("asks for 9000Mi; the largest free volume is 2500Mi, on c"), "{message}");
    world.event("greedy", "FailedScheduling").await;

    // A claim that is missing, and comes.
    world.create::<Pod>(pod("early", &["later"])).await;
    assert!(refusal(&world, "early").await.contains("persistentvolumeclaim \"later\" not found"));
    world.create::<PersistentVolumeClaim>(claim("later", "10Mi", Some(CLASS))).await;
    world.pod_on("early").await;
}

/// Volumes take their time to be made: meanwhile the node that was chosen counts for the rules of other pods.
#[tokio::test]
async fn pods_of_a_quorum_are_kept_apart_while_their_volumes_are_made() {
    let world = World::start().await;
    let driver = Driver::install(&world, &[("a", &[1000]), ("b", &[2000]), ("c", &[9000])]).await;
    for number in 0..4 {
        let name = format!("quorum-{number}");
        world.create::<PersistentVolumeClaim>(claim(&name, "60Mi", Some(CLASS))).await;
        let mut pod = pod(&name, &[&name]);
        pod["metadata"]["labels"] = json!({"app": "quorum"});
        pod["spec"]["affinity"] = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "quorum"}}}]}});
        world.create::<Pod>(pod).await;
    }
    start(&world, &driver);
    let placed = async || -> Vec<(String, String)> {
        let pods = world.list::<Pod>().await;
        let node = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
        pods.iter().filter_map(|pod| Some((node(pod)?, pod.name_any()))).collect()
    };
    let three = eventually("three pods on nodes", || async {
        let placed = placed().await;
        (placed.len() == 3).then_some(placed)
    })
    .await;
    let nodes: BTreeMap<_, _> = three.iter().cloned().collect();
    assert_eq!(nodes.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
    let left = (0..4).map(|number| format!("quorum-{number}"));
    let left = left.into_iter().find(|name| !nodes.values().any(|placed| placed == name)).unwrap();
    assert_eq!(
        refusal(&world, &left).await,
        "0/3 nodes are available: 3 node(s) didn't match pod anti-affinity rules."
    );
    // One goes, and makes way.
    let at_once = kube::api::DeleteParams::default().grace_period(0);
    world.api::<Pod>().delete(&nodes["b"], &at_once).await.unwrap();
    assert_eq!(world.pod_on(&left).await, "b");
}

#[tokio::test]
async fn pods_wait_for_gates_room_and_company() {
    let world = World::start().await;
    let driver = Driver::install(&world, &[("a", &[1000]), ("b", &[1000])]).await;
    start(&world, &driver);
    // Gated, until the gate is taken away.
    let mut gated = pod("gated", &[]);
    gated["spec"]["schedulingGates"] = json!([{"name": "example.com/wait"}]);
    let gated = world.create::<Pod>(gated).await;
    assert_eq!(scheduled(&gated).and_then(|condition| condition.reason.as_deref()), Some("SchedulingGated"));
    let ungated = json!({"spec": {"schedulingGates": null}});
    let merge = kube::api::Patch::Merge(&ungated);
    world.api::<Pod>().patch("gated", &kube::api::PatchParams::default(), &merge).await.unwrap();
    world.pod_on("gated").await;
    // Near to a pod that comes later.
    let mut friend = pod("friend", &[]);
    friend["spec"]["affinity"] = json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "late"}}}]}});
    world.create::<Pod>(friend).await;
    assert!(refusal(&world, "friend").await.contains("2 node(s) didn't match pod affinity rules"));
    let mut late = pod("late", &[]);
    late["metadata"]["labels"] = json!({"app": "late"});
    late["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": "b"});
    world.create::<Pod>(late).await;
    assert_eq!(world.pod_on("friend").await, "b");
    // More than is free, until a pod that took it is over.
    let asking = |name: &str| {
        let mut pod = pod(name, &[]);
        pod["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": "a"});
        pod["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "5"}});
        pod
    };
    world.create::<Pod>(asking("first")).await;
    assert_eq!(world.pod_on("first").await, "a");
    world.create::<Pod>(asking("second")).await;
    assert_eq!(
        refusal(&world, "second").await,
        "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) didn't match Pod's node affinity/selector."
    );
    let over = json!({"status": {"phase": "Succeeded"}});
    let merge = kube::api::Patch::Merge(&over);
    world.api::<Pod>().patch_status("first", &kube::api::PatchParams::default(), &merge).await.unwrap();
    assert_eq!(world.pod_on("second").await, "a");
}

#[tokio::test]
async fn static_volumes_are_given_with_their_node() {
    let world = World::start().await;
    let driver = Driver::install(&world, &[("a", &[]), ("b", &[])]).await;
    start(&world, &driver);
    world
        .create::<StorageClass>(class("static", "kubernetes.io/no-provisioner", "WaitForFirstConsumer"))
        .await;
    for (name, size) in [("small", "1Gi"), ("large", "5Gi")] {
        let mut volume = volume(name, size, "static");
        volume["spec"]["nodeAffinity"] = json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [
            {"key": "kubernetes.io/hostname", "operator": "In", "values": ["b"]}]}]}});
        world.create::<PersistentVolume>(volume).await;
    }
    // Both claims at once, the smaller volume for the smaller claim.
    world.create::<PersistentVolumeClaim>(claim("big", "2Gi", Some("static"))).await;
    world.create::<PersistentVolumeClaim>(claim("little", "1Gi", Some("static"))).await;
    world.create::<Pod>(pod("both", &["big", "little"])).await;
    assert_eq!(world.pod_on("both").await, "b");
    assert_eq!(resources::claim::volume_name(&world.claim_phase("big", "Bound").await), "large");
    assert_eq!(resources::claim::volume_name(&world.claim_phase("little", "Bound").await), "small");

    world.create::<PersistentVolumeClaim>(claim("third", "1Gi", Some("static"))).await;
    world.create::<Pod>(pod("third", &["third"])).await;
    let message = refusal(&world, "third").await;
    assert_eq!(
        message,
        "0/2 nodes are available: 2 node(s) didn't find available persistent volumes to bind."
    );
    world.create::<PersistentVolume>(volume("new", "1Gi", "static")).await;
    world.pod_on("third").await;
}

#[tokio::test]
async fn a_volume_kept_for_a_claim_that_can_t_have_it_is_not_waited_for() {
    let world = World::start().await;
    let driver = Driver::install(&world, &[("a", &[1000])]).await;
    start(&world, &driver);
    let mut kept = volume("kept", "1Gi", CLASS);
    kept["spec"]["claimRef"] =
        json!({"kind": "PersistentVolumeClaim", "namespace": "default", "name": "data"});
    kept["spec"]["accessModes"] = json!(["ReadOnlyMany"]);
    world.create::<PersistentVolume>(kept).await;
    world.create::<PersistentVolumeClaim>(claim("data", "100Mi", Some(CLASS))).await;
    world.create::<Pod>(pod("user", &["data"])).await;
    assert_eq!(world.pod_on("user").await, "a");
    assert_ne!(resources::claim::volume_name(&world.claim_phase("data", "Bound").await), "kept");
}

#[tokio::test]
async fn a_hundred_pods_at_once_never_overbook() {
    let world = World::start().await;
    let nodes: &[(&str, &[u64])] =
        &[("a", &[700, 700, 700]), ("b", &[700, 700, 700]), ("c", &[700, 700, 700])];
    let driver = Driver::install(&world, nodes).await;
    start(&world, &driver);
    for number in 0..100 {
        let name = format!("p{number}");
        world.create::<PersistentVolumeClaim>(claim(&name, "60Mi", Some(CLASS))).await;
        world.create::<Pod>(pod(&name, &[&name])).await;
    }
    let pods = eventually("all pods on nodes", || async {
        let pods = world.list::<Pod>().await;
        pods.iter().all(|pod| pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some())).then_some(pods)
    });
    // Three drives of 700 MiB hold eleven volumes each: 99 of the hundred pods.
    let placed = async {
        eventually("99 pods on nodes", || async {
            let pods = world.list::<Pod>().await;
            let placed: Vec<_> = pods.iter().filter_map(|pod| pod.spec.as_ref()?.node_name.clone()).collect();
            (placed.len() == 99).then_some(placed)
        })
        .await
    };
    drop(pods);
    let mut per_node = BTreeMap::<String, usize>::new();
    placed.await.into_iter().for_each(|node| *per_node.entry(node).or_default() += 1);
    assert_eq!(per_node.values().copied().collect::<Vec<_>>(), [33, 33, 33]);
    assert_eq!(driver.refused(), 0);
    let waiting = world.list::<Pod>().await;
    let left =
        waiting.iter().find(|pod| pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_none())).unwrap();
    let message = refusal(&world, &left.name_any()).await;
    assert!(message.contains("3 node(s) did not have enough free storage"), "{message}");
}

#[tokio::test]
async fn a_node_that_fails_to_provision_is_avoided() {
    let world = World::start().await;
    let driver = Driver::install(&world, &[("a", &[1000]), ("b", &[900])]).await;
    driver.break_node("a");
    start(&world, &driver);
    world.create::<PersistentVolumeClaim>(claim("data", "100Mi", Some(CLASS))).await;
    world.create::<Pod>(pod("user", &["data"])).await;
    assert_eq!(world.pod_on("user").await, "b");
    assert!(driver.refused() <= 2, "the broken node was tried {} times", driver.refused());

    // No node left: neither a pod to place nor one that was put on a node goes round in circles.
    driver.break_node("b");
    let before = driver.refused();
    world.create::<PersistentVolumeClaim>(claim("more", "100Mi", Some(CLASS))).await;
    world.create::<Pod>(pod("unlucky", &["more"])).await;
    world.create::<PersistentVolumeClaim>(claim("own", "100Mi", Some(CLASS))).await;
    let mut preset = pod("preset", &["own"]);
    preset["spec"]["nodeName"] = "a".into();
    world.create::<Pod>(preset).await;
    let message = refusal(&world, "unlucky").await;
    assert!(
        message.contains("2 node(s) failed to provision a volume for the pod a short while ago"),
        "{message}"
    );
    world.event("preset", "FailedScheduling").await;
    assert!(driver.refused() <= before + 6, "broken nodes were tried {} times", driver.refused() - before);
}

#[tokio::test]
async fn a_vanished_node_is_given_up_and_a_preset_one_respected() {
    let world = World::start().await;
    let driver = Driver::install(&world, &[("a", &[1000]), ("b", &[900])]).await;
    let mut stuck = claim("stuck", "100Mi", Some(CLASS));
    stuck["metadata"]["annotations"] = json!({resources::annotations::SELECTED_NODE: "gone"});
    world.create::<PersistentVolumeClaim>(stuck).await;
    world.create::<Pod>(pod("user", &["stuck"])).await;
    let mut preset = pod("preset", &["own"]);
    preset["spec"]["nodeName"] = "b".into();
    world.create::<PersistentVolumeClaim>(claim("own", "100Mi", Some(CLASS))).await;
    world.create::<Pod>(preset).await;
    start(&world, &driver);
    world.pod_on("user").await;
    let own = world.claim_phase("own", "Bound").await;
    assert_eq!(resources::claim::selected_node(&own), Some("b"));
}

#[tokio::test]
async fn every_write_may_fail_once() {
    async fn scenario(world: &World) {
        let driver = Driver::install(world, &[("a", &[1000]), ("b", &[2000])]).await;
        let context = world.context.clone();
        tokio::spawn(scheduler::run(context.clone()));
        // The others are not under test here: their writes don't count.
        let others =
            runtime::Context::new(world.client.clone(), runtime::Metrics::new(), context.shutdown.clone());
        tokio::spawn(controllers::run(others.clone(), &[Controller::Bind]));
        tokio::spawn(driver.clone().run(others));
        world
            .create::<StorageClass>(class("static", "kubernetes.io/no-provisioner", "WaitForFirstConsumer"))
            .await;
        world.create::<PersistentVolume>(volume("ready", "1Gi", "static")).await;
        world.create::<PersistentVolumeClaim>(claim("made", "10Mi", Some(CLASS))).await;
        world.create::<PersistentVolumeClaim>(claim("given", "10Mi", Some("static"))).await;
        world.create::<Pod>(pod("user", &["made", "given"])).await;
        world.pod_on("user").await;
        world.claim_phase("made", "Bound").await;
        world.claim_phase("given", "Bound").await;
        context.shutdown.cancel();
    }
    let world = World::start().await;
    scenario(&world).await;
    let writes = world.writes().max(3);
    for fault in [Fault::Conflict, Fault::Refused, Fault::AnswerLost] {
        for number in 0..writes {
            println!("write {number}: {fault:?}");
            scenario(&World::with_fault(Some((number, fault))).await).await;
        }
    }
}

/// A pod of a high priority takes the place of another, and no third one comes in between; whichever write fails.
#[tokio::test]
async fn pods_make_way_for_those_of_a_higher_priority() {
    let world = World::start().await;
    preempted(&world).await;
    let writes = world.writes().max(5);
    for fault in [Fault::Conflict, Fault::Refused, Fault::AnswerLost] {
        for number in 0..writes {
            println!("write {number}: {fault:?}");
            preempted(&World::with_fault(Some((number, fault))).await).await;
        }
    }
}

async fn preempted(world: &World) {
    let mut only = node("a");
    only["status"]["allocatable"]["cpu"] = "2".into();
    world.create::<Node>(only).await;
    for (name, value) in [("low", 10), ("high", 1000)] {
        let class = json!({"metadata": {"name": name}, "value": value});
        world.create::<k8s_openapi::api::scheduling::v1::PriorityClass>(class).await;
    }
    let asks = |name: &str, class: &str| {
        let mut pod = pod(name, &[]);
        pod["spec"]["priorityClassName"] = class.into();
        pod["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "1500m"}});
        pod
    };
    world.create::<Pod>(asks("first", "low")).await;
    tokio::spawn(scheduler::run(world.context.clone()));
    world.pod_on("first").await;
    world.create::<Pod>(asks("second", "low")).await;
    assert_eq!(refusal(world, "second").await, "0/1 nodes are available: 1 Insufficient cpu.");
    world.create::<Pod>(asks("urgent", "high")).await;
    let first = eventually("the first pod is told to go", || async {
        world.get::<Pod>("first").await.filter(|pod| pod.metadata.deletion_timestamp.is_some())
    })
    .await;
    let conditions = first.status.unwrap().conditions.unwrap();
    let target = conditions.iter().find(|condition| condition.type_ == "DisruptionTarget").unwrap();
    assert_eq!(target.reason.as_deref(), Some("PreemptionByScheduler"));
    let urgent = world.get::<Pod>("urgent").await.unwrap();
    assert_eq!(urgent.status.unwrap().nominated_node_name.as_deref(), Some("a"));
    let event = world.event("first", "Preempted").await;
    assert_eq!(event.message, Some(format!("Preempted by pod {} on node a", urgent.metadata.uid.unwrap())));

    // It has ended: the place is the one's for whose sake it went, though the other waits for longer.
    let now = kube::api::DeleteParams::default().grace_period(0);
    world.api::<Pod>().delete("first", &now).await.unwrap();
    assert_eq!(world.pod_on("urgent").await, "a");
    assert!(world.get::<Pod>("second").await.unwrap().spec.unwrap().node_name.is_none());
    world.context.shutdown.cancel();
}
