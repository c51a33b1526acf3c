//! `orlop controllers` as real processes against an API server that has no controllers of its own.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::process::Command;
use std::time::Duration;

use common::cluster::{Cluster, Process, eventually, log};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::Api;
use rustix::process::Signal;
use serde_json::json;

/// As short as leases of whole seconds can be.
const SHORT: [&str; 6] =
    ["--lease-duration", "2", "--lease-renew-deadline", "1.5", "--lease-retry-period", "0.3"];

impl Cluster {
    /// A process that binds, or waits to.
    fn binder(&self, name: &str) -> Process {
        let log = self.directory.path().join(name);
        let mut command = self.command("controllers", &["--only", "bind"]);
        command.args(SHORT).stderr(std::fs::File::create(&log).unwrap());
        Process { child: command.spawn().unwrap(), log }
    }

    async fn holder(&self) -> Option<String> {
        let leases = Api::<Lease>::namespaced(self.client.clone(), "kube-system");
        let spec = leases.get_opt("orlop-controllers").await.unwrap()?.spec?;
        spec.holder_identity.filter(|holder| !holder.is_empty())
    }

    /// Waits until somebody else holds the lease.
    async fn holder_after(&self, before: Option<&str>) -> String {
        eventually("another leader", async || {
            self.holder().await.filter(|holder| before != Some(holder.as_str()))
        })
        .await
    }

    async fn volume_and_claim(&self, name: &str) {
        let spec = json!({"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "",
            "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": "/nowhere"}});
        let volume = json!({"metadata": {"name": name}, "spec": spec});
        self.create::<PersistentVolume>(Api::all(self.client.clone()), volume).await;
        let spec = json!({"resources": {"requests": {"storage": "1Gi"}}, "accessModes": ["ReadWriteOnce"],
            "storageClassName": "", "volumeName": name});
        let claim = json!({"metadata": {"name": name}, "spec": spec});
        self.create::<PersistentVolumeClaim>(Api::default_namespaced(self.client.clone()), claim).await;
    }

    async fn is_bound(&self, name: &str) -> bool {
        let claims = Api::<PersistentVolumeClaim>::default_namespaced(self.client.clone());
        resources::claim::phase(&claims.get(name).await.unwrap()) == "Bound"
    }

    async fn bound(&self, name: &str) {
        eventually(&format!("{name} bound"), async || self.is_bound(name).await.then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_process_leads_and_another_takes_over_when_it_dies_or_sleeps() {
    let cluster = Cluster::start().await;
    let first = cluster.binder("first.log");
    let leader = cluster.holder_after(None).await;
    cluster.volume_and_claim("a").await;
    cluster.bound("a").await;

    let second = cluster.binder("second.log");
    eventually("the second one waits", async || {
        log(&second.log).contains("another process holds the lease").then_some(())
    })
    .await;
    assert_eq!(cluster.holder().await, Some(leader.clone()));

    // Killed: the lease runs out.
    drop(first);
    let leader = cluster.holder_after(Some(&leader)).await;
    cluster.volume_and_claim("b").await;
    cluster.bound("b").await;

    // Stopped for longer than that: it ends by itself when it goes on, and writes nothing before.
    let third = cluster.binder("third.log");
    second.signal(Signal::STOP);
    let leader = cluster.holder_after(Some(&leader)).await;
    cluster.volume_and_claim("c").await;
    cluster.bound("c").await;
    second.signal(Signal::CONT);
    let (well, log) = second.end().await;
    assert!(!well && log.contains("lost the lease kube-system/orlop-controllers"), "{log}");
    assert_eq!(cluster.holder().await, Some(leader.clone()));

    // Asked to end: the lease is free at once.
    third.signal(Signal::TERM);
    let (well, log) = third.end().await;
    assert!(well && log.contains("released the lease"), "{log}");
    assert_eq!(cluster.holder().await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_leader_that_goes_on_first_is_not_the_leader_any_more() {
    // Nobody took over meanwhile: its time was over all the same.
    let cluster = Cluster::start().await;
    let process = cluster.binder("log");
    let leader = cluster.holder_after(None).await;
    process.signal(Signal::STOP);
    cluster.volume_and_claim("a").await;
    tokio::time::sleep(Duration::from_millis(1800)).await;
    process.signal(Signal::CONT);
    let (well, log) = process.end().await;
    assert!(!well && log.contains("could not be renewed"), "{log}");
    assert!(!cluster.is_bound("a").await);
    assert_eq!(cluster.holder().await, Some(leader));
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_names_durations_and_files_are_refused() {
    let cluster = Cluster::start().await;
    let refused = |arguments: &[&str]| {
        let output = cluster.command("controllers", arguments).output().unwrap();
        assert!(!output.status.success(), "{arguments:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let error = refused(&["--only", "bind,binder"]);
    assert!(
        error.contains("'binder'") && error.contains("protect") && error.contains("scheduler"),
        "{error}"
    );
    let error = refused(&["--lease", "orlop"]);
    assert!(error.contains("NAMESPACE/NAME"), "{error}");
    let error = refused(&["--lease-duration", "10"]);
    assert!(error.contains("must last longer"), "{error}");
    let output = Command::new(common::BINARY)
        .args(["controllers", "--kubeconfig", "/nowhere/kubeconfig"])
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("/nowhere/kubeconfig") && error.contains("--kubeconfig"), "{error}");
}
