//! Which existing volume fits a claim on a given node.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::ResourceExt;
use resources::{claim, fit, volume};

use crate::world::Labels;

/// Why no search could be made.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum MatchError {
    /// VolumeAttributesClass is off, yet the claim names one.
    #[error("the claim names VolumeAttributesClass {0:?}, which is switched off; remove it from the claim")]
    AttributesClassOff(String),
}

/// The volume for a claim on a node: the one that refers to the claim, which then must admit the node; else the first
/// that fits of `free`, which come smallest first. Volumes that `taken` names are passed over.
///
/// # Errors
/// The claim asks for something that is switched off.
pub fn volume_on_node<'a>(
    claim: &PersistentVolumeClaim,
    reserved: impl IntoIterator<Item = &'a Arc<PersistentVolume>>,
    free: impl IntoIterator<Item = &'a Arc<PersistentVolume>>,
    (node, labels): (&str, &Labels),
    taken: impl Fn(&str) -> bool,
    attributes_class_off: bool,
) -> Result<Option<&'a Arc<PersistentVolume>>, MatchError> {
    let attributes_class = fit::attributes_class_of_claim(claim);
    if attributes_class_off && !attributes_class.is_empty() {
        return Err(MatchError::AttributesClassOff(attributes_class.to_owned()));
    }
    let size = fit::requested(claim);
    let fits = |volume: &&Arc<PersistentVolume>| {
        !taken(&volume.name_any())
            && fit::capacity(volume) >= size
            && !volume::is_mode_mismatch(claim, volume)
            && fit::same_attributes_class(claim, volume)
            && volume.metadata.deletion_timestamp.is_none()
    };
    let refers = |volume: &&Arc<PersistentVolume>| volume::is_bound_to(volume, claim);
    if let Some(volume) = reserved.into_iter().filter(fits).find(refers) {
        return Ok(volume::admits_node(volume, node, labels).then_some(volume));
    }
    let class = claim::class(claim);
    Ok(free.into_iter().filter(fits).find(|volume| {
        volume.spec.as_ref().is_some_and(|spec| spec.claim_ref.is_none())
            && volume::phase(volume) == "Available"
            && volume::class(volume) == class
            && volume::satisfies_access_modes(volume, claim)
            && fit::selector_takes(claim, volume)
            && volume::admits_node(volume, node, labels)
    }))
}
