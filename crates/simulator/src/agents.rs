//! What the agents of the nodes do: they say which volumes they use, mount what is attached, run pods, end them.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use resources::{attachment, claim, node};
use serde_json::json;

use crate::World;
use crate::ledger::claims_of;

fn is_going(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// The node of a pod.
pub(crate) fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

impl World {
    /// Every node's agent looks once at its pods, and the populator at its claims.
    pub async fn tend(&self) {
        self.populate().await;
        let mut by_node = BTreeMap::<String, Vec<Pod>>::new();
        for pod in self.list::<Pod>().await {
            if let Some(node) = node_of(&pod) {
                by_node.entry(node.to_owned()).or_default().push(pod);
            }
        }
        for node in self.list::<Node>().await {
            let pods = by_node.remove(&node.name_any()).unwrap_or_default();
            self.tend_pods(&node, &pods).await;
        }
    }

    /// The node says what it uses before it looks for what is attached, and mounts only that.
    async fn tend_pods(&self, node: &Node, pods: &[Pod]) {
        let name = node.name_any();
        let staying = || pods.iter().filter(|pod| !is_going(pod));
        let wanted: BTreeSet<String> = staying().flat_map(|pod| self.volumes_of(pod)).collect();
        let mounted = self.storage.hold(|held| {
            held.mounted.retain(|(volume, at)| *at != name || wanted.contains(volume));
            let here = held.mounted.iter().filter(|(_, at)| *at == name);
            here.map(|(volume, _)| volume.clone()).collect::<BTreeSet<_>>()
        });
        let used = |volume: &String| attachment::status_name(crate::storage::DRIVER, volume);
        let in_use: Vec<String> = wanted.union(&mounted).map(used).collect();
        if node::volumes_in_use(node).iter().ne(&in_use) {
            self.patch_status::<Node>(&name, json!({"volumesInUse": in_use})).await;
        }
        if !wanted.is_subset(&mounted)
            && let Some(node) = self.get::<Node>(&name).await
        {
            let attached: BTreeSet<&str> = node::volumes_attached(&node).collect();
            let ready = wanted.iter().filter(|volume| attached.contains(used(volume).as_str()));
            self.storage.hold(|held| held.mounted.extend(ready.map(|volume| (volume.clone(), name.clone()))));
        }
        for pod in pods {
            self.run(&name, pod).await;
        }
    }

    async fn run(&self, node: &str, pod: &Pod) {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        if is_going(pod) {
            let preconditions = Preconditions { uid: pod.uid(), resource_version: None };
            let now = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
            drop(self.api::<Pod>().delete(&pod.name_any(), &now.grace_period(0)).await);
        } else if phase != Some("Running") && self.has_all(node, pod) {
            let running = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
            self.patch_status::<Pod>(&pod.name_any(), running).await;
        }
    }

    /// Whether a pod's claims are bound, and the driver's volumes among theirs are mounted.
    fn has_all(&self, node: &str, pod: &Pod) -> bool {
        let bound = self.network.ledger(|ledger| {
            claims_of(pod)
                .iter()
                .all(|name| ledger.claims.get(name).is_some_and(|claim| claim::phase(claim) == "Bound"))
        });
        let held = self.storage.held();
        bound && self.volumes_of(pod).into_iter().all(|id| held.mounted.contains(&(id, node.to_owned())))
    }

    /// The driver's ids of a pod's volumes.
    pub(crate) fn volumes_of(&self, pod: &Pod) -> BTreeSet<String> {
        self.network.ledger(|ledger| {
            let claims = claims_of(pod);
            let bound = claims.iter().filter_map(|name| ledger.claims.get(name));
            let volumes = bound.filter_map(|claim| ledger.volumes.get(claim::volume_name(claim)));
            volumes
                .filter_map(|volume| Some(volume.spec.as_ref()?.csi.as_ref()?.volume_handle.clone()))
                .collect()
        })
    }

    async fn patch_status<K: crate::world::Kind>(&self, name: &str, status: serde_json::Value) {
        let change = Patch::Merge(json!({"status": status}));
        drop(self.api::<K>().patch_status(name, &PatchParams::default(), &change).await);
    }
}
