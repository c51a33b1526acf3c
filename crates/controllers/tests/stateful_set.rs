//! Stateful sets against an API server, with a node that runs every pod.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod support;

use std::time::{Duration, Instant};

use controllers::{Controller, run};
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::{Event, PersistentVolumeClaim, Pod};
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams, PropagationPolicy};
use runtime::{Context, Metrics};
use serde_json::{Value, json};
use support::kubelet::Kubelet;
use support::{Fault, World, eventually, names};

const SET: &[Controller] = &[Controller::StatefulSet];
/// What else acts on a set's objects.
const OTHERS: &[Controller] = &[Controller::Collect, Controller::Protect];

fn set(replicas: i32, spec: Value) -> Value {
    let mut set = json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db", "namespace": "default"},
        "spec": {
            "serviceName": "db", "replicas": replicas, "selector": {"matchLabels": {"app": "db"}},
            "template": {
                "metadata": {"labels": {"app": "db"}},
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "containers": [{"name": "main", "image": "host", "command": ["true"],
                        "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
                },
            },
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {
                "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}],
        },
    });
    for (field, value) in spec.as_object().unwrap() {
        set["spec"][field] = value.clone();
    }
    set
}

async fn patch(world: &World, spec: Value) {
    let patch = Patch::Strategic(json!({"spec": spec}));
    world.api::<StatefulSet>().patch("db", &PatchParams::default(), &patch).await.unwrap();
}

async fn status(world: &World, what: &str, holds: impl Fn(&StatefulSetStatus) -> bool) -> StatefulSet {
    eventually(what, || async {
        let set = world.get::<StatefulSet>("db").await?;
        let observed = set.status.as_ref().and_then(|status| status.observed_generation);
        let is_current = observed == set.metadata.generation;
        (is_current && set.status.as_ref().is_some_and(&holds)).then_some(set)
    })
    .await
}

/// Waits until so many pods, and no others, are ready and of the newest template.
async fn settled(world: &World, replicas: i32) -> StatefulSet {
    status(world, &format!("{replicas} pods ready"), |status| {
        let all = [
            status.ready_replicas,
            status.available_replicas,
            status.updated_replicas,
            status.current_replicas,
        ];
        status.replicas == replicas
            && all.iter().all(|count| count.unwrap_or(0) == replicas)
            && status.current_revision == status.update_revision
    })
    .await
}

async fn pod(world: &World, name: &str) -> Pod {
    eventually(name, || world.get::<Pod>(name)).await
}

#[tokio::test]
async fn pods_start_in_order_with_their_claims_and_end_in_reverse() {
    let world = World::start().await;
    let kubelet = Kubelet::start(world.client.clone());
    tokio::spawn(run(world.context.clone(), SET));
    world.run_well(OTHERS);
    kubelet.hold("db-3");
    world.create::<StatefulSet>(set(3, json!({"ordinals": {"start": 2}}))).await;

    // Nothing follows a pod that does not get ready; its claim is there.
    status(&world, "one pod of two is ready", |status| {
        status.replicas == 2 && status.ready_replicas == Some(1)
    })
    .await;
    assert_eq!(names(&world.list::<Pod>().await), ["db-2", "db-3"]);
    assert_eq!(names(&world.list::<PersistentVolumeClaim>().await), ["data-db-2", "data-db-3"]);
    kubelet.release("db-3");
    let set = settled(&world, 3).await;
    let member = pod(&world, "db-4").await;
    let revision = set.status.unwrap().current_revision.unwrap();
    assert_eq!(
        json!(member.labels()),
        json!({"app": "db", "statefulset.kubernetes.io/pod-name": "db-4", "apps.kubernetes.io/pod-index": "4",
            "controller-revision-hash": revision})
    );
    let spec = member.spec.unwrap();
    assert_eq!((spec.hostname.as_deref(), spec.subdomain.as_deref()), (Some("db-4"), Some("db")));
    let volume = &spec.volumes.unwrap()[0];
    assert_eq!(volume.persistent_volume_claim.as_ref().unwrap().claim_name, "data-db-4");
    assert_eq!(names(&world.list::<ControllerRevision>().await), [revision]);
    let claim = world.get::<PersistentVolumeClaim>("data-db-3").await.unwrap();
    assert!(claim.owner_references().is_empty(), "claims outlive their set unless it says otherwise");
    for reason in ["SuccessfulCreate"] {
        world.event("db", reason).await;
    }

    patch(&world, json!({"replicas": 1})).await;
    settled(&world, 1).await;
    // The node may see the last one go after the set does.
    let expected = ["+db-2", "+db-3", "+db-4", "-db-4", "-db-3"];
    eventually("the pods came and went", || async { (kubelet.log() == expected).then_some(()) }).await;
    assert_eq!(world.list::<PersistentVolumeClaim>().await.len(), 3, "claims are kept");
    world.event("db", "SuccessfulDelete").await;
    patch(&world, json!({"replicas": 2})).await;
    settled(&world, 2).await;
    assert_eq!(world.get::<PersistentVolumeClaim>("data-db-3").await.unwrap().uid(), claim.uid());

    // A pod that is lost or has ended comes back under its name.
    for end in ["Failed", "Succeeded"] {
        let before = pod(&world, "db-2").await;
        let ended = Patch::Merge(json!({"status": {"phase": end}}));
        world.api::<Pod>().patch_status("db-2", &PatchParams::default(), &ended).await.unwrap();
        eventually("another db-2", || async {
            world.get::<Pod>("db-2").await.filter(|pod| pod.uid() != before.uid())
        })
        .await;
        settled(&world, 2).await;
    }
    let writes = world.writes();
    world.delete::<StatefulSet>("db").await;
    world.gone::<Pod>("db-2").await;
    world.gone::<Pod>("db-3").await;
    assert_eq!(world.list::<PersistentVolumeClaim>().await.len(), 3);
    assert!(world.writes() - writes <= 1, "what is deleted is left to the collector");
}

