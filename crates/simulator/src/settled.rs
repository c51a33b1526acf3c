//! What must be true once nothing goes wrong any more and nobody writes: everything has reached its end.

mod attachments;
mod attributes;
mod groups;
mod populated;
mod sets;
mod sizes;
mod snapshots;

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;
use resources::{claim, class, source, volume};

use crate::deeds::is_sound;
use crate::ledger::claims_of;
use crate::{Ledger, World, reference, storage};

/// What is stuck, or lost, or left over.
pub async fn settled(world: &World) -> Vec<String> {
    let classes = world.list::<StorageClass>().await;
    let ledger = world.network.ledger(|ledger| ledger.clone());
    let held = world.storage.held();
    let mut stuck = Vec::new();
    let mut note = |what: &str, why: Result<(), String>| {
        if let Err(why) = why {
            stuck.push(format!("{what}: {why}"));
        }
    };
    for (name, claim) in &ledger.claims {
        note(&format!("claim {name}"), of_claim(&ledger, &classes, claim));
    }
    for (name, volume) in &ledger.volumes {
        note(&format!("volume {name}"), of_volume(&ledger, volume));
    }
    for (name, pod) in &ledger.pods {
        note(&format!("pod {name}"), of_pod(&ledger, pod));
    }
    for (name, _) in held.volumes.iter().filter(|(_, volume)| !volume.by_hand) {
        let kept = ledger.volumes.contains_key(name)
            || ledger.retained(name).is_some()
            || ledger.let_go.contains(name);
        note(&format!("data of {name}"), if kept { Ok(()) } else { Err("kept for nobody".to_owned()) });
    }
    stuck.extend(sizes::settled(&ledger, &held));
    stuck.extend(attributes::settled(&ledger));
    stuck.extend(attachments::settled(world, &ledger, &held).await);
    stuck.extend(snapshots::settled(world, &ledger, &held).await);
    stuck.extend(groups::settled(world, &ledger, &held).await);
    stuck.extend(populated::settled(world, &ledger).await);
    stuck.extend(sets::settled(world, &ledger).await);
    stuck
}

fn of_claim(ledger: &Ledger, classes: &[StorageClass], claim: &PersistentVolumeClaim) -> Result<(), String> {
    if claim.metadata.deletion_timestamp.is_some() {
        return match ledger.users_of(claim).is_empty() {
            true => Err(format!("is not gone, with finalizers {:?}", claim.finalizers())),
            false => Ok(()),
        };
    }
    let owners: BTreeSet<_> = claim.owner_references().iter().map(|owner| owner.uid.clone()).collect();
    let pods: BTreeSet<_> = ledger.pods.values().filter_map(ResourceExt::uid).collect();
    if !owners.is_empty() && owners.is_disjoint(&pods) {
        return Err("has no owner any more".to_owned());
    }
    let named = claim::volume_name(claim);
    let volume = ledger.volumes.get(named);
    match claim::phase(claim) {
        "Bound" => match volume {
            Some(volume) if ledger.owner_of(volume).is_some_and(|owner| owner.uid() == claim.uid()) => Ok(()),
            Some(_) => Err(format!("is Bound to {named}, which is not its own")),
            None => Err(format!("is Bound to {named}, which is gone")),
        },
        "Lost" => match volume {
            Some(volume) if volume::is_bound_to(volume, claim) => {
                Err(format!("is Lost, though {named} is its own"))
            }
            _ => Ok(()),
        },
        "Pending" if !named.is_empty() => match volume {
            Some(volume) if reference::fits(claim, volume) && may_take(claim, volume) => {
                Err(format!("is Pending, though it could have {named}"))
            }
            _ => Ok(()),
        },
        "Pending" => unbound(ledger, classes, claim),
        phase => Err(format!("has phase {phase:?}")),
    }
}

/// Whether nothing but its spec keeps a claim from a volume that it names.
fn may_take(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let taken = volume.spec.as_ref().is_some_and(|spec| spec.claim_ref.is_some());
    !taken || reference::reserved_for(claim, volume)
}

