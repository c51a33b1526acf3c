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
use kube::api::DeleteParams;
use serde_json::json;

async fn world(name: &str) -> World {
    let spec = json!({"attachRequired": false, "fsGroupPolicy": "File"});
    let (world, _) = World::with_driver(name, Driver::default(), spec).await;
    world.bound_claim("data", "1Mi", json!({"accessModes": ["ReadWriteOnce"]})).await;
    world
}

fn spec() -> serde_json::Value {
    json!({"containers": [{"volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
           "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]})
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
