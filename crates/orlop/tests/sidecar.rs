//! `orlop sidecar` as a real process beside somebody else's driver, against an API with nothing but `orlop controllers`.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::process::Command;

use common::cluster::{Cluster, Process, eventually, log};
use common::driver::{NAME, Storage};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::{CSINode, StorageClass};
use kube::Api;
use kube::api::DeleteParams;
use rustix::process::Signal;
use serde_json::json;

fn spawned(cluster: &Cluster, name: &str, mut command: Command) -> Process {
    let log = cluster.directory.path().join(name);
    command.stderr(std::fs::File::create(&log).unwrap());
    Process { child: command.spawn().unwrap(), log }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_gets_all_that_its_sidecars_would_do() {
    let cluster = Cluster::start().await;
    let storage = Storage::new(&cluster.directory.path().join("volumes"));
    let address = format!("unix://{}", storage.serve("n1").display());
    let client = || cluster.client.clone();
    cluster.create::<Node>(Api::all(client()), json!({"metadata": {"name": "n1"}})).await;
    let entry = json!({"name": NAME, "nodeID": "n1", "topologyKeys": null});
    let csi_node = json!({"metadata": {"name": "n1"}, "spec": {"drivers": [entry]}});
    cluster.create::<CSINode>(Api::all(client()), csi_node).await;
    let class =
        json!({"metadata": {"name": "remote"}, "provisioner": NAME, "volumeBindingMode": "Immediate"});
    cluster.create::<StorageClass>(Api::all(client()), class).await;
    let claims = Api::<PersistentVolumeClaim>::default_namespaced(client());
    let volumes = Api::<PersistentVolume>::all(client());

    let _controllers =
        spawned(&cluster, "controllers.log", cluster.command("controllers", &["--only", "bind,protect"]));
    let beside = ["--csi-address", &address, "--node-name", "n1"];
    let sidecar = spawned(&cluster, "sidecar.log", cluster.command("sidecar", &beside));
    let claim = json!({"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"],
        "storageClassName": "remote", "resources": {"requests": {"storage": "8Mi"}}}});
    cluster.create::<PersistentVolumeClaim>(claims.clone(), claim).await;
    eventually("the claim is bound", async || {
        let claim = claims.get("data").await.unwrap();
        (resources::claim::phase(&claim) == "Bound").then_some(())
    })
    .await;
    assert_eq!(storage.volumes().len(), 1);
    assert!(log(&sidecar.log).contains("jobs=\"provision,attach"), "{}", log(&sidecar.log));

    // It may go and come again; what is to be done waits for it.
    sidecar.signal(Signal::TERM);
    let (ended_well, text) = sidecar.end().await;
    assert!(ended_well, "{text}");
    claims.delete("data", &DeleteParams::default()).await.unwrap();
    let _sidecar = spawned(&cluster, "again.log", cluster.command("sidecar", &beside));
    eventually("the volume is gone", async || {
        let gone = volumes.list(&Default::default()).await.unwrap().items.is_empty();
        (gone && storage.volumes().is_empty()).then_some(())
    })
    .await;
    assert_eq!(storage.wrong(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_is_refused_with_what_to_do() {
    let cluster = Cluster::start().await;
    let storage = Storage::new(&cluster.directory.path().join("volumes"));
    let address = format!("unix://{}", storage.serve("n1").display());
    for (arguments, words) in [
        (vec!["--csi-address", "tcp://1.2.3.4:5", "--node-name", "n1"], vec!["unix:///PATH"]),
        (vec!["--csi-address", &address], vec!["--node-name"]),
        (
            vec!["--csi-address", &address, "--node-name", "n1", "--jobs", "resizing"],
            vec!["resizing", "resize"],
        ),
        (
            vec!["--csi-address", &address, "--node-name", "n1", "--jobs", "snapshot"],
            vec![NAME, "does not offer", "--jobs"],
        ),
    ] {
        let output = cluster.command("sidecar", &arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success());
        words.iter().for_each(|word| assert!(said.contains(word), "{arguments:?}: {said}"));
    }
}
