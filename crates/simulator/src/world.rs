//! The world: an API server, what users see of it, and processes that die and start again.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::Duration;

use api_server::{ApiServer, Options, Uids};
use controllers::Controller;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{
    ConfigMap, Event, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod,
};
use k8s_openapi::api::storage::v1::{
    CSIDriver, CSINode, StorageClass, VolumeAttachment, VolumeAttributesClass,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use object_store::Store;
use parking_lot::Mutex;
use resources::group_snapshot::{VolumeGroupSnapshot, VolumeGroupSnapshotClass, VolumeGroupSnapshotContent};
use resources::snapshot::{DeletionPolicy, VolumeSnapshot, VolumeSnapshotClass, VolumeSnapshotContent};
use resources::{VolumePopulator, annotations, group_snapshot, snapshot};
use runtime::{Context, Metrics, Parts};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sidecars::Driver;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::network::LATEST;
use crate::storage::{self, Storage, Volume};
use crate::{Conditions, Dice, Network, driver};

/// A kind of process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// All controllers.
    Controllers,
    /// The scheduler.
    Scheduler,
    /// On a node, what provisions, attaches, resizes and takes snapshots by the storage's driver.
    Node(&'static str),
}

impl Role {
    /// All of them.
    pub const ALL: [Role; 4] = [Role::Controllers, Role::Scheduler, Role::Node("n1"), Role::Node("n2")];

    fn name(self) -> &'static str {
        match self {
            Role::Controllers => "controllers",
            Role::Scheduler => "scheduler",
            Role::Node(name) => name,
        }
    }
}

struct Process {
    dead: CancellationToken,
    parts: Parts,
}

/// Must live in a tokio runtime of one thread with paused time.
pub struct World {
    /// What lies between processes and the API server.
    pub network: Network,
    /// For users.
    pub client: Client,
    /// What holds the data.
    pub storage: Storage,
    controllers: Vec<Controller>,
    running: BTreeMap<Role, Process>,
}

impl World {
    /// Two nodes, the classes of the driver, and nothing running yet.
    pub async fn new(seed: u64) -> World {
        // Backoffs of clients.
        fastrand::seed(seed);
        clock::simulate(Timestamp::constant(1_800_000_000, 0));
        // What was told must be there at the end.
        let event_ttl = Duration::from_secs(24 * 3600);
        let options = Options { uids: uids(seed), event_ttl, ..Options::default() };
        let api = ApiServer::start(Store::in_memory(), options).await;
        let api = api.unwrap_or_else(|error| panic!("an empty store can be served: {error}"));
        let network = Network::new(seed, api);
        let client = network.user();
        let (storage, running) = (Storage::new(network.clone()), BTreeMap::new());
        let world = World { network, client, storage, controllers: Controller::ALL.to_vec(), running };
        for node in ["n1", "n2"] {
            world.node(node).await;
        }
        let driver = json!({"metadata": {"name": storage::DRIVER}, "spec": {"attachRequired": true}});
        world.create::<CSIDriver>(driver).await;
        for (name, provisioner, mode, policy) in [
            ("fast", storage::DRIVER, "Immediate", "Delete"),
            ("kept", storage::DRIVER, "Immediate", "Retain"),
            ("late", storage::DRIVER, "WaitForFirstConsumer", "Delete"),
            ("local", "kubernetes.io/no-provisioner", "WaitForFirstConsumer", "Delete"),
        ] {
            world.class(name, provisioner, mode, policy).await;
        }
        world
    }

