//! A Kubernetes API in this process, whose writes can be made to fail, and waiting for what shall become true of it.

#![allow(dead_code, reason = "each test uses its part")]

pub(crate) mod kubelet;

use std::collections::HashSet;
use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context as Poller, Poll};
use std::time::{Duration, Instant};

use api_server::{ApiServer, InProcess};
use bytes::Bytes;
use futures::future::BoxFuture;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use k8s_openapi::api::core::v1::{Event, PersistentVolume, PersistentVolumeClaim, Pod};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::client::Body;
use kube::{Api, Client, ResourceExt};
use runtime::{Change, Context, Informer, Key, Metrics};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// How long anything may take to become true.
const DEADLINE: Duration = Duration::from_secs(60);

/// Which write of the controllers fails, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is refused, as if the object had changed.
    Conflict,
    /// It is not made, and the client is told so.
    Refused,
    /// It is made, but the client is told otherwise.
    AnswerLost,
    /// It is made, and the client waits for the answer until it is killed.
    Halt,
    /// The process ends before it is made.
    CutBefore,
    /// The process ends before it hears that it was made.
    CutAfter,
}

/// The writes of the controllers, counted; one of them may fail.
#[derive(Clone)]
pub(crate) struct Writes {
    inner: InProcess,
    count: Arc<AtomicUsize>,
    fault: Option<(usize, Fault)>,
    /// New objects of this resource are refused as by a quota.
    forbidden: Option<&'static str>,
    cut: Arc<Notify>,
}

impl tower::Service<http::Request<Body>> for Writes {
    type Response = http::Response<UnsyncBoxBody<Bytes, BoxError>>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Poller<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let is_event = request.uri().path().contains("/events");
        let is_forbidden = request.method() == http::Method::POST
            && self.forbidden.is_some_and(|resource| request.uri().path().ends_with(resource));
        let is_write = request.method() != http::Method::GET && !is_event;
        let number = if is_write { self.count.fetch_add(1, Ordering::SeqCst) } else { usize::MAX };
        let fault = self.fault.filter(|(at, _)| *at == number).map(|(_, fault)| fault);
        let (mut inner, cut) = (self.inner.clone(), self.cut.clone());
        Box::pin(async move {
            let refuse = |code: u16, reason: &str| {
                let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
                    "reason": reason, "message": "as the test asks"});
                let body =
                    Full::new(Bytes::from(status.to_string())).map_err(|never| match never {}).boxed_unsync();
                http::Response::builder()
                    .status(code)
                    .header("content-type", "application/json")
                    .body(body)
                    .unwrap()
            };
            if is_forbidden {
                return Ok(refuse(403, "Forbidden"));
            }
            match fault {
                Some(Fault::Conflict) => return Ok(refuse(409, "Conflict")),
                Some(Fault::Refused) => return Ok(refuse(500, "InternalError")),
                Some(Fault::CutBefore) => {
                    cut.notify_one();
                    return std::future::pending().await;
                }
                _ => {}
            }
            let answer = tower::Service::call(&mut inner, request).await?;
            if fault == Some(Fault::CutAfter) {
                cut.notify_one();
                return std::future::pending().await;
            }
            let answer = answer.map(|body| body.map_err(Into::into).boxed_unsync());
            if fault == Some(Fault::Halt) {
                return std::future::pending().await;
            }
            Ok(if fault.is_some() { refuse(500, "InternalError") } else { answer })
        })
    }
}

