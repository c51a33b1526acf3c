//! Whether a claim and a volume, or a claim's class and a node, fit each other: asked by binder and scheduler alike.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, TopologySelectorTerm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{Selector, SelectorExt};
use values::Quantity;

use crate::{claim, volume};

/// The size that a claim asks for. `None`, which every volume satisfies, if it says nothing readable.
pub fn requested(claim: &PersistentVolumeClaim) -> Option<Quantity> {
    claim::requested(claim)?.0.parse().ok()
}

/// The same in bytes: what can't be counted is more than there is anywhere.
pub fn requested_bytes(claim: &PersistentVolumeClaim) -> u64 {
    requested(claim).map_or(0, |size| size.ceil_bytes().unwrap_or(u64::MAX))
}

/// The size of a volume. `None`, which satisfies no size, if it says nothing readable.
pub fn capacity(volume: &PersistentVolume) -> Option<Quantity> {
    volume::capacity(volume)?.0.parse().ok()
}

/// The VolumeAttributesClass that a claim names, "" if none.
pub fn attributes_class_of_claim(claim: &PersistentVolumeClaim) -> &str {
    claim.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.as_deref()).unwrap_or_default()
}

/// The VolumeAttributesClass of a volume, "" if none.
pub fn attributes_class_of_volume(volume: &PersistentVolume) -> &str {
    volume.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.as_deref()).unwrap_or_default()
}

/// Whether a claim and a volume name the same VolumeAttributesClass; absent and empty are one.
pub fn same_attributes_class(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    attributes_class_of_claim(claim) == attributes_class_of_volume(volume)
}

/// Whether a label selector takes these labels. One that can't be read takes nothing.
pub fn selects(selector: &LabelSelector, labels: Option<&BTreeMap<String, String>>) -> bool {
    let none = BTreeMap::new();
    Selector::try_from(selector.clone()).is_ok_and(|selector| selector.matches(labels.unwrap_or(&none)))
}

/// Whether a claim's label selector, if it has one, takes a volume.
pub fn selector_takes(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let selector = claim.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    selector.is_none_or(|selector| selects(selector, volume.metadata.labels.as_ref()))
}

/// Whether a class's allowedTopologies admit a node: none at all admit every node, else one term must hold wholly.
pub fn topology_allows(terms: &[TopologySelectorTerm], labels: &BTreeMap<String, String>) -> bool {
    let holds = |term: &TopologySelectorTerm| {
        let rules = term.match_label_expressions.as_deref().unwrap_or_default();
        let listed = |key, values: &[String]| labels.get(key).is_some_and(|value| values.contains(value));
        !rules.is_empty() && rules.iter().all(|rule| listed(&rule.key, &rule.values))
    };
    terms.is_empty() || terms.iter().any(holds)
}
