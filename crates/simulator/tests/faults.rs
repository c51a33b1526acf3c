//! Every write of the controllers is refused, conflicts, or loses its answer, in turn; the end is always the same.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::collections::BTreeMap;
use std::time::Duration;

use controllers::Controller;
use k8s_openapi::api::core::v1::{ConfigMap, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use kube::ResourceExt;
use kube::api::{DeleteParams, PropagationPolicy};
use resources::snapshot::VolumeSnapshot;
use resources::{claim, volume};
use serde_json::{Value, json};
use simulator::{Role, World, every_write_fails};
use tokio::time::sleep;

fn claim_of(name: &str, class: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": class,
            "resources": {"requests": {"storage": "1Gi"}}},
    })
}

fn volume_of(name: &str, size: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "", "capacity": {"storage": size},
            "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": "/nowhere"}},
    })
}

fn pod_of(name: &str, node: Option<&str>, volume: Value) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"containers": [{"name": "main", "image": "host"}], "volumes": [volume], "nodeName": node},
    })
}

fn uses(claim: &str) -> Value {
    json!({"name": "data", "persistentVolumeClaim": {"claimName": claim}})
}

/// What there is, as `name: phase` and `name: phase volume`, and reasons of events.
async fn picture(world: &World, about: &[&str]) -> Vec<String> {
    let mut lines = Vec::new();
    // One that was made has a UID in its name.
    let made_for = |volume: &PersistentVolume| {
        let reference = volume.spec.as_ref()?.claim_ref.as_ref()?;
        volume
            .name_any()
            .starts_with("pvc-")
            .then(|| format!("made-for-{}", reference.name.clone().unwrap_or_default()))
    };
    let volumes = world.list::<PersistentVolume>().await;
    let names: BTreeMap<_, _> = volumes
        .iter()
        .map(|volume| (volume.name_any(), made_for(volume).unwrap_or_else(|| volume.name_any())))
        .collect();
    for volume in volumes {
        lines.push(format!("{}: {}", names[&volume.name_any()], volume::phase(&volume)));
    }
    for claim in world.list::<PersistentVolumeClaim>().await {
        let named = claim::volume_name(&claim);
        let named = names.get(named).map_or(named, String::as_str);
        lines.push(format!("{}: {} {named}", claim.name_any(), claim::phase(&claim)));
    }
    lines.extend(world.list::<Pod>().await.iter().map(ResourceExt::name_any));
    for name in about {
        let mut reasons: Vec<_> = world.events_of(name).await.into_iter().map(|(reason, _)| reason).collect();
        reasons.sort();
        reasons.dedup();
        lines.push(format!("{name} said {reasons:?}"));
    }
    lines
}

fn expect(found: Vec<String>, expected: &[&str]) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("there is {found:?}, not {expected:?}")) }
}

#[test]
fn binding_and_releasing() {
    let writes = every_write_fails(
        &[Controller::Bind, Controller::Protect],
        &[],
        async |world| {
            world.create::<PersistentVolume>(volume_of("v1", "1Gi")).await.unwrap();
            world.create::<PersistentVolume>(volume_of("v2", "2Gi")).await.unwrap();
            let mut kept = volume_of("v3", "1Gi");
            kept["spec"]["claimRef"] =
                json!({"kind": "PersistentVolumeClaim", "namespace": "default", "name": "c3"});
            world.create::<PersistentVolume>(kept).await.unwrap();
            sleep(Duration::from_secs(20)).await;
            for name in ["c1", "c3"] {
                world.create::<PersistentVolumeClaim>(claim_of(name, "")).await.unwrap();
            }
            let mut large = claim_of("c2", "");
            large["spec"]["resources"]["requests"]["storage"] = "2Gi".into();
            world.create::<PersistentVolumeClaim>(large).await.unwrap();
            sleep(Duration::from_secs(20)).await;
            world.create::<PersistentVolumeClaim>(claim_of("c4", "")).await.unwrap();
            world.delete::<PersistentVolumeClaim>("c1").await;
            world.delete::<PersistentVolume>("v3").await;
            sleep(Duration::from_secs(20)).await;
            world.delete::<PersistentVolumeClaim>("c3").await;
        },
        async |world| {
            let found = picture(world, &["c4"]).await;
            let expected =
                ["v1: Released", "v2: Bound", "c2: Bound v2", "c4: Pending ", "c4 said [\"FailedBinding\"]"];
            expect(found, &expected)
        },
    );
    eprintln!("binding: {writes} writes");
}

