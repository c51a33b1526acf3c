//! PersistentVolumes.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::ResourceExt;

use crate::{affinity, annotations, claim};

/// The name of the volume that is made for a claim, as the object and as the driver's idempotency key.
pub fn name_for(claim_uid: &str) -> String {
    format!("{NAME_PREFIX}{claim_uid}")
}

/// The claim uid in a name by [`name_for`].
pub fn claim_uid_of(name: &str) -> Option<&str> {
    name.strip_prefix(NAME_PREFIX).filter(|uid| !uid.is_empty())
}

const NAME_PREFIX: &str = "pvc-";

/// The class of a volume: the legacy annotation where present, else the field; "" if it has none.
pub fn class(volume: &PersistentVolume) -> &str {
    let legacy = volume.annotations().get(annotations::BETA_STORAGE_CLASS);
    let field = || volume.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    legacy.map(String::as_str).or_else(field).unwrap_or_default()
}

/// The volume's size.
pub fn capacity(volume: &PersistentVolume) -> Option<&Quantity> {
    volume.spec.as_ref()?.capacity.as_ref()?.get("storage")
}

/// The volume mode: `Filesystem` unless the volume says otherwise.
pub fn volume_mode(volume: &PersistentVolume) -> &str {
    volume.spec.as_ref().and_then(|spec| spec.volume_mode.as_deref()).unwrap_or("Filesystem")
}

/// The access modes that the volume offers.
pub fn access_modes(volume: &PersistentVolume) -> &[String] {
    volume.spec.as_ref().and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default()
}

/// What becomes of the volume when its claim is gone; the API's default is `Retain`.
pub fn reclaim_policy(volume: &PersistentVolume) -> &str {
    let policy = volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
    policy.unwrap_or("Retain")
}

/// The phase in the volume's status; "" before the binder saw it.
pub fn phase(volume: &PersistentVolume) -> &str {
    volume.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// The driver that made the volume.
pub fn provisioned_by(volume: &PersistentVolume) -> Option<&str> {
    volume.annotations().get(annotations::PROVISIONED_BY).map(String::as_str)
}

/// Whether the volume's claimRef is this claim. A reference without uid was written by a user and stands for any
/// claim of that name.
pub fn is_bound_to(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let Some(reference) = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()) else { return false };
    let uid = reference.uid.as_deref().unwrap_or_default();
    reference.name == claim.metadata.name
        && reference.namespace == claim.metadata.namespace
        && (uid.is_empty() || Some(uid) == claim.metadata.uid.as_deref())
}

/// Whether claim and volume differ in volume mode.
pub fn is_mode_mismatch(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    claim::volume_mode(claim) != volume_mode(volume)
}

/// Whether the volume offers every access mode that the claim asks for.
pub fn satisfies_access_modes(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let offered = access_modes(volume);
    claim::access_modes(claim).iter().all(|mode| offered.contains(mode))
}

/// Whether the volume can be used on a node with these labels. A volume without required node affinity can be used
/// anywhere.
pub fn admits_node(
    volume: &PersistentVolume,
    node_name: &str,
    node_labels: &BTreeMap<String, String>,
) -> bool {
    let affinity = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref());
    match affinity.and_then(|affinity| affinity.required.as_ref()) {
        Some(selector) => affinity::admits(selector, node_name, node_labels),
        None => true,
    }
}

