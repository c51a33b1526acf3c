//! What a set's spec says, with the defaults of fields that the API server fills in.

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::{Resource, ResourceExt};

/// A set whose spec is there.
#[derive(Clone, Copy)]
pub(super) struct Set<'a> {
    pub(super) object: &'a StatefulSet,
    pub(super) spec: &'a StatefulSetSpec,
}

impl<'a> Set<'a> {
    pub(super) fn of(object: &'a StatefulSet) -> Option<Self> {
        Some(Self { object, spec: object.spec.as_ref()? })
    }

    pub(super) fn name(&self) -> &'a str {
        self.object.metadata.name.as_deref().unwrap_or_default()
    }

    pub(super) fn uid(&self) -> &'a str {
        self.object.metadata.uid.as_deref().unwrap_or_default()
    }

    pub(super) fn is_going(&self) -> bool {
        self.object.metadata.deletion_timestamp.is_some()
    }

    pub(super) fn replicas(&self) -> i64 {
        i64::from(self.spec.replicas.unwrap_or(1)).max(0)
    }

    /// The lowest ordinal.
    pub(super) fn start(&self) -> i64 {
        self.spec.ordinals.as_ref().and_then(|ordinals| ordinals.start).map_or(0, i64::from).max(0)
    }

    /// Whether a pod of this ordinal is asked for.
    pub(super) fn asks_for(&self, ordinal: i64) -> bool {
        (self.start()..self.start() + self.replicas()).contains(&ordinal)
    }

    /// Whether pods start and end one after the other.
    pub(super) fn is_ordered(&self) -> bool {
        self.spec.pod_management_policy.as_deref() != Some("Parallel")
    }

    /// Whether the controller replaces pods of an older template itself.
    pub(super) fn rolls(&self) -> bool {
        let strategy = self.spec.update_strategy.as_ref().and_then(|strategy| strategy.type_.as_deref());
        strategy != Some("OnDelete")
    }

    /// Pods below this place keep the current template during a rolling update. `None`: the strategy does not say.
    pub(super) fn partition(&self) -> Option<i64> {
        let rolling = self.spec.update_strategy.as_ref()?.rolling_update.as_ref()?;
        Some(rolling.partition.map_or(0, i64::from))
    }

    /// How many pods may be unavailable during a rolling update; at least one.
    pub(super) fn max_unavailable(&self) -> i64 {
        let rolling =
            self.spec.update_strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
        let most = match rolling.and_then(|rolling| rolling.max_unavailable.as_ref()) {
            Some(IntOrString::Int(number)) => i64::from(*number),
            Some(IntOrString::String(percent)) => {
                let percent = percent.trim_end_matches('%').parse::<i64>().unwrap_or(0);
                self.replicas() * percent / 100
            }
            None => 1,
        };
        most.max(1)
    }

    pub(super) fn min_ready_seconds(&self) -> i64 {
        i64::from(self.spec.min_ready_seconds.unwrap_or(0))
    }

    /// Whether claims go with the set.
    pub(super) fn deletes_claims_when_deleted(&self) -> bool {
        let policy = self.spec.persistent_volume_claim_retention_policy.as_ref();
        policy.and_then(|policy| policy.when_deleted.as_deref()) == Some("Delete")
    }

    /// Whether claims go with pods that the set has no use for any more.
    pub(super) fn deletes_claims_when_scaled(&self) -> bool {
        let policy = self.spec.persistent_volume_claim_retention_policy.as_ref();
        policy.and_then(|policy| policy.when_scaled.as_deref()) == Some("Delete")
    }

    /// Whether an object's labels make it the set's.
    pub(super) fn selects(&self, object: &impl Resource) -> bool {
        resources::fit::selects(&self.spec.selector, object.meta().labels.as_ref())
    }

    /// Whether the set is an object's controller.
    pub(super) fn controls(&self, object: &impl Resource) -> bool {
        controller(object).is_some_and(|owner| owner.uid == self.uid())
    }

    pub(super) fn pod_name(&self, ordinal: i64) -> String {
        format!("{}-{ordinal}", self.name())
    }

    /// The ordinal of a pod name, if it is one of the set's.
    pub(super) fn ordinal(&self, pod: &str) -> Option<i64> {
        let (parent, ordinal) = parent_and_ordinal(pod)?;
        (parent == self.name()).then_some(ordinal)
    }

    /// The names of the claims of a pod.
    pub(super) fn claim_names(&self, ordinal: i64) -> impl Iterator<Item = String> + use<'a> {
        let name = self.name();
        let templates = self.spec.volume_claim_templates.iter().flatten();
        templates.map(move |template| format!("{}-{name}-{ordinal}", template.name_any()))
    }

    pub(super) fn template(&self) -> &'a PodTemplateSpec {
        &self.spec.template
    }
}

/// The reference that makes an object another's controller, whose foreground deletion waits for it.
pub(super) fn controlled_by<K: Resource<DynamicType = ()>>(object: &K) -> OwnerReference {
    OwnerReference { controller: Some(true), block_owner_deletion: Some(true), ..resources::owner(object) }
}

/// An object's controller.
pub(super) fn controller(object: &impl Resource) -> Option<&OwnerReference> {
    object.owner_references().iter().find(|owner| owner.controller == Some(true))
}

/// The set and the ordinal in the name of a pod: `db`, 3 of `db-3`.
pub(super) fn parent_and_ordinal(pod: &str) -> Option<(&str, i64)> {
    let (parent, ordinal) = pod.rsplit_once('-')?;
    let digits = !ordinal.is_empty() && ordinal.bytes().all(|byte| byte.is_ascii_digit());
    let canonical = ordinal == "0" || !ordinal.starts_with('0');
    let ordinal = ordinal.parse::<i32>().ok().filter(|_| digits && canonical)?;
    Some((parent, i64::from(ordinal)))
}

/// The sets and template names that a claim's name may come from: names may contain dashes.
pub(super) fn origins(claim: &str) -> impl Iterator<Item = (&str, &str)> {
    let stem = parent_and_ordinal(claim).map_or("", |(stem, _)| stem);
    stem.match_indices('-').map(move |(at, _)| (&stem[at + 1..], &stem[..at]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_where_they_come_from() {
        for (pod, expected) in [
            ("db-3", Some(("db", 3))),
            ("a-b-10", Some(("a-b", 10))),
            ("db-03", None),
            ("db-", None),
            ("db-x", None),
            ("db", None),
            ("db-99999999999", None),
        ] {
            assert_eq!(parent_and_ordinal(pod), expected, "{pod}");
        }
        assert_eq!(origins("data-my-db-0").collect::<Vec<_>>(), [("my-db", "data"), ("db", "data-my")]);
        assert_eq!(origins("data").count(), 0);
    }
}
