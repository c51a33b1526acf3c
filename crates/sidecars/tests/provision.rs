//! Volumes made for claims, and deleted after them, against a real API server and a driver with faults.

#![allow(clippy::unwrap_used, reason = "a test says by its panic what went wrong")]

mod world;

use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::CSINode;
use kube::ResourceExt;
use kube::api::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use resources::{annotations, claim, finalizers, volume};
use serde_json::json;
use tonic::{Code, Status};
use world::driver::Answer;
use world::steps::When;
use world::{DRIVER, FakeDriver, KEY, Process, Steps, World, eventually, has_intent};

#[tokio::test]
async fn a_claim_gets_a_volume_on_its_node_with_three_writes_and_gives_it_back() {
    let world = World::new(1).await;
    world
        .class("fast", |class| {
            class["parameters"] = json!({"tier": "nvme", "csi.storage.k8s.io/fstype": "xfs"})
        })
        .await;
    let process = world.provision(&Steps::new()).await;
    let claim = world.claim("data", "fast", Some("n1"), "1Gi").await;
    world.bound("data").await;

    let name = format!("pvc-{}", claim.uid().unwrap());
    assert_eq!(world.driver.volumes(), [(name.clone(), 1 << 30)].into());
    let request = &world.driver.requests()[0];
    assert_eq!(request.parameters, [("tier".to_owned(), "nvme".to_owned())].into());
    assert_eq!(request.accessibility_requirements.as_ref().unwrap().requisite[0].segments[KEY], "n1");
    let volume = world.volumes().get(&name).await.unwrap();
    assert!(volume::is_bound_to(&volume, &claim));
    assert_eq!(volume::capacity(&volume).unwrap().0, "1Gi");
    assert!(volume.finalizers().iter().any(|finalizer| finalizer == finalizers::PROVISIONER));
    assert!(volume::admits_node(&volume, "n1", &[(KEY.to_owned(), "n1".to_owned())].into()));
    assert!(!volume::admits_node(&volume, "n2", &[(KEY.to_owned(), "n2".to_owned())].into()));
    assert_eq!(world.writes(), 3, "intent, volume, settling");
    eventually("events are written", async || {
        world.events("Provisioning").await
            == ["External provisioner is provisioning volume for claim \"default/data\""]
            && world.events("ProvisioningSucceeded").await
                == [format!("Successfully provisioned volume {name}")]
    })
    .await;

    world.delete_claim("data").await;
    world.empty().await;
    process.kill().await;
}

#[tokio::test]
async fn claims_of_other_nodes_and_drivers_are_left_alone() {
    let world = World::new(2).await;
    world.class("fast", |_| {}).await;
    world.class("other", |class| class["provisioner"] = json!("nfs.example.com")).await;
    let process = world.provision(&Steps::new()).await;
    world.claim("elsewhere", "fast", Some("n2"), "1Gi").await;
    world.claim("unscheduled", "fast", None, "1Gi").await;
    world.claim("foreign", "other", Some("n1"), "1Gi").await;
    world.claim("here", "fast", Some("n1"), "1Gi").await;
    world.bound("here").await;
    assert_eq!(world.driver.requests().len(), 1);
    process.kill().await;
}

/// Kills the process at every step in turn, before and after the step's effect, with the claim living on or deleted
/// while nobody is there; starts another one; and looks for volumes lost or made twice.
#[tokio::test]
async fn a_crash_at_any_step_neither_loses_nor_leaks_a_volume() {
    for deleted in [false, true] {
        for when in [When::Before, When::After] {
            let mut step = 0;
            while life_with_a_crash(step, when, deleted).await {
                step += 1;
            }
            assert!(step >= 7, "a whole life has at least 7 steps, this one had {step}");
        }
    }
}

/// Whether the crash came before the life was over.
async fn life_with_a_crash(step: usize, when: When, deleted: bool) -> bool {
    let world = World::new(1).await;
    world.class("fast", |_| {}).await;
    let claim = world.claim("data", "fast", Some("n1"), "1Gi").await;
    let steps = Steps::crashing_at(step, when);
    let process = world.provision(&steps).await;
    let life = async {
        world.bound("data").await;
        world.delete_claim("data").await;
        world.empty().await;
    };
    let crashed = tokio::select! {
        () = life => false,
        () = steps.crashed() => true,
    };
    process.kill().await;
    if !crashed {
        return false;
    }
    let here = world.claims().get_opt("data").await.unwrap();
    let living = here.is_some_and(|claim| claim.metadata.deletion_timestamp.is_none());
    if deleted && living {
        world.delete_claim("data").await;
    }
    let process = world.provision(&Steps::new()).await;
    if !deleted && living {
        world.bound("data").await;
        assert_eq!(world.driver.volumes().len(), 1, "crash {when:?} step {step}");
        assert_eq!(world.volume_list().await.len(), 1);
        world.delete_claim("data").await;
    }
    world.empty().await;
    let name = format!("pvc-{}", claim.uid().unwrap());
    assert!(world.driver.requests().iter().all(|request| request.name == name));
    process.kill().await;
    true
}

