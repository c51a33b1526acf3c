//! What to do about a claim.

use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;
use resources::annotations::{BIND_COMPLETED, BOUND_BY_CONTROLLER};
use resources::{claim, class, fit, volume};

use super::matching::volume_for;
use super::step::{Step, Write, claim_reference};
use super::world::{ClaimKey, Key, World};
use super::{provision, upkeep};

/// One look at a claim: the writes that bring it nearer to its volume.
pub fn sync_claim(world: &World, claim: &PersistentVolumeClaim) -> Step {
    let mut step = Step::default();
    let mut claim = claim.clone();
    if upkeep::migrate_claim(&world.plugins, &mut claim) {
        step.writes.push(Write::Claim(Box::new(claim.clone())));
    }
    let bound_before = claim::is_bind_completed(&claim);
    let name = claim::volume_name(&claim).to_owned();
    match (bound_before, name.as_str()) {
        (false, "") => search(&mut step, world, claim),
        (false, name) => take_named(&mut step, world, claim, name),
        (true, name) => confirm(&mut step, world, claim, name),
    }
    step
}

/// The claim names no volume: find one, or see to it that one is made.
fn search(step: &mut Step, world: &World, mut claim: PersistentVolumeClaim) {
    let class_name = claim::class(&claim).to_owned();
    let class = world.class(&class_name);
    let delayed = match class.map(|class| is_delayed(class)).transpose() {
        Ok(delayed) => delayed.unwrap_or(false),
        Err(why) => {
            step.refused = Some(why);
            return;
        }
    };
    match volume_for(world, &claim, delayed) {
        Ok(Some(volume)) => return bind(step, PersistentVolume::clone(volume), claim),
        Ok(None) => {}
        Err(error) => {
            step.refused = Some(error.to_string());
            return;
        }
    }

    if !claim::has_class(&claim)
        && let Some(default) = world.default_class()
    {
        claim.spec.get_or_insert_default().storage_class_name = Some(default);
        step.next.push(Key::Claim(ClaimKey::of(&claim)));
        step.writes.push(Write::Claim(Box::new(claim)));
    } else if delayed && claim::selected_node(&claim).is_none() {
        let waiting = unscheduled_pods(world, &ClaimKey::of(&claim));
        if waiting.is_empty() {
            let message = "waiting for first consumer to be created before binding";
            step.normal(claim_reference(&claim), "WaitForFirstConsumer", message);
        } else {
            let message = format!("waiting for pod {} to be scheduled", waiting.join(","));
            step.normal(claim_reference(&claim), "WaitForPodScheduled", message);
        }
        step.claim_phase(&mut claim, "Pending", None);
    } else if class_name.is_empty() {
        let message = "no persistent volumes available for this claim and no storage class is set";
        step.normal(claim_reference(&claim), "FailedBinding", message);
        step.claim_phase(&mut claim, "Pending", None);
    } else {
        provision::hand_off(step, world, claim, &class_name);
    }
}

/// Whether a class's claims wait for a pod that uses them.
///
/// # Errors
/// The class doesn't say, which the API server never lets through.
pub fn is_delayed(class: &StorageClass) -> Result<bool, String> {
    match class.volume_binding_mode {
        Some(_) => Ok(class::waits_for_consumer(class)),
        None => Err(format!("StorageClass {:?} has no volumeBindingMode; set one", class.name_any())),
    }
}

/// Pods that use the claim and wait for a node.
fn unscheduled_pods(world: &World, claim: &ClaimKey) -> Vec<String> {
    let waits = |pod: &Pod| {
        let placed =
            pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref()).is_some_and(|node| !node.is_empty());
        !placed && !is_terminated(pod)
    };
    world.pods_of(claim).filter(|pod| waits(pod)).map(|pod| pod.name_any()).collect()
}

