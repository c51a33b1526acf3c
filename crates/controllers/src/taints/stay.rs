//! How long a pod may stay on a node with `NoExecute` taints: pure.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Taint, Toleration};
use resources::taints;

/// How long a pod may stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stay {
    /// As long as it likes.
    Forever,
    /// So long since the taints came, or the pod.
    For(Duration),
}

/// How long these tolerations let a pod stay beside these taints: not at all if one isn't tolerated, else as long as the
/// most impatient of the tolerations that are needed says. Each taint needs the first toleration that takes it.
pub fn stay<'a>(on_node: impl IntoIterator<Item = &'a Taint>, tolerations: &[Toleration]) -> Stay {
    let mut stay = Stay::Forever;
    for taint in on_node.into_iter().filter(|taint| taint.effect == "NoExecute") {
        let Some(toleration) = tolerations.iter().find(|toleration| taints::tolerates(toleration, taint))
        else {
            return Stay::For(Duration::ZERO);
        };
        if let Some(seconds) = toleration.toleration_seconds {
            let patience = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
            stay = match stay {
                Stay::For(least) if least <= patience => stay,
                _ => Stay::For(patience),
            };
        }
    }
    stay
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn the_most_impatient_toleration_that_is_needed_decides() {
        let taint = |key: &str, effect: &str| json!({"key": key, "effect": effect});
        let tolerates = |key: &str, seconds: Option<i64>| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds});
        let (a, b) = (taint("a", "NoExecute"), taint("b", "NoExecute"));
        let seconds = |seconds| Stay::For(Duration::from_secs(seconds));
        let cases: [(Vec<Value>, Vec<Value>, Stay); 11] = [
            (vec![], vec![], Stay::Forever),
            (vec![taint("a", "NoSchedule"), taint("b", "PreferNoSchedule")], vec![], Stay::Forever),
            (vec![a.clone()], vec![], seconds(0)),
            (vec![a.clone()], vec![tolerates("b", None)], seconds(0)),
            (vec![a.clone()], vec![tolerates("a", None)], Stay::Forever),
            (vec![a.clone()], vec![json!({"operator": "Exists"})], Stay::Forever),
            (vec![a.clone()], vec![tolerates("a", Some(60))], seconds(60)),
            (vec![a.clone()], vec![tolerates("a", Some(-1))], seconds(0)),
            (
                vec![a.clone(), b.clone()],
                vec![tolerates("a", Some(60)), tolerates("b", Some(30))],
                seconds(30),
            ),
            (vec![a.clone(), b.clone()], vec![tolerates("a", Some(60)), tolerates("b", None)], seconds(60)),
            (vec![a, b], vec![tolerates("a", Some(60))], seconds(0)),
        ];
        for (on_node, tolerations, expected) in cases {
            let what = format!("{on_node:?} {tolerations:?}");
            let on_node: Vec<Taint> = serde_json::from_value(json!(on_node)).expect("taints");
            let tolerations: Vec<Toleration> =
                serde_json::from_value(json!(tolerations)).expect("tolerations");
            assert_eq!(stay(&on_node, &tolerations), expected, "{what}");
        }
    }
}
