//! What users do, and what goes wrong meanwhile.

mod attributes;
mod groups;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;
use resources::populator::VolumePopulator;
use resources::snapshot::{self, VolumeSnapshot};
use resources::volume;
use serde_json::{Value, json};
use tokio::time::sleep;

pub(crate) use self::attributes::is_sound;
pub(crate) use self::groups::is_member;
use crate::populator::{self, BACKUP, TAPE};
use crate::{Conditions, Dice, Role, World};

/// Does one thing, by chance.
pub(crate) async fn deed(world: &mut World, dice: &mut Dice) {
    let number = |dice: &mut Dice| dice.below(5);
    let sizes = ["1Gi", "2Gi", "3Gi"];
    match dice.below(119) {
        0..17 => {
            let claim = claim(dice);
            world.network.note(format_args!("user: claim {}", claim["metadata"]["name"]));
            world.create::<PersistentVolumeClaim>(claim).await;
        }
        17..20 => grow_claim(world, dice).await,
        20..33 => {
            let (name, size) = (format!("v{}", number(dice)), dice.pick(&sizes));
            let volume = static_volume(dice, &name, size);
            world.network.note(format_args!("user: volume {name}"));
            world.volume(volume).await;
        }
        33..46 => {
            let name = format!("p{}", number(dice));
            world.network.note(format_args!("user: pod {name}"));
            let pod = pod(dice, &name);
            world.create::<Pod>(pod).await;
        }
        46..55 => {
            let name = format!("c{}", number(dice));
            world.network.note(format_args!("user: no claim {name}"));
            world.delete::<PersistentVolumeClaim>(&name).await;
        }
        55..62 => {
            let name = format!("p{}", number(dice));
            world.network.note(format_args!("user: no pod {name}"));
            world.delete::<Pod>(&name).await;
        }
        62..66 => {
            let all: Vec<_> = world.list::<PersistentVolume>().await;
            if !all.is_empty() {
                let name = all[dice.below(all.len() as u64) as usize].name_any();
                world.network.note(format_args!("user: no volume {name}"));
                world.delete::<PersistentVolume>(&name).await;
            }
        }
        66..69 => change_volume(world, dice).await,
        69..75 => {
            let snapshot = snapshot(dice);
            world.network.note(format_args!("user: snapshot {}", snapshot["metadata"]["name"]));
            world.create::<VolumeSnapshot>(snapshot).await;
        }
        75..78 => {
            let name = format!("s{}", dice.below(3));
            world.network.note(format_args!("user: no snapshot {name}"));
            world.delete::<VolumeSnapshot>(&name).await;
        }
        78..82 => {
            let replicas = dice.below(3);
            world.network.note(format_args!("user: set w of {replicas}"));
            world.create::<StatefulSet>(set(replicas)).await;
            world.patch::<StatefulSet>("w", json!({"spec": {"replicas": replicas}})).await;
        }
        82 => {
            world.network.note("user: no set w");
            world.delete::<StatefulSet>("w").await;
        }
        83..85 => {
            let default = dice.pick(&["true", "false"]);
            let mark = json!({"metadata": {"annotations": {"storageclass.kubernetes.io/is-default-class": default}}});
            world.network.note(format_args!("user: default class: {default}"));
            world.patch::<StorageClass>("fast", mark).await;
        }
        85 => {
            world.network.note("user: class fast goes and comes");
            world.delete::<StorageClass>("fast").await;
            sleep(dice.up_to(3000)).await;
            world.class("fast", crate::storage::DRIVER, "Immediate", "Delete").await;
        }
        86..92 => {
            let conditions =
                dice.pick(&[Conditions::CALM, Conditions::ROUGH, Conditions::ROUGH, Conditions::STORM]);
            world.network.note(format_args!("{conditions:?}"));
            world.network.set(conditions);
            world.storage.fail(dice.pick(&[0, 100, 500]));
        }
        92..97 => world.kill(dice.pick(&Role::ALL)),
        97..100 => world.start(dice.pick(&Role::ALL)),
        100..106 => attributes::change_claim(world, dice).await,
        106 => attributes::replace_class(world, dice).await,
        107..112 => groups::take(world, dice).await,
        112..114 => groups::delete(world, dice).await,
        114..116 => groups::use_member(world, dice).await,
        116 => replace_populator(world, dice).await,
        _ => {
            let claim = claim_to_fill(dice);
            world.network.note(format_args!("user: claim {} to be filled", claim["metadata"]["name"]));
            world.create::<PersistentVolumeClaim>(claim).await;
        }
    }
    // Nobody stays dead for long.
    if dice.in_a_thousand(150) {
        world.start(dice.pick(&Role::ALL));
    }
}

