//! Which node a pod goes to.

use std::cmp::Reverse;
use std::collections::HashSet;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::ResourceExt;
use resources::annotations;
use runtime::Key;

use crate::cycle::Cycle;
use crate::nodes::NodeView;
use crate::plugins::volume_binding::Claims;
use crate::plugins::{self, Rules};
use crate::reasons::{Reason, Refusal, Whole};
use crate::world::{World, node_of};

/// A node for a pod, and how its claims get their volumes there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The node.
    pub node: String,
    /// Claims that get an existing volume, which they don't all refer to yet.
    pub give: Vec<(Key, String)>,
    /// Claims for which a volume is to be made.
    pub provision: Vec<Provision>,
}

/// A volume to be made for a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provision {
    /// The claim.
    pub claim: Key,
    /// Bytes.
    pub size: u64,
    /// Who makes it.
    pub driver: String,
}

impl Placement {
    /// Whether all claims have their volumes, so that the pod can go to its node now.
    pub fn is_complete(&self) -> bool {
        self.give.is_empty() && self.provision.is_empty()
    }
}

/// How many nodes that take a pod are compared. The search goes on from the node that was chosen last, so that all have
/// their turn.
const COMPARED: usize = 100;

/// Chooses a node for a pod, all of its claims considered together. In `avoid` are nodes on which its volumes could not
/// be made a short while ago.
///
/// # Errors
/// Why no node takes it.
pub fn place(world: &World, pod: &Pod, avoid: &HashSet<String>) -> Result<Placement, Refusal> {
    let cycle = Cycle::new(world, pod, avoid);
    let everywhere = |whole: Whole| Refusal::everywhere(world.nodes.len(), whole);
    let rules = Rules::read(&cycle).map_err(everywhere)?;
    let claims = Claims::of(&cycle).map_err(everywhere)?;
    let placed = |node: &NodeView<'_>| {
        claims.on(node).map_err(|reasons| {
            let reasons = reasons.into_iter().map(|reason| (reason, 1)).collect();
            Refusal { nodes: world.nodes.len(), reasons, ..Refusal::default() }
        })
    };
    // No score is above that of a node which a claim was promised to: the others need not be looked at.
    let promised = claims.selected_nodes().filter_map(|name| world.nodes.get(name, &world.placed));
    if let Some(node) = promised.into_iter().find(|node| rules.judge(node).is_ok()) {
        return placed(&node);
    }
    let mut refusal = Refusal { nodes: world.nodes.len(), ..Refusal::default() };
    let mut largest: Option<(u64, &str)> = None;
    let mut candidates = Vec::new();
    for node in world.nodes.in_turn(&world.placed) {
        match rules.judge(&node) {
            Ok(()) => {
                candidates.push(node);
                if candidates.len() == COMPARED {
                    break;
                }
            }
            Err(refused) => {
                let is_short = |reason: &Reason| matches!(reason, Reason::NoCapacity | Reason::Promised);
                if refused.reasons.iter().any(is_short) {
                    largest = largest.max(claims.largest(node.labels).map(|bytes| (bytes, node.name)));
                }
                refusal.count(refused);
            }
        }
    }
    match best(&cycle, &claims, &candidates) {
        Some(node) => placed(node),
        None => {
            refusal.hint = claims.hint(&refusal, largest);
            Err(refusal)
        }
    }
}

/// The node that the plugins like best; among equals the one with most free storage, fewest pods, first name.
fn best<'n>(cycle: &Cycle<'_>, claims: &Claims<'_>, nodes: &'n [NodeView<'n>]) -> Option<&'n NodeView<'n>> {
    if nodes.len() < 2 {
        return nodes.first();
    }
    let mut totals = vec![0; nodes.len()];
    for (_, weight, scores) in plugins::scores(cycle, nodes) {
        for (total, score) in totals.iter_mut().zip(scores.iter().flatten()) {
            *total += weight * score;
        }
    }
    let ranked = nodes.iter().zip(totals).max_by_key(|(node, total)| {
        (*total, claims.free(node.labels), Reverse(node.usage.pods.len()), Reverse(node.name))
    });
    ranked.map(|(node, _)| node)
}

/// How a pod that somebody else put on a node gets its volumes there, unless they could not be made there a short while
/// ago.
///
/// # Errors
/// Why it doesn't.
pub fn place_on(world: &World, pod: &Pod, name: &str, avoid: &HashSet<String>) -> Result<Placement, Refusal> {
    let cycle = Cycle::new(world, pod, avoid);
    let everywhere = |whole: Whole| Refusal::everywhere(1, whole);
    let rules = Rules::about_volumes(&cycle).map_err(everywhere)?;
    let claims = Claims::of(&cycle).map_err(everywhere)?;
    let Some(node) = world.nodes.get(name, &world.placed) else {
        return Err(Refusal::everywhere(0, Whole::new(format!("node {name:?} not found"))));
    };
    let mut refusal = Refusal { nodes: 1, ..Refusal::default() };
    if let Err(refused) = rules.judge(&node) {
        refusal.count(refused);
        return Err(refusal);
    }
    claims.on(&node).map_err(|reasons| {
        refusal.reasons = reasons.into_iter().map(|reason| (reason, 1)).collect();
        refusal
    })
}

/// The gates that keep a pod from being looked at, in kube-scheduler's words.
pub(crate) fn waits_for_gates(pod: &Pod) -> Option<String> {
    let gates = pod.spec.as_ref()?.scheduling_gates.as_deref().filter(|gates| !gates.is_empty())?;
    let names: Vec<&str> = gates.iter().map(|gate| gate.name.as_str()).collect();
    Some(format!("waiting for scheduling gates: [{}]", names.join(" ")))
}

/// Whether the scheduler has anything to do with a pod: it waits for a node, or sits on one that somebody else chose
/// while its claims wait for theirs.
pub(crate) fn concerns(pod: &Pod) -> bool {
    let spec = pod.spec.as_ref();
    let scheduler = spec.and_then(|spec| spec.scheduler_name.as_deref()).unwrap_or("default-scheduler");
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending");
    let ours = scheduler == "default-scheduler" || node_of(pod).is_some();
    ours && waits_for_gates(pod).is_none() && phase == "Pending" && pod.metadata.deletion_timestamp.is_none()
}

/// Takes a claim's chosen node away, so that one is chosen anew.
pub(crate) fn deselect(claim: &mut PersistentVolumeClaim) {
    claim.annotations_mut().remove(annotations::SELECTED_NODE);
}
