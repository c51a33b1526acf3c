//! What a pod requests must be free on its node.

use resources::requests::Of;

use super::{Asks, No, score::BEST};
use crate::amounts::Amounts;
use crate::cycle::Cycle;
use crate::nodes::NodeView;
use crate::reasons::{Reason, Whole};

/// A pod that requests nothing fits a node that is full, as long as it takes one more pod.
pub(super) fn filter<'c>(cycle: &'c Cycle<'c>) -> Result<Asks<'c>, Whole> {
    let wanted = Amounts::of_pod(cycle.pod, Of::Spec);
    Ok(Asks::Each(Box::new(move |node| {
        let mut no = No { reasons: Vec::new(), resolvable: true };
        if node.usage.pods.len() as i64 >= node.max_pods {
            no.reasons.push(Reason::TooManyPods);
        }
        for (name, amount) in wanted.asked() {
            let has = node.allocatable.get(name);
            if amount > has.saturating_sub(node.usage.requested.get(name)) {
                no.reasons.push(Reason::Insufficient(name.to_owned()));
                no.resolvable &= amount <= has;
            }
        }
        if no.reasons.is_empty() { Ok(()) } else { Err(no) }
    })))
}

/// The share of CPU and memory that stays free beside the pod.
pub(super) fn score(cycle: &Cycle<'_>, nodes: &[NodeView<'_>]) -> Option<Vec<i64>> {
    let wanted = Amounts::of_pod(cycle.pod, Of::Spec);
    if wanted.is_zero() {
        return None;
    }
    let free = |has: i64, used: i64, wanted: i64| match has.saturating_sub(used).saturating_sub(wanted) {
        left if left > 0 => (i128::from(left) * i128::from(BEST) / i128::from(has)) as i64,
        _ => 0,
    };
    let score = |node: &NodeView<'_>| {
        let (has, used) = (node.allocatable, &node.usage.requested);
        (free(has.cpu, used.cpu, wanted.cpu) + free(has.memory, used.memory, wanted.memory)) / 2
    };
    Some(nodes.iter().map(score).collect())
}
