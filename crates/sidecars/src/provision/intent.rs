//! The durable record that a volume may exist for a claim although no object names it yet.
//!
//! CreateVolume and the creation of the PersistentVolume can't be one step. Whoever forgets, between the two, that
//! it asked the driver, leaks a volume if the claim is deleted meanwhile. Upstream's provisioner remembers in memory
//! only, and leaks at a restart. Two durable places were weighed:
//!
//! - Asking the driver for its volumes at start, and deleting those named after a claim for which neither claim nor
//!   PersistentVolume exists, costs nothing while all goes well. But it can't tell a leaked volume from one that an
//!   administrator retained and whose object he removed, nor from all volumes of a cluster whose API data was lost:
//!   it would delete data. And CSI lists volumes by id, not by the name that CreateVolume was given.
//! - A finalizer on the claim, with an annotation that says who is at work, costs two writes per claim. It keeps the
//!   claim, and with it all that is needed to repeat CreateVolume, until the matter is settled: that is what is done
//!   here.
//!
//! The record is written once all is at hand that the call needs, secrets too; it holds the class, so
//! that the call can be repeated when that is gone. A secret that is gone by then is left out: a driver that refuses
//! without is told of in an event, and the matter ends there.
//!
//! It is cleared when the driver finally refused, when the volume was
//! deleted again, or when the claim is Bound to the PersistentVolume. (Not as soon as that exists, because the binder
//! is then about to write the claim: both writes would meet.) If a node is gone for good, its unfinished claims can be
//! deleted only after their finalizer was removed by hand.

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use resources::{annotations, finalizers};

use super::source::Content;

/// Bytes of a class that is kept with an intent: all annotations of an object have 256 KiB.
const LARGEST_CLASS: usize = 64 << 10;

/// A driver's provisioner on a node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Holder<'a> {
    pub(super) driver: &'a str,
    pub(super) node: &'a str,
}

/// Whether anyone recorded an intent.
pub(super) fn is_held(claim: &PersistentVolumeClaim) -> bool {
    claim.annotations().contains_key(annotations::PROVISIONING)
}

/// Whether this provisioner recorded an intent.
pub(super) fn is_held_by(claim: &PersistentVolumeClaim, holder: Holder<'_>) -> bool {
    claim.annotations().get(annotations::PROVISIONING).is_some_and(|value| {
        value.split_once('/').is_some_and(|(driver, node)| driver == holder.driver && node == holder.node)
    })
}

/// What the volume of a recorded intent is being filled with.
pub(super) fn source(claim: &PersistentVolumeClaim) -> Option<Content> {
    Content::of_mark(claim.annotations().get(annotations::PROVISIONING_SOURCE)?)
}

/// The class that the volume of a recorded intent is being made by, in case that is gone.
pub(super) fn class(claim: &PersistentVolumeClaim, holder: Holder<'_>) -> Option<StorageClass> {
    if !is_held_by(claim, holder) {
        return None;
    }
    serde_json::from_str(claim.annotations().get(annotations::PROVISIONING_CLASS)?).ok()
}

/// What of a class CreateVolume is asked by, as text. Nothing if that is too much for an annotation.
fn class_mark(class: &StorageClass) -> Option<String> {
    let kept = StorageClass {
        metadata: ObjectMeta { name: class.metadata.name.clone(), ..ObjectMeta::default() },
        ..class.clone()
    };
    serde_json::to_string(&kept).ok().filter(|text| text.len() <= LARGEST_CLASS)
}

/// Records the intent.
pub(super) fn record(
    claim: &mut PersistentVolumeClaim,
    holder: Holder<'_>,
    class: &StorageClass,
    source: Option<&Content>,
) {
    if let Some(mark) = class_mark(class) {
        claim.annotations_mut().insert(annotations::PROVISIONING_CLASS.to_owned(), mark);
    }
    if let Some(source) = source {
        claim.annotations_mut().insert(annotations::PROVISIONING_SOURCE.to_owned(), source.to_mark());
    }
    let value = format!("{}/{}", holder.driver, holder.node);
    claim.annotations_mut().insert(annotations::PROVISIONING.to_owned(), value);
    // The API refuses new finalizers on what is being deleted.
    let keeps = |name: &String| name == finalizers::PROVISIONING;
    if claim.metadata.deletion_timestamp.is_none() && !claim.finalizers().iter().any(keeps) {
        claim.finalizers_mut().push(finalizers::PROVISIONING.to_owned());
    }
}

/// Removes the record.
pub(super) fn clear(claim: &mut PersistentVolumeClaim) {
    if is_held(claim) {
        claim.annotations_mut().remove(annotations::PROVISIONING);
        claim.annotations_mut().remove(annotations::PROVISIONING_SOURCE);
        claim.annotations_mut().remove(annotations::PROVISIONING_CLASS);
    }
    if claim.finalizers().iter().any(|name| name == finalizers::PROVISIONING) {
        claim.finalizers_mut().retain(|name| name != finalizers::PROVISIONING);
    }
}