#[tokio::test]
async fn parallel_pods_do_not_wait_for_each_other() {
    let world = World::start().await;
    let kubelet = Kubelet::start(world.client.clone());
    tokio::spawn(run(world.context.clone(), SET));
    (0..5).for_each(|ordinal| kubelet.hold(&format!("db-{ordinal}")));
    world.create::<StatefulSet>(set(5, json!({"podManagementPolicy": "Parallel"}))).await;
    status(&world, "five pods, none ready", |status| {
        status.replicas == 5 && status.ready_replicas == Some(0)
    })
    .await;
    patch(&world, json!({"replicas": 1})).await;
    status(&world, "one pod", |status| status.replicas == 1).await;
    // A set, two claims or pods or revisions each, and few words about it.
    assert!(world.writes() <= 5 + 5 + 1 + 4 + 12, "{} writes", world.writes());
}

#[tokio::test]
async fn claims_go_with_the_pods_or_the_set_where_the_policy_says_so() {
    let world = World::start().await;
    let _kubelet = Kubelet::start(world.client.clone());
    tokio::spawn(run(world.context.clone(), SET));
    world.run_well(OTHERS);
    let policy =
        json!({"persistentVolumeClaimRetentionPolicy": {"whenScaled": "Delete", "whenDeleted": "Delete"}});
    world.create::<StatefulSet>(set(2, policy)).await;
    settled(&world, 2).await;
    let first = world.get::<PersistentVolumeClaim>("data-db-1").await.unwrap();
    assert_eq!(first.owner_references()[0].kind, "StatefulSet");
    patch(&world, json!({"replicas": 1})).await;
    world.gone::<PersistentVolumeClaim>("data-db-1").await;
    patch(&world, json!({"replicas": 2})).await;
    settled(&world, 2).await;
    let second = world.get::<PersistentVolumeClaim>("data-db-1").await.unwrap();
    assert_ne!(first.uid(), second.uid());

    // The policy may change: then the owners do.
    patch(&world, json!({"persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain"}})).await;
    eventually("claims without owners", || async {
        let claims = world.list::<PersistentVolumeClaim>().await;
        claims.iter().all(|claim| claim.owner_references().is_empty()).then_some(())
    })
    .await;
    patch(&world, json!({"persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete"}})).await;
    eventually("claims of the set", || async {
        let claims = world.list::<PersistentVolumeClaim>().await;
        claims.iter().all(|claim| claim.owner_references().len() == 1).then_some(())
    })
    .await;
    world.delete::<StatefulSet>("db").await;
    world.gone::<PersistentVolumeClaim>("data-db-0").await;
    world.gone::<PersistentVolumeClaim>("data-db-1").await;
}