#[tokio::test]
async fn a_final_refusal_is_told_and_leaves_no_trace_and_is_tried_again() {
    let refused = |code: Code| async move {
        let world = World::new(1).await;
        world.class("fast", |_| {}).await;
        // Two, so that the claim can be seen between them.
        world.driver.answer_create([
            Answer::Refuse(Status::new(code, "no such tier")),
            Answer::Refuse(Status::new(code, "no such tier")),
        ]);
        world.claim("data", "fast", Some("n1"), "1Gi").await;
        let process = world.provision(&Steps::new()).await;
        eventually("the intent is cleared", async || {
            world.driver.requests().len() == 1 && !has_intent(&world.claims().get("data").await.unwrap())
        })
        .await;
        eventually("the refusal is told", async || {
            let told = world.events("ProvisioningFailed").await;
            told.iter().any(|message| {
                message.starts_with("failed to provision volume with StorageClass \"fast\": ")
                    && message.contains(&format!("rpc error: code = {code:?} desc = no such tier"))
            })
        })
        .await;
        world.bound("data").await;
        process.kill().await;
    };
    let codes = [Code::InvalidArgument, Code::Internal, Code::OutOfRange, Code::Unknown];
    futures::future::join_all(codes.map(refused)).await;
}

#[tokio::test]
async fn an_open_answer_is_followed_up_even_if_the_claim_is_deleted() {
    for code in [Code::Unavailable, Code::DeadlineExceeded, Code::Aborted, Code::Cancelled] {
        let world = World::new(1).await;
        world.class("fast", |_| {}).await;
        world.driver.answer_create([Answer::MakeAndFail(Status::new(code, "busy"))]);
        let process = world.provision(&Steps::new()).await;
        world.claim("data", "fast", Some("n1"), "1Gi").await;
        eventually("the volume is made", async || world.driver.volumes().len() == 1).await;
        assert!(has_intent(&world.claims().get("data").await.unwrap()));
        world.delete_claim("data").await;
        world.empty().await;
        assert!(world.driver.requests().len() >= 2, "the call was repeated");
        process.kill().await;
    }
}

#[tokio::test]
async fn a_full_node_hands_the_claim_back_to_the_scheduler() {
    let world = World::new(1).await;
    world.class("fast", |_| {}).await;
    let full = "no drive has 1Gi free, the largest has 512Mi; delete volumes or add a drive";
    world.driver.answer_create([Answer::Refuse(Status::resource_exhausted(full))]);
    world.claim("data", "fast", Some("n1"), "1Gi").await;
    let process = world.provision(&Steps::new()).await;
    eventually("the selected node is removed", async || {
        let claim = world.claims().get("data").await.unwrap();
        claim::selected_node(&claim).is_none() && !has_intent(&claim)
    })
    .await;
    eventually("the driver's message is passed on", async || {
        world.events("ProvisioningFailed").await.iter().any(|message| message.contains(full))
    })
    .await;
    process.kill().await;
}

#[tokio::test]
async fn a_volume_that_is_too_small_is_deleted_again() {
    let world = World::new(1).await;
    world.class("fast", |_| {}).await;
    world.driver.answer_create([Answer::Make(1 << 20)]);
    world.claim("data", "fast", Some("n1"), "1Gi").await;
    let process = world.provision(&Steps::new()).await;
    eventually("the reason is told", async || {
        let told = world.events("ProvisioningFailed").await;
        told.iter().any(|message| message.contains("1048576 less than requested capacity 1073741824"))
    })
    .await;
    world.bound("data").await;
    assert_eq!(world.driver.volumes().into_values().collect::<Vec<_>>(), [1 << 30]);
    process.kill().await;
}

