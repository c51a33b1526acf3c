//! `nodeSelector` and node affinity, required and preferred.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{NodeSelectorTerm, Pod};
use resources::affinity;
use values::NodeSelector;

use super::{Asks, score, unfit};
use crate::cycle::Cycle;
use crate::nodes::NodeView;
use crate::reasons::{Reason, Whole};
use crate::world::Labels;

/// What a pod requires of its node, read once.
pub(super) struct Required<'a> {
    labels: Option<&'a Labels>,
    selector: Option<NodeSelector>,
}

impl<'a> Required<'a> {
    pub(super) fn of(pod: &'a Pod) -> Self {
        Self {
            labels: pod.spec.as_ref().and_then(|spec| spec.node_selector.as_ref()),
            selector: required(pod).map(|terms| NodeSelector::new(terms.iter().map(affinity::term))),
        }
    }

    fn is_nothing(&self) -> bool {
        self.labels.is_none() && self.selector.is_none()
    }

    /// Terms that can't be read take no node.
    pub(super) fn takes(&self, node: &NodeView<'_>) -> bool {
        let labelled =
            |wanted: &Labels| wanted.iter().all(|(key, value)| node.labels.get(key) == Some(value));
        self.labels.is_none_or(labelled)
            && self
                .selector
                .as_ref()
                .is_none_or(|selector| selector.matches(node.name, node.labels).unwrap_or(false))
    }
}

fn required(pod: &Pod) -> Option<&[NodeSelectorTerm]> {
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
    Some(&affinity.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms)
}

pub(super) fn filter<'c>(cycle: &'c Cycle<'c>) -> Result<Asks<'c>, Whole> {
    let rule = Required::of(cycle.pod);
    if rule.is_nothing() {
        return Ok(Asks::Nothing);
    }
    let filter = Box::new(move |node: &NodeView<'_>| match rule.takes(node) {
        true => Ok(()),
        false => unfit(Reason::Affinity),
    });
    match required(cycle.pod).and_then(named) {
        Some(names) if names.is_empty() => Err(Whole::new("pod affinity terms conflict")),
        Some(names) => Ok(Asks::Among(names, filter)),
        None => Ok(Asks::Each(filter)),
    }
}

/// The nodes that the terms name, if each of them does so by `matchFields`.
fn named(terms: &[NodeSelectorTerm]) -> Option<BTreeSet<String>> {
    let names_of = |term: &NodeSelectorTerm| -> Option<BTreeSet<String>> {
        let fields = term.match_fields.iter().flatten();
        let named = fields.filter(|field| field.key == "metadata.name" && field.operator == "In");
        let sets = named.map(|field| field.values.iter().flatten().cloned().collect::<BTreeSet<_>>());
        sets.reduce(|all, more| all.intersection(&more).cloned().collect())
    };
    let each: Option<Vec<_>> = terms.iter().map(names_of).collect();
    each.filter(|each| !each.is_empty()).map(|each| each.into_iter().flatten().collect())
}

/// The weights of all preferences that a node satisfies.
pub(super) fn score(cycle: &Cycle<'_>, nodes: &[NodeView<'_>]) -> Option<Vec<i64>> {
    let affinity = cycle.pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let preferred = affinity.preferred_during_scheduling_ignored_during_execution.as_deref()?;
    if preferred.is_empty() {
        return None;
    }
    let read = |one: &k8s_openapi::api::core::v1::PreferredSchedulingTerm| {
        Some((i64::from(one.weight), affinity::term(&one.preference).ok()?))
    };
    let terms: Vec<_> = preferred.iter().filter_map(read).collect();
    let sum = |node: &NodeView<'_>| {
        let satisfied = terms.iter().filter(|(_, term)| term.matches(node.name, node.labels));
        satisfied.map(|(weight, _)| weight).sum()
    };
    Some(score::most_best(nodes.iter().map(sum).collect()))
}