    /// Makes the kinds of snapshots, and a class for each deletion policy.
    pub async fn define_snapshots(&self) {
        let definitions = snapshot::definitions().into_iter().chain(group_snapshot::definitions());
        for definition in definitions.chain([resources::reference_grant::definition()]) {
            drop(self.api::<CustomResourceDefinition>().create(&PostParams::default(), &definition).await);
        }
        for (name, policy) in [("shots", DeletionPolicy::Delete), ("kept-shots", DeletionPolicy::Retain)] {
            let class = VolumeSnapshotClass {
                deletion_policy: policy,
                ..VolumeSnapshotClass::new(name, storage::DRIVER)
            };
            drop(self.api::<VolumeSnapshotClass>().create(&PostParams::default(), &class).await);
        }
        for (name, policy) in [("groups", DeletionPolicy::Delete), ("kept-groups", DeletionPolicy::Retain)] {
            let class = VolumeGroupSnapshotClass {
                deletion_policy: policy,
                ..VolumeGroupSnapshotClass::new(name, storage::DRIVER)
            };
            drop(self.api::<VolumeGroupSnapshotClass>().create(&PostParams::default(), &class).await);
        }
    }

    /// Of the controllers, only these run, from their next start on.
    pub fn with(mut self, controllers: &[Controller]) -> World {
        self.controllers = controllers.to_vec();
        self
    }

    /// Makes a node.
    pub async fn node(&self, name: &str) {
        let node = json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name},
                "annotations": {annotations::CONTROLLER_MANAGED_ATTACH: "true"}},
            "status": {"conditions": [{"type": "Ready", "status": "True"}],
                "allocatable": {"cpu": "8", "memory": "16Gi", "pods": "1000"}},
        });
        self.create::<Node>(node).await;
        let drivers =
            json!([{"name": storage::DRIVER, "nodeID": name, "topologyKeys": ["kubernetes.io/hostname"]}]);
        self.create::<CSINode>(json!({"metadata": {"name": name}, "spec": {"drivers": drivers}})).await;
    }

    /// Makes a class. What binds late can be used on one node only.
    pub async fn class(&self, name: &str, provisioner: &str, mode: &str, policy: &str) {
        let place = if mode == "Immediate" { "anywhere" } else { "here" };
        let class = json!({"metadata": {"name": name}, "provisioner": provisioner, "volumeBindingMode": mode,
            "reclaimPolicy": policy, "allowVolumeExpansion": true, "parameters": {"place": place}});
        self.create::<StorageClass>(class).await;
    }

    /// Makes a volume of the driver by hand: its object, and its data.
    pub async fn volume(&self, object: Value) {
        let id = object["spec"]["csi"]["volumeHandle"].as_str().unwrap_or_default().to_owned();
        if self.create::<PersistentVolume>(object).await.is_some() {
            self.storage
                .hold(|held| held.volumes.insert(id, Volume { bytes: 1 << 30, node: None, by_hand: true }));
        }
    }

    /// The objects of a kind; namespaced ones in `default`.
    pub fn api<K: Kind>(&self) -> Api<K> {
        K::api(self.client.clone())
    }

    /// Makes an object, unless it exists. What the API server refuses is refused.
    pub async fn create<K: Kind + Serialize>(&self, object: Value) -> Option<K> {
        let object =
            serde_json::from_value(object).unwrap_or_else(|error| panic!("not of the kind's form: {error}"));
        self.api::<K>().create(&PostParams::default(), &object).await.ok()
    }

    /// The object, if there is one.
    pub async fn get<K: Kind>(&self, name: &str) -> Option<K> {
        self.api::<K>().get_opt(name).await.ok().flatten()
    }

    /// All objects of a kind.
    pub async fn list<K: Kind>(&self) -> Vec<K> {
        self.api::<K>().list(&ListParams::default()).await.map(|list| list.items).unwrap_or_default()
    }

    /// Deletes an object, if there is one.
    pub async fn delete<K: Kind>(&self, name: &str) {
        drop(self.api::<K>().delete(name, &DeleteParams::default()).await);
    }

    /// Changes an object, if there is one.
    pub async fn patch<K: Kind>(&self, name: &str, change: Value) {
        drop(self.api::<K>().patch(name, &PatchParams::default(), &Patch::Merge(change)).await);
    }

    /// Starts what does not run.
    pub fn start(&mut self, role: Role) {
        if self.running.contains_key(&role) {
            return;
        }
        self.network.note(format_args!("{role:?} starts"));
        let dead = CancellationToken::new();
        let client = self.network.client(role.name(), dead.clone());
        let context = Context::new(client, Metrics::new(), CancellationToken::new());
        let parts = context.parts.clone();
        match role {
            Role::Controllers => controllers::start(&context, &self.controllers),
            Role::Scheduler => parts.spawn("scheduler", scheduler::run(context)),
            Role::Node(node) => {
                let channel = driver::connect(self.storage.clone(), node);
                parts.spawn("sidecars", async move {
                    let Ok(driver) = Driver::over(channel, Path::new("csi.sock")).await else { return };
                    sidecars::serve(context, driver, sidecars::Options::new(node)).await;
                });
            }
        }
        let (network, ended, shutdown) = (self.network.clone(), parts.clone(), parts.shutdown());
        parts.spawn_helper("witness", async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                ended = ended.failure() => network.ledger(|ledger| ledger.wrong.push(format!("{role:?}: {ended}"))),
            }
        });
        self.running.insert(role, Process { dead, parts });
    }

    /// Ends a process at once, wherever it is. A request that it had sent may still arrive.
    pub fn kill(&mut self, role: Role) {
        if let Some(process) = self.running.remove(&role) {
            self.network.note(format_args!("{role:?} dies"));
            process.dead.cancel();
            process.parts.cut_off();
        }
    }

    /// Nothing goes wrong any more, everything runs: waits until no process writes any more.
    ///
    /// # Errors
    /// It never ends.
    pub async fn calm_down(&mut self) -> Result<(), String> {
        self.network.set(Conditions::CALM);
        self.storage.fail(0);
        for role in Role::ALL {
            self.start(role);
        }
        Box::pin(self.settle_for_less()).await?;
        Box::pin(self.give_up_groups()).await;
        // Longer than any backoff.
        self.rest(Duration::from_secs(360)).await
    }

    /// Waits until no process has written for so long.
    ///
    /// # Errors
    /// It never ends.
    pub async fn rest(&self, long: Duration) -> Result<(), String> {
        let step = LATEST + Duration::from_secs(10);
        let mut quiet = Duration::ZERO;
        for _ in 0..120 {
            let before = self.network.writes();
            sleep(step).await;
            self.tend().await;
            quiet = if self.network.writes() == before { quiet + step } else { Duration::ZERO };
            if quiet >= long {
                return Ok(());
            }
        }
        Err("an hour after everything was well, there are still writes".to_owned())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for role in Role::ALL {
            self.kill(role);
        }
    }
}

