//! What a node itself says about a pod.

use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use kube::ResourceExt;
use resources::affinity;

use crate::reasons::Reason;
use crate::world::Labels;

/// Whether a node takes a pod, volumes aside.
///
/// # Errors
/// Why not.
pub(crate) fn takes(node: &Node, labels: &Labels, pod: &Pod) -> Result<(), Reason> {
    let spec = pod.spec.as_ref();
    let tolerations = spec.and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    let node_spec = node.spec.as_ref();
    if node_spec.is_some_and(|spec| spec.unschedulable == Some(true)) && !tolerated(&cordon(), tolerations) {
        return Err(Reason::Unschedulable);
    }
    let taints = node_spec.and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let forbids = |taint: &&Taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute");
    if taints.iter().filter(forbids).any(|taint| !tolerated(taint, tolerations)) {
        return Err(Reason::Taint);
    }
    if !is_ready(node) {
        return Err(Reason::NotReady);
    }
    let wanted = spec.and_then(|spec| spec.node_selector.as_ref());
    let selected =
        wanted.is_none_or(|wanted| wanted.iter().all(|(key, value)| labels.get(key) == Some(value)));
    let required = spec.and_then(|spec| {
        spec.affinity
            .as_ref()?
            .node_affinity
            .as_ref()?
            .required_during_scheduling_ignored_during_execution
            .as_ref()
    });
    if !selected || required.is_some_and(|selector| !affinity::admits(selector, &node.name_any(), labels)) {
        return Err(Reason::Affinity);
    }
    Ok(())
}

/// Whether a node's agent says that it is ready. One that never said anything is taken to be.
pub(crate) fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().find(|condition| condition.type_ == "Ready").is_none_or(|ready| ready.status == "True")
}

/// The taint that cordoning stands for.
fn cordon() -> Taint {
    Taint {
        key: "node.kubernetes.io/unschedulable".to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Taint::default()
    }
}

fn tolerated(taint: &Taint, tolerations: &[Toleration]) -> bool {
    tolerations.iter().any(|toleration| {
        let empty_or = |field: &Option<String>, is: &str| {
            field.as_deref().is_none_or(|text| text.is_empty() || text == is)
        };
        let exists = toleration.operator.as_deref() == Some("Exists");
        let same_value =
            toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default();
        let key_fits = if exists {
            empty_or(&toleration.key, &taint.key)
        } else {
            toleration.key.as_deref() == Some(taint.key.as_str())
        };
        empty_or(&toleration.effect, &taint.effect) && key_fits && (exists || same_value)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn nodes_take_pods_by_cordon_taints_readiness_and_labels() {
        let taint =
            |effect: &str| json!({"spec": {"taints": [{"key": "disk", "value": "slow", "effect": effect}]}});
        let tolerates = |toleration: Value| json!({"tolerations": [toleration]});
        let requires = |operator: &str| {
            json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": operator, "values": ["a"]}]}]}}}})
        };
        let ready = |status: &str| json!({"status": {"conditions": [{"type": "Ready", "status": status}]}});
        let (any, no) = (|| json!({}), Err);
        let cases = [
            (any(), any(), Ok(())),
            (json!({"spec": {"unschedulable": true}}), any(), no(Reason::Unschedulable)),
            (
                json!({"spec": {"unschedulable": true}}),
                tolerates(json!({"key": "node.kubernetes.io/unschedulable", "operator": "Exists"})),
                Ok(()),
            ),
            (taint("NoSchedule"), any(), no(Reason::Taint)),
            (taint("NoExecute"), any(), no(Reason::Taint)),
            (taint("PreferNoSchedule"), any(), Ok(())),
            (taint("NoSchedule"), tolerates(json!({"operator": "Exists"})), Ok(())),
            (taint("NoSchedule"), tolerates(json!({"key": "disk", "value": "slow"})), Ok(())),
            (taint("NoSchedule"), tolerates(json!({"key": "disk", "value": "fast"})), no(Reason::Taint)),
            (
                taint("NoSchedule"),
                tolerates(json!({"key": "disk", "operator": "Exists", "effect": "NoExecute"})),
                no(Reason::Taint),
            ),
            (ready("True"), any(), Ok(())),
            (ready("False"), any(), no(Reason::NotReady)),
            (ready("Unknown"), any(), no(Reason::NotReady)),
            (any(), json!({"nodeSelector": {"zone": "a"}}), Ok(())),
            (any(), json!({"nodeSelector": {"zone": "b"}}), no(Reason::Affinity)),
            (any(), requires("In"), Ok(())),
            (any(), requires("NotIn"), no(Reason::Affinity)),
        ];
        for (node, spec, taken) in cases {
            let mut node = node;
            node["metadata"] = json!({"name": "n", "labels": {"zone": "a"}});
            let mut pod = json!({"metadata": {"name": "p"}, "spec": spec});
            pod["spec"]["containers"] = json!([]);
            let what = format!("{node} {pod}");
            let node: Node = serde_json::from_value(node).expect("a node");
            let pod: Pod = serde_json::from_value(pod).expect("a pod");
            let labels = node.metadata.labels.clone().unwrap_or_default();
            assert_eq!(takes(&node, &labels, &pod), taken, "{what}");
        }
    }
}
