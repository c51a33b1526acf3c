//! Pods near to each other, and apart: what a pod asks of others, and what others ask of it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::{Asks, score::BEST, taken, unfit};
use crate::cycle::Cycle;
use crate::nodes::NodeView;
use crate::reasons::{Reason, Whole};
use crate::terms::Term;
use crate::world::Labels;

/// A label of nodes and its value: what lies there is near to each other.
type Domain<'c> = (&'c str, &'c str);

/// What a pod's required terms come to in the world as it is.
#[derive(Default)]
struct Found<'c> {
    required: &'c [Arc<Term>],
    /// Where pods are that all required terms are about.
    near: HashSet<Domain<'c>>,
    /// No pod is near, and the pod would be the first of those that it asks for.
    is_first: bool,
    forbidden: &'c [Arc<Term>],
    /// Where pods are that the pod won't be near to.
    apart: HashSet<Domain<'c>>,
    /// Where pods are that won't have the pod near.
    refused: HashSet<Domain<'c>>,
}

pub(super) fn filter<'c>(cycle: &'c Cycle<'c>) -> Result<Asks<'c>, Whole> {
    let mut found = Found { refused: refused(cycle), ..Found::default() };
    if let Some(own) = &cycle.neighbours {
        (found.required, found.forbidden) = (&own.required, &own.forbidden);
        found.near = near(cycle, &own.required);
        found.is_first =
            found.near.is_empty() && own.required.iter().all(|term| term.takes(cycle.pod, &namespace(cycle)));
        found.apart = own.forbidden.iter().flat_map(|term| domains_of(cycle, term)).collect();
    }
    if found.required.is_empty() && found.apart.is_empty() && found.refused.is_empty() {
        return Ok(Asks::Nothing);
    }
    Ok(Asks::Each(Box::new(move |node| found.judge(node))))
}

impl Found<'_> {
    fn judge(&self, node: &NodeView<'_>) -> super::Verdict {
        let has_keys = self.required.iter().all(|term| node.labels.contains_key(&term.topology_key));
        if !has_keys || !(self.is_first || self.required.iter().all(|term| is_in(&self.near, term, node))) {
            return unfit(Reason::PodAffinity);
        }
        if self.forbidden.iter().any(|term| is_in(&self.apart, term, node)) {
            return taken(Reason::PodAntiAffinity);
        }
        if !self.refused.is_empty()
            && node.labels.iter().any(|(key, value)| self.refused.contains(&(key.as_str(), value.as_str())))
        {
            return taken(Reason::ExistingAntiAffinity);
        }
        Ok(())
    }
}

fn is_in(domains: &HashSet<Domain<'_>>, term: &Term, node: &NodeView<'_>) -> bool {
    let value = node.labels.get(&term.topology_key);
    value.is_some_and(|value| domains.contains(&(term.topology_key.as_str(), value.as_str())))
}

fn namespace(cycle: &Cycle<'_>) -> Arc<Labels> {
    cycle.world.namespace_labels(&cycle.key.namespace)
}

/// A node's domain for a key.
fn domain<'c>(cycle: &Cycle<'c>, key: &'c str, node: &str) -> Option<Domain<'c>> {
    Some((key, cycle.world.nodes.labels(node)?.get(key)?))
}

/// Where the pods are that all terms are about: one that only some are about doesn't count.
fn near<'c>(cycle: &'c Cycle<'_>, terms: &'c [Arc<Term>]) -> HashSet<Domain<'c>> {
    let Some((first, others)) = terms.split_first() else { return HashSet::new() };
    let world = cycle.world;
    let labels = |name: &str| world.namespace_labels(name);
    let taken = |pod: &k8s_openapi::api::core::v1::Pod| {
        let namespace = labels(pod.metadata.namespace.as_deref().unwrap_or_default());
        others.iter().all(|term| term.takes(pod, &namespace))
    };
    let pods = world.placed.taken_by(first, labels).filter(|placed| others.is_empty() || taken(&placed.pod));
    let nodes: HashSet<&str> = pods.map(|placed| placed.node.as_str()).collect();
    let domains =
        nodes.iter().flat_map(|node| terms.iter().filter_map(|term| domain(cycle, &term.topology_key, node)));
    domains.collect()
}

/// Where the pods are that one term is about.
fn domains_of<'c>(cycle: &'c Cycle<'_>, term: &'c Term) -> Vec<Domain<'c>> {
    let world = cycle.world;
    let pods = world.placed.taken_by(term, |name| world.namespace_labels(name));
    let nodes: HashSet<&str> = pods.map(|placed| placed.node.as_str()).collect();
    nodes.into_iter().filter_map(|node| domain(cycle, &term.topology_key, node)).collect()
}

/// Where pods are whose required anti-affinity is about this pod.
fn refused<'c>(cycle: &'c Cycle<'_>) -> HashSet<Domain<'c>> {
    let namespace = namespace(cycle);
    let terms = cycle.world.placed.forbidding().filter(|(term, _)| term.takes(cycle.pod, &namespace));
    terms.flat_map(|(term, nodes)| nodes.filter_map(|node| domain(cycle, &term.topology_key, node))).collect()
}

/// What the pod prefers to be near to or apart from, and what others want of it.
pub(super) fn score(cycle: &Cycle<'_>, nodes: &[NodeView<'_>]) -> Option<Vec<i64>> {
    let world = cycle.world;
    let mut weights: HashMap<Domain<'_>, i64> = HashMap::new();
    let mut add = |key: &'_ str, node: &str, weight: i64| {
        if let Some((key, value)) = world.nodes.labels(node).and_then(|labels| labels.get_key_value(key)) {
            *weights.entry((key.as_str(), value.as_str())).or_default() += weight;
        }
    };
    for (weight, term) in cycle.neighbours.iter().flat_map(|own| &own.preferred) {
        for placed in world.placed.taken_by(term, |name| world.namespace_labels(name)) {
            add(&term.topology_key, &placed.node, *weight);
        }
    }
    let namespace = namespace(cycle);
    for (term, on) in world.placed.attracting().filter(|(term, _)| term.takes(cycle.pod, &namespace)) {
        on.for_each(|(node, weight)| add(&term.topology_key, node, weight));
    }
    if weights.is_empty() {
        return None;
    }
    let sum = |node: &NodeView<'_>| -> i64 {
        node.labels.iter().filter_map(|(key, value)| weights.get(&(key.as_str(), value.as_str()))).sum()
    };
    let raw: Vec<i64> = nodes.iter().map(sum).collect();
    let (least, most) = (raw.iter().min().copied()?, raw.iter().max().copied()?);
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "kube-scheduler's rounding"
    )]
    let share = |score: i64| match most - least {
        0 => 0,
        range => (BEST as f64 * ((score - least) as f64 / range as f64)) as i64,
    };
    Some(raw.into_iter().map(share).collect())
}
