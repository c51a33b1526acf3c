//! From a CSI volume to the PersistentVolume that stands for it: pure.

use std::collections::BTreeMap;

use csi::v1::{Topology, Volume};
use k8s_openapi::api::core::v1::{
    CSIPersistentVolumeSource, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PersistentVolume,
    PersistentVolumeClaim, PersistentVolumeSpec, SecretReference, VolumeNodeAffinity,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use resources::{annotations, claim, class, finalizers, fit, reference, volume};
use values::Quantity;

use super::intent::Holder;
use super::parameters::Parameters;
use super::source::Content;

/// The attribute that says which provisioner made a volume.
const IDENTITY: &str = "storage.kubernetes.io/csiProvisionerIdentity";

/// What is wrong with a volume that a driver made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnfitVolume {
    /// Less than the claim asked for.
    #[error(
        "created volume capacity {actual} less than requested capacity {asked}; the volume is deleted again"
    )]
    TooSmall {
        /// Bytes that were made.
        actual: i64,
        /// Bytes that were asked for.
        asked: i64,
    },
    /// Not copied from what was asked for.
    #[error("the driver made the volume from another source than was asked for; the volume is deleted again")]
    WrongSource,
    /// No volume, or one without id.
    #[error("the driver answered CreateVolume without a volume id; that is an error of the driver")]
    NoId,
}

/// Whether a volume is what the claim asked for. A capacity of 0 stands for the size that was asked for.
pub(super) fn check(made: &Volume, asked: i64, source: Option<&Content>) -> Result<(), UnfitVolume> {
    if made.volume_id.is_empty() {
        return Err(UnfitVolume::NoId);
    }
    if made.capacity_bytes > 0 && made.capacity_bytes < asked {
        return Err(UnfitVolume::TooSmall { actual: made.capacity_bytes, asked });
    }
    if made.content_source != source.map(Content::to_csi) {
        return Err(UnfitVolume::WrongSource);
    }
    Ok(())
}

/// The PersistentVolume for a claim. It names the claim with its uid, so nobody else can be bound to it.
pub(super) fn persistent_volume(
    of: &PersistentVolumeClaim,
    from: &StorageClass,
    parameters: &Parameters,
    made: &Volume,
    asked: i64,
    holder: Holder<'_>,
) -> PersistentVolume {
    let policy = class::reclaim_policy(from);
    let bytes = if made.capacity_bytes > 0 { made.capacity_bytes } else { asked };
    let capacity = resource::Quantity(Quantity::from_bytes(bytes.unsigned_abs()).to_string());
    let mut attributes = made.volume_context.clone();
    attributes.insert(IDENTITY.to_owned(), format!("{}-{}", holder.node, holder.driver));
    let mut marks = BTreeMap::from([(annotations::PROVISIONED_BY.to_owned(), holder.driver.to_owned())]);
    let secrets = &parameters.secrets;
    let none = String::new;
    for (secret, name_key, namespace_key) in [
        (&secrets.provisioner, annotations::DELETION_SECRET_NAME, annotations::DELETION_SECRET_NAMESPACE),
        (&secrets.controller_modify, annotations::MODIFY_SECRET_NAME, annotations::MODIFY_SECRET_NAMESPACE),
    ] {
        // The deletion annotations are always there, as from upstream; empty means that no secret is needed.
        if secret.is_some() || name_key == annotations::DELETION_SECRET_NAME {
            let SecretReference { name, namespace } = secret.clone().unwrap_or_default();
            marks.insert(name_key.to_owned(), name.unwrap_or_else(none));
            marks.insert(namespace_key.to_owned(), namespace.unwrap_or_else(none));
        }
    }
    let modes = claim::access_modes(of).to_vec();
    let is_block = claim::volume_mode(of) == "Block";
    PersistentVolume {
        metadata: ObjectMeta {
            name: Some(volume::name_for(of.metadata.uid.as_deref().unwrap_or_default())),
            annotations: Some(marks),
            finalizers: (policy == "Delete").then(|| vec![finalizers::PROVISIONER.to_owned()]),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeSpec {
            capacity: Some([("storage".to_owned(), capacity)].into()),
            csi: Some(CSIPersistentVolumeSource {
                driver: holder.driver.to_owned(),
                volume_handle: made.volume_id.clone(),
                volume_attributes: Some(attributes),
                fs_type: parameters.fs_type.clone().filter(|_| !is_block),
                read_only: (modes == ["ReadOnlyMany"]).then_some(true),
                controller_publish_secret_ref: secrets.controller_publish.clone(),
                node_stage_secret_ref: secrets.node_stage.clone(),
                node_publish_secret_ref: secrets.node_publish.clone(),
                controller_expand_secret_ref: secrets.controller_expand.clone(),
                node_expand_secret_ref: secrets.node_expand.clone(),
            }),
            access_modes: Some(modes),
            claim_ref: Some(reference(of)),
            persistent_volume_reclaim_policy: Some(policy.to_owned()),
            storage_class_name: Some(claim::class(of).to_owned()),
            mount_options: from.mount_options.clone().filter(|options| !options.is_empty()),
            volume_mode: Some(claim::volume_mode(of).to_owned()),
            node_affinity: affinity(&made.accessible_topology),
            volume_attributes_class_name: Some(fit::attributes_class_of_claim(of).to_owned())
                .filter(|name| !name.is_empty()),
            ..PersistentVolumeSpec::default()
        }),
        ..PersistentVolume::default()
    }
}

