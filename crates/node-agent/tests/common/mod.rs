//! An API server, one node agent, and a way to wait for what should become true.
// Not every test uses all of it, and a helper of tests may fail loudly.
#![allow(dead_code, clippy::unwrap_used)]

pub(crate) mod driver;

use std::{
    ffi::OsString,
    future::Future,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use api_server::ApiServer;
use driver::{Driver, NAME};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::CSIDriver;
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use node_agent::{Drivers, Options};
use object_store::Store;
use runtime::{Context, Metrics};
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Drivers that never change.
pub(crate) struct Sockets {
    pub(crate) sockets: Vec<(String, PathBuf)>,
    changed: watch::Sender<u64>,
}

impl Sockets {
    pub(crate) fn new(sockets: Vec<(String, PathBuf)>) -> Arc<Sockets> {
        Arc::new(Sockets { sockets, changed: watch::Sender::new(0) })
    }
}

impl Drivers for Sockets {
    fn endpoint(&self, driver: &str) -> Option<PathBuf> {
        self.sockets.iter().find(|(name, _)| name == driver).map(|(_, path)| path.clone())
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

pub(crate) struct World {
    pub(crate) api: ApiServer,
    pub(crate) client: Client,
    pub(crate) root: PathBuf,
    pub(crate) node: String,
    pub(crate) drivers: Arc<Sockets>,
    pub(crate) directory: tempfile::TempDir,
    shutdown: CancellationToken,
    agent: Option<JoinHandle<()>>,
    /// Other than usual.
    pub(crate) attach_patience: Option<Duration>,
    pub(crate) stats: node_agent::Stats,
}

/// Says loudly that a test needs root; fails in CI.
pub(crate) fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: needs root");
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "tests must run as root in CI");
    }
    root
}

pub(crate) fn monitor() -> Vec<OsString> {
    let test = std::env::current_exe().unwrap();
    let target = test.parent().unwrap().parent().unwrap();
    vec![target.join("examples/container-monitor").into_os_string()]
}

impl World {
    pub(crate) async fn new(name: &str) -> World {
        Self::with_drivers(name, |_| Sockets::new(vec![])).await
    }

    pub(crate) async fn with_drivers(name: &str, drivers: impl FnOnce(&Path) -> Arc<Sockets>) -> World {
        let directory = tempfile::Builder::new().prefix("orlop-agent-").tempdir().unwrap();
        let api = ApiServer::start(Store::in_memory(), api_server::Options::default()).await.unwrap();
        let client = Client::new(api.in_process("system:orlop"), "default");
        let root = directory.path().join("node");
        let drivers = drivers(directory.path());
        let node = format!("{name}-{}", std::process::id());
        let mut world = World {
            api,
            client,
            root,
            node,
            drivers,
            directory,
            shutdown: CancellationToken::new(),
            agent: None,
            attach_patience: None,
            stats: node_agent::Stats::default(),
        };
        world.start();
        world
    }

    /// With a driver, and its object with this spec.
    pub(crate) async fn with_driver(name: &str, driver: Driver, spec: Value) -> (World, Driver) {
        let serving = driver.clone();
        let served = |directory: &Path| Sockets::new(vec![(NAME.to_owned(), serving.serve(directory))]);
        let world = Self::with_drivers(name, served).await;
        let object = serde_json::from_value(json!({"metadata": {"name": NAME}, "spec": spec})).unwrap();
        let api = Api::<CSIDriver>::all(world.client.clone());
        api.create(&PostParams::default(), &object).await.unwrap();
        (world, driver)
    }