/// Whether all containers of a pod have ended for good.
pub(super) fn is_terminated(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// The user named a volume: take that one, or wait for it.
fn take_named(step: &mut Step, world: &World, mut claim: PersistentVolumeClaim, name: &str) {
    let Some(volume) = world.volumes.get(name) else {
        step.claim_phase(&mut claim, "Pending", None);
        return;
    };
    let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    if reference.is_none() {
        if let Err(why) = acceptable(world, &claim, volume) {
            let message = format!("Cannot bind to requested volume {name:?}: {why}");
            step.warning(claim_reference(&claim), "VolumeMismatch", message);
            step.claim_phase(&mut claim, "Pending", None);
            return;
        }
        bind(step, PersistentVolume::clone(volume), claim);
    } else if volume::is_bound_to(volume, &claim) {
        bind(step, PersistentVolume::clone(volume), claim);
    } else {
        let message = format!("volume {name:?} already bound to a different claim.");
        step.warning(claim_reference(&claim), "FailedBinding", message);
        if claim.annotations().contains_key(BOUND_BY_CONTROLLER) {
            step.refused = Some(format!(
                "claim {} was given volume {name:?} by the controller, yet the volume refers to another claim; \
                 delete the claim to free it",
                claim.name_any()
            ));
        } else {
            step.claim_phase(&mut claim, "Pending", None);
        }
    }
}

/// Whether a free volume that a claim names may be bound to it. Labels and nodes are the user's affair here.
///
/// # Errors
/// Why not.
pub fn acceptable(
    world: &World,
    claim: &PersistentVolumeClaim,
    volume: &PersistentVolume,
) -> Result<(), &'static str> {
    let attributes_class_set = !fit::attributes_class_of_claim(claim).is_empty()
        || !fit::attributes_class_of_volume(volume).is_empty();
    let rules = [
        (volume.metadata.deletion_timestamp.is_none(), "the volume is marked for deletion"),
        (fit::capacity(volume) >= fit::requested(claim), "requested PV is too small"),
        (volume::class(volume) == claim::class(claim), "storageClassName does not match"),
        (
            !(world.attributes_class_off && attributes_class_set),
            "volumeAttributesClassName is not supported when the feature is switched off",
        ),
        (fit::same_attributes_class(claim, volume), "volumeAttributesClassName does not match"),
        (!volume::is_mode_mismatch(claim, volume), "incompatible volumeMode"),
        (volume::satisfies_access_modes(volume, claim), "incompatible accessMode"),
    ];
    rules.iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, why)| Err(*why))
}

/// The claim was bound once: it still is, or it has lost its volume.
fn confirm(step: &mut Step, world: &World, mut claim: PersistentVolumeClaim, name: &str) {
    let lost = |step: &mut Step, claim: &mut PersistentVolumeClaim, reason, message: &str| {
        if step.claim_phase(claim, "Lost", None) {
            step.warning(claim_reference(claim), reason, message);
        }
    };
    if name.is_empty() {
        let message = "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!";
        return lost(step, &mut claim, "ClaimLost", message);
    }
    let Some(volume) = world.volumes.get(name) else {
        let message = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
        return lost(step, &mut claim, "ClaimLost", message);
    };
    let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    if reference.is_none_or(|reference| reference.uid == claim.metadata.uid) {
        bind(step, PersistentVolume::clone(volume), claim);
    } else {
        let message = "Two claims are bound to the same volume, this one is bound incorrectly";
        lost(step, &mut claim, "ClaimMisbound", message);
    }
}

/// Ties a volume and a claim together in four writes. Each is left out when it is so already, so that a bind which was
/// cut short is completed by the next look.
fn bind(step: &mut Step, mut volume: PersistentVolume, mut claim: PersistentVolumeClaim) {
    let is_same = |reference: &ObjectReference| {
        reference.name == claim.metadata.name
            && reference.namespace == claim.metadata.namespace
            && reference.uid == claim.metadata.uid
    };
    if !volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()).is_some_and(is_same) {
        if !volume::is_bound_to(&volume, &claim) {
            volume.annotations_mut().insert(BOUND_BY_CONTROLLER.to_owned(), "yes".to_owned());
        }
        volume.spec.get_or_insert_default().claim_ref = Some(claim_reference(&claim));
        step.writes.push(Write::Volume(Box::new(volume.clone())));
    }
    step.volume_phase(&mut volume, "Bound", "");

    let mut changed = false;
    if claim::volume_name(&claim) != volume.name_any() {
        claim.spec.get_or_insert_default().volume_name.clone_from(&volume.metadata.name);
        claim.annotations_mut().insert(BOUND_BY_CONTROLLER.to_owned(), "yes".to_owned());
        changed = true;
    }
    if !claim::is_bind_completed(&claim) {
        claim.annotations_mut().insert(BIND_COMPLETED.to_owned(), "yes".to_owned());
        changed = true;
    }
    if changed {
        step.writes.push(Write::Claim(Box::new(claim.clone())));
    }
    step.claim_phase(&mut claim, "Bound", Some(&volume));
}
