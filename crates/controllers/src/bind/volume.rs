//! What to do about a volume.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::ResourceExt;
use resources::annotations::BOUND_BY_CONTROLLER;
use resources::{claim, volume};

use super::step::{Step, Write, claim_reference, volume_reference};
use super::world::{ClaimKey, Key, World};
use super::{reclaim, upkeep};

/// What is known of a volume's claim beyond the watch.
pub enum Live {
    /// Nothing was read.
    Unread,
    /// The API server was asked: this is the claim of that name now, if there is one.
    Read(Option<Box<PersistentVolumeClaim>>),
}

/// What a look at a volume led to.
pub enum Look {
    /// It is decided.
    Decided(Step),
    /// Before anything is released the API server itself must say whether this claim is there; then look again.
    Ask(ClaimKey),
}

/// One look at a volume: the writes that keep its phase true, and its end once its claim is gone.
pub fn sync_volume(world: &World, volume: &PersistentVolume, live: Live) -> Look {
    let mut step = Step::default();
    let mut volume = volume.clone();
    let mut upkept = upkeep::migrate_volume(&world.plugins, &mut volume);
    upkept |= upkeep::deletion_finalizers(&world.plugins, &mut volume);
    if upkept {
        step.writes.push(Write::Volume(Box::new(volume.clone())));
    }

    let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.clone()).unwrap_or_default();
    let (Some(uid), Some(key)) = (reference.uid.filter(|uid| !uid.is_empty()), ClaimKey::referred(&volume))
    else {
        // Free, or kept by a user for a claim that has not come yet.
        step.volume_phase(&mut volume, "Available", "");
        return Look::Decided(step);
    };

    let is_referred = |claim: &PersistentVolumeClaim| claim.metadata.uid.as_deref() == Some(uid.as_str());
    let given_up = matches!(volume::phase(&volume), "Released" | "Failed");
    // Deleted while its claim was to take it, which it then no longer can.
    let left = volume.metadata.deletion_timestamp.is_some() && volume::phase(&volume) == "Bound";
    let is_settled = |claim: &PersistentVolumeClaim| !(left && claim::volume_name(claim).is_empty());
    let known = world.claim(&key).map(std::sync::Arc::as_ref);
    let claim = match (known, live) {
        (_, Live::Read(found)) => found.map(|claim| *claim).filter(is_referred),
        (Some(known), _) if is_referred(known) && is_settled(known) => Some(known.clone()),
        (None, Live::Unread) if given_up => None,
        (_, Live::Unread) => return Look::Ask(key),
    };

    match claim {
        None => {
            if !given_up {
                step.volume_phase(&mut volume, "Released", "");
            }
            reclaim::reclaim(&mut step, world, &mut volume);
        }
        Some(claim) => match claim::volume_name(&claim) {
            "" if volume::is_mode_mismatch(&claim, &volume) => {
                let message = format!(
                    "Cannot bind PersistentVolume {:?} to requested PersistentVolumeClaim {:?} due to incompatible volumeMode.",
                    volume.name_any(),
                    claim.name_any()
                );
                step.warning(volume_reference(&volume), "VolumeMismatch", message.clone());
                step.warning(claim_reference(&claim), "VolumeMismatch", message);
            }
            // Not bound, whatever was begun: what protects it may let it go, and its claim gets another.
            "" if left => {
                step.volume_phase(&mut volume, "Available", "");
            }
            // The claim writes its own half.
            "" => step.next.push(Key::Claim(key)),
            name if name == volume.name_any() => {
                step.volume_phase(&mut volume, "Bound", "");
            }
            _ if volume::provisioned_by(&volume).is_some() && volume::reclaim_policy(&volume) == "Delete" => {
                // Made for this claim, which took another: nobody will ever use it.
                if !given_up {
                    step.volume_phase(&mut volume, "Released", "");
                }
                reclaim::reclaim(&mut step, world, &mut volume);
            }
            _ => unbind(&mut step, &mut volume),
        },
    }
    Look::Decided(step)
}

/// Undoes a volume's half of a binding: all of it if the controller wrote it, else only the uid that it added to the
/// user's reference.
pub(super) fn unbind(step: &mut Step, volume: &mut PersistentVolume) {
    let by_controller = volume.annotations_mut().remove(BOUND_BY_CONTROLLER).is_some();
    let spec = volume.spec.get_or_insert_default();
    if by_controller {
        spec.claim_ref = None;
    } else if let Some(reference) = spec.claim_ref.as_mut() {
        reference.uid = None;
        reference.resource_version = None;
    }
    step.writes.push(Write::Volume(Box::new(volume.clone())));
    step.volume_phase(volume, "Available", "");
}
