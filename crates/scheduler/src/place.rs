//! Which node a pod goes to.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;
use resources::{annotations, claim, fit, volume};
use runtime::Key;

use crate::matching::volume_on_node;
use crate::reasons::{Reason, Refusal};
use crate::sources::{self, Place};
use crate::world::{Labels, World, claims_of, node_of};
use crate::{limits, node};

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

/// Chooses a node for a pod, all of its claims considered together. Nodes in `avoid` are left out.
///
/// # Errors
/// Why no node takes it.
pub fn place(world: &World, pod: &Pod, avoid: &HashSet<String>) -> Result<Placement, Refusal> {
    let claims = Claims::of(world, pod).map_err(|why| Refusal::everywhere(world.nodes.len(), why))?;
    // No score is above that of a node which a claim was promised to: the others need not be looked at.
    if let Some(placement) = claims.selected_nodes().find_map(|name| {
        let (name, node) = world.nodes.get_key_value(name)?;
        claims.judge(world, (name, node), pod, avoid).ok()
    }) {
        return Ok(placement);
    }
    let mut refusal = Refusal { nodes: world.nodes.len(), ..Refusal::default() };
    let mut largest: Option<(u64, &str)> = None;
    let mut best: Option<(Score, Placement)> = None;
    let mut compared = 0;
    for (name, node) in world.nodes_in_turn() {
        match claims.judge(world, (name, node), pod, avoid) {
            Ok(found) => {
                let score = claims.score(world, name, labels_of(node));
                if best.as_ref().is_none_or(|(top, _)| score > *top) {
                    best = Some((score, found));
                }
                compared += 1;
                if compared == COMPARED {
                    break;
                }
            }
            Err(reason) => {
                if matches!(reason, Reason::NoCapacity | Reason::Promised) {
                    let here = claims.largest(world, labels_of(node)).map(|bytes| (bytes, name.as_str()));
                    largest = largest.max(here);
                }
                *refusal.reasons.entry(reason).or_default() += 1;
            }
        }
    }
    best.map(|(_, placement)| placement).ok_or_else(|| {
        refusal.hint = claims.hint(&refusal, largest);
        refusal
    })
}

/// How a pod that somebody else put on a node gets its volumes there, unless they could not be made there a short while
/// ago.
///
/// # Errors
/// Why it doesn't.
pub fn place_on(world: &World, pod: &Pod, name: &str, avoid: &HashSet<String>) -> Result<Placement, Refusal> {
    let claims = Claims::of(world, pod).map_err(|why| Refusal::everywhere(1, why))?;
    let Some(node) = world.nodes.get(name) else {
        return Err(Refusal::everywhere(0, format!("node {name:?} not found")));
    };
    let found = match avoid.contains(name) {
        true => Err(Reason::Avoided),
        false => claims.on(world, node, labels_of(node), pod),
    };
    found.map_err(|reason| Refusal { nodes: 1, reasons: [(reason, 1)].into(), ..Refusal::default() })
}

/// Better is greater: most free storage, fewest pods, first name.
type Score<'a> = (u64, Reverse<usize>, Reverse<&'a str>);

fn labels_of(node: &Node) -> &Labels {
    static NONE: Labels = Labels::new();
    node.metadata.labels.as_ref().unwrap_or(&NONE)
}

/// A pod's claims by what they need.
struct Claims<'a> {
    keys: Vec<Key>,
    /// Their volumes exist.
    bound: Vec<&'a Arc<PersistentVolumeClaim>>,
    /// They wait for the node; smallest first, so that the smallest volumes are given first.
    delayed: Vec<(Key, &'a Arc<PersistentVolumeClaim>, &'a StorageClass)>,
    /// Where the data sources of those are.
    sources: Vec<Place<'a>>,
}

