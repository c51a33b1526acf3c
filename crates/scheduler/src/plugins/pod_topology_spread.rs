//! Pods spread evenly over zones, hosts, or whatever a label of nodes tells apart.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::TopologySpreadConstraint;
use values::{LabelSelector, Operator, Requirement};

use super::node_affinity::Required;
use super::taint_toleration::is_kept_away;
use super::{Asks, score::BEST, taken, unfit};
use crate::cycle::Cycle;
use crate::nodes::NodeView;
use crate::reasons::{Reason, Whole};
use crate::terms;
use crate::world::World;

const HOST: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

/// A constraint read for a pod.
struct Constraint<'c> {
    key: &'c str,
    max_skew: i64,
    min_domains: i64,
    /// `None` takes no pod.
    selector: Option<LabelSelector>,
    honours_affinity: bool,
    honours_taints: bool,
}

impl<'c> Constraint<'c> {
    fn of(cycle: &Cycle<'_>, constraint: &'c TopologySpreadConstraint) -> Self {
        let honours =
            |policy: &Option<String>, default: &str| policy.as_deref().unwrap_or(default) == "Honor";
        let mut selector = constraint.label_selector.as_ref().and_then(terms::selector);
        let own = constraint.match_label_keys.iter().flatten();
        for (key, value) in own.filter_map(|key| cycle.labels.get_key_value(key)) {
            selector = selector.and_then(|selector| narrowed(&selector, key, value));
        }
        Self {
            key: &constraint.topology_key,
            max_skew: constraint.max_skew.into(),
            min_domains: constraint.min_domains.unwrap_or(1).into(),
            selector,
            honours_affinity: honours(&constraint.node_affinity_policy, "Honor"),
            honours_taints: honours(&constraint.node_taints_policy, "Ignore"),
        }
    }

    /// Whether the pods of a node count.
    fn includes(&self, cycle: &Cycle<'_>, required: &Required<'_>, node: &NodeView<'_>) -> bool {
        (!self.honours_affinity || required.takes(node))
            && (!self.honours_taints || !is_kept_away(node, cycle.tolerations))
    }

    /// The pods that count, by node: those of the pod's namespace that don't go away.
    fn pods_by_node<'w>(&self, cycle: &Cycle<'w>) -> HashMap<&'w str, i64> {
        let mut counts = HashMap::new();
        // An empty selector, which takes every pod, counts none.
        let Some(selector) = self.selector.as_ref().filter(|selector| !selector.is_empty()) else {
            return counts;
        };
        let world: &'w World = cycle.world;
        for placed in world.placed.selected(&cycle.key.namespace, selector) {
            if placed.pod.metadata.deletion_timestamp.is_none() {
                *counts.entry(placed.node.as_str()).or_default() += 1;
            }
        }
        counts
    }
}

fn narrowed(selector: &LabelSelector, key: &str, value: &str) -> Option<LabelSelector> {
    let own = Requirement::new(key, Operator::In, [value]).ok()?;
    Some(selector.requirements().iter().cloned().chain([own]).collect())
}

fn constraints<'c>(cycle: &'c Cycle<'_>, mode: &str) -> Vec<Constraint<'c>> {
    let all = cycle.pod.spec.as_ref().and_then(|spec| spec.topology_spread_constraints.as_deref());
    let wanted = all.unwrap_or_default().iter().filter(|constraint| constraint.when_unsatisfiable == mode);
    wanted.map(|constraint| Constraint::of(cycle, constraint)).collect()
}

fn has_all_keys(node: &NodeView<'_>, constraints: &[Constraint<'_>]) -> bool {
    constraints.iter().all(|constraint| node.labels.contains_key(constraint.key))
}

/// Pods per value of a constraint's key, over the nodes that count.
#[derive(Default)]
struct Domains<'w> {
    pods: HashMap<&'w str, i64>,
    least: i64,
    own: i64,
}

/// A node must not have more pods than the emptiest domain and the allowed skew.
pub(super) fn filter<'c>(cycle: &'c Cycle<'c>) -> Result<Asks<'c>, Whole> {
    let constraints = constraints(cycle, "DoNotSchedule");
    if constraints.is_empty() {
        return Ok(Asks::Nothing);
    }
    let required = Required::of(cycle.pod);
    let by_node: Vec<_> = constraints.iter().map(|constraint| constraint.pods_by_node(cycle)).collect();
    let mut domains: Vec<Domains<'_>> = constraints.iter().map(|_| Domains::default()).collect();
    for node in cycle.world.nodes.all(&cycle.world.placed).filter(|node| has_all_keys(node, &constraints)) {
        for (index, constraint) in constraints.iter().enumerate() {
            if constraint.includes(cycle, &required, &node)
                && let Some(value) = node.labels.get(constraint.key)
            {
                let pods = by_node[index].get(node.name).copied().unwrap_or_default();
                *domains[index].pods.entry(value.as_str()).or_default() += pods;
            }
        }
    }
    for (constraint, domains) in constraints.iter().zip(&mut domains) {
        let enough = domains.pods.len() as i64 >= constraint.min_domains;
        domains.least = domains.pods.values().copied().min().filter(|_| enough).unwrap_or_default();
        let selects = |selector: &LabelSelector| selector.matches_labels(Some(cycle.labels));
        domains.own = constraint.selector.as_ref().is_some_and(selects).into();
    }
    Ok(Asks::Each(Box::new(move |node| {
        for (constraint, domains) in constraints.iter().zip(&domains) {
            let Some(value) = node.labels.get(constraint.key) else { return unfit(Reason::SpreadKey) };
            let pods = domains.pods.get(value.as_str()).copied().unwrap_or_default();
            if pods + domains.own - domains.least > constraint.max_skew {
                return taken(Reason::Spread);
            }
        }
        Ok(())
    })))
}

