//! What a crash, a full disk or a bad sector leaves in the node's directories: it is contained, told, and freed.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
};

use common::{
    World,
    driver::{Driver, NAME},
    is_root,
};
use k8s_openapi::api::core::v1::{PersistentVolume, Pod};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::json;

async fn world(name: &str) -> World {
    let spec = json!({"attachRequired": false, "fsGroupPolicy": "File"});
    let (world, _) = World::with_driver(name, Driver::default(), spec).await;
    world.bound_claim("data", "1Mi", json!({"accessModes": ["ReadWriteOnce"]})).await;
    world
}

fn spec() -> serde_json::Value {
    of_claim("data")
}

fn of_claim(claim: &str) -> serde_json::Value {
    json!({"containers": [{"volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
           "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]})
}

/// The one directory in `directory`.
fn only(directory: &Path) -> PathBuf {
    fs::read_dir(directory).unwrap().next().unwrap().unwrap().path()
}

async fn told(world: &World, reason: &str, part: &str) {
    world
        .until(&format!("event {reason} with {part}"), async || {
            let events = world.events().await;
            events.iter().any(|(is, message)| is == reason && message.contains(part)).then_some(())
        })
        .await;
}

/// A crash between the two steps by which a record is written leaves its draft, beside a stage's record as well as
/// beside a publication's; another one left a file that nobody knows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drafts_and_unknown_files_do_not_keep_a_pod() {
    if !is_root() {
        return;
    }
    let mut world = world("drafts").await;
    let stages = world.root.join("plugins/kubernetes.io/csi").join(NAME);
    for (running, unknown) in [(false, false), (true, false), (true, true)] {
        let pod = world.pod("pod", "exec sleep 1000", spec()).await;
        world.phase("pod", "Running").await;
        let uid = pod.metadata.uid.unwrap();
        let publication = world.root.join(format!("pods/{uid}/volumes/kubernetes.io~csi/pv-data"));
        if !running {
            world.crash().await;
        }
        let names: &[&str] = if unknown { &[".vol_data.json.new", "photo"] } else { &[".vol_data.json.new"] };
        for (directory, name) in [publication, only(&stages)]
            .iter()
            .flat_map(|directory| names.iter().map(move |name| (directory, name)))
        {
            fs::write(directory.join(name), "{\"cut").unwrap();
        }
        // Beside containers, and beside their starts.
        let containers = world.root.join(format!("pods/{uid}/containers"));
        fs::write(containers.join("stray"), "").unwrap();
        fs::write(containers.join("app/stray"), "").unwrap();
        if !running {
            world.start();
        }
        world.pods().delete("pod", &DeleteParams::default()).await.unwrap();
        world.gone("pod").await;
        assert_eq!(fs::read_dir(&stages).unwrap().count(), 0, "running {running}, unknown {unknown}");
        assert_eq!(fs::read_dir(world.root.join("pods")).unwrap().count(), 0);
        assert_eq!(world.root.join("leftovers").exists(), unknown);
    }
    assert_eq!(fs::read_dir(world.root.join("leftovers")).unwrap().count(), 2);
    told(&world, "LeftoverSetAside", "held photo: moved to").await;
    world.end().await;
}

/// The pod's condition about its records, as status and reason.
async fn condition(world: &World, status: &str, reason: &str) {
    world
        .until(&format!("the condition is {status}: {reason}"), async || {
            let pod = world.pods().get("pod").await.unwrap();
            let conditions = pod.status?.conditions?;
            let condition = conditions.iter().find(|one| one.type_ == "orlop.dev/RecordsDamaged")?;
            (condition.status == status && condition.reason.as_deref() == Some(reason)).then_some(())
        })
        .await;
}

fn records(world: &World, pod: &Pod, claim: &str) -> [PathBuf; 4] {
    let uid = pod.metadata.uid.as_ref().unwrap();
    let of = |path: &str| world.root.join(format!("pods/{uid}/{path}"));
    [
        of(&format!("volumes/kubernetes.io~csi/pv-{claim}/vol_data.json")),
        of("containers/app/0/attempt.json"),
        of("containers/app/0/started.json"),
        only(&world.root.join("plugins/kubernetes.io/csi").join(NAME)).join("vol_data.json"),
    ]
}

fn nothing_is_left(world: &World) {
    assert_eq!(world.mounts(), Vec::<PathBuf>::new());
    assert_eq!(world.processes(), Vec::<i32>::new());
    for directory in ["pods", &format!("plugins/kubernetes.io/csi/{NAME}"), "runtime"] {
        assert_eq!(fs::read_dir(world.root.join(directory)).unwrap().count(), 0, "{directory}");
    }
}

/// Damage beside which a pod goes on: its volume is published once more, its container is found without its records.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_goes_on_with_damaged_records_and_can_be_deleted() {
    if !is_root() {
        return;
    }
    let mut world = world("goeson").await;
    for damage in ["", "{\"cut", "[]"] {
        let pod = world.pod("pod", "exec sleep 1000", spec()).await;
        world.phase("pod", "Running").await;
        let before = world.processes();
        world.crash().await;
        let files = records(&world, &pod, "data");
        files.iter().for_each(|file| fs::write(file, damage).unwrap());
        world.start();
        told(&world, "DamagedRecord", "attempt.json is damaged").await;
        told(&world, "DamagedRecord", "vol_data.json is damaged").await;
        condition(&world, "True", "DamagedRecord").await;
        world
            .until("the volume's record is written anew", async || {
                fs::read_to_string(&files[0]).unwrap().contains("\"ready\":true").then_some(())
            })
            .await;
        assert_eq!(world.processes(), before, "the container runs on");
        world.pods().delete("pod", &DeleteParams::default()).await.unwrap();
        world.gone("pod").await;
        nothing_is_left(&world);
    }
    world.end().await;
}

/// Damage that is met when the pod is to go, with and without the objects that tell what the volume was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_damaged_records_hold_is_freed() {
    if !is_root() {
        return;
    }
    let mut world = world("freed").await;
    for (claim, objects, stage) in [("data", true, true), ("gone", false, true), ("lost", false, false)] {
        if claim != "data" {
            world.bound_claim(claim, "1Mi", json!({"accessModes": ["ReadWriteOnce"]})).await;
        }
        let pod = world.pod("pod", "exec sleep 1000", of_claim(claim)).await;
        world.phase("pod", "Running").await;
        world.crash().await;
        let files = records(&world, &pod, claim);
        files[..3].iter().for_each(|file| fs::write(file, "{").unwrap());
        world.pods().delete("pod", &DeleteParams::default()).await.unwrap();
        let volumes = Api::<PersistentVolume>::all(world.client.clone());
        if !objects {
            let (name, unprotected) = (format!("pv-{claim}"), json!({"metadata": {"finalizers": null}}));
            volumes.patch(&name, &PatchParams::default(), &Patch::Merge(unprotected)).await.unwrap();
            volumes.delete(&name, &DeleteParams::default()).await.unwrap();
            assert!(volumes.get_opt(&name).await.unwrap().is_none());
        }
        if !stage {
            fs::write(&files[3], "{").unwrap();
        }
        world.start();
        world.gone("pod").await;
        if stage {
            nothing_is_left(&world);
            assert!(!world.root.join("leftovers").exists());
        } else {
            // Nobody knows the driver: the pod is free of its volume, and the record is kept to be looked at.
            assert_eq!(world.processes(), Vec::<i32>::new());
            assert_eq!(fs::read_dir(world.root.join("pods")).unwrap().count(), 0);
            assert_eq!(fs::read_dir(world.root.join("leftovers")).unwrap().count(), 1);
        }
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_of_a_later_version_are_left_alone() {
    if !is_root() {
        return;
    }
    let mut world = world("newer").await;
    let pod = world.pod("pod", "exec sleep 1000", spec()).await;
    world.phase("pod", "Running").await;
    world.crash().await;
    let file = &records(&world, &pod, "data")[1];
    let (old, before) = (fs::read_to_string(file).unwrap(), world.processes());
    let newer = old.replace("\"format\":2", "\"format\":3");
    fs::write(file, &newer).unwrap();
    world.start();
    told(&world, "NewerRecord", "use the newer orlop; nothing is done").await;
    world.pods().delete("pod", &DeleteParams::default()).await.unwrap();
    condition(&world, "True", "NewerRecord").await;
    assert_eq!((fs::read_to_string(file).unwrap(), world.processes()), (newer, before));
    world.crash().await;
    fs::write(file, old).unwrap();
    world.start();
    world.gone("pod").await;
    nothing_is_left(&world);
    world.end().await;
}