/// The labels by which cloud volumes say where they are, each with the one that took its place or whose place it took.
const ZONE_LABELS: [(&str, &str); 4] = [
    ("topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone"),
    ("topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region"),
    ("failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    ("failure-domain.beta.kubernetes.io/region", "topology.kubernetes.io/region"),
];

/// Whether the zones and regions in a volume's labels, several joined by `__`, have those of a node among them.
/// A node that has no such label takes any volume. (kube-scheduler's VolumeZone.)
pub fn admits_zone(volume: &PersistentVolume, node_labels: &BTreeMap<String, String>) -> bool {
    let Some(labels) = &volume.metadata.labels else { return true };
    if !ZONE_LABELS.iter().any(|(key, _)| node_labels.contains_key(*key)) {
        return true;
    }
    ZONE_LABELS.iter().all(|(key, alias)| {
        let Some(zones) = labels.get(*key) else { return true };
        let here = node_labels.get(*key).or_else(|| node_labels.get(*alias));
        here.is_some_and(|here| zones.split("__").any(|zone| zone.trim() == here))
    })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolumeClaimSpec, PersistentVolumeSpec};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    fn some_claim() -> PersistentVolumeClaim {
        PersistentVolumeClaim {
            metadata: ObjectMeta {
                name: Some("data".to_owned()),
                namespace: Some("shop".to_owned()),
                uid: Some("7".to_owned()),
                ..ObjectMeta::default()
            },
            ..PersistentVolumeClaim::default()
        }
    }

    fn volume(spec: PersistentVolumeSpec) -> PersistentVolume {
        PersistentVolume { spec: Some(spec), ..PersistentVolume::default() }
    }

    #[test]
    fn zones_in_labels_must_be_the_nodes() {
        const ZONE: &str = "topology.kubernetes.io/zone";
        const OLD_ZONE: &str = "failure-domain.beta.kubernetes.io/zone";
        const REGION: &str = "topology.kubernetes.io/region";
        for (volume_labels, node_labels, admitted) in [
            (&[][..], &[(ZONE, "a")][..], true),
            (&[(ZONE, "a")], &[(ZONE, "a")], true),
            (&[(ZONE, "a")], &[(ZONE, "b")], false),
            (&[(ZONE, "a__b")], &[(ZONE, "b")], true),
            (&[(ZONE, "a")], &[("host", "n")], true),
            (&[(ZONE, "a")], &[(REGION, "r")], false),
            (&[(OLD_ZONE, "a")], &[(ZONE, "a")], true),
            (&[(ZONE, "a")], &[(OLD_ZONE, "b")], false),
            (&[(ZONE, "a"), (REGION, "r")], &[(ZONE, "a"), (REGION, "s")], false),
        ] {
            let labels = |pairs: &[(&str, &str)]| {
                pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
            };
            let mut located = volume(PersistentVolumeSpec::default());
            located.metadata.labels = Some(labels(volume_labels));
            assert_eq!(
                admits_zone(&located, &labels(node_labels)),
                admitted,
                "{volume_labels:?} {node_labels:?}"
            );
        }
    }

    #[test]
    fn a_reference_names_a_claim_and_optionally_its_uid() {
        for (namespace, name, uid, bound) in [
            ("shop", "data", Some("7"), true),
            ("shop", "data", None, true),
            ("shop", "data", Some(""), true),
            ("shop", "data", Some("8"), false),
            ("shop", "other", Some("7"), false),
            ("other", "data", Some("7"), false),
        ] {
            let volume = volume(PersistentVolumeSpec {
                claim_ref: Some(ObjectReference {
                    namespace: Some(namespace.to_owned()),
                    name: Some(name.to_owned()),
                    uid: uid.map(str::to_owned),
                    ..ObjectReference::default()
                }),
                ..PersistentVolumeSpec::default()
            });
            assert_eq!(is_bound_to(&volume, &some_claim()), bound, "{namespace}/{name} {uid:?}");
        }
        assert!(!is_bound_to(&volume(PersistentVolumeSpec::default()), &some_claim()));
    }

    #[test]
    fn volume_modes_default_to_filesystem() {
        for (of_claim, of_volume, mismatch) in [
            (None, None, false),
            (None, Some("Filesystem"), false),
            (Some("Filesystem"), None, false),
            (Some("Block"), None, true),
            (None, Some("Block"), true),
            (Some("Block"), Some("Block"), false),
        ] {
            let mut claim = some_claim();
            claim.spec = Some(PersistentVolumeClaimSpec {
                volume_mode: of_claim.map(str::to_owned),
                ..PersistentVolumeClaimSpec::default()
            });
            let volume = volume(PersistentVolumeSpec {
                volume_mode: of_volume.map(str::to_owned),
                ..PersistentVolumeSpec::default()
            });
            assert_eq!(is_mode_mismatch(&claim, &volume), mismatch, "{of_claim:?} {of_volume:?}");
        }
    }

    #[test]
    fn names_lead_from_claim_to_volume_and_back() {
        assert_eq!(name_for("7"), "pvc-7");
        assert_eq!(claim_uid_of("pvc-7"), Some("7"));
        assert_eq!(claim_uid_of("pvc-"), None);
        assert_eq!(claim_uid_of("other"), None);
    }
}