/// Whether a claim without a volume has a reason to be.
fn unbound(ledger: &Ledger, classes: &[StorageClass], claim: &PersistentVolumeClaim) -> Result<(), String> {
    let volumes: Vec<_> = ledger.volumes.values().cloned().collect();
    let found = classes.iter().find(|class| class.name_any() == claim::class(claim));
    let waits = found.is_some_and(class::waits_for_consumer);
    let candidates = reference::candidates(claim, &volumes);
    let reserved =
        |name: &&str| ledger.volumes.get(*name).is_some_and(|one| reference::reserved_for(claim, one));
    let free: Vec<_> = candidates.iter().filter(|name| !waits || reserved(name)).collect();
    if !free.is_empty() {
        return Err(format!("has no volume, though {free:?} would do"));
    }
    // Claims with a source are looked at with their snapshots; with a selector none are made.
    let is_plain =
        source::of(claim).is_none() && claim.spec.as_ref().is_some_and(|spec| spec.selector.is_none());
    let is_made =
        is_plain && is_sound(claim) && found.is_some_and(|class| class.provisioner == storage::DRIVER);
    if is_made && !waits {
        return Err("has no volume, though one can be made".to_owned());
    }
    let name = claim.name_any();
    let lone = |pod: &&Pod| claims_of(pod) == [name.clone()] && pod.metadata.deletion_timestamp.is_none();
    if is_made && let Some(pod) = ledger.pods.values().find(lone) {
        let own =
            pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).all(|one| one.ephemeral.is_none());
        let made_for =
            claim.owner_references().iter().any(|owner| Some(&owner.uid) == pod.metadata.uid.as_ref());
        if own || made_for {
            return Err(format!("has no volume, though pod {} waits for it", pod.name_any()));
        }
    }
    Ok(())
}

fn of_volume(ledger: &Ledger, volume: &PersistentVolume) -> Result<(), String> {
    let (phase, owner) = (volume::phase(volume), ledger.owner_of(volume));
    let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    let uid = reference.and_then(|reference| reference.uid.as_deref()).filter(|uid| !uid.is_empty());
    if volume.metadata.deletion_timestamp.is_some() && phase != "Bound" {
        return Err(format!("is not gone, with finalizers {:?}", volume.finalizers()));
    }
    let expected = match (uid, owner) {
        (None, _) => "Available",
        (Some(_), Some(_)) => "Bound",
        (Some(_), None) if ledger.claim_of(volume).is_some() => {
            return match ledger.claim_of(volume) {
                // The claim can't take it, and neither lets go: incompatible modes, which events say.
                Some(claim) if !reference::fits(claim, volume) => Ok(()),
                _ => Err(format!("is {phase}, and its claim has not taken it")),
            };
        }
        (Some(_), None) => "Released",
    };
    let deleted =
        volume::provisioned_by(volume) == Some(storage::DRIVER) && volume::reclaim_policy(volume) == "Delete";
    match (phase == expected, expected) {
        (false, _) => Err(format!("is {phase}, not {expected}")),
        (true, "Released") if deleted => Err("is released and not deleted".to_owned()),
        _ => Ok(()),
    }
}

fn of_pod(ledger: &Ledger, pod: &Pod) -> Result<(), String> {
    if pod.metadata.deletion_timestamp.is_some() {
        return Err("is not gone".to_owned());
    }
    let spec = pod.spec.clone().unwrap_or_default();
    let names = claims_of(pod);
    for volume in spec.volumes.iter().flatten().filter(|volume| volume.ephemeral.is_some()) {
        if !resources::claim::of_volume(pod, volume).is_some_and(|name| ledger.claims.contains_key(&name)) {
            return Err(format!("has no claim for its volume {}", volume.name));
        }
    }
    if spec.node_name.is_some() || spec.node_selector.is_some() {
        return Ok(());
    }
    let usable = |name: &String| {
        let claim = ledger.claims.get(name).filter(|claim| claim.metadata.deletion_timestamp.is_none())?;
        let volume = ledger.volumes.get(claim::volume_name(claim))?;
        let foreign = name.starts_with(&pod.name_any())
            && !claim.owner_references().iter().any(|owner| Some(&owner.uid) == pod.metadata.uid.as_ref());
        (!foreign && claim::phase(claim) == "Bound" && volume.metadata.deletion_timestamp.is_none())
            .then_some(volume)
    };
    let Some(volumes) = names.iter().map(usable).collect::<Option<Vec<_>>>() else { return Ok(()) };
    let fits = |node: &&str| {
        let labels = [("kubernetes.io/hostname".to_owned(), (*node).to_owned())].into();
        volumes.iter().all(|volume| volume::admits_node(volume, node, &labels))
    };
    match ["n1", "n2"].iter().find(|node| fits(node)) {
        Some(node) => Err(format!("waits, though {node} would do")),
        None => Ok(()),
    }
}