fn claim(dice: &mut Dice) -> Value {
    let name = format!("c{}", dice.below(5));
    let class = dice.pick(&["", "", "", "fast", "kept", "late", "local", "missing", "none"]);
    let mut claim = json!({
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"accessModes": [dice.pick(&["ReadWriteOnce", "ReadOnlyMany"])],
            "resources": {"requests": {"storage": dice.pick(&["1Gi", "2Gi", "3Gi"])}}},
    });
    // "none" says nothing about the class: the default one may come later.
    if class != "none" {
        claim["spec"]["storageClassName"] = class.into();
    }
    match dice.below(16) {
        0 | 1 => claim["spec"]["volumeName"] = format!("v{}", dice.below(5)).into(),
        2 => claim["spec"]["selector"] = json!({"matchLabels": {"tier": dice.pick(&["gold", "tin"])}}),
        3 => claim["spec"]["volumeMode"] = "Block".into(),
        4 | 5 => {
            claim["spec"]["storageClassName"] = dice.pick(&["fast", "kept", "late"]).into();
            claim["spec"]["dataSource"] = match dice.below(3) {
                0 => json!({"kind": "PersistentVolumeClaim", "name": format!("c{}", dice.below(5))}),
                _ => json!({"apiGroup": snapshot::GROUP, "kind": "VolumeSnapshot",
                    "name": format!("s{}", dice.below(3))}),
            };
        }
        6 | 7 => attributes::ask(&mut claim, dice),
        _ => {}
    }
    claim
}

/// A claim that is filled by a populator, or by nobody.
fn claim_to_fill(dice: &mut Dice) -> Value {
    let mut claim = claim(dice);
    let spec = &mut claim["spec"];
    for field in ["dataSource", "selector", "volumeName"] {
        spec[field] = Value::Null;
    }
    spec["storageClassName"] = dice.pick(&["fast", "fast", "kept", "late"]).into();
    let kind = dice.pick(&[BACKUP, BACKUP, BACKUP, TAPE]);
    spec["dataSourceRef"] = json!({"apiGroup": populator::GROUP, "kind": kind, "name": "monday"});
    claim
}

/// The populator's registration goes, and may come again: who fills claims fills them without one, too.
async fn replace_populator(world: &World, dice: &mut Dice) {
    world.network.note("user: registration of the populator goes and may come");
    world.delete::<VolumePopulator>(populator::NAME).await;
    sleep(dice.up_to(3000)).await;
    if dice.in_a_thousand(500) {
        world.register_populator().await;
    }
}

fn snapshot(dice: &mut Dice) -> Value {
    json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot",
        "metadata": {"name": format!("s{}", dice.below(3)), "namespace": "default"},
        "spec": {"volumeSnapshotClassName": dice.pick(&["shots", "shots", "kept-shots"]),
            "source": {"persistentVolumeClaimName": format!("c{}", dice.below(5))}},
    })
}

fn set(replicas: u64) -> Value {
    let claim = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": "fast",
        "resources": {"requests": {"storage": "1Gi"}}});
    json!({
        "metadata": {"name": "w", "namespace": "default"},
        "spec": {
            "serviceName": "w", "replicas": replicas, "selector": {"matchLabels": {"app": "w"}},
            "template": {"metadata": {"labels": {"app": "w"}},
                "spec": {"containers": [{"name": "main", "image": "host"}]}},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": claim}],
        },
    })
}

