use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment};
use kube::{Api, Client, Resource};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::{Informer, Metrics, WatchConfig};

/// The informers of a process: started when first asked for, one per kind, shared by everyone.
///
/// Secrets and config maps are not among them on purpose: a process reads the few that it needs.
#[derive(Clone)]
pub struct Informers {
    client: Client,
    metrics: Metrics,
    shutdown: CancellationToken,
    started: Arc<Mutex<HashMap<TypeId, Box<dyn Any + Send>>>>,
}

impl Informers {
    /// No informer yet; each one runs until `shutdown` is cancelled.
    pub fn new(client: Client, metrics: Metrics, shutdown: CancellationToken) -> Informers {
        Informers { client, metrics, shutdown, started: Arc::default() }
    }

    /// The informer of a kind over all namespaces. Must be called within a tokio runtime.
    pub fn of<K>(&self) -> Informer<K>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        let mut started = self.started.lock();
        if let Some(informer) =
            started.get(&TypeId::of::<K>()).and_then(|any| any.downcast_ref::<Informer<K>>())
        {
            return informer.clone();
        }
        let informer = Informer::start_counted(
            Api::all(self.client.clone()),
            WatchConfig::default(),
            self.shutdown.clone(),
            Some(self.metrics.informer(&K::kind(&()))),
        );
        started.insert(TypeId::of::<K>(), Box::new(informer.clone()));
        informer
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