#[tokio::test]
async fn templates_roll_out_from_the_top_down_to_the_partition() {
    let world = World::start().await;
    let kubelet = Kubelet::start(world.client.clone());
    tokio::spawn(run(world.context.clone(), SET));
    world.run_well(OTHERS);
    let template = |marker: &str| json!({"metadata": {"annotations": {"marker": marker}}});
    let marker = async |name: &str| pod(&world, name).await.annotations().get("marker").cloned();
    world.create::<StatefulSet>(set(3, json!({}))).await;
    let first = settled(&world, 3).await.status.unwrap().current_revision;

    let rolling = json!({"rollingUpdate": {"partition": 2}});
    patch(&world, json!({"template": template("a"), "updateStrategy": rolling})).await;
    let set = status(&world, "one pod updated", |status| {
        status.updated_replicas == Some(1) && status.ready_replicas == Some(3)
    })
    .await;
    assert_ne!(set.status.as_ref().unwrap().update_revision, first);
    assert_eq!((marker("db-1").await, marker("db-2").await.as_deref()), (None, Some("a")));
    // A pod below the partition comes back with the template from before.
    world.delete::<Pod>("db-0").await;
    eventually("another db-0", || async { (kubelet.log().last()? == "+db-0").then_some(()) }).await;
    status(&world, "three pods", |status| status.ready_replicas == Some(3)).await;
    assert_eq!(marker("db-0").await, None);
    patch(&world, json!({"updateStrategy": {"rollingUpdate": {"partition": 0}}})).await;
    settled(&world, 3).await;
    assert_eq!(kubelet.log()[3..], ["-db-2", "+db-2", "-db-0", "+db-0", "-db-1", "+db-1", "-db-0", "+db-0"]);

    // Back to the first: its revision is used again, with a new number.
    patch(&world, json!({"template": {"metadata": {"annotations": null}}})).await;
    let back = settled(&world, 3).await.status.unwrap().current_revision;
    assert_eq!(back, first);
    let revisions = world.list::<ControllerRevision>().await;
    let mut numbers: Vec<_> = revisions.iter().map(|revision| revision.revision).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [2, 3]);

    patch(
        &world,
        json!({"updateStrategy": {"type": "OnDelete", "rollingUpdate": null}, "template": template("b"),
        "revisionHistoryLimit": 0}),
    )
    .await;
    status(&world, "the update is seen", |status| status.updated_replicas == Some(0)).await;
    world.delete::<Pod>("db-1").await;
    status(&world, "one pod updated", |status| {
        status.updated_replicas == Some(1) && status.ready_replicas == Some(3)
    })
    .await;
    assert_eq!((marker("db-2").await, marker("db-1").await.as_deref()), (None, Some("b")));
    assert_eq!(world.list::<ControllerRevision>().await.len(), 2, "history beyond the limit goes");
}

#[tokio::test]
async fn a_set_takes_over_the_pods_of_an_earlier_one_and_lets_go_of_others() {
    let world = World::start().await;
    let _kubelet = Kubelet::start(world.client.clone());
    tokio::spawn(run(world.context.clone(), SET));
    world.run_well(OTHERS);
    world.create::<StatefulSet>(set(2, json!({}))).await;
    settled(&world, 2).await;
    let uids = || async { world.list::<Pod>().await.iter().map(|pod| pod.uid()).collect::<Vec<_>>() };
    let before = uids().await;
    let orphan =
        DeleteParams { propagation_policy: Some(PropagationPolicy::Orphan), ..DeleteParams::default() };
    world.api::<StatefulSet>().delete("db", &orphan).await.unwrap();
    world.gone::<StatefulSet>("db").await;
    assert_eq!(uids().await, before);
    assert!(world.list::<Pod>().await.iter().all(|pod| pod.owner_references().is_empty()));

    let created = world.create::<StatefulSet>(set(2, json!({}))).await;
    settled(&world, 2).await;
    assert_eq!(uids().await, before);
    assert_eq!(pod(&world, "db-1").await.owner_references()[0].uid, created.uid().unwrap());
    assert_eq!(world.list::<ControllerRevision>().await.len(), 1, "the history is taken over too");

    // A pod that is not selected any more is let go, and is in the way from then on.
    let other = Patch::Merge(json!({"metadata": {"labels": {"app": "other"}}}));
    world.api::<Pod>().patch("db-1", &PatchParams::default(), &other).await.unwrap();
    let event = world.event("db", "FailedCreate").await;
    assert!(event.message.unwrap().contains("a pod of that name is there"));
    assert!(pod(&world, "db-1").await.owner_references().is_empty());
    let writes = world.writes();
    world.delete::<Pod>("db-1").await;
    settled(&world, 2).await;
    assert!(world.writes() - writes <= 6, "{} writes for one pod", world.writes() - writes);
}

