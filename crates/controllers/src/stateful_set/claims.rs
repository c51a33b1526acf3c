//! The claims of a set's pods: their names, and who owns them by the set's retention policy.

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::{Resource, ResourceExt};

use super::set::{Set, controlled_by};

/// The claims that a pod of the set needs, as they are to be created. A claim that shall go with the set is the set's
/// from the start.
pub(super) fn wanted(set: &Set<'_>, ordinal: i64) -> Vec<PersistentVolumeClaim> {
    let templates = set.spec.volume_claim_templates.iter().flatten();
    let owned = set.deletes_claims_when_deleted();
    templates
        .zip(set.claim_names(ordinal))
        .map(|(template, name)| {
            let mut labels = template.metadata.labels.clone().unwrap_or_default();
            labels.extend(set.spec.selector.match_labels.clone().unwrap_or_default());
            PersistentVolumeClaim {
                metadata: ObjectMeta {
                    name: Some(name),
                    namespace: set.object.namespace(),
                    labels: Some(labels).filter(|labels| !labels.is_empty()),
                    annotations: template.metadata.annotations.clone(),
                    finalizers: template.metadata.finalizers.clone(),
                    owner_references: owned.then(|| vec![controlled_by(set.object)]),
                    ..ObjectMeta::default()
                },
                spec: template.spec.clone(),
                status: None,
            }
        })
        .collect()
}

fn names<K: Resource<DynamicType = ()>>(owner: &OwnerReference, object: &K) -> bool {
    owner.api_version == K::api_version(&())
        && owner.kind == K::kind(&())
        && Some(&owner.name) == object.meta().name.as_ref()
}

fn is_of<K: Resource<DynamicType = ()>>(owner: &OwnerReference, object: &K) -> bool {
    Some(&owner.uid) == object.meta().uid.as_ref()
}

/// Whether a claim belongs to an earlier pod of that name, with which it is about to go.
pub(super) fn belongs_to_earlier_pod(
    claim: &PersistentVolumeClaim,
    pod_name: &str,
    uid: Option<&str>,
) -> bool {
    claim.owner_references().iter().any(|owner| {
        owner.kind == "Pod" && owner.api_version == "v1" && owner.name == pod_name && Some(&*owner.uid) != uid
    })
}

/// What the retention policy asks of a claim's owners.
#[derive(Debug, PartialEq)]
pub(super) enum Ownership {
    /// They are as they shall be, or not the set's business.
    Right,
    /// They shall be these.
    Change(Vec<OwnerReference>),
    /// Somebody else controls the claim: the set's own references go, and its policy does not hold.
    Contested(Vec<OwnerReference>),
}

