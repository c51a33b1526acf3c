//! What each rule says of each node: for whoever wants to know more than where a pod goes.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::Pod;

use crate::cycle::Cycle;
use crate::nodes::NodeView;
use crate::place::waits_for_gates;
use crate::plugins::{self, Rules};
use crate::reasons::Stage;
use crate::world::World;

/// A node's answer to a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The node.
    pub node: String,
    /// What refuses the pod there.
    pub refused: Option<Explained>,
}

/// What refuses a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// The plugin, by kube-scheduler's name.
    pub plugin: &'static str,
    /// When it said so.
    pub stage: Stage,
    /// Whether the end of other pods could change it.
    pub resolvable: bool,
    /// All of its reasons, in words.
    pub reasons: Vec<String>,
}

/// How a plugin likes the nodes that take a pod, from 0 to 100.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scores {
    /// The plugin, by kube-scheduler's name.
    pub plugin: &'static str,
    /// By node; `None`: all are alike to it.
    pub nodes: Option<Vec<(String, i64)>>,
}

/// What each node says to a pod, in the order of their names.
pub fn judge(world: &World, pod: &Pod) -> Vec<Verdict> {
    let nodes = world.nodes.all(&world.placed);
    let everywhere = |plugin, stage, reason: String| {
        let refused = Some(Explained { plugin, stage, resolvable: false, reasons: vec![reason] });
        let names = world.nodes.all(&world.placed).map(|node| node.name.to_owned());
        names.map(|node| Verdict { node, refused: refused.clone() }).collect()
    };
    if let Some(reason) = waits_for_gates(pod) {
        return everywhere("SchedulingGates", Stage::PreEnqueue, reason);
    }
    let avoid = HashSet::new();
    let cycle = Cycle::new(world, pod, &avoid);
    let rules = match Rules::read(&cycle) {
        Ok(rules) => rules,
        Err(whole) => return everywhere(whole.plugin, Stage::PreFilter, whole.reason),
    };
    let verdict = |node: NodeView<'_>| {
        let refused = rules.judge(&node).err().map(|refused| Explained {
            plugin: refused.plugin,
            stage: refused.stage,
            resolvable: refused.resolvable,
            reasons: refused.reasons.iter().map(|reason| reason.text().into_owned()).collect(),
        });
        Verdict { node: node.name.to_owned(), refused }
    };
    nodes.map(verdict).collect()
}

/// How each plugin with preferences likes the nodes that take a pod, in the order of their names.
pub fn scores(world: &World, pod: &Pod) -> Vec<Scores> {
    let avoid = HashSet::new();
    let cycle = Cycle::new(world, pod, &avoid);
    let Ok(rules) = Rules::read(&cycle) else { return Vec::new() };
    let nodes: Vec<_> = world.nodes.all(&world.placed).filter(|node| rules.judge(node).is_ok()).collect();
    let named = |scores: Vec<i64>| nodes.iter().map(|node| node.name.to_owned()).zip(scores).collect();
    let scores = plugins::scores(&cycle, &nodes).into_iter();
    scores.map(|(plugin, _, scores)| Scores { plugin, nodes: scores.map(named) }).collect()
}