#[tokio::test]
async fn a_pod_that_can_never_be_made_is_tried_ever_more_rarely() {
    let world = World::with_forbidden("/pods").await;
    let start = Instant::now();
    tokio::spawn(run(world.context.clone(), SET));
    world.create::<StatefulSet>(set(3, json!({}))).await;
    let event = eventually("five attempts", || async {
        let events = world.list::<Event>().await;
        events
            .into_iter()
            .find(|event| event.reason.as_deref() == Some("FailedCreate") && event.count >= Some(5))
    })
    .await;
    assert!(
        event.message.as_ref().unwrap().contains("Create Pod db-0 in StatefulSet db failed"),
        "{event:?}"
    );
    // One revision, one claim and one status were written, and the news of each may have cut a first wait short.
    assert!(start.elapsed() >= Duration::from_millis(400), "the wait after the fourth attempt");
    let attempts = 1 + 3 + start.elapsed().as_millis().div_ceil(50).ilog2() as usize;
    assert!(world.writes() <= 3 + attempts, "{} writes, {attempts} attempts", world.writes());
    let set = world.get::<StatefulSet>("db").await.unwrap();
    assert_eq!(set.status.unwrap().observed_generation, set.metadata.generation);
}

/// The life of a set, while one write of its controller fails, or the controller dies with it.
async fn live(number: usize, fault: Fault) -> bool {
    let world = World::with_fault(Some((number, fault))).await;
    let _kubelet = Kubelet::start(world.client.clone());
    world.run_well(OTHERS);
    let running = tokio::spawn(run(world.context.clone(), SET));
    let policy =
        json!({"persistentVolumeClaimRetentionPolicy": {"whenScaled": "Delete", "whenDeleted": "Delete"}});
    let steps = async {
        world.create::<StatefulSet>(set(2, policy)).await;
        settled(&world, 2).await;
        patch(&world, json!({"replicas": 1, "template": {"metadata": {"annotations": {"marker": "a"}}}}))
            .await;
        settled(&world, 1).await;
        world.gone::<PersistentVolumeClaim>("data-db-1").await;
        assert_eq!(pod(&world, "db-0").await.annotations()["marker"], "a");
        assert_eq!(names(&world.list::<PersistentVolumeClaim>().await), ["data-db-0"]);
        world.delete::<StatefulSet>("db").await;
        world.gone::<Pod>("db-0").await;
        world.gone::<PersistentVolumeClaim>("data-db-0").await;
        eventually("no revision is left", || async {
            world.list::<ControllerRevision>().await.is_empty().then_some(())
        })
        .await;
    };
    let restart = async {
        if fault == Fault::Halt {
            eventually("the controller hangs", || async { (world.writes() > number).then_some(()) }).await;
            running.abort();
            let context =
                Context::new(world.context.client.clone(), Metrics::new(), world.context.shutdown.clone());
            run(context, SET).await.unwrap();
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = steps => {}
        () = restart => {}
    }
    assert!(world.writes() <= 30, "{fault:?} at write {number}: {} writes", world.writes());
    world.writes() > number
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_single_lost_write_leaves_a_set_stuck() {
    let every_write = async |fault| {
        let mut number = 0;
        while live(number, fault).await {
            number += 1;
        }
        assert!(number > 8, "{fault:?}: only {number} writes were tried");
    };
    let faults = [Fault::Conflict, Fault::Refused, Fault::AnswerLost, Fault::Halt];
    futures::future::join_all(faults.map(every_write)).await;
}