fn static_volume(dice: &mut Dice, name: &str, size: &str) -> Value {
    let modes = [&["ReadWriteOnce"][..], &["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany"][..]];
    let modes = dice.pick(&modes);
    let mut volume = json!({
        "metadata": {"name": name, "labels": {"tier": dice.pick(&["gold", "silver"])}},
        "spec": {
            "capacity": {"storage": size}, "accessModes": modes,
            "storageClassName": dice.pick(&["", "", "", "local", "fast"]),
            "persistentVolumeReclaimPolicy": "Retain",
            "csi": {"driver": crate::storage::DRIVER, "volumeHandle": name},
        },
    });
    match dice.below(10) {
        0 | 1 => {
            let claim = format!("c{}", dice.below(5));
            volume["spec"]["claimRef"] =
                json!({"kind": "PersistentVolumeClaim", "namespace": "default", "name": claim});
        }
        2 => volume["spec"]["volumeMode"] = "Block".into(),
        3 => attributes::have(&mut volume, dice),
        _ => {}
    }
    if volume["spec"]["storageClassName"] == "local" {
        let node = dice.pick(&["n1", "n2"]);
        volume["spec"]["nodeAffinity"] = json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [
            {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}});
    }
    volume
}

fn pod(dice: &mut Dice, name: &str) -> Value {
    let mut volumes = Vec::new();
    for at in 0..dice.below(3) {
        let claim = format!("c{}", dice.below(5));
        volumes.push(json!({"name": format!("v{at}"), "persistentVolumeClaim": {"claimName": claim}}));
    }
    if dice.in_a_thousand(400) {
        let spec = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": dice.pick(&["fast", "late"]),
            "resources": {"requests": {"storage": "1Gi"}}});
        volumes.push(json!({"name": "own", "ephemeral": {"volumeClaimTemplate": {"spec": spec}}}));
    }
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"containers": [{"name": "main", "image": "host"}], "volumes": volumes},
    });
    if dice.in_a_thousand(150) {
        pod["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": dice.pick(&["n1", "n2"])});
    }
    pod
}

/// The name of a claim of a user.
async fn any_claim(world: &World, dice: &mut Dice) -> Option<String> {
    let mut all = world.list::<PersistentVolumeClaim>().await;
    all.retain(|claim| !populator::is_own(claim));
    (!all.is_empty()).then(|| all[dice.below(all.len() as u64) as usize].name_any())
}

/// Somebody asks for another size; what can't be is refused.
async fn grow_claim(world: &World, dice: &mut Dice) {
    let Some(name) = any_claim(world, dice).await else { return };
    let size = dice.pick(&["2Gi", "3Gi", "4Gi", "8Gi"]);
    world.network.note(format_args!("user: claim {name} of {size}"));
    let requests = json!({"spec": {"resources": {"requests": {"storage": size}}}});
    world.patch::<PersistentVolumeClaim>(&name, requests).await;
}

/// An administrator frees a released volume, or changes what becomes of one.
async fn change_volume(world: &World, dice: &mut Dice) {
    let all = world.list::<PersistentVolume>().await;
    if all.is_empty() {
        return;
    }
    let volume = &all[dice.below(all.len() as u64) as usize];
    let name = volume.name_any();
    if volume::phase(volume) == "Released" && dice.in_a_thousand(700) {
        world.network.note(format_args!("user: frees {name}"));
        world.patch::<PersistentVolume>(&name, json!({"spec": {"claimRef": null}})).await;
    } else if volume.metadata.deletion_timestamp.is_none() {
        let policy = dice.pick(&["Retain", "Delete"]);
        world.network.note(format_args!("user: {name}: {policy}"));
        world
            .patch::<PersistentVolume>(&name, json!({"spec": {"persistentVolumeReclaimPolicy": policy}}))
            .await;
    }
}
