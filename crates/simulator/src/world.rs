//! The world: an API server, what users see of it, and processes that die and start again.

use std::collections::BTreeMap;
use std::time::Duration;

use api_server::{ApiServer, Options};
use controllers::Controller;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, ResourceExt};
use object_store::Store;
use runtime::{Context, Metrics};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::network::LATEST;
use crate::storage::{self, Storage};
use crate::{Conditions, Network};

/// A kind of process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// All controllers.
    Controllers,
    /// The scheduler.
    Scheduler,
    /// The provisioner of the storage.
    Provisioner,
}

impl Role {
    /// All of them.
    pub const ALL: [Role; 3] = [Role::Controllers, Role::Scheduler, Role::Provisioner];

    fn name(self) -> &'static str {
        match self {
            Role::Controllers => "controllers",
            Role::Scheduler => "scheduler",
            Role::Provisioner => "provisioner",
        }
    }
}

/// The controllers that run in a world, unless it is told otherwise.
const CONTROLLERS: [Controller; 4] =
    [Controller::Bind, Controller::Protect, Controller::Ephemeral, Controller::Collect];

struct Process {
    dead: CancellationToken,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
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
        let api = ApiServer::start(Store::in_memory(), Options::default()).await;
        let api = api.unwrap_or_else(|error| panic!("an empty store can be served: {error}"));
        let network = Network::new(seed, api);
        let client = network.user();
        let (storage, running) = (Storage::default(), BTreeMap::new());
        let world = World { network, client, storage, controllers: CONTROLLERS.to_vec(), running };
        for node in ["n1", "n2"] {
            world.node(node).await;
        }
        let driver = json!({"metadata": {"name": storage::DRIVER}, "spec": {"attachRequired": false}});
        world.create_cluster("storage.k8s.io/v1", "CSIDriver", "csidrivers", driver).await;
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

    /// Of the controllers, only these run, from their next start on.
    pub fn with(mut self, controllers: &[Controller]) -> World {
        self.controllers = controllers.to_vec();
        self
    }

    /// Makes a node.
    pub async fn node(&self, name: &str) {
        let node = json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}});
        self.create::<Node>(node).await;
        let drivers =
            json!([{"name": storage::DRIVER, "nodeID": name, "topologyKeys": ["kubernetes.io/hostname"]}]);
        let node = json!({"metadata": {"name": name}, "spec": {"drivers": drivers}});
        self.create_cluster("storage.k8s.io/v1", "CSINode", "csinodes", node).await;
    }

    /// Makes a class.
    pub async fn class(&self, name: &str, provisioner: &str, mode: &str, policy: &str) {
        let class = json!({"metadata": {"name": name}, "provisioner": provisioner, "volumeBindingMode": mode,
            "reclaimPolicy": policy});
        self.create_cluster("storage.k8s.io/v1", "StorageClass", "storageclasses", class).await;
    }

    async fn create_cluster(&self, version: &str, kind: &str, plural: &str, object: Value) {
        let mut object = object;
        (object["apiVersion"], object["kind"]) = (version.into(), kind.into());
        let request = http::Request::post(format!("/apis/{version}/{plural}"))
            .header("content-type", "application/json")
            .body(object.to_string().into_bytes());
        let Ok(request) = request else { return };
        drop(self.client.request::<Value>(request).await);
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
        let (dead, shutdown) = (CancellationToken::new(), CancellationToken::new());
        let client = self.network.client(role.name(), dead.clone());
        let context = Context::new(client, Metrics::new(), shutdown.clone());
        let task = match role {
            Role::Controllers => {
                let chosen = self.controllers.clone();
                tokio::spawn(async move { controllers::run(context, &chosen).await })
            }
            Role::Scheduler => tokio::spawn(scheduler::run(context)),
            Role::Provisioner => {
                tokio::spawn(storage::provision(context, self.storage.clone(), self.network.clone()))
            }
        };
        self.running.insert(role, Process { dead, shutdown, task });
    }

    /// Ends a process at once, wherever it is. A request that it had sent may still arrive.
    pub fn kill(&mut self, role: Role) {
        if let Some(process) = self.running.remove(&role) {
            self.network.note(format_args!("{role:?} dies"));
            process.dead.cancel();
            process.shutdown.cancel();
            process.task.abort();
        }
    }

    /// What the agents of the nodes do: pods run, and end when they are deleted.
    pub async fn tend_pods(&self) {
        let pods = self.api::<Pod>();
        for pod in self.list::<Pod>().await {
            let placed = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            if placed && pod.metadata.deletion_timestamp.is_some() {
                let preconditions = Preconditions { uid: pod.uid(), resource_version: None };
                let now = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
                drop(pods.delete(&pod.name_any(), &now.grace_period(0)).await);
            } else if placed && phase != Some("Running") {
                let running = Patch::Merge(json!({"status": {"phase": "Running"}}));
                drop(pods.patch_status(&pod.name_any(), &PatchParams::default(), &running).await);
            }
        }
    }

    /// Nothing goes wrong any more, everything runs: waits until no process writes any more.
    ///
    /// # Errors
    /// It never ends.
    pub async fn calm_down(&mut self) -> Result<(), String> {
        self.network.set(Conditions::CALM);
        self.storage.refuse(0, 0);
        for role in Role::ALL {
            self.start(role);
        }
        // Longer than any backoff.
        self.rest(Duration::from_secs(300)).await
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
            self.tend_pods().await;
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
    all: Node, k8s_openapi::api::core::v1::PersistentVolume, k8s_openapi::api::storage::v1::StorageClass,
        k8s_openapi::api::core::v1::Namespace;
    default_namespaced: Pod, k8s_openapi::api::core::v1::PersistentVolumeClaim,
        k8s_openapi::api::core::v1::Event, k8s_openapi::api::core::v1::ConfigMap;
}