#[tokio::test]
async fn a_claim_that_can_not_be_served_is_refused_without_asking_the_driver() {
    let world = World::new(1).await;
    world.class("odd", |class| class["parameters"] = json!({"csi.storage.k8s.io/fstyp": "xfs"})).await;
    world.class("fast", |_| {}).await;
    world.claim("odd", "odd", Some("n1"), "1Gi").await;
    let selecting: PersistentVolumeClaim = world::object(json!({
        "metadata": {"name": "selecting", "annotations": {annotations::STORAGE_PROVISIONER: DRIVER,
                     annotations::SELECTED_NODE: "n1"}},
        "spec": {"storageClassName": "fast", "accessModes": ["ReadWriteOnce"],
                 "selector": {"matchLabels": {"a": "b"}}, "resources": {"requests": {"storage": "1Gi"}}},
    }));
    world.claims().create(&PostParams::default(), &selecting).await.unwrap();
    let process = world.provision(&Steps::new()).await;
    eventually("both are told", async || {
        let told = world.events("ProvisioningFailed").await.join("\n");
        told.contains("found unknown parameter key \"csi.storage.k8s.io/fstyp\"")
            && told.contains("claim Selector is not supported")
    })
    .await;
    assert!(world.driver.requests().is_empty());
    assert_eq!(world.writes(), 0);
    process.kill().await;
}

#[tokio::test]
async fn retain_means_retain() {
    let world = World::new(1).await;
    world.class("kept", |class| class["reclaimPolicy"] = json!("Retain")).await;
    world.class("fast", |_| {}).await;
    let process = world.provision(&Steps::new()).await;
    world.claim("precious", "kept", Some("n1"), "1Gi").await;
    world.bound("precious").await;
    world.delete_claim("precious").await;
    eventually("the volume is Released", async || {
        world.bind().await;
        world.volume_list().await.iter().all(|one| volume::phase(one) == "Released")
    })
    .await;
    // Another life passes through the same process meanwhile.
    world.claim("data", "fast", Some("n1"), "1Gi").await;
    world.bound("data").await;
    world.delete_claim("data").await;
    eventually("only the retained volume is left", async || {
        world.bind().await;
        world.volume_list().await.len() == 1 && world.driver.volumes().len() == 1
    })
    .await;
    let name = world.volume_list().await[0].name_any();
    assert_eq!(world.driver.volumes().into_keys().collect::<Vec<_>>(), std::slice::from_ref(&name));
    world.volumes().delete(&name, &DeleteParams::default()).await.unwrap();
    eventually("its object goes alone", async || {
        world.bind().await;
        world.volume_list().await.is_empty()
    })
    .await;
    assert_eq!(world.driver.volumes().len(), 1);
    process.kill().await;
}

#[tokio::test]
async fn a_policy_changed_to_retain_is_honoured() {
    let world = World::new(1).await;
    world.class("fast", |_| {}).await;
    let process = world.provision(&Steps::new()).await;
    world.claim("data", "fast", Some("n1"), "1Gi").await;
    world.bound("data").await;
    let name = world.volume_list().await[0].name_any();
    let retain = json!({"spec": {"persistentVolumeReclaimPolicy": "Retain"}});
    world.volumes().patch(&name, &PatchParams::default(), &Patch::Merge(&retain)).await.unwrap();
    eventually("the finalizer is dropped", async || {
        let volume = world.volumes().get(&name).await.unwrap();
        !volume.finalizers().iter().any(|finalizer| finalizer == finalizers::PROVISIONER)
    })
    .await;
    process.kill().await;
}

#[tokio::test]
async fn a_volume_whose_object_is_deleted_first_is_deleted_after_its_claim() {
    let world = World::new(1).await;
    world.class("fast", |_| {}).await;
    let process = world.provision(&Steps::new()).await;
    world.claim("data", "fast", Some("n1"), "1Gi").await;
    world.bound("data").await;
    let name = world.volume_list().await[0].name_any();
    world.volumes().delete(&name, &DeleteParams::default()).await.unwrap();
    world.bind().await;
    assert_eq!(world.driver.volumes().len(), 1, "still in use");
    world.delete_claim("data").await;
    world.empty().await;
    process.kill().await;
}

#[tokio::test]
async fn a_deletion_that_fails_is_told_and_tried_again() {
    let world = World::new(1).await;
    world.class("fast", |_| {}).await;
    world.driver.answer_delete([Status::failed_precondition("the volume is mounted")]);
    let process = world.provision(&Steps::new()).await;
    world.claim("data", "fast", Some("n1"), "1Gi").await;
    world.bound("data").await;
    world.delete_claim("data").await;
    world.empty().await;
    eventually("the failure is told", async || {
        let told = world.events("VolumeFailedDelete").await;
        told.iter().any(|message| message.contains("code = FailedPrecondition desc = the volume is mounted"))
    })
    .await;
    process.kill().await;
}