#[test]
fn a_claim_or_a_volume_may_go_at_any_moment() {
    for (claim_goes, volume_goes) in [(true, false), (false, true), (true, true)] {
        for moment in (1..240).step_by(20) {
            let scene = async |world: &World| {
                world.create::<PersistentVolume>(volume_of("v", "1Gi")).await.unwrap();
                world.create::<PersistentVolumeClaim>(claim_of("c", "")).await.unwrap();
                sleep(Duration::from_millis(moment)).await;
                if claim_goes {
                    world.delete::<PersistentVolumeClaim>("c").await;
                }
                if volume_goes {
                    world.delete::<PersistentVolume>("v").await;
                }
            };
            let ends: &[&[&str]] = match (claim_goes, volume_goes) {
                (true, false) => &[&["v: Available"], &["v: Released"]],
                (false, _) => &[&["c: Pending "], &["v: Bound", "c: Bound v"]],
                (true, true) => &[&[]],
            };
            simulator::once(&[Controller::Bind, Controller::Protect], &[], scene, async |world| {
                let found = picture(world, &[]).await;
                if ends.iter().any(|end| found == *end) {
                    Ok(())
                } else {
                    Err(format!("{moment} ms: {found:?}"))
                }
            });
        }
    }
}

#[test]
fn provisioning_and_deleting() {
    let writes = every_write_fails(
        &[Controller::Bind, Controller::Protect],
        &[Role::Node("n1"), Role::Node("n2"), Role::Scheduler],
        async |world| {
            world.create::<PersistentVolumeClaim>(claim_of("now", "fast")).await.unwrap();
            world.create::<PersistentVolumeClaim>(claim_of("then", "late")).await.unwrap();
            world.create::<Pod>(pod_of("p", None, uses("then"))).await.unwrap();
            sleep(Duration::from_secs(20)).await;
            world.delete::<PersistentVolumeClaim>("now").await;
        },
        async |world| {
            let expected = ["made-for-then: Bound", "then: Bound made-for-then", "p"];
            expect(picture(world, &[]).await, &expected)?;
            let said = world.events_of("then").await;
            if !said.iter().any(|(reason, _)| reason == "ExternalProvisioning") {
                return Err(format!("the claim said {said:?}"));
            }
            let kept = world.storage.held().volumes.len();
            if kept == 1 { Ok(()) } else { Err(format!("storage keeps {kept} volumes")) }
        },
    );
    eprintln!("provisioning: {writes} writes");
}

#[test]
fn protecting() {
    every_write_fails(
        &[Controller::Bind, Controller::Protect],
        &[],
        async |world| {
            world.create::<PersistentVolume>(volume_of("v", "1Gi")).await.unwrap();
            world.create::<PersistentVolumeClaim>(claim_of("c", "")).await.unwrap();
            sleep(Duration::from_secs(20)).await;
            world.create::<Pod>(pod_of("p", Some("n1"), uses("c"))).await.unwrap();
            world.tend().await;
            world.delete::<PersistentVolumeClaim>("c").await;
            world.delete::<PersistentVolume>("v").await;
            sleep(Duration::from_secs(20)).await;
            let both = world.get::<PersistentVolumeClaim>("c").await.is_some()
                && world.get::<PersistentVolume>("v").await.is_some();
            assert!(both, "they go before their pod");
            world.delete::<Pod>("p").await;
            world.tend().await;
        },
        async |world| expect(picture(world, &[]).await, &[]),
    );
}

