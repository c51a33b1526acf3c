//! What users do, what dies meanwhile, and how it ends.

use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;
use resources::volume;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::{Conditions, Dice, Role, World, settled};

/// How much happens.
#[derive(Clone, Copy, Debug)]
pub struct Story {
    /// The seed: everything follows from it.
    pub seed: u64,
    /// How many things users do.
    pub deeds: usize,
}

/// How a story went.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What was wrong; nothing, if all went well.
    pub wrong: Vec<String>,
    /// What happened, with times.
    pub trace: Vec<String>,
    /// Writes of the processes.
    pub writes: usize,
}

impl Outcome {
    /// What to show of a story that went wrong.
    pub fn report(&self, seed: u64) -> String {
        let (wrong, trace) = (self.wrong.join("\n  "), self.trace.join("\n"));
        format!("{trace}\n\nseed {seed}: play it again with ORLOP_SEED={seed}\n  {wrong}")
    }
}

/// Plays a story to its end in a runtime of its own.
pub fn play(story: Story) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.unwrap_or_else(|error| panic!("no runtime: {error}"));
    runtime.block_on(tell(story))
}

async fn tell(story: Story) -> Outcome {
    let mut dice = Dice::new(story.seed);
    let mut world = World::new(story.seed).await;
    for role in Role::ALL {
        world.start(role);
    }
    for _ in 0..story.deeds {
        Box::pin(deed(&mut world, &mut dice)).await;
        let pause = dice.pick(&[1, 5, 50, 300, 2000, 10_000]);
        sleep(dice.up_to(pause)).await;
        if dice.in_a_thousand(500) {
            world.tend_pods().await;
        }
        if !world.network.ledger(|ledger| ledger.wrong.is_empty()) {
            break;
        }
    }
    world.network.note("all is well from now on");
    let calm = Box::pin(world.calm_down()).await;
    let mut wrong = world.network.ledger(|ledger| ledger.wrong.clone());
    if wrong.is_empty() {
        match calm {
            Err(never) => wrong.push(never),
            Ok(()) => {
                wrong.extend(settled(&world).await);
                let (reads, events) = (world.network.reads(), world.network.events());
                sleep(Duration::from_secs(1800)).await;
                let more = (world.network.reads() - reads, world.network.events() - events);
                if more.0 > 200 || more.1 > 20 {
                    wrong.push(format!("half an hour of rest took {} reads and {} events", more.0, more.1));
                }
            }
        }
    }
    Outcome { wrong, trace: world.network.trace(), writes: world.network.writes() }
}

async fn deed(world: &mut World, dice: &mut Dice) {
    let number = |dice: &mut Dice| dice.below(5);
    let sizes = ["1Gi", "2Gi", "3Gi"];
    match dice.below(100) {
        0..22 => {
            let claim = claim(dice);
            world.network.note(format_args!("user: claim {}", claim["metadata"]["name"]));
            world.create::<PersistentVolumeClaim>(claim).await;
        }
        22..40 => {
            let (name, size) = (format!("v{}", number(dice)), dice.pick(&sizes));
            let volume = static_volume(dice, &name, size);
            world.network.note(format_args!("user: volume {name}"));
            world.create::<PersistentVolume>(volume).await;
        }
        40..54 => {
            let name = format!("p{}", number(dice));
            world.network.note(format_args!("user: pod {name}"));
            let pod = pod(dice, &name);
            world.create::<Pod>(pod).await;
        }
        54..64 => {
            let name = format!("c{}", number(dice));
            world.network.note(format_args!("user: no claim {name}"));
            world.delete::<PersistentVolumeClaim>(&name).await;
        }
        64..71 => {
            let name = format!("p{}", number(dice));
            world.network.note(format_args!("user: no pod {name}"));
            world.delete::<Pod>(&name).await;
        }
        71..76 => {
            let all: Vec<_> = world.list::<PersistentVolume>().await;
            if !all.is_empty() {
                let name = all[dice.below(all.len() as u64) as usize].name_any();
                world.network.note(format_args!("user: no volume {name}"));
                world.delete::<PersistentVolume>(&name).await;
            }
        }
        76..80 => change_volume(world, dice).await,
        80..83 => {
            let default = dice.pick(&["true", "false"]);
            let mark = json!({"metadata": {"annotations": {"storageclass.kubernetes.io/is-default-class": default}}});
            world.network.note(format_args!("user: default class: {default}"));
            world.patch::<StorageClass>("fast", mark).await;
        }
        83..85 => {
            world.network.note("user: class fast goes and comes");
            world.delete::<StorageClass>("fast").await;
            sleep(dice.up_to(3000)).await;
            world.class("fast", crate::storage::DRIVER, "Immediate", "Delete").await;
        }
        85..92 => {
            let conditions =
                dice.pick(&[Conditions::CALM, Conditions::ROUGH, Conditions::ROUGH, Conditions::STORM]);
            world.network.note(format_args!("{conditions:?}"));
            world.network.set(conditions);
            world.storage.refuse(dice.pick(&[0, 100, 500]), dice.roll());
        }
        92..97 => world.kill(dice.pick(&Role::ALL)),
        _ => world.start(dice.pick(&Role::ALL)),
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
    match dice.below(12) {
        0 | 1 => claim["spec"]["volumeName"] = format!("v{}", dice.below(5)).into(),
        2 => claim["spec"]["selector"] = json!({"matchLabels": {"tier": dice.pick(&["gold", "tin"])}}),
        3 => claim["spec"]["volumeMode"] = "Block".into(),
        _ => {}
    }
    claim
}

fn static_volume(dice: &mut Dice, name: &str, size: &str) -> Value {
    let modes = dice.pick(&[&["ReadWriteOnce"][..], &["ReadWriteOnce", "ReadOnlyMany"][..]]);
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