/// An API server, and clients of it.
pub(crate) struct World {
    /// For the test itself.
    pub(crate) client: Client,
    /// For controllers.
    pub(crate) context: Context,
    /// Told when the process shall have ended.
    pub(crate) cut: Arc<Notify>,
    writes: Arc<AtomicUsize>,
    _running: DropGuard,
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::with_fault(None).await
    }

    /// A world in which the n-th write of the controllers fails.
    pub(crate) async fn with_fault(fault: Option<(usize, Fault)>) -> Self {
        Self::build(fault, None).await
    }

    /// A world in which the controllers may not make objects of a resource, by its plural.
    pub(crate) async fn with_forbidden(resource: &'static str) -> Self {
        Self::build(None, Some(resource)).await
    }

    async fn build(fault: Option<(usize, Fault)>, forbidden: Option<&'static str>) -> Self {
        let store = object_store::Store::in_memory();
        let api =
            ApiServer::start(store, api_server::Options::default()).await.expect("the API server starts");
        let writes = Arc::new(AtomicUsize::new(0));
        let inner = api.in_process("system:controllers");
        let cut = Arc::new(Notify::new());
        let (count, told) = (Arc::clone(&writes), Arc::clone(&cut));
        let service = Writes { inner, count, fault, forbidden, cut: told };
        let shutdown = CancellationToken::new();
        let context = Context::new(Client::new(service, "default"), Metrics::new(), shutdown.clone());
        let client = Client::new(api.in_process("admin"), "default");
        Self { client, context, cut, writes, _running: shutdown.drop_guard() }
    }

    /// Runs controllers that meet no fault.
    pub(crate) fn run_well(&self, controllers: &'static [controllers::Controller]) {
        let context = Context::new(self.client.clone(), Metrics::new(), self.context.shutdown.clone());
        tokio::spawn(async move { controllers::run(context, controllers).await });
    }

    /// Writes that the controllers made, events aside.
    pub(crate) fn writes(&self) -> usize {
        self.writes.load(Ordering::SeqCst)
    }

    pub(crate) async fn create<K>(&self, object: Value) -> K
    where
        K: Clone + std::fmt::Debug + DeserializeOwned + serde::Serialize + Resource,
    {
        let object: K = serde_json::from_value(object).expect("a test's object has Kubernetes' form");
        let api = self.api::<K>();
        api.create(&PostParams::default(), &object)
            .await
            .unwrap_or_else(|error| panic!("create {object:?}: {error}"))
    }

    /// The objects of a kind; namespaced ones in `default`.
    pub(crate) fn api<K: Resource>(&self) -> Api<K> {
        K::api(self.client.clone())
    }

    pub(crate) async fn get<K>(&self, name: &str) -> Option<K>
    where
        K: Clone + std::fmt::Debug + DeserializeOwned + Resource,
    {
        self.api::<K>().get_opt(name).await.expect("the API answers")
    }

    pub(crate) async fn list<K>(&self) -> Vec<K>
    where
        K: Clone + std::fmt::Debug + DeserializeOwned + Resource,
    {
        self.api::<K>().list(&ListParams::default()).await.expect("the API answers").items
    }

    pub(crate) async fn delete<K>(&self, name: &str)
    where
        K: Clone + std::fmt::Debug + DeserializeOwned + Resource,
    {
        self.api::<K>().delete(name, &DeleteParams::default()).await.expect("it can be deleted");
    }

    /// Waits until the events about an object have these reasons among them.
    pub(crate) async fn event(&self, about: &str, reason: &str) -> Event {
        eventually(&format!("event {reason} on {about}"), || async {
            let events = self.list::<Event>().await;
            events.into_iter().find(|event| {
                event.involved_object.name.as_deref() == Some(about)
                    && event.reason.as_deref() == Some(reason)
            })
        })
        .await
    }

    pub(crate) async fn claim_phase(&self, name: &str, phase: &str) -> PersistentVolumeClaim {
        eventually(&format!("claim {name} {phase}"), || async {
            let claim = self.get::<PersistentVolumeClaim>(name).await;
            claim.filter(|claim| resources::claim::phase(claim) == phase)
        })
        .await
    }

    pub(crate) async fn volume_phase(&self, name: &str, phase: &str) -> PersistentVolume {
        eventually(&format!("volume {name} {phase}"), || async {
            let volume = self.get::<PersistentVolume>(name).await;
            volume.filter(|volume| resources::volume::phase(volume) == phase)
        })
        .await
    }

    pub(crate) async fn pod_on(&self, name: &str) -> String {
        eventually(&format!("pod {name} on a node"), || async {
            let pod = self.get::<Pod>(name).await;
            pod.and_then(|pod| pod.spec?.node_name)
        })
        .await
    }

    pub(crate) async fn gone<K>(&self, name: &str)
    where
        K: Clone + std::fmt::Debug + DeserializeOwned + Resource,
    {
        eventually(&format!("{name} gone"), || async { self.get::<K>(name).await.is_none().then_some(()) })
            .await;
    }
}

