//! Which volume fits a claim that isn't tied to a node.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use resources::{claim, fit, volume};

use super::world::{ClaimKey, World};

/// Why no search could be made.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum MatchError {
    /// VolumeAttributesClass is off, yet the claim names one.
    #[error("the claim names VolumeAttributesClass {0:?}, which is switched off; remove it from the claim")]
    AttributesClassOff(String),
}

/// The volume for a claim: one that already refers to it, else the smallest that is large enough among those with the
/// fewest access modes it doesn't need.
///
/// A claim that waits for its consumer (`delayed`) only gets a volume that refers to it: the scheduler picks the others.
/// Unlike Kubernetes, a volume that refers to the claim wins even if it has more access modes than another.
///
/// # Errors
/// The claim asks for something that is switched off.
pub fn volume_for<'a>(
    world: &'a World,
    claim: &PersistentVolumeClaim,
    delayed: bool,
) -> Result<Option<&'a Arc<PersistentVolume>>, MatchError> {
    let attributes_class = fit::attributes_class_of_claim(claim);
    if world.attributes_class_off && !attributes_class.is_empty() {
        return Err(MatchError::AttributesClassOff(attributes_class.to_owned()));
    }
    let size = fit::requested(claim);
    let modes = claim::access_modes(claim);
    let fits = |volume: &&Arc<PersistentVolume>| {
        volume.metadata.deletion_timestamp.is_none()
            && !volume::is_mode_mismatch(claim, volume)
            && fit::same_attributes_class(claim, volume)
    };

    let reserved = world.volumes.referring_to(&ClaimKey::of(claim)).into_iter().filter(fits).find(|volume| {
        volume::is_bound_to(volume, claim)
            && fit::capacity(volume) >= size
            && volume::satisfies_access_modes(volume, claim)
    });
    if reserved.is_some() || delayed {
        return Ok(reserved);
    }

    let class = claim::class(claim);
    let mode = claim::volume_mode(claim);
    Ok(world.volumes.mode_sets(modes).find_map(|set| {
        world
            .volumes
            .free(set, class, mode, size.clone())
            .filter(fits)
            .find(|volume| fit::selector_takes(claim, volume))
    }))
}
