//! Taints of nodes and tolerations of pods: asked by the scheduler, and by what evicts.

use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};

/// The taint that stands for cordoning.
pub const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// The taint of a node whose agent says that it isn't ready.
pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
/// The taint of a node whose agent says nothing any more.
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

/// A node's taints.
pub fn of(node: &Node) -> &[Taint] {
    node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default()
}

/// What a pod tolerates.
pub fn tolerations(pod: &Pod) -> &[Toleration] {
    pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default()
}

/// Whether a toleration takes a taint. Without an effect it takes each, without a key (`Exists` then) every taint.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let same_or_empty =
        |field: &Option<String>, is: &str| field.as_deref().is_none_or(|text| text.is_empty() || text == is);
    let value_fits = match toleration.operator.as_deref().unwrap_or_default() {
        "" | "Equal" => {
            toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default()
        }
        "Exists" => true,
        _ => false,
    };
    same_or_empty(&toleration.effect, &taint.effect)
        && same_or_empty(&toleration.key, &taint.key)
        && value_fits
}

/// Whether some toleration takes a taint.
pub fn is_tolerated(taint: &Taint, tolerations: &[Toleration]) -> bool {
    tolerations.iter().any(|toleration| tolerates(toleration, taint))
}

/// Whether a taint keeps new pods away.
pub fn forbids(taint: &Taint) -> bool {
    matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn tolerations_take_taints_by_key_value_and_effect() {
        let taint = json!({"key": "disk", "value": "slow", "effect": "NoSchedule"});
        let taint: Taint = serde_json::from_value(taint).expect("a taint");
        let cases: [(Value, bool); 9] = [
            (json!({"operator": "Exists"}), true),
            (json!({"key": "disk", "operator": "Exists"}), true),
            (json!({"key": "disk", "operator": "Exists", "effect": "NoExecute"}), false),
            (json!({"key": "disk", "value": "slow"}), true),
            (json!({"key": "disk", "operator": "Equal", "value": "slow", "effect": "NoSchedule"}), true),
            (json!({"key": "disk", "value": "fast"}), false),
            (json!({"key": "disk"}), false),
            (json!({"key": "cpu", "operator": "Exists"}), false),
            (json!({"key": "disk", "operator": "Gt", "value": "slow"}), false),
        ];
        for (toleration, taken) in cases {
            let what = toleration.to_string();
            let toleration: Toleration = serde_json::from_value(toleration).expect("a toleration");
            assert_eq!(tolerates(&toleration, &taint), taken, "{what}");
        }
    }
}