/// Kinds that users of the world work with, and where they are.
pub trait Kind: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned {
    /// All objects that the world has of the kind.
    fn api(client: Client) -> Api<Self>;
}

macro_rules! kinds {
    ($($scope:ident: $($kind:ty),* $(,)?);* $(;)?) => {$($(
        impl Kind for $kind {
            fn api(client: Client) -> Api<Self> {
                Api::$scope(client)
            }
        }
    )*)*};
}

kinds! {
    all: Node, PersistentVolume, StorageClass, Namespace, CSIDriver, CSINode, VolumeAttachment,
        VolumeAttributesClass, VolumePopulator, VolumeSnapshotClass, VolumeSnapshotContent,
        VolumeGroupSnapshotClass, VolumeGroupSnapshotContent, CustomResourceDefinition;
    default_namespaced: Pod, PersistentVolumeClaim, Event, ConfigMap, VolumeSnapshot,
        VolumeGroupSnapshot, StatefulSet;
}

/// UIDs that follow from the seed, from what has them, and from how many there were of that name before.
fn uids(seed: u64) -> Uids {
    let made = Mutex::new(HashMap::<String, u64>::new());
    Uids::by(move |path| {
        let nth = *made.lock().entry(path.to_owned()).and_modify(|nth| *nth += 1).or_insert(0);
        let mut dice = Dice::about(seed, (path, nth));
        let bytes = u128::from(dice.roll()) << 64 | u128::from(dice.roll());
        uuid::Builder::from_random_bytes(bytes.to_be_bytes()).into_uuid()
    })
}