#[test]
fn attaching_and_snapshots() {
    let writes = every_write_fails(
        &[Controller::Bind, Controller::Protect, Controller::AttachDetach, Controller::Snapshots],
        &[Role::Node("n1"), Role::Node("n2")],
        async |world| {
            world.create::<PersistentVolumeClaim>(claim_of("c", "fast")).await.unwrap();
            sleep(Duration::from_secs(20)).await;
            world.create::<Pod>(pod_of("p", Some("n1"), uses("c"))).await.unwrap();
            let snapshot = json!({
                "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot",
                "metadata": {"name": "s", "namespace": "default"},
                "spec": {"volumeSnapshotClassName": "shots", "source": {"persistentVolumeClaimName": "c"}},
            });
            world.create::<VolumeSnapshot>(snapshot).await.unwrap();
            sleep(Duration::from_secs(20)).await;
            let mut restored = claim_of("r", "fast");
            restored["spec"]["dataSource"] =
                json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "s"});
            world.create::<PersistentVolumeClaim>(restored).await.unwrap();
            for _ in 0..8 {
                sleep(Duration::from_secs(10)).await;
                world.tend().await;
            }
            let runs = world.get::<Pod>("p").await.and_then(|pod| pod.status?.phase);
            assert_eq!(runs.as_deref(), Some("Running"), "its volume is attached");
            world.delete::<Pod>("p").await;
            world.tend().await;
            world.delete::<VolumeSnapshot>("s").await;
            world.delete::<PersistentVolumeClaim>("c").await;
        },
        async |world| {
            expect(picture(world, &[]).await, &["made-for-r: Bound", "r: Bound made-for-r"])?;
            let held = world.storage.held();
            let left = (held.volumes.len(), held.snapshots.len(), held.attached.len());
            if left == (1, 0, 0) { Ok(()) } else { Err(format!("storage keeps {held:?}")) }
        },
    );
    eprintln!("attaching and snapshots: {writes} writes");
}

#[test]
fn volumes_of_a_pod_s_own() {
    every_write_fails(
        &[Controller::Bind, Controller::Protect, Controller::Ephemeral, Controller::Collect],
        &[Role::Node("n1"), Role::Node("n2")],
        async |world| {
            let template = json!({"name": "data", "ephemeral": {"volumeClaimTemplate": {
                "metadata": {"labels": {"of": "p"}}, "spec": claim_of("", "fast")["spec"]}}});
            world.create::<Pod>(pod_of("p", Some("n1"), template.clone())).await.unwrap();
            world.create::<Pod>(pod_of("q", Some("n1"), template)).await.unwrap();
            world.tend().await;
            sleep(Duration::from_secs(20)).await;
            world.delete::<Pod>("p").await;
            world.tend().await;
        },
        async |world| {
            let expected = ["made-for-q-data: Bound", "q-data: Bound made-for-q-data", "q"];
            expect(picture(world, &[]).await, &expected)?;
            let kept = world.storage.held().volumes.len();
            if kept == 1 { Ok(()) } else { Err(format!("storage keeps {kept} volumes")) }
        },
    );
}

#[test]
fn collecting() {
    let config = |name: &str, owner: Option<&ConfigMap>| {
        let owners = owner.map(|owner| {
            json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": owner.name_any(), "uid": owner.uid(),
                "blockOwnerDeletion": true}])
        });
        json!({"metadata": {"name": name, "namespace": "default", "ownerReferences": owners}})
    };
    every_write_fails(
        &[Controller::Collect],
        &[],
        async |world| {
            for (at, policy) in
                [PropagationPolicy::Background, PropagationPolicy::Foreground, PropagationPolicy::Orphan]
                    .into_iter()
                    .enumerate()
            {
                let top: ConfigMap = world.create(config(&format!("top{at}"), None)).await.unwrap();
                let middle: ConfigMap =
                    world.create(config(&format!("middle{at}"), Some(&top))).await.unwrap();
                world.create::<ConfigMap>(config(&format!("leaf{at}"), Some(&middle))).await.unwrap();
                sleep(Duration::from_secs(2)).await;
                let params = DeleteParams { propagation_policy: Some(policy), ..DeleteParams::default() };
                world.api::<ConfigMap>().delete(&top.name_any(), &params).await.unwrap();
            }
            world
                .create::<Pod>(pod_of("lost", Some("n2"), json!({"name": "x", "emptyDir": {}})))
                .await
                .unwrap();
            world.api::<Node>().delete("n2", &DeleteParams::default()).await.unwrap();
        },
        async |world| {
            let mut left: Vec<_> =
                world.list::<ConfigMap>().await.iter().map(ResourceExt::name_any).collect();
            left.extend(picture(world, &[]).await);
            expect(left, &["leaf2", "middle2"])
        },
    );
}