/// Compares the owners of a pod's claim with the retention policy.
///
/// | whenScaled | whenDeleted | owner of a claim in use | owner when its pod is not asked for |
/// |---|---|---|---|
/// | Retain | Retain | none | none |
/// | Retain | Delete | set | set |
/// | Delete | Retain | none | pod |
/// | Delete | Delete | set | pod |
pub(super) fn ownership(
    claim: &PersistentVolumeClaim,
    set: &Set<'_>,
    pod: &Pod,
    asked_for: bool,
) -> Ownership {
    let owners = claim.owner_references();
    // References to a set or pod of the same name that is gone: the collector's to deal with.
    let stale = |owner: &OwnerReference| {
        (names(owner, set.object) && !is_of(owner, set.object)) || (names(owner, pod) && !is_of(owner, pod))
    };
    if owners.iter().any(stale) {
        return Ownership::Right;
    }
    let ours = |owner: &OwnerReference| names(owner, set.object) || names(owner, pod);
    let others: Vec<_> = owners.iter().filter(|owner| !ours(owner)).cloned().collect();
    let (scaled, deleted) = (set.deletes_claims_when_scaled(), set.deletes_claims_when_deleted());
    if (scaled || deleted) && others.iter().any(|owner| owner.controller == Some(true)) {
        let is_ours = others.len() < owners.len();
        return if is_ours { Ownership::Contested(others) } else { Ownership::Right };
    }
    let owner = match (scaled, deleted, asked_for) {
        (true, _, false) => Some(controlled_by(pod)),
        (_, true, _) => Some(controlled_by(set.object)),
        _ => None,
    };
    let same = |owner: &OwnerReference, wanted: &OwnerReference| {
        owner.uid == wanted.uid && owner.controller == Some(true)
    };
    let present: Vec<_> = owners.iter().filter(|owner| ours(owner)).collect();
    let is_right = match &owner {
        None => present.is_empty(),
        Some(wanted) => present.len() == 1 && same(present[0], wanted),
    };
    if is_right {
        return Ownership::Right;
    }
    Ownership::Change(others.into_iter().chain(owner).collect())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::StatefulSet;
    use serde_json::json;

    use super::*;

    fn set(scaled: &str, deleted: &str) -> StatefulSet {
        serde_json::from_value(json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db", "uid": "s"},
            "spec": {
                "selector": {"matchLabels": {"app": "db"}}, "template": {},
                "persistentVolumeClaimRetentionPolicy": {"whenScaled": scaled, "whenDeleted": deleted},
                "volumeClaimTemplates": [{"metadata": {"name": "data", "labels": {"tier": "x"}}, "spec": {}}],
            },
        }))
        .unwrap()
    }

    fn reference(kind: &str, name: &str, uid: &str, controller: bool) -> OwnerReference {
        let api_version = if kind == "Pod" { "v1" } else { "apps/v1" };
        serde_json::from_value(json!({"apiVersion": api_version, "kind": kind, "name": name, "uid": uid,
            "controller": controller, "blockOwnerDeletion": true}))
        .unwrap()
    }

    #[test]
    fn claims_are_named_and_labelled_by_set_and_template() {
        let object = set("Retain", "Delete");
        let set = Set::of(&object).unwrap();
        let claim = &wanted(&set, 3)[0];
        assert_eq!(claim.name_any(), "data-db-3");
        assert_eq!(json!(claim.labels()), json!({"app": "db", "tier": "x"}));
        assert_eq!(claim.owner_references(), [controlled_by(&object)]);
    }

    #[test]
    fn the_policy_decides_who_owns_a_claim() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "db-0", "uid": "p"}})).unwrap();
        let (of_set, of_pod) =
            (reference("StatefulSet", "db", "s", true), reference("Pod", "db-0", "p", true));
        let foreign = reference("Backup", "b", "x", true);
        let admirer = reference("Backup", "b", "x", false);
        let right = || Ownership::Right;
        let change = |owners: &[&OwnerReference]| {
            Ownership::Change(owners.iter().map(|owner| (*owner).clone()).collect())
        };
        let cases = [
            ("Retain", "Retain", true, vec![], right()),
            ("Retain", "Retain", true, vec![&of_set], change(&[])),
            ("Retain", "Retain", true, vec![&foreign], right()),
            ("Retain", "Delete", true, vec![], change(&[&of_set])),
            ("Retain", "Delete", true, vec![&of_set], right()),
            ("Retain", "Delete", false, vec![&of_set], right()),
            ("Retain", "Delete", false, vec![&of_pod], change(&[&of_set])),
            ("Delete", "Retain", true, vec![], right()),
            ("Delete", "Retain", false, vec![], change(&[&of_pod])),
            ("Delete", "Retain", true, vec![&of_pod], change(&[])),
            ("Delete", "Delete", true, vec![&of_pod], change(&[&of_set])),
            ("Delete", "Delete", false, vec![&of_set], change(&[&of_pod])),
            ("Delete", "Delete", false, vec![&admirer, &of_set], change(&[&admirer, &of_pod])),
            ("Retain", "Delete", true, vec![&foreign], right()),
            ("Retain", "Delete", true, vec![&foreign, &of_set], Ownership::Contested(vec![foreign.clone()])),
        ];
        for (scaled, deleted, asked_for, owners, expected) in cases {
            let object = set(scaled, deleted);
            let claim = PersistentVolumeClaim {
                metadata: ObjectMeta {
                    owner_references: Some(owners.into_iter().cloned().collect()),
                    ..ObjectMeta::default()
                },
                ..PersistentVolumeClaim::default()
            };
            let found = ownership(&claim, &Set::of(&object).unwrap(), &pod, asked_for);
            assert_eq!(found, expected, "{scaled} {deleted} {asked_for} {:?}", claim.owner_references());
        }
        let stale = reference("StatefulSet", "db", "earlier", true);
        let claim = PersistentVolumeClaim {
            metadata: ObjectMeta { owner_references: Some(vec![stale]), ..ObjectMeta::default() },
            ..PersistentVolumeClaim::default()
        };
        let object = set("Retain", "Delete");
        assert_eq!(ownership(&claim, &Set::of(&object).unwrap(), &pod, true), Ownership::Right);
    }
}