    /// A claim bound to a volume of the driver, `pv-` and its name, without any controller; what both specs have is
    /// given.
    pub(crate) async fn bound_claim(&self, name: &str, size: &str, both: Value) {
        let with = |mut spec: Value| {
            spec.as_object_mut().unwrap().extend(both.as_object().unwrap().clone());
            spec
        };
        let spec = with(json!({"storageClassName": "", "resources": {"requests": {"storage": size}},
            "volumeName": format!("pv-{name}")}));
        let claim: PersistentVolumeClaim =
            self.create(json!({"metadata": {"name": name}, "spec": spec})).await;
        let spec = with(json!({"capacity": {"storage": size}, "storageClassName": "",
            "claimRef": {"kind": "PersistentVolumeClaim", "namespace": "default", "name": name,
                "uid": claim.metadata.uid},
            "csi": {"driver": NAME, "volumeHandle": name, "volumeAttributes": {"colour": "blue"}}}));
        let volume = json!({"metadata": {"name": format!("pv-{name}")}, "spec": spec});
        let volumes = Api::<PersistentVolume>::all(self.client.clone());
        volumes.create(&PostParams::default(), &serde_json::from_value(volume).unwrap()).await.unwrap();
        let claims = Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), "default");
        let bound = json!({"status": {"phase": "Bound", "capacity": {"storage": size}}});
        claims.patch_status(name, &PatchParams::default(), &Patch::Merge(bound)).await.unwrap();
    }

    pub(crate) fn start(&mut self) {
        self.shutdown = CancellationToken::new();
        let context = Context::new(self.client.clone(), Metrics::new(), self.shutdown.clone());
        let mut options = Options::new(&self.node, &self.root, monitor());
        options.attach_patience = self.attach_patience.unwrap_or(options.attach_patience);
        options.stats = self.stats.clone();
        let drivers = self.drivers.clone();
        self.agent = Some(tokio::spawn(async move {
            node_agent::run(context, options, drivers).await.unwrap();
        }));
    }

    /// Ends the agent at whatever await it is in, as a kill would.
    pub(crate) async fn crash(&mut self) {
        if let Some(agent) = self.agent.take() {
            agent.abort();
            let _ = agent.await;
        }
        self.shutdown.cancel();
    }

    pub(crate) fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), "default")
    }

    pub(crate) async fn create<K>(&self, value: Value) -> K
    where
        K: kube::Resource<DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + serde::Serialize
            + serde::de::DeserializeOwned,
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
    {
        let api = Api::<K>::namespaced(self.client.clone(), "default");
        api.create(&PostParams::default(), &serde_json::from_value(value).unwrap()).await.unwrap()
    }

    /// A pod of one container on this node; `spec` is laid over it.
    pub(crate) async fn pod(&self, name: &str, script: &str, spec: Value) -> Pod {
        let mut pod = json!({
            "metadata": {"name": name},
            "spec": {
                "nodeName": self.node,
                "terminationGracePeriodSeconds": 1,
                "restartPolicy": "Always",
                "containers": [{"name": "app", "image": "host", "command": ["sh", "-c", script]}],
            }
        });
        lay_over(&mut pod["spec"], &spec);
        self.create(pod).await
    }

    pub(crate) async fn phase(&self, name: &str, phase: &str) -> Pod {
        self.until(&format!("pod {name} is {phase}"), async || {
            let pod = self.pods().get(name).await.unwrap();
            (pod.status.as_ref()?.phase.as_deref() == Some(phase)).then_some(pod)
        })
        .await
    }

    /// Waits until `check` gives something.
    pub(crate) async fn until<T, F: Future<Output = Option<T>>>(
        &self,
        what: &str,
        check: impl Fn() -> F,
    ) -> T {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            if let Some(found) = check().await {
                return found;
            }
            if tokio::time::Instant::now() > deadline {
                let pods = self.pods().list(&Default::default()).await.unwrap();
                let status: Vec<String> =
                    pods.items.iter().map(|pod| serde_json::to_string(&pod.status).unwrap()).collect();
                panic!("not in time: {what}\n{}\n{:#?}", status.join("\n"), self.events().await);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) async fn events(&self) -> Vec<(String, String)> {
        let api = Api::<k8s_openapi::api::core::v1::Event>::all(self.client.clone());
        let events = api.list(&Default::default()).await.unwrap();
        events
            .into_iter()
            .map(|event| (event.reason.unwrap_or_default(), event.message.unwrap_or_default()))
            .collect()
    }

    pub(crate) async fn gone(&self, name: &str) {
        self.until(&format!("pod {name} is gone"), async || {
            self.pods().get_opt(name).await.unwrap().is_none().then_some(())
        })
        .await;
    }

    pub(crate) fn mounts(&self) -> Vec<PathBuf> {
        let text = std::fs::read("/proc/self/mountinfo").unwrap();
        let table = linux::MountTable::parse(&text);
        table.below(self.directory.path()).into_iter().map(|mount| mount.target.clone()).collect()
    }

    pub(crate) fn processes(&self) -> Vec<i32> {
        std::fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
            .filter(|pid| {
                let group = format!("/orlop/{}/", self.node);
                std::fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| text.contains(&group))
            })
            .collect()
    }

    pub(crate) async fn log(&self, pod: &Pod, query: node_agent::logs::Query) -> String {
        use futures::StreamExt;
        let (name, uid) = (pod.metadata.name.clone().unwrap(), pod.metadata.uid.clone().unwrap());
        let layout = node_agent::Layout::new(&self.root);
        let chunks = node_agent::logs::open(&layout, "default", &name, &uid, "app", query).await.unwrap();
        String::from_utf8(chunks.collect::<Vec<_>>().await.concat()).unwrap()
    }

    /// Removes everything; fails if something can't be, or is left.
    pub(crate) async fn end(mut self) {
        self.crash().await;
        node_agent::teardown(&self.node, &self.root, self.drivers.clone()).await.unwrap();
        assert_eq!(self.mounts(), Vec::<PathBuf>::new());
        assert_eq!(self.processes(), Vec::<i32>::new());
    }
}

impl Drop for World {
    /// A failed test cleans up as well.
    fn drop(&mut self) {
        if let Some(agent) = self.agent.take() {
            agent.abort();
        }
        self.shutdown.cancel();
        let (node, root, drivers) = (self.node.clone(), self.root.clone(), self.drivers.clone());
        let clean = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            if let Err(error) = runtime.block_on(node_agent::teardown(&node, &root, drivers)) {
                eprintln!("{error}");
            }
        });
        let _ = clean.join();
    }
}

pub(crate) fn lay_over(target: &mut Value, patch: &Value) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => {
            for (key, value) in patch {
                lay_over(target.entry(key).or_insert(Value::Null), value);
            }
        }
        (Value::Array(target), Value::Array(patch)) => {
            for (index, value) in patch.iter().enumerate() {
                if index < target.len() {
                    lay_over(&mut target[index], value);
                } else {
                    target.push(value.clone());
                }
            }
        }
        (target, patch) => *target = patch.clone(),
    }
}
