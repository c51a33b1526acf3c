//! What to do about a volume that this driver made: pure.

use k8s_openapi::api::core::v1::PersistentVolume;
use kube::ResourceExt;
use resources::{finalizers, volume};

/// What a provisioner does about a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// Nothing: it is in use, retained, or somebody else's.
    Nothing,
    /// Keep its object until the storage is deleted.
    AddFinalizer,
    /// Let its object go: the storage is to be retained.
    DropFinalizer,
    /// Delete the storage, then the object.
    Delete,
}

/// Decides about a volume.
///
/// With our finalizer, a volume whose object is deleted before its claim is deleted like any other: it stays until
/// the claim is gone, becomes Released, and comes here.
pub(super) fn plan(of: &PersistentVolume, driver: &str) -> Plan {
    if volume::provisioned_by(of) != Some(driver) {
        return Plan::Nothing;
    }
    let deleting = of.metadata.deletion_timestamp.is_some();
    let is_kept = of.finalizers().iter().any(|name| name == finalizers::PROVISIONER);
    let is_protected = of.finalizers().iter().any(|name| name == finalizers::VOLUME_PROTECTION);
    match (volume::reclaim_policy(of), volume::phase(of)) {
        // Without our finalizer, an object on its way out has nothing behind it any more.
        ("Delete", "Released") if is_kept || !deleting => Plan::Delete,
        // Its object was deleted before it was bound, or after it was freed. Nothing is bound to what goes.
        ("Delete", phase) if is_kept && deleting && !is_protected && phase != "Bound" => Plan::Delete,
        ("Delete", _) if !is_kept && !deleting => Plan::AddFinalizer,
        ("Delete", _) => Plan::Nothing,
        _ if is_kept => Plan::DropFinalizer,
        _ => Plan::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{PersistentVolumeSpec, PersistentVolumeStatus};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
    use k8s_openapi::jiff::Timestamp;
    use resources::annotations;

    use super::*;

    #[test]
    fn only_released_volumes_and_those_never_bound_are_deleted_under_policy_delete() {
        for (policy, phase, kept, deleting, expected) in [
            ("Delete", "Released", true, false, Plan::Delete),
            ("Delete", "Released", true, true, Plan::Delete),
            ("Delete", "Released", false, false, Plan::Delete),
            ("Delete", "Released", false, true, Plan::Nothing),
            ("Delete", "Bound", true, false, Plan::Nothing),
            ("Delete", "Bound", true, true, Plan::Nothing),
            ("Delete", "Failed", true, false, Plan::Nothing),
            ("Delete", "Available", true, false, Plan::Nothing),
            ("Delete", "Available", true, true, Plan::Delete),
            ("Delete", "", true, true, Plan::Delete),
            ("Delete", "Bound", false, false, Plan::AddFinalizer),
            ("Delete", "Bound", false, true, Plan::Nothing),
            ("Retain", "Released", true, false, Plan::DropFinalizer),
            ("Retain", "Released", true, true, Plan::DropFinalizer),
            ("Retain", "Released", false, false, Plan::Nothing),
        ] {
            let volume = |driver: &str| PersistentVolume {
                metadata: ObjectMeta {
                    annotations: Some([(annotations::PROVISIONED_BY.to_owned(), driver.to_owned())].into()),
                    finalizers: kept.then(|| vec![finalizers::PROVISIONER.to_owned()]),
                    deletion_timestamp: deleting.then_some(Time(Timestamp::UNIX_EPOCH)),
                    ..ObjectMeta::default()
                },
                spec: Some(PersistentVolumeSpec {
                    persistent_volume_reclaim_policy: Some(policy.to_owned()),
                    ..PersistentVolumeSpec::default()
                }),
                status: Some(PersistentVolumeStatus {
                    phase: Some(phase.to_owned()),
                    ..PersistentVolumeStatus::default()
                }),
            };
            assert_eq!(
                plan(&volume("orlop.dev"), "orlop.dev"),
                expected,
                "{policy} {phase} {kept} {deleting}"
            );
            assert_eq!(plan(&volume("nfs.example.com"), "orlop.dev"), Plan::Nothing);
            // Protected: it may be bound this moment.
            let mut protected = volume("orlop.dev");
            protected.finalizers_mut().push(finalizers::VOLUME_PROTECTION.to_owned());
            if phase != "Released" && deleting {
                assert!(plan(&protected, "orlop.dev") != Plan::Delete, "{policy} {phase}");
            }
        }
    }
}
