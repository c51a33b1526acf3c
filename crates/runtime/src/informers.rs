use std::any::{Any, TypeId};
use std::fmt::Debug;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment};
use kube::runtime::watcher;
use kube::{Api, Client, Resource};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;

use crate::deadline::limited;
use crate::informer::{Feed, follow};
use crate::{Informer, Metrics, Parts, WatchConfig};

/// The informers of a process: started when first asked for, one per kind and selection, shared by everyone.
///
/// Secrets and config maps are not among them on purpose: a process reads the few that it needs.
#[derive(Clone)]
pub struct Informers {
    client: Client,
    metrics: Metrics,
    parts: Parts,
    started: Arc<Mutex<Vec<Started>>>,
}

struct Started {
    kind: TypeId,
    /// Label and field selectors.
    selection: (Option<String>, Option<String>),
    informer: Box<dyn Any + Send>,
    resync: Box<dyn Fn() + Send>,
}

impl Informers {
    /// No informer yet; each one is one of the `parts`.
    pub fn new(client: Client, metrics: Metrics, parts: Parts) -> Informers {
        Informers { client, metrics, parts, started: Arc::default() }
    }

    /// The informer of a kind over all namespaces. Must be called within a tokio runtime.
    pub fn of<K>(&self) -> Informer<K>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        self.select(WatchConfig::default())
    }

    /// The informer of those objects of a kind that a label or field selector picks: the server sends no others. Must be
    /// called within a tokio runtime.
    pub fn select<K>(&self, config: WatchConfig) -> Informer<K>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        let kind = TypeId::of::<K>();
        let selection = (config.label_selector.clone(), config.field_selector.clone());
        let mut started = self.started.lock();
        let known = started.iter().find(|one| one.kind == kind && one.selection == selection);
        if let Some(informer) = known.and_then(|one| one.informer.downcast_ref::<Informer<K>>()) {
            return informer.clone();
        }
        if started.is_empty() {
            self.parts.spawn("resync of informers", self.clone().resync());
        }
        let selectors = [&selection.0, &selection.1].into_iter().flatten().cloned().collect::<Vec<_>>();
        let name = match selectors.is_empty() {
            true => K::kind(&()).into_owned(),
            false => format!("{} ({})", K::kind(&()), selectors.join(", ")),
        };
        let feed = self.feed(name);
        let client = limited(&self.client, Some(feed.clone()));
        let informer = Informer::start(client, config, &self.parts, feed);
        let resync = {
            let informer: Informer<K> = informer.clone();
            Box::new(move || informer.resync())
        };
        started.push(Started { kind, selection, informer: Box::new(informer.clone()), resync });
        informer
    }

    /// Tells every change of what `api` addresses, for ever, as an informer follows its kind; `what` names it in the log
    /// and in metrics. For kinds that are known at run time only.
    pub async fn follow<K>(
        &self,
        what: String,
        api: impl FnOnce(Client) -> Api<K>,
        config: WatchConfig,
        tell: impl FnMut(watcher::Event<K>),
    ) where
        K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
        K::DynamicType: Clone,
    {
        let feed = self.feed(what);
        let client = limited(&self.client, Some(feed.clone()));
        follow(&feed, api(client), config, false, tell).await;
    }

    fn feed(&self, name: String) -> Arc<Feed> {
        let metrics = self.metrics.informer(&name);
        let feed = Arc::new(Feed::new(name, metrics));
        self.metrics.feeds().add(&feed);
        feed
    }

    /// Announces everything anew whenever a queue had to refuse keys and has room again.
    async fn resync(self) {
        let shutdown = self.parts.shutdown();
        while shutdown.run_until_cancelled(self.metrics.resync().notified()).await.is_some() {
            tracing::info!("a queue was full and has room again: all objects are announced anew");
            self.started.lock().iter().for_each(|one| (one.resync)());
        }
    }

    /// Pods.
    pub fn pods(&self) -> Informer<Pod> {
        self.of()
    }

    /// PersistentVolumeClaims.
    pub fn claims(&self) -> Informer<PersistentVolumeClaim> {
        self.of()
    }

    /// PersistentVolumes.
    pub fn volumes(&self) -> Informer<PersistentVolume> {
        self.of()
    }

    /// StorageClasses.
    pub fn classes(&self) -> Informer<StorageClass> {
        self.of()
    }

    /// Nodes.
    pub fn nodes(&self) -> Informer<Node> {
        self.of()
    }

    /// CSINodes.
    pub fn csi_nodes(&self) -> Informer<CSINode> {
        self.of()
    }

    /// CSIDrivers.
    pub fn csi_drivers(&self) -> Informer<CSIDriver> {
        self.of()
    }

    /// CSIStorageCapacities.
    pub fn capacities(&self) -> Informer<CSIStorageCapacity> {
        self.of()
    }

    /// VolumeAttachments.
    pub fn attachments(&self) -> Informer<VolumeAttachment> {
        self.of()
    }

    /// Namespaces.
    pub fn namespaces(&self) -> Informer<Namespace> {
        self.of()
    }
}
