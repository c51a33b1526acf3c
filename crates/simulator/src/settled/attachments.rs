//! Volumes are attached where pods use them, and nowhere else.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::ResourceExt;
use resources::attachment;

use crate::agents::node_of;
use crate::ledger::claims_of;
use crate::storage::Held;
use crate::{Ledger, World};

/// What is attached in vain, or not attached, and which pods don't run.
pub(super) async fn settled(world: &World, ledger: &Ledger, held: &Held) -> Vec<String> {
    let mut wrong = Vec::new();
    let placed: Vec<(&Pod, &str)> =
        ledger.pods.values().filter_map(|pod| Some((pod, node_of(pod)?))).collect();
    let uses = |(pod, node): &(&Pod, &str)| {
        let node = (*node).to_owned();
        world.volumes_of(pod).into_iter().map(move |volume| (volume, node.clone())).collect::<Vec<_>>()
    };
    let used: BTreeSet<_> = placed.iter().flat_map(uses).collect();
    for (volume, node) in held.attached.difference(&used) {
        wrong.push(format!("volume {volume} is attached to {node}, where nobody uses it"));
    }
    for (pod, node) in &placed {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        // One that can be on one node only may have been taken by a pod elsewhere.
        let taken = |id: &String| held.attached.iter().any(|(volume, other)| volume == id && other != node);
        // Nothing is attached any more that is being deleted.
        let goes =
            |id: &String| ledger.volumes.get(id).is_some_and(|it| it.metadata.deletion_timestamp.is_some());
        // The claim of one may have gone in the moment when it was sent there, once its other finalizers were off.
        let has_claims = claims_of(pod).iter().all(|claim| ledger.claims.contains_key(claim));
        if phase != Some("Running")
            && has_claims
            && !world.volumes_of(pod).iter().any(|id| taken(id) || goes(id))
        {
            wrong.push(format!("pod {} does not run on {node}", pod.name_any()));
        }
    }
    for object in world.list::<VolumeAttachment>().await {
        let (name, node) =
            (attachment::volume(&object).unwrap_or_default().to_owned(), &object.spec.node_name);
        let is_real = held.attached.contains(&(name.clone(), node.clone()));
        if !is_real && attachment::is_attached(&object) {
            wrong.push(format!("volume {name} is said to be attached to {node}"));
        } else if !used.contains(&(name.clone(), node.clone())) {
            wrong.push(format!("the attachment of {name} to {node} is not gone"));
        }
    }
    wrong
}
