//! An API server, a driver that does as it is told, and processes that can be crashed at any step.
#![allow(dead_code, unreachable_pub)]

pub mod driver;
pub mod steps;

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use api_server::{ApiServer, Options};
use k8s_openapi::api::core::v1::{Event, Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::{StorageClass, VolumeAttributesClass};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use object_store::Store;
use resources::{
    VolumeGroupSnapshotClass, VolumeSnapshot, VolumeSnapshotClass, VolumeSnapshotContent, annotations, claim,
    finalizers, group_snapshot, snapshot, volume,
};
use runtime::{Context, Metrics};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use driver::FakeDriver;
pub use steps::Steps;

pub const DRIVER: &str = "fake.example.com";
pub const KEY: &str = "topology.fake.example.com/node";
const DEADLINE: Duration = Duration::from_secs(20);

/// Waits until `holds`, and panics after a while.
pub async fn eventually<Fut: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> Fut) {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub struct World {
    pub api: ApiServer,
    pub client: Client,
    pub directory: tempfile::TempDir,
    pub driver: FakeDriver,
    writes: Arc<AtomicUsize>,
}

/// A process that runs a sidecar.
pub struct Process {
    pub shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Process {
    pub fn new(shutdown: CancellationToken, task: JoinHandle<()>) -> Process {
        Process { shutdown, task }
    }

    /// Ends it at once, wherever it is.
    pub async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
        self.shutdown.cancel();
    }
}

impl World {
    /// Nodes `n1` and up, each with the driver's topology label, and the driver served on `n1`.
    pub async fn new(nodes: usize) -> World {
        let api = ApiServer::start(Store::in_memory(), Options::default()).await.unwrap();
        let client = Client::new(api.in_process("test"), "default");
        let directory = tempfile::tempdir().unwrap();
        let driver = FakeDriver::new("n1");
        let world = World { api, client, directory, driver, writes: Arc::default() };
        for node in 1..=nodes {
            let name = format!("n{node}");
            let node: Node = object(json!({"metadata": {"name": name, "labels": {KEY: name}}}));
            Api::all(world.client.clone()).create(&PostParams::default(), &node).await.unwrap();
        }
        world
    }

    /// What Kubernetes says of whether the node is ready.
    pub async fn ready(&self, node: &str, status: &str) {
        let status = json!({"status": {"conditions": [{"type": "Ready", "status": status}]}});
        let nodes: Api<Node> = Api::all(self.client.clone());
        nodes.patch_status(node, &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
    }

    pub async fn class(&self, name: &str, edit: impl FnOnce(&mut Value)) -> StorageClass {
        let mut class = json!({
            "metadata": {"name": name}, "provisioner": DRIVER, "volumeBindingMode": "WaitForFirstConsumer",
            "reclaimPolicy": "Delete", "allowVolumeExpansion": true,
        });
        edit(&mut class);
        Api::all(self.client.clone()).create(&PostParams::default(), &object(class)).await.unwrap()
    }

    /// A claim that the binder handed over, and whose pod goes to a node if one is named.
    pub async fn claim(
        &self,
        name: &str,
        class: &str,
        node: Option<&str>,
        size: &str,
    ) -> PersistentVolumeClaim {
        let mut marks = json!({annotations::STORAGE_PROVISIONER: DRIVER});
        if let Some(node) = node {
            marks[annotations::SELECTED_NODE] = json!(node);
        }
        let claim = object(json!({
            "metadata": {"name": name, "namespace": "default", "annotations": marks},
            "spec": {"storageClassName": class, "accessModes": ["ReadWriteOnce"],
                     "resources": {"requests": {"storage": size}}},
        }));
        self.claims().create(&PostParams::default(), &claim).await.unwrap()
    }

    pub fn claims(&self) -> Api<PersistentVolumeClaim> {
        Api::default_namespaced(self.client.clone())
    }

    pub fn volumes(&self) -> Api<PersistentVolume> {
        Api::all(self.client.clone())
    }

    pub async fn volume_list(&self) -> Vec<PersistentVolume> {
        self.volumes().list(&ListParams::default()).await.unwrap().items
    }

    pub async fn delete_claim(&self, name: &str) {
        self.claims().delete(name, &DeleteParams::default()).await.unwrap();
    }

    /// Messages of events with a reason.
    pub async fn events(&self, reason: &str) -> Vec<String> {
        let events: Api<Event> = Api::all(self.client.clone());
        let events = events.list(&ListParams::default()).await.unwrap();
        let of_reason = events.items.into_iter().filter(|event| event.reason.as_deref() == Some(reason));
        of_reason.filter_map(|event| event.message).collect()
    }

    /// A context as a new process has it, whose writes are counted and are steps.
    pub fn context(&self, steps: &Steps) -> Context {
        let service = steps.service(self.api.in_process("system:orlop"), self.writes.clone());
        Context::new(Client::new(service, "default"), Metrics::new(), CancellationToken::new())
    }

    /// Writes by the contexts so far, other than of events.
    pub fn writes(&self) -> usize {
        self.writes.load(Ordering::SeqCst)
    }

    pub fn socket(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A process that does some work with the world's driver, whose socket it serves itself.
    async fn process<F>(&self, steps: &Steps, work: impl FnOnce(Context, sidecars::Driver) -> F) -> Process
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let socket = self.socket("csi.sock");
        let serving = self.driver.serve(&socket, steps);
        let driver = sidecars::Driver::connect(&socket).await.unwrap();
        let context = self.context(steps);
        let shutdown = context.shutdown.clone();
        let work = work(context, driver);
        let task = tokio::spawn(async move {
            let _serving = serving;
            work.await;
        });
        Process { shutdown, task }
    }

    /// A process that provisions for the world's driver on `n1`.
    pub async fn provision(&self, steps: &Steps) -> Process {
        let options = sidecars::provision::Options { node: "n1".to_owned(), extra_metadata: false };
        let signal = sidecars::capacity::Signal::new();
        self.process(steps, |context, driver| sidecars::provision::run(context, driver, options, signal))
            .await
    }

    /// The kinds of snapshots, and their default classes.
    pub async fn define_snapshots(&self, edit: impl FnOnce(&mut VolumeSnapshotClass)) {
        let definitions: Api<CustomResourceDefinition> = Api::all(self.client.clone());
        let all = snapshot::definitions().into_iter().chain(group_snapshot::definitions());
        for definition in all.chain([resources::reference_grant::definition()]) {
            definitions.create(&PostParams::default(), &definition).await.unwrap();
        }
        let mut class = VolumeSnapshotClass::new("shots", DRIVER);
        class.metadata.annotations =
            Some([(annotations::IS_DEFAULT_SNAPSHOT_CLASS.to_owned(), "true".to_owned())].into());
        edit(&mut class);
        Api::all(self.client.clone()).create(&PostParams::default(), &class).await.unwrap();
        let mut class = VolumeGroupSnapshotClass::new("groups", DRIVER);
        class.metadata.annotations =
            Some([(annotations::IS_DEFAULT_GROUP_CLASS.to_owned(), "true".to_owned())].into());
        Api::all(self.client.clone()).create(&PostParams::default(), &class).await.unwrap();
    }

    pub fn snapshots(&self) -> Api<VolumeSnapshot> {
        Api::default_namespaced(self.client.clone())
    }

    pub fn contents(&self) -> Api<VolumeSnapshotContent> {
        Api::all(self.client.clone())
    }

    pub async fn snapshot(&self, name: &str, claim: &str) -> VolumeSnapshot {
        let snapshot = object(json!({
            "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot", "metadata": {"name": name},
            "spec": {"source": {"persistentVolumeClaimName": claim}},
        }));
        self.snapshots().create(&PostParams::default(), &snapshot).await.unwrap()
    }

    /// A process that takes snapshots by the world's driver on `n1`, ties them to their contents, and provisions.
    pub async fn take_snapshots(&self, steps: &Steps) -> Process {
        let provision = sidecars::provision::Options { node: "n1".to_owned(), extra_metadata: false };
        let snapshot = sidecars::snapshot::Options { node: "n1".to_owned(), extra_metadata: false };
        let signal = sidecars::capacity::Signal::new();
        self.process(steps, |context, driver| async move {
            tokio::join!(
                controllers::snapshot::run(context.clone()),
                sidecars::snapshot::run(context.clone(), driver.clone(), snapshot, signal.clone()),
                sidecars::provision::run(context, driver, provision, signal),
            );
        })
        .await
    }

    /// A process that lets the volumes of the world's driver on `n1` grow.
    pub async fn resize(&self, steps: &Steps) -> Process {
        self.process(steps, |context, driver| {
            sidecars::resize::run(context, driver, "n1", sidecars::capacity::Signal::new())
        })
        .await
    }

    /// A process that changes the volumes of the world's driver on `n1`.
    pub async fn modify(&self, steps: &Steps) -> Process {
        self.process(steps, |context, driver| sidecars::modify::run(context, driver, "n1")).await
    }

    /// A VolumeAttributesClass of a driver, with one parameter: its own name.
    pub async fn attributes_class(&self, name: &str, driver: &str) {
        let class: VolumeAttributesClass = object(json!({
            "metadata": {"name": name}, "driverName": driver, "parameters": {"tier": name},
        }));
        Api::all(self.client.clone()).create(&PostParams::default(), &class).await.unwrap();
    }

    /// A process that attaches volumes of the world's driver, from `n1`.
    pub async fn attach(&self, steps: &Steps) -> Process {
        self.process(steps, |context, driver| sidecars::attach::run(context, driver, "n1")).await
    }

    /// A claim that is bound to a volume; one on a node, if one is named.
    pub async fn bound_pair(&self, name: &str, class: &str, node: Option<&str>, size: &str) {
        let claim = self.claim(name, class, None, size).await;
        let mut volume = json!({
            "metadata": {"name": format!("pv-{name}")},
            "spec": {"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"], "storageClassName": class,
                     "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": "default",
                                  "name": name, "uid": claim.metadata.uid},
                     "csi": {"driver": DRIVER, "volumeHandle": format!("id-pv-{name}")}},
        });
        if let Some(node) = node {
            let term = json!({"matchExpressions": [{"key": KEY, "operator": "In", "values": [node]}]});
            volume["spec"]["nodeAffinity"] = json!({"required": {"nodeSelectorTerms": [term]}});
        }
        self.volumes().create(&PostParams::default(), &object(volume)).await.unwrap();
        patch(&self.claims(), name, json!({"spec": {"volumeName": format!("pv-{name}")}})).await;
        let bound = json!({"status": {"phase": "Bound", "capacity": {"storage": size}}});
        patch_status(&self.claims(), name, bound).await;
    }

    /// What a user does who wants more, or less.
    pub async fn ask(&self, claim: &str, size: &str) {
        let change = json!({"spec": {"resources": {"requests": {"storage": size}}}});
        self.claims().patch(claim, &PatchParams::default(), &Patch::Merge(&change)).await.unwrap();
    }

    /// Does once what binder and protection controllers would do now: binds claims to the volumes made for them,
    /// releases volumes whose claim is gone, and lets go what is being deleted and not in use.
    pub async fn bind(&self) {
        let volumes = self.volume_list().await;
        for claim in self.claims().list(&ListParams::default()).await.unwrap() {
            let name = claim.name_any();
            if claim.metadata.deletion_timestamp.is_some() {
                let kept = without(claim.finalizers(), finalizers::CLAIM_PROTECTION);
                patch(&self.claims(), &name, json!({"metadata": {"finalizers": kept}})).await;
            } else if let Some(volume) = volumes.iter().find(|one| volume::is_bound_to(one, &claim)) {
                if claim::volume_name(&claim).is_empty() {
                    let bound = json!({"spec": {"volumeName": volume.name_any()}});
                    patch(&self.claims(), &name, bound).await;
                }
                if claim::phase(&claim) != "Bound" {
                    patch_status(&self.claims(), &name, json!({"status": {"phase": "Bound"}})).await;
                }
            }
        }
        for volume in volumes {
            let name = volume.name_any();
            let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()).unwrap();
            let claim = self.claims().get_opt(reference.name.as_deref().unwrap()).await.unwrap();
            let phase = if claim.is_some() { "Bound" } else { "Released" };
            if volume::phase(&volume) != phase {
                patch_status(&self.volumes(), &name, json!({"status": {"phase": phase}})).await;
            }
            if volume.metadata.deletion_timestamp.is_some() && phase == "Released" {
                let kept = without(volume.finalizers(), finalizers::VOLUME_PROTECTION);
                patch(&self.volumes(), &name, json!({"metadata": {"finalizers": kept}})).await;
            }
        }
    }

    /// Binds until the claim is Bound and nothing remembers that its volume was being made.
    pub async fn bound(&self, claim: &str) {
        eventually("the claim is Bound and settled", async || {
            self.bind().await;
            let claim = self.claims().get(claim).await.unwrap();
            claim::phase(&claim) == "Bound" && !has_intent(&claim)
        })
        .await;
    }

    /// Binds until no claim and no volume is left, neither as an object nor at the driver.
    pub async fn empty(&self) {
        eventually("everything is gone", async || {
            self.bind().await;
            let claims = self.claims().list(&ListParams::default()).await.unwrap().items;
            claims.is_empty() && self.volume_list().await.is_empty() && self.driver.volumes().is_empty()
        })
        .await;
    }
}

pub fn has_intent(claim: &PersistentVolumeClaim) -> bool {
    claim.annotations().contains_key(annotations::PROVISIONING)
        || claim.finalizers().iter().any(|name| name == finalizers::PROVISIONING)
}

fn without(all: &[String], one: &str) -> Vec<String> {
    all.iter().filter(|name| *name != one).cloned().collect()
}

async fn patch<K>(api: &Api<K>, name: &str, change: Value)
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    ignore_gone(api.patch(name, &PatchParams::default(), &Patch::Merge(&change)).await);
}

async fn patch_status<K>(api: &Api<K>, name: &str, change: Value)
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    ignore_gone(api.patch_status(name, &PatchParams::default(), &Patch::Merge(&change)).await);
}

/// The provisioner may have finished with it, or changed it, a moment ago; another round sees that.
fn ignore_gone<K>(result: Result<K, kube::Error>) {
    match result {
        Err(kube::Error::Api(status))
            if status.is_not_found() || status.is_conflict() || status.is_invalid() => {}
        result => drop(result.unwrap()),
    }
}

pub fn object<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}