/// Fewer pods of the same kind in the node's domain are better.
pub(super) fn score(cycle: &Cycle<'_>, nodes: &[NodeView<'_>]) -> Option<Vec<i64>> {
    let has_own = cycle.pod.spec.as_ref().and_then(|spec| spec.topology_spread_constraints.as_ref());
    let has_own = has_own.is_some_and(|constraints| !constraints.is_empty());
    let constraints =
        if has_own { constraints(cycle, "ScheduleAnyway") } else { default_constraints(cycle)? };
    if constraints.is_empty() {
        return None;
    }
    // The default constraints also serve where nodes have no zones.
    let counts = |node: &NodeView<'_>| !has_own || has_all_keys(node, &constraints);
    let scored: Vec<&NodeView<'_>> = nodes.iter().filter(|node| counts(node)).collect();
    let required = Required::of(cycle.pod);
    let mut raw: HashMap<&str, f64> = scored.iter().map(|node| (node.name, 0.0)).collect();
    for constraint in &constraints {
        let by_node = constraint.pods_by_node(cycle);
        let here = |node: &NodeView<'_>| by_node.get(node.name).copied().unwrap_or_default();
        let mut domains: HashMap<&str, i64> = HashMap::new();
        let is_host = constraint.key == HOST;
        if !is_host {
            // A label that is missing counts as a value of its own.
            let value =
                |node: &NodeView<'_>| node.labels.get(constraint.key).map_or("", String::as_str).to_owned();
            let values: std::collections::HashSet<String> = scored.iter().map(|node| value(node)).collect();
            for node in cycle.world.nodes.all(&cycle.world.placed) {
                let name = node.labels.get(constraint.key).map_or("", String::as_str);
                if counts(&node) && values.contains(name) {
                    let pods = if constraint.includes(cycle, &required, &node) { here(&node) } else { 0 };
                    *domains.entry(name).or_default() += pods;
                }
            }
        }
        let size = if is_host { scored.len() } else { domains.len() };
        #[expect(clippy::cast_precision_loss, reason = "numbers of nodes and pods")]
        for node in &scored {
            let Some(value) = node.labels.get(constraint.key) else { continue };
            let pods =
                if is_host { here(node) } else { domains.get(value.as_str()).copied().unwrap_or_default() };
            let weight = (size as f64 + 2.0).ln();
            *raw.entry(node.name).or_default() += pods as f64 * weight + (constraint.max_skew - 1) as f64;
        }
    }
    #[expect(clippy::cast_possible_truncation, reason = "as far as pods can be counted")]
    let raw: HashMap<&str, i64> = raw.into_iter().map(|(name, score)| (name, score.round() as i64)).collect();
    let (least, most) = (raw.values().min().copied()?, raw.values().max().copied()?);
    let score = |node: &NodeView<'_>| match raw.get(node.name) {
        None => 0,
        Some(_) if most == 0 => BEST,
        Some(score) => BEST * (most + least - score) / most,
    };
    Some(nodes.iter().map(score).collect())
}

/// Where a pod asks for nothing, those of one service or set are spread over hosts, and more so over zones.
fn default_constraints(cycle: &Cycle<'_>) -> Option<Vec<Constraint<'static>>> {
    let selector = of_services_and_owner(cycle)?;
    let constraint = |key, max_skew| Constraint {
        key,
        max_skew,
        min_domains: 1,
        selector: Some(selector.clone()),
        honours_affinity: true,
        honours_taints: false,
    };
    Some(vec![constraint(HOST, 3), constraint(ZONE, 5)])
}

/// What the services that select the pod, and the set that owns it, select.
fn of_services_and_owner(cycle: &Cycle<'_>) -> Option<LabelSelector> {
    let world = cycle.world;
    let mut selected = crate::world::Labels::new();
    for service in world.services_of(&cycle.key.namespace) {
        let Some(wanted) = service.spec.as_ref().and_then(|spec| spec.selector.as_ref()) else { continue };
        if wanted.iter().all(|(key, value)| cycle.labels.get(key) == Some(value)) {
            selected.extend(wanted.clone());
        }
    }
    let labels = selected.iter().map(|(key, value)| Requirement::new(key, Operator::In, [value]));
    let mut requirements: Vec<Requirement> = labels.flatten().collect();
    let owner =
        cycle.pod.metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
    if let Some(owner) = owner.filter(|owner| owner.kind == "StatefulSet") {
        let key = runtime::Key { namespace: cycle.key.namespace.clone(), name: owner.name.clone() };
        let set = world.stateful_sets.get(&key).and_then(|set| set.spec.as_ref());
        let selector = set.and_then(|spec| terms::selector(&spec.selector));
        requirements.extend(selector.iter().flat_map(|selector| selector.requirements().iter().cloned()));
    }
    if requirements.is_empty() { None } else { Some(requirements.into_iter().collect()) }
}
