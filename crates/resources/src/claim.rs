//! PersistentVolumeClaims.

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Volume};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::ResourceExt;

use crate::annotations;

/// The class of a claim: the legacy annotation where present, else the field; "" if it has none.
pub fn class(claim: &PersistentVolumeClaim) -> &str {
    let legacy = claim.annotations().get(annotations::BETA_STORAGE_CLASS);
    let field = || claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    legacy.map(String::as_str).or_else(field).unwrap_or_default()
}

/// Whether the claim says anything about its class. One that says "" wants none; one that says nothing may still
/// get the default class.
pub fn has_class(claim: &PersistentVolumeClaim) -> bool {
    claim.annotations().contains_key(annotations::BETA_STORAGE_CLASS)
        || claim.spec.as_ref().is_some_and(|spec| spec.storage_class_name.is_some())
}

/// The storage that the claim asks for.
pub fn requested(claim: &PersistentVolumeClaim) -> Option<&Quantity> {
    claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?.get("storage")
}

/// The access modes that the claim asks for.
pub fn access_modes(claim: &PersistentVolumeClaim) -> &[String] {
    claim.spec.as_ref().and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default()
}

/// The volume mode: `Filesystem` unless the claim says otherwise.
pub fn volume_mode(claim: &PersistentVolumeClaim) -> &str {
    claim.spec.as_ref().and_then(|spec| spec.volume_mode.as_deref()).unwrap_or("Filesystem")
}

/// The volume that the claim is bound to, or asks for; "" if none.
pub fn volume_name(claim: &PersistentVolumeClaim) -> &str {
    claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default()
}

/// The driver that shall make a volume for the claim.
pub fn provisioner(claim: &PersistentVolumeClaim) -> Option<&str> {
    let annotations = claim.annotations();
    [annotations::STORAGE_PROVISIONER, annotations::BETA_STORAGE_PROVISIONER]
        .iter()
        .find_map(|key| annotations.get(*key).map(String::as_str))
}

/// The node that the scheduler chose for the claim's first pod.
pub fn selected_node(claim: &PersistentVolumeClaim) -> Option<&str> {
    claim.annotations().get(annotations::SELECTED_NODE).map(String::as_str).filter(|node| !node.is_empty())
}

/// Whether both directions of the claim's binding have been written.
pub fn is_bind_completed(claim: &PersistentVolumeClaim) -> bool {
    claim.annotations().contains_key(annotations::BIND_COMPLETED)
}

/// The name of the claim behind a volume of a pod: the one that it names, or the one that is made for it, named after pod
/// and volume (`ephemeral`).
pub fn of_volume(pod: &Pod, volume: &Volume) -> Option<String> {
    match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(source), _) => Some(source.claim_name.clone()),
        (None, Some(_)) => Some(format!("{}-{}", pod.name_any(), volume.name)),
        (None, None) => None,
    }
}

/// The phase in the claim's status; "" before the binder saw it.
pub fn phase(claim: &PersistentVolumeClaim) -> &str {
    claim.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PersistentVolumeClaimSpec;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    #[test]
    fn a_volumes_claim_is_named_by_it_or_after_it() {
        let pod = serde_json::from_value(serde_json::json!({"metadata": {"name": "web-0"}})).expect("a Pod");
        for (volume, expected) in [
            (
                serde_json::json!({"name": "scratch", "persistentVolumeClaim": {"claimName": "data"}}),
                Some("data"),
            ),
            (serde_json::json!({"name": "scratch", "ephemeral": {}}), Some("web-0-scratch")),
            (serde_json::json!({"name": "scratch", "emptyDir": {}}), None),
        ] {
            let volume: Volume = serde_json::from_value(volume).expect("a Volume");
            assert_eq!(of_volume(&pod, &volume).as_deref(), expected, "{volume:?}");
        }
    }

    #[test]
    fn the_legacy_annotation_wins_even_when_empty() {
        for (annotation, field, class_is, has) in [
            (None, None, "", false),
            (None, Some(""), "", true),
            (None, Some("fast"), "fast", true),
            (Some("old"), Some("fast"), "old", true),
            (Some(""), Some("fast"), "", true),
            (Some(""), None, "", true),
        ] {
            let claim = PersistentVolumeClaim {
                metadata: ObjectMeta {
                    annotations: annotation.map(|class: &str| {
                        [(annotations::BETA_STORAGE_CLASS.to_owned(), class.to_owned())].into()
                    }),
                    ..ObjectMeta::default()
                },
                spec: Some(PersistentVolumeClaimSpec {
                    storage_class_name: field.map(str::to_owned),
                    ..PersistentVolumeClaimSpec::default()
                }),
                ..PersistentVolumeClaim::default()
            };
            assert_eq!((class(&claim), has_class(&claim)), (class_is, has), "{annotation:?} {field:?}");
        }
    }
}
