//! A pod's claims have their volumes where it goes, or get them there: all of them considered together.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::ResourceExt;
use resources::{claim, fit, volume};
use runtime::Key;

use super::{Asks, No, unfit};
use crate::cycle::Cycle;
use crate::matching::volume_on_node;
use crate::nodes::NodeView;
use crate::place::{Placement, Provision};
use crate::reasons::{Reason, Refusal, Whole};
use crate::sources::{self, Place};
use crate::world::{Labels, World, claims_of};

pub(super) fn filter<'c>(cycle: &'c Cycle<'c>) -> Result<Asks<'c>, Whole> {
    let claims = Claims::of(cycle)?;
    if claims.is_empty() {
        return Ok(Asks::Nothing);
    }
    Ok(Asks::Each(Box::new(move |node| {
        if cycle.avoid.contains(node.name) {
            return unfit(Reason::Avoided);
        }
        claims.on(node).map(drop).map_err(|reasons| No { reasons, resolvable: false })
    })))
}

/// The share of free storage that stays free: claims go where there is most of it.
pub(super) fn score(cycle: &Cycle<'_>, nodes: &[NodeView<'_>]) -> Option<Vec<i64>> {
    let claims = Claims::of(cycle).ok().filter(|claims| !claims.delayed.is_empty())?;
    Some(nodes.iter().map(|node| claims.free_share(node.labels)).collect())
}

/// A pod's claims by what they need.
pub(crate) struct Claims<'a> {
    world: &'a World,
    keys: Vec<Key>,
    /// Their volumes exist.
    bound: Vec<&'a Arc<PersistentVolumeClaim>>,
    /// They wait for the node; smallest first, so that the smallest volumes are given first.
    delayed: Vec<(Key, &'a Arc<PersistentVolumeClaim>, &'a StorageClass)>,
    /// Where the data sources of those are.
    sources: Vec<Place<'a>>,
}

impl<'a> Claims<'a> {
    /// A pod's claims.
    ///
    /// # Errors
    /// One of them rules out every node.
    pub(crate) fn of(cycle: &Cycle<'a>) -> Result<Self, Whole> {
        let world = cycle.world;
        let mut claims =
            Claims { world, keys: Vec::new(), bound: Vec::new(), delayed: Vec::new(), sources: Vec::new() };
        let mut is_unbound = false;
        for (key, ephemeral) in claims_of(cycle.pod) {
            let claim = usable(cycle, &key, ephemeral)?;
            let is_named = !claim::volume_name(claim).is_empty();
            match world.classes.get(claim::class(claim)) {
                _ if is_named && claim::is_bind_completed(claim) => claims.bound.push(claim),
                Some(class) if !is_named && world.is_delayed(claim) => {
                    claims.delayed.push((key.clone(), claim, class));
                }
                _ => is_unbound = true,
            }
            claims.keys.push(key);
        }
        if is_unbound {
            return Err(Whole::new("pod has unbound immediate PersistentVolumeClaims"));
        }
        for (_, claim, _) in &claims.delayed {
            if claim::selected_node(claim).is_none() {
                claims.sources.push(sources::place(world, claim).map_err(Whole::new)?);
            }
        }
        claims.delayed.sort_by_cached_key(|(_, claim, _)| fit::requested(claim));
        Ok(claims)
    }

    fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Where claims were promised their volumes, or have them.
    pub(crate) fn selected_nodes(&self) -> impl Iterator<Item = &'a str> {
        let delayed = self.delayed.iter().map(|(_, claim, _)| *claim);
        delayed.chain(self.bound.iter().copied()).filter_map(|claim| claim::selected_node(claim))
    }

    /// How the claims get their volumes on a node.
    ///
    /// # Errors
    /// Why not all of them do.
    pub(crate) fn on(&self, node: &NodeView<'_>) -> Result<Placement, Vec<Reason>> {
        let mut reasons = Vec::new();
        // Volumes that don't exist were refused before.
        let mut volumes = self.bound.iter().filter_map(|claim| self.world.volume(claim::volume_name(claim)));
        if !volumes.all(|volume| volume::admits_node(volume, node.name, node.labels)) {
            reasons.push(Reason::VolumeAffinity);
        }
        match self.delayed_on(node) {
            Ok(placement) if reasons.is_empty() => return Ok(placement),
            Ok(_) => {}
            Err(reason) => reasons.push(reason),
        }
        Err(reasons)
    }

    /// How the claims that wait for a node get their volumes there.
    fn delayed_on(&self, node: &NodeView<'_>) -> Result<Placement, Reason> {
        let (world, name, labels) = (self.world, node.name, node.labels);
        if !self.sources.iter().all(|place| place.admits(name, labels)) {
            return Err(Reason::SourceElsewhere);
        }
        let mut placement = Placement { node: name.to_owned(), give: Vec::new(), provision: Vec::new() };
        let mut chosen = HashSet::new();
        let (mut selected, mut unmatched) = (Vec::new(), Vec::new());
        for delayed @ (key, claim, _) in &self.delayed {
            match claim::selected_node(claim) {
                // A volume is being made for it already.
                Some(node) if node == name => selected.push(delayed),
                Some(_) => return Err(Reason::NoVolume),
                None => {
                    let taken = |volume: &str| chosen.contains(volume) || world.is_given(volume, key);
                    let free = world.free(claim::class(claim), fit::requested(claim));
                    // One without the claim's access modes the binder never gives it; kube-scheduler waits for that
                    // for ever.
                    let reserved = world
                        .referring_to(key)
                        .filter(|volume| volume::satisfies_access_modes(volume, claim));
                    match volume_on_node(claim, reserved, free, (name, labels), taken, false) {
                        Ok(Some(volume)) => {
                            chosen.insert(volume.name_any());
                            placement.give.push((key.clone(), volume.name_any()));
                        }
                        _ => unmatched.push(delayed),
                    }
                }
            }
        }
        let mut together: HashMap<&str, Vec<u64>> = HashMap::new();
        for (key, claim, class) in selected.into_iter().chain(unmatched) {
            let terms = class.allowed_topologies.as_deref().unwrap_or_default();
            if matches!(class.provisioner.as_str(), "" | "kubernetes.io/no-provisioner")
                || !fit::topology_allows(terms, labels)
            {
                return Err(Reason::NoVolume);
            }
            let size = fit::requested_bytes(claim);
            // What was promised already may be made by now, out of the room that is looked at here.
            let is_promised = claim::selected_node(claim).is_some() && world.ledger.get(key).is_some();
            if counts_capacity(world, &class.provisioner) && !is_promised {
                self.fits(claim::class(claim), labels, &[size])?;
                together.entry(claim::class(claim)).or_default().push(size);
            }
            let driver = class.provisioner.clone();
            placement.provision.push(Provision { claim: key.clone(), size, driver });
        }
        let mut several = together.into_iter().filter(|(_, sizes)| sizes.len() > 1);
        several.try_for_each(|(class, sizes)| self.fits(class, labels, &sizes))?;
        Ok(placement)
    }

    fn fits(&self, class: &str, labels: &Labels, sizes: &[u64]) -> Result<(), Reason> {
        let ledger = &self.world.ledger;
        let (mut published, mut contended) = (false, false);
        for pool in ledger.pools(class, labels) {
            published = true;
            if pool.holds(ledger.promised(pool, &self.keys), sizes) {
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
    pub(crate) fn largest(&self, labels: &Labels) -> Option<u64> {
        let classes = self.delayed.iter().map(|(_, claim, _)| claim::class(claim));
        classes
            .flat_map(|class| self.world.ledger.pools(class, labels))
            .map(|pool| pool.largest.min(pool.free))
            .max()
    }

    /// Bytes free for the claims on a node, less what is promised.
    pub(crate) fn free(&self, labels: &Labels) -> u64 {
        let classes: HashSet<_> = self.delayed.iter().map(|(_, claim, _)| claim::class(claim)).collect();
        classes.into_iter().map(|class| self.free_of(class, labels)).fold(0, u64::saturating_add)
    }

    fn free_of(&self, class: &str, labels: &Labels) -> u64 {
        let ledger = &self.world.ledger;
        let pools = ledger.pools(class, labels);
        let free = pools.map(|pool| pool.free.saturating_sub(ledger.promised(pool, &self.keys)));
        free.fold(0, u64::saturating_add)
    }

    /// How much of the free storage would still be free, in hundredths, on the average of the classes.
    fn free_share(&self, labels: &Labels) -> i64 {
        let mut asked: HashMap<&str, u64> = HashMap::new();
        for (_, claim, _) in &self.delayed {
            let size = fit::requested_bytes(claim);
            let sum = asked.entry(claim::class(claim)).or_default();
            *sum = sum.saturating_add(size);
        }
        let shares = asked.iter().map(|(class, asked)| match self.free_of(class, labels) {
            0 => 0,
            free => (u128::from(free.saturating_sub(*asked)) * 100 / u128::from(free)) as i64,
        });
        shares.sum::<i64>() / (asked.len().max(1) as i64)
    }

    /// The class of a claim allows volumes on no node at all.
    fn foreign_topology(&self) -> Option<String> {
        self.delayed.iter().find_map(|(key, claim, _)| {
            let class = self.world.classes.get(claim::class(claim))?;
            let terms = class.allowed_topologies.as_deref().filter(|terms| !terms.is_empty())?;
            let nodes = &self.world.nodes;
            if nodes.all(&self.world.placed).any(|node| fit::topology_allows(terms, node.labels)) {
                return None;
            }
            let allowed = terms.iter().flat_map(|term| term.match_label_expressions.iter().flatten());
            let allowed: Vec<_> =
                allowed.map(|one| format!("{} is {}", one.key, one.values.join(" or "))).collect();
            let (name, class) = (&key.name, class.name_any());
            Some(format!(
                "For claim {name:?} the StorageClass {class:?} allows nodes where {} (allowedTopologies), and there is \
                 no such node.",
                allowed.join(", ")
            ))
        })
    }

    /// For want of storage: what was asked, what there is, and what to do.
    pub(crate) fn hint(&self, refusal: &Refusal, largest: Option<(u64, &str)>) -> Option<String> {
        if refusal.reasons.contains_key(&Reason::NoVolume)
            && let Some(hint) = self.foreign_topology()
        {
            return Some(hint);
        }
        let is_short = |reason: &Reason| matches!(reason, Reason::NoCapacity | Reason::Unpublished);
        if !refusal.reasons.keys().any(is_short) {
            return None;
        }
        let useless = self.delayed.iter().find_map(|(key, claim, _)| {
            let class = claim::class(claim);
            Some((&key.name, class, self.world.ledger.why_none(class)?))
        });
        if let Some((name, class, why)) = useless {
            return Some(format!(
                "For claim {name:?} nothing can be made of the StorageClass {class:?}: {why}."
            ));
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

/// A claim of the pod that can be used by it, now or later.
fn usable<'a>(
    cycle: &Cycle<'a>,
    key: &Key,
    ephemeral: bool,
) -> Result<&'a Arc<PersistentVolumeClaim>, Whole> {
    let name = &key.name;
    let Some(claim) = cycle.world.claim(key) else {
        return Err(Whole::new(match ephemeral {
            true => {
                format!(
                    "waiting for ephemeral volume controller to create the persistentvolumeclaim {name:?}"
                )
            }
            false => format!("persistentvolumeclaim {name:?} not found"),
        }));
    };
    if claim::phase(claim) == "Lost" {
        let volume = claim::volume_name(claim);
        return Err(Whole::new(format!(
            "persistentvolumeclaim {name:?} bound to non-existent persistentvolume {volume:?}"
        )));
    }
    if claim.metadata.deletion_timestamp.is_some() {
        return Err(Whole::new(format!("persistentvolumeclaim {name:?} is being deleted")));
    }
    let is_owner = |owner: &OwnerReference| {
        owner.controller == Some(true) && Some(&owner.uid) == cycle.pod.metadata.uid.as_ref()
    };
    if ephemeral && !claim.owner_references().iter().any(is_owner) {
        let pod = &cycle.key;
        let whole = Whole::new(format!("PVC {key} was not created for pod {pod} (pod is not owner)"));
        return Err(whole.hint("Delete the claim or rename the pod."));
    }
    Ok(claim)
}

/// Whether a driver publishes how much storage it has left.
fn counts_capacity(world: &World, driver: &str) -> bool {
    let spec = world.drivers.get(driver).map(|driver| &driver.spec);
    spec.is_some_and(|spec| spec.storage_capacity == Some(true))
}