/// Kinds that tests use, and where they are.
pub(crate) trait Resource: kube::Resource<DynamicType = ()> {
    fn api(client: Client) -> Api<Self>
    where
        Self: Sized;
}

macro_rules! kinds {
    ($($kind:ty: $scope:ident),* $(,)?) => {$(
        impl Resource for $kind {
            fn api(client: Client) -> Api<Self> {
                kinds!(@$scope client)
            }
        }
    )*};
    (@cluster $client:ident) => { Api::all($client) };
    (@namespaced $client:ident) => { Api::namespaced($client, "default") };
}

kinds! {
    k8s_openapi::api::core::v1::Node: cluster,
    k8s_openapi::api::core::v1::Namespace: cluster,
    PersistentVolume: cluster,
    PersistentVolumeClaim: namespaced,
    Pod: namespaced,
    Event: namespaced,
    k8s_openapi::api::apps::v1::StatefulSet: namespaced,
    k8s_openapi::api::apps::v1::ControllerRevision: namespaced,
    k8s_openapi::api::core::v1::ConfigMap: namespaced,
    k8s_openapi::api::scheduling::v1::PriorityClass: cluster,
    k8s_openapi::api::storage::v1::StorageClass: cluster,
    k8s_openapi::api::storage::v1::CSIDriver: cluster,
    k8s_openapi::api::storage::v1::VolumeAttachment: cluster,
    k8s_openapi::api::storage::v1::VolumeAttributesClass: cluster,
    k8s_openapi::api::storage::v1::CSINode: cluster,
    k8s_openapi::api::storage::v1::CSIStorageCapacity: namespaced,
}

/// Waits until something is there.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut look: impl FnMut() -> F,
) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(start.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Becomes ready when this many objects have been seen as wanted; each counts once.
pub(crate) fn await_each<K, F>(
    informer: &Informer<K>,
    count: usize,
    wanted: F,
) -> impl Future<Output = ()> + use<K, F>
where
    F: Fn(&K) -> bool + Send + Sync + 'static,
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Send + Sync + 'static,
{
    let (done, is_done) = tokio::sync::oneshot::channel();
    let (done, seen) = (parking_lot::Mutex::new(Some(done)), parking_lot::Mutex::new(HashSet::new()));
    informer.subscribe(move |change| {
        if let Change::Applied { new, .. } = change
            && wanted(new)
        {
            let mut seen = seen.lock();
            if seen.insert(Key::of(&**new)) && seen.len() == count {
                done.lock().take().map(|done| done.send(()));
            }
        }
    });
    async { is_done.await.expect("the informer goes on") }
}

pub(crate) fn volume(name: &str, size: &str, class: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"], "storageClassName": class,
            "persistentVolumeReclaimPolicy": "Retain",
            "csi": {"driver": "driver.example.com", "volumeHandle": name},
        },
    })
}

pub(crate) fn claim(name: &str, size: &str, class: Option<&str>) -> Value {
    let mut claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name, "namespace": "default"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}},
    });
    if let Some(class) = class {
        claim["spec"]["storageClassName"] = class.into();
    }
    claim
}

pub(crate) fn class(name: &str, provisioner: &str, mode: &str) -> Value {
    json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": name},
        "provisioner": provisioner, "volumeBindingMode": mode,
    })
}

pub(crate) fn pod(name: &str, claims: &[&str]) -> Value {
    let volume =
        |claim: &&str| json!({"name": format!("v-{claim}"), "persistentVolumeClaim": {"claimName": claim}});
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "containers": [{"name": "main", "image": "host", "command": ["true"]}],
            "volumes": claims.iter().map(volume).collect::<Vec<_>>(),
        },
    })
}

pub(crate) fn node(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {"allocatable": {"cpu": "8", "memory": "16Gi", "pods": "1000"}},
    })
}

/// Names, for messages.
pub(crate) fn names<K: kube::Resource>(objects: &[K]) -> Vec<String> {
    objects.iter().map(|object| object.name_any()).collect()
}
