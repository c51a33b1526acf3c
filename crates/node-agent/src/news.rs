//! Which changes of a pod concern its node. What the agent writes itself must not wake it: a failure that is told in the
//! pod's status would be tried again at once, whatever its back-off says. Pure.

use k8s_openapi::{
    api::core::v1::{Pod, PodCondition},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use crate::status;

/// Whether the agent has to look at the pod because of this change.
pub(crate) fn concerns_node(old: &Pod, new: &Pod) -> bool {
    old.spec != new.spec
        || phase(old) != phase(new)
        || wanted(&old.metadata) != wanted(&new.metadata)
        || !of_others(old).eq(of_others(new))
}

/// What is written of an object at every change is left out.
fn wanted(metadata: &ObjectMeta) -> ObjectMeta {
    let (resource_version, managed_fields, generation) = (None, None, None);
    ObjectMeta { resource_version, managed_fields, generation, ..metadata.clone() }
}

fn phase(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.phase.as_deref()
}

/// Conditions that others have written.
fn of_others(pod: &Pod) -> impl Iterator<Item = &PodCondition> {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.filter(|condition| !status::OWN_CONDITIONS.contains(&&*condition.type_))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn own_writes_are_no_news() {
        let pod = |change: Value| -> Pod {
            let mut pod = json!({"metadata": {"name": "p", "resourceVersion": "1", "generation": 1},
                "spec": {"containers": []}, "status": {"phase": "Pending"}});
            for (pointer, value) in change.as_object().unwrap() {
                let (parent, key) = pointer.rsplit_once('/').unwrap();
                pod.pointer_mut(parent).unwrap()[key] = value.clone();
            }
            serde_json::from_value(pod).unwrap()
        };
        let condition = |kind: &str| json!([{"type": kind, "status": "False", "message": "again"}]);
        for (change, expected) in [
            (json!({}), false),
            (json!({"/metadata/resourceVersion": "2", "/metadata/generation": 2}), false),
            (json!({"/metadata/managedFields": [{"manager": "kubelet"}]}), false),
            (json!({"/status/containerStatuses": []}), false),
            (json!({"/status/conditions": condition("Ready")}), false),
            (json!({"/status/conditions": condition("orlop.dev/RecordsDamaged")}), false),
            (json!({"/status/conditions": condition("example.com/gate")}), true),
            (json!({"/status/phase": "Succeeded"}), true),
            (json!({"/metadata/annotations": {"a": "b"}}), true),
            (json!({"/metadata/deletionTimestamp": "2026-01-01T00:00:00Z"}), true),
            (json!({"/spec/hostNetwork": true}), true),
        ] {
            assert_eq!(concerns_node(&pod(json!({})), &pod(change.clone())), expected, "{change}");
        }
    }
}
