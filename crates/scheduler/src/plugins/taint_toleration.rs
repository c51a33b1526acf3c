//! Taints keep pods away that don't tolerate them, or are better avoided.

use k8s_openapi::api::core::v1::Toleration;
use resources::taints;

use super::{Asks, score, unfit};
use crate::cycle::Cycle;
use crate::nodes::NodeView;
use crate::reasons::{Reason, Whole};

pub(super) fn filter<'c>(cycle: &'c Cycle<'c>) -> Result<Asks<'c>, Whole> {
    Ok(Asks::Each(Box::new(|node| match is_kept_away(node, cycle.tolerations) {
        true => unfit(Reason::Taint),
        false => Ok(()),
    })))
}

/// Whether a taint of the node keeps out who has these tolerations.
pub(super) fn is_kept_away(node: &NodeView<'_>, tolerations: &[Toleration]) -> bool {
    let taints = taints::of(node.node).iter();
    taints.filter(|taint| taints::forbids(taint)).any(|taint| !taints::is_tolerated(taint, tolerations))
}

/// Fewer taints that the pod would rather avoid are better; tolerations of other effects don't count here.
pub(super) fn score(cycle: &Cycle<'_>, nodes: &[NodeView<'_>]) -> Option<Vec<i64>> {
    const AVOID: &str = "PreferNoSchedule";
    let counts = |toleration: &&Toleration| matches!(toleration.effect.as_deref(), None | Some("" | AVOID));
    let tolerations: Vec<Toleration> = cycle.tolerations.iter().filter(counts).cloned().collect();
    let avoided = |node: &NodeView<'_>| {
        let taints = taints::of(node.node).iter().filter(|taint| taint.effect == AVOID);
        taints.filter(|taint| !taints::is_tolerated(taint, &tolerations)).count() as i64
    };
    Some(score::fewest_best(nodes.iter().map(avoided).collect()))
}