impl<'a> Claims<'a> {
    /// A pod's claims, if none of them rules out every node.
    fn of(world: &'a World, pod: &Pod) -> Result<Self, String> {
        let mut claims =
            Claims { keys: Vec::new(), bound: Vec::new(), delayed: Vec::new(), sources: Vec::new() };
        let pod_key = Key::of(pod);
        for (key, ephemeral) in claims_of(pod) {
            let name = &key.name;
            let Some(claim) = world.claim(&key) else {
                return Err(if ephemeral {
                    format!(
                        "waiting for ephemeral volume controller to create the persistentvolumeclaim {name:?}"
                    )
                } else {
                    format!("persistentvolumeclaim {name:?} not found")
                });
            };
            let is_owner = |owner: &k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference| {
                owner.controller == Some(true) && Some(&owner.uid) == pod.metadata.uid.as_ref()
            };
            if ephemeral && !claim.owner_references().iter().any(is_owner) {
                return Err(format!(
                    "PVC {key} was not created for pod {pod_key} (pod is not owner); delete it or rename the pod"
                ));
            }
            if claim::phase(claim) == "Lost" {
                let volume = claim::volume_name(claim);
                return Err(format!(
                    "persistentvolumeclaim {name:?} bound to non-existent persistentvolume {volume:?}"
                ));
            }
            if claim.metadata.deletion_timestamp.is_some() {
                return Err(format!("persistentvolumeclaim {name:?} is being deleted"));
            }
            let exclusive = claim::access_modes(claim).iter().any(|mode| mode == "ReadWriteOncePod");
            if exclusive && world.users_of(&key).any(|user| *user != pod_key && world.is_placed(user)) {
                return Err(
                    "node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode \
                            already in-use by another pod"
                        .to_owned(),
                );
            }
            let is_named = !claim::volume_name(claim).is_empty();
            match world.classes.get(claim::class(claim)) {
                _ if is_named && claim::is_bind_completed(claim) => claims.bound.push(claim),
                Some(class) if !is_named && world.is_delayed(claim) => {
                    if claim::selected_node(claim).is_none() {
                        claims.sources.push(sources::place(world, claim)?);
                    }
                    claims.delayed.push((key.clone(), claim, class))
                }
                _ => return Err("pod has unbound immediate PersistentVolumeClaims".to_owned()),
            }
            claims.keys.push(key);
        }
        claims.delayed.sort_by_cached_key(|(_, claim, _)| fit::requested(claim));
        Ok(claims)
    }