/// A term for each topology, with a requirement for each of its segments.
fn affinity(topologies: &[Topology]) -> Option<VolumeNodeAffinity> {
    let term = |topology: &Topology| {
        let requirement = |(key, value): (&String, &String)| NodeSelectorRequirement {
            key: key.clone(),
            operator: "In".to_owned(),
            values: Some(vec![value.clone()]),
        };
        NodeSelectorTerm {
            match_expressions: Some(topology.segments.iter().map(requirement).collect()),
            match_fields: None,
        }
    };
    let terms: Vec<_> =
        topologies.iter().filter(|topology| !topology.segments.is_empty()).map(term).collect();
    (!terms.is_empty())
        .then_some(VolumeNodeAffinity { required: Some(NodeSelector { node_selector_terms: terms }) })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PersistentVolumeClaimSpec;
    use kube::ResourceExt;

    use super::*;

    fn made(capacity_bytes: i64) -> Volume {
        Volume {
            capacity_bytes,
            volume_id: "d1/pvc-7".to_owned(),
            volume_context: [("drive".to_owned(), "d1".to_owned())].into(),
            accessible_topology: vec![Topology { segments: [("node".to_owned(), "n1".to_owned())].into() }],
            ..Volume::default()
        }
    }

    #[test]
    fn a_volume_must_be_large_enough_and_from_its_source() {
        assert_eq!(check(&made(0), 10, None), Ok(()));
        assert_eq!(check(&made(10), 10, None), Ok(()));
        assert_eq!(check(&made(9), 10, None), Err(UnfitVolume::TooSmall { actual: 9, asked: 10 }));
        let source = Content::Snapshot("s".to_owned());
        let copied = Volume { content_source: Some(source.to_csi()), ..made(10) };
        assert_eq!(check(&copied, 10, Some(&source)), Ok(()));
        assert_eq!(check(&copied, 10, None), Err(UnfitVolume::WrongSource));
        assert_eq!(check(&made(10), 10, Some(&source)), Err(UnfitVolume::WrongSource));
        assert_eq!(check(&Volume::default(), 10, None), Err(UnfitVolume::NoId));
    }

    fn volume_for(policy: &str, modes: &[&str], volume_mode: &str, made: &Volume) -> PersistentVolume {
        let of = PersistentVolumeClaim {
            metadata: ObjectMeta {
                name: Some("data".to_owned()),
                namespace: Some("shop".to_owned()),
                uid: Some("7".to_owned()),
                ..ObjectMeta::default()
            },
            spec: Some(PersistentVolumeClaimSpec {
                access_modes: Some(modes.iter().map(|mode| (*mode).to_owned()).collect()),
                storage_class_name: Some("fast".to_owned()),
                volume_mode: Some(volume_mode.to_owned()),
                ..PersistentVolumeClaimSpec::default()
            }),
            ..PersistentVolumeClaim::default()
        };
        let class = StorageClass { reclaim_policy: Some(policy.to_owned()), ..StorageClass::default() };
        let parameters = Parameters { fs_type: Some("xfs".to_owned()), ..Parameters::default() };
        persistent_volume(&of, &class, &parameters, made, 1 << 20, Holder { driver: "orlop.dev", node: "n1" })
    }

    #[test]
    fn a_persistent_volume_says_where_it_is_whose_it_is_and_who_deletes_it() {
        let volume = volume_for("Delete", &["ReadWriteOnce"], "Filesystem", &made(1 << 21));
        assert_eq!(volume.name_any(), "pvc-7");
        assert_eq!(volume.finalizers(), [finalizers::PROVISIONER]);
        assert_eq!(volume.annotations()[annotations::PROVISIONED_BY], "orlop.dev");
        assert_eq!(volume.annotations()[annotations::DELETION_SECRET_NAME], "");
        let spec = volume.spec.expect("spec");
        assert_eq!(spec.capacity.expect("capacity")["storage"].0, "2Mi");
        assert_eq!(spec.storage_class_name.as_deref(), Some("fast"));
        let claim = spec.claim_ref.expect("claim");
        assert_eq!((claim.kind.as_deref(), claim.uid.as_deref()), (Some("PersistentVolumeClaim"), Some("7")));
        let csi = spec.csi.expect("csi");
        assert_eq!(
            (csi.volume_handle.as_str(), csi.fs_type.as_deref(), csi.read_only),
            ("d1/pvc-7", Some("xfs"), None)
        );
        let attributes = csi.volume_attributes.expect("attributes");
        assert_eq!((attributes["drive"].as_str(), attributes[IDENTITY].as_str()), ("d1", "n1-orlop.dev"));
        let terms = spec.node_affinity.expect("affinity").required.expect("required").node_selector_terms;
        let requirement = &terms[0].match_expressions.as_ref().expect("expressions")[0];
        assert_eq!((requirement.key.as_str(), requirement.operator.as_str()), ("node", "In"));
    }

    #[test]
    fn what_follows_from_policy_mode_and_silence() {
        let volume = volume_for(
            "Retain",
            &["ReadOnlyMany"],
            "Block",
            &Volume { accessible_topology: vec![], ..made(0) },
        );
        assert!(volume.finalizers().is_empty());
        let spec = volume.spec.expect("spec");
        assert_eq!(spec.capacity.expect("capacity")["storage"].0, "1Mi");
        assert_eq!(spec.node_affinity, None);
        let csi = spec.csi.expect("csi");
        assert_eq!((csi.fs_type, csi.read_only), (None, Some(true)));
    }
}
