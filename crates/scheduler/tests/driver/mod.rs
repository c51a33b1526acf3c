//! A CSI driver with its provisioner, as the scheduler sees them: drives with free bytes on every node.
#![allow(dead_code, reason = "a module of every test binary, and each uses its part")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::{CSIDriver, CSIStorageCapacity, StorageClass};
use kube::ResourceExt;
use parking_lot::Mutex;
use resources::annotations::SELECTED_NODE;
use runtime::{Change, Key, Next, Queue, edit};
use serde_json::json;

use crate::support::{World, class, node};

pub(crate) const NAME: &str = "driver.example.com";
pub(crate) const CLASS: &str = "local";
const MIB: u64 = 1 << 20;

/// Free MiB of each drive of each node, and how often a node had to be refused.
#[derive(Clone, Default)]
pub(crate) struct Driver {
    drives: Arc<Mutex<BTreeMap<String, Vec<u64>>>>,
    refused: Arc<AtomicUsize>,
    /// Nodes on which nothing can be made, whatever was published.
    broken: Arc<Mutex<Vec<String>>>,
}

fn capacity(node: &str, drives: &[u64]) -> serde_json::Value {
    json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "CSIStorageCapacity",
        "metadata": {"name": format!("free-{node}"), "namespace": "default"},
        "storageClassName": CLASS,
        "nodeTopology": {"matchLabels": {"kubernetes.io/hostname": node}},
        "capacity": format!("{}Mi", drives.iter().sum::<u64>()),
        "maximumVolumeSize": format!("{}Mi", drives.iter().max().unwrap_or(&0)),
    })
}

impl Driver {
    /// Nodes with drives of these sizes in MiB, their class, and their published capacity.
    pub(crate) async fn install(world: &World, nodes: &[(&str, &[u64])]) -> Self {
        let driver = Self::default();
        world.create::<StorageClass>(class(CLASS, NAME, "WaitForFirstConsumer")).await;
        let object = json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": {"name": NAME},
            "spec": {"storageCapacity": true, "attachRequired": false}});
        world.create::<CSIDriver>(object).await;
        for (name, drives) in nodes {
            world.create::<k8s_openapi::api::core::v1::Node>(node(name)).await;
            world.create::<CSIStorageCapacity>(capacity(name, drives)).await;
            driver.drives.lock().insert((*name).to_owned(), drives.to_vec());
        }
        driver
    }

    /// How often a claim had to be refused on the node that was chosen for it.
    pub(crate) fn refused(&self) -> usize {
        self.refused.load(Ordering::SeqCst)
    }

    pub(crate) fn break_node(&self, node: &str) {
        self.broken.lock().push(node.to_owned());
    }

    /// Makes volumes until the world ends.
    pub(crate) async fn run(self, context: runtime::Context) {
        let queue = Queue::<Key>::new("fake-provisioner", &context.metrics);
        let claims = context.informers.claims();
        claims.subscribe({
            let queue = queue.clone();
            move |change| {
                if let Change::Applied { new, .. } = change {
                    queue.add(Key::of(&**new));
                }
            }
        });
        claims.synced().await;
        runtime::work(queue, 8, context.shutdown.clone(), |key| {
            let claim = claims.get(&key.namespace, &key.name);
            let (driver, context) = (&self, &context);
            async move {
                match claim {
                    Some(claim) => driver.provision(context, &claim).await,
                    None => Ok(Next::Done),
                }
            }
        })
        .await;
    }

    async fn provision(
        &self,
        context: &runtime::Context,
        claim: &PersistentVolumeClaim,
    ) -> Result<Next, kube::Error> {
        let Some(node) = resources::claim::selected_node(claim) else { return Ok(Next::Done) };
        let handed_off = resources::claim::provisioner(claim) == Some(NAME);
        if !handed_off || !resources::claim::volume_name(claim).is_empty() {
            return Ok(Next::Done);
        }
        let name = resources::volume::name_for(&claim.uid().unwrap_or_default());
        let volumes = kube::Api::<PersistentVolume>::all(context.client.clone());
        if volumes.get_opt(&name).await?.is_some() {
            return Ok(Next::Done);
        }
        let size =
            resources::fit::requested(claim).and_then(|size| size.ceil_bytes()).unwrap_or_default() / MIB;
        let broken = self.broken.lock().iter().any(|broken| broken == node);
        let published = {
            let mut all = self.drives.lock();
            let drives = all.get_mut(node).filter(|_| !broken);
            drives.and_then(|drives| {
                let drive = drives.iter_mut().max()?;
                *drive = drive.checked_sub(size)?;
                Some(capacity(node, drives))
            })
        };
        let claims = kube::Api::<PersistentVolumeClaim>::namespaced(context.client.clone(), "default");
        let Some(published) = published else {
            self.refused.fetch_add(1, Ordering::SeqCst);
            edit(&claims, &claim.name_any(), |claim| _ = claim.annotations_mut().remove(SELECTED_NODE))
                .await?;
            return Ok(Next::Done);
        };
        let volume = json!({
            "apiVersion": "v1", "kind": "PersistentVolume",
            "metadata": {"name": name, "annotations": {resources::annotations::PROVISIONED_BY: NAME}},
            "spec": {
                "capacity": {"storage": format!("{size}Mi")}, "accessModes": ["ReadWriteOnce"],
                "storageClassName": CLASS, "persistentVolumeReclaimPolicy": "Delete",
                "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": "default",
                    "name": claim.name_any(), "uid": claim.uid()},
                "csi": {"driver": NAME, "volumeHandle": name},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                    {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}},
            },
        });
        let volume: PersistentVolume = serde_json::from_value(volume).expect("a volume");
        volumes.create(&kube::api::PostParams::default(), &volume).await?;
        let capacities = kube::Api::<CSIStorageCapacity>::namespaced(context.client.clone(), "default");
        let published: CSIStorageCapacity = serde_json::from_value(published).expect("a capacity");
        edit(&capacities, &published.name_any(), |known| {
            known.capacity.clone_from(&published.capacity);
            known.maximum_volume_size.clone_from(&published.maximum_volume_size);
        })
        .await?;
        Ok(Next::Done)
    }
}