    /// Where claims were promised their volumes, or have them.
    fn selected_nodes(&self) -> impl Iterator<Item = &'a str> {
        let delayed = self.delayed.iter().map(|(_, claim, _)| *claim);
        delayed.chain(self.bound.iter().copied()).filter_map(|claim| claim::selected_node(claim))
    }

    /// Whether a node takes the pod with its claims.
    fn judge(
        &self,
        world: &World,
        (name, node): (&str, &Node),
        pod: &Pod,
        avoid: &HashSet<String>,
    ) -> Result<Placement, Reason> {
        let labels = labels_of(node);
        node::takes(node, labels, pod)?;
        if avoid.contains(name) {
            return Err(Reason::Avoided);
        }
        self.on(world, node, labels, pod)
    }

    /// What the claims need on a node.
    fn on(&self, world: &World, node: &Node, labels: &Labels, pod: &Pod) -> Result<Placement, Reason> {
        let name = node.name_any();
        for claim in &self.bound {
            let volume = world.volume(claim::volume_name(claim)).ok_or(Reason::VolumeGone)?;
            if !volume::admits_node(volume, &name, labels) {
                return Err(Reason::VolumeAffinity);
            }
            if !volume::admits_zone(volume, labels) {
                return Err(Reason::VolumeZone);
            }
        }
        if !self.sources.iter().all(|place| place.admits(&name, labels)) {
            return Err(Reason::SourceElsewhere);
        }
        let mut placement = Placement { node: name.clone(), give: Vec::new(), provision: Vec::new() };
        let mut chosen = HashSet::new();
        let mut to_fit: HashMap<&str, Vec<u64>> = HashMap::new();
        for (key, claim, class) in &self.delayed {
            let selected = claim::selected_node(claim);
            if selected.is_some_and(|selected| selected != name) {
                return Err(Reason::NoVolume);
            }
            let size = fit::requested(claim).and_then(|size| size.ceil_bytes()).unwrap_or_default();
            let provision = Provision { claim: key.clone(), size, driver: class.provisioner.clone() };
            if selected.is_some() {
                placement.provision.push(provision);
                continue;
            }
            let taken = |volume: &str| chosen.contains(volume) || world.is_given(volume, key);
            let free = world.free(claim::class(claim), fit::requested(claim));
            // One without the claim's access modes the binder never gives it; kube-scheduler waits for that for ever.
            let reserved =
                world.referring_to(key).filter(|volume| volume::satisfies_access_modes(volume, claim));
            let found = volume_on_node(claim, reserved, free, (&name, labels), taken, false);
            if let Ok(Some(volume)) = found {
                chosen.insert(volume.name_any());
                placement.give.push((key.clone(), volume.name_any()));
                continue;
            }
            let terms = class.allowed_topologies.as_deref().unwrap_or_default();
            if matches!(class.provisioner.as_str(), "" | "kubernetes.io/no-provisioner")
                || !fit::topology_allows(terms, labels)
            {
                return Err(Reason::NoVolume);
            }
            if counts_capacity(world, &class.provisioner) {
                to_fit.entry(claim::class(claim)).or_default().push(size);
            }
            placement.provision.push(provision);
        }
        for (class, sizes) in to_fit {
            self.fits(world, class, labels, &sizes)?;
        }
        if limits::exceeded(world, &name, pod) {
            return Err(Reason::VolumeLimit);
        }
        Ok(placement)
    }

    fn fits(&self, world: &World, class: &str, labels: &Labels, sizes: &[u64]) -> Result<(), Reason> {
        let (mut published, mut contended) = (false, false);
        for pool in world.ledger.pools(class, labels) {
            published = true;
            if pool.holds(world.ledger.promised(pool, &self.keys), sizes) {
                return Ok(());
            }
            contended |= pool.holds(0, sizes);
        }
        Err(match (published, contended) {
            (false, _) => Reason::Unpublished,
            (true, true) => Reason::Promised,
            (true, false) => Reason::NoCapacity,
        })
    }

    /// The largest volume that can be made for one of the claims on a node, promises aside.
    fn largest(&self, world: &World, labels: &Labels) -> Option<u64> {
        let classes = self.delayed.iter().map(|(_, claim, _)| claim::class(claim));
        classes
            .flat_map(|class| world.ledger.pools(class, labels))
            .map(|pool| pool.largest.min(pool.free))
            .max()
    }

    fn score<'n>(&self, world: &World, node: &'n str, labels: &Labels) -> Score<'n> {
        let classes: HashSet<_> = self.delayed.iter().map(|(_, claim, _)| claim::class(claim)).collect();
        let pools = classes.into_iter().flat_map(|class| world.ledger.pools(class, labels));
        let free = pools.map(|pool| pool.free.saturating_sub(world.ledger.promised(pool, &self.keys)));
        let free = free.fold(0_u64, u64::saturating_add);
        (free, Reverse(world.pods_on(node).len()), Reverse(node))
    }

    /// For want of storage: what was asked, what there is, and what to do.
    fn hint(&self, refusal: &Refusal, largest: Option<(u64, &str)>) -> Option<String> {
        let is_short = |reason: &Reason| matches!(reason, Reason::NoCapacity | Reason::Unpublished);
        if !refusal.reasons.keys().any(is_short) {
            return None;
        }
        let (key, claim, _) = self.delayed.last()?;
        let asked = &claim::requested(claim)?.0;
        let offer = match largest {
            Some((bytes, node)) => {
                format!("the largest free volume is {}, on {node}", values::Quantity::from_bytes(bytes))
            }
            None => "no node publishes free storage of its class".to_owned(),
        };
        let name = &key.name;
        Some(format!(
            "Claim {name:?} asks for {asked}; {offer}. Ask for less, delete volumes or add a drive."
        ))
    }
}

/// Whether a driver publishes how much storage it has left.
fn counts_capacity(world: &World, driver: &str) -> bool {
    let spec = world.drivers.get(driver).map(|driver| &driver.spec);
    spec.is_some_and(|spec| spec.storage_capacity == Some(true))
}

/// Whether the scheduler has anything to do with a pod: it waits for a node, or sits on one that somebody else chose
/// while its claims wait for theirs.
pub(crate) fn concerns(pod: &Pod) -> bool {
    let spec = pod.spec.as_ref();
    let gated = spec.and_then(|spec| spec.scheduling_gates.as_ref()).is_some_and(|gates| !gates.is_empty());
    let scheduler = spec.and_then(|spec| spec.scheduler_name.as_deref()).unwrap_or("default-scheduler");
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending");
    let ours = scheduler == "default-scheduler" || node_of(pod).is_some();
    ours && !gated && phase == "Pending" && pod.metadata.deletion_timestamp.is_none()
}

/// Takes a claim's chosen node away, so that one is chosen anew.
pub(crate) fn deselect(claim: &mut PersistentVolumeClaim) {
    claim.annotations_mut().remove(annotations::SELECTED_NODE);
}