async fn register(world: &World, nodes: &[&str]) {
    for node in nodes {
        let csi_node: CSINode = world::object(json!({"metadata": {"name": node},
            "spec": {"drivers": [{"name": DRIVER, "nodeID": node, "topologyKeys": [KEY]}]}}));
        Api::all(world.client.clone()).create(&PostParams::default(), &csi_node).await.unwrap();
    }
}

#[tokio::test]
async fn claims_that_bind_at_once_are_made_by_exactly_one_node_each() {
    let world = World::new(2).await;
    world.class("now", |class| class["volumeBindingMode"] = json!("Immediate")).await;
    register(&world, &["n1", "n2"]).await;
    let drivers = ["n1", "n2"].map(FakeDriver::new);
    let mut processes: Vec<Process> = Vec::new();
    let mut guards = Vec::new();
    for (node, driver) in ["n1", "n2"].into_iter().zip(&drivers) {
        let socket = world.socket(&format!("{node}.sock"));
        guards.push(driver.serve(&socket, &Steps::new()));
        let driver = sidecars::Driver::connect(&socket).await.unwrap();
        let signal = sidecars::capacity::Signal::new();
        let context = world.context(&Steps::new());
        let shutdown = context.shutdown.clone();
        let node = node.to_owned();
        let task = tokio::spawn(async move {
            let publishing = sidecars::capacity::Options {
                node: node.clone(),
                namespace: "default".to_owned(),
                immediate: true,
            };
            let provisioning = sidecars::provision::Options { node, extra_metadata: false };
            tokio::join!(
                sidecars::capacity::run(context.clone(), driver.clone(), publishing, signal.clone(), None),
                sidecars::provision::run(context, driver, provisioning, signal),
            );
        });
        processes.push(Process::new(shutdown, task));
    }
    for claim in 0..12 {
        world.claim(&format!("data-{claim}"), "now", None, "1Gi").await;
    }
    for claim in 0..12 {
        world.bound(&format!("data-{claim}")).await;
    }
    let counts = drivers.each_ref().map(|driver| driver.volumes().len());
    assert_eq!(counts.iter().sum::<usize>(), 12, "{counts:?}");
    assert!(counts.iter().all(|count| *count > 0), "both nodes take part: {counts:?}");
    // A node dies, and what it published stays: nothing of it is counted upon as soon as Kubernetes says so.
    processes.pop().unwrap().kill().await;
    for claim in 12..20 {
        world.claim(&format!("data-{claim}"), "now", None, "1Gi").await;
    }
    world.ready("n2", "Unknown").await;
    for claim in 12..20 {
        world.bound(&format!("data-{claim}")).await;
    }
    assert_eq!(drivers[0].volumes().len(), counts[0] + 8);
    for process in processes {
        process.kill().await;
    }
}

#[tokio::test]
async fn nothing_is_left_to_a_node_that_is_off() {
    let world = World::new(3).await;
    world.class("now", |class| class["volumeBindingMode"] = json!("Immediate")).await;
    register(&world, &["n1", "n2", "n3"]).await;
    world.ready("n1", "True").await;
    world.ready("n2", "Unknown").await;
    let out = json!({"spec": {"taints": [{"key": resources::node::OUT_OF_SERVICE, "effect": "NoExecute"}]}});
    let nodes: Api<Node> = Api::all(world.client.clone());
    nodes.patch("n3", &PatchParams::default(), &Patch::Merge(&out)).await.unwrap();
    let process = world.provision(&Steps::new()).await;
    for claim in 0..12 {
        world.claim(&format!("data-{claim}"), "now", None, "1Gi").await;
    }
    for claim in 0..12 {
        world.bound(&format!("data-{claim}")).await;
    }
    // One that returns has its share again: of many, not all are made here.
    world.ready("n2", "True").await;
    for claim in 12..32 {
        world.claim(&format!("data-{claim}"), "now", None, "1Gi").await;
    }
    eventually("some claims are made here", async || world.driver.volumes().len() > 12).await;
    // Until it dies again.
    world.ready("n2", "False").await;
    for claim in 12..32 {
        world.bound(&format!("data-{claim}")).await;
    }
    process.kill().await;
}
