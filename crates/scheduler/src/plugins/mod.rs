//! The rules by which a node takes a pod, and the preferences among nodes that do: kube-scheduler's plugins, by their
//! names, a file each. A plugin is read once for a pod and then asked about each node.

mod inter_pod_affinity;
mod node_affinity;
mod node_name;
mod node_ports;
mod node_resources_fit;
mod node_unschedulable;
mod node_volume_limits;
mod pod_topology_spread;
mod score;
mod taint_toleration;
pub(crate) mod volume_binding;
mod volume_restrictions;
mod volume_zone;

use std::collections::BTreeSet;

use crate::cycle::Cycle;
use crate::nodes::NodeView;
use crate::reasons::{Reason, Refused, Stage, Whole};

/// What a plugin says of one node.
type Verdict = Result<(), No>;

/// A plugin read for a pod: asked about each node.
type Filter<'c> = Box<dyn Fn(&NodeView<'_>) -> Verdict + 'c>;

/// What a plugin asks of nodes on behalf of a pod.
enum Asks<'c> {
    /// Nothing.
    Nothing,
    /// This of each.
    Each(Filter<'c>),
    /// This of each among those named; others need not be asked.
    Among(BTreeSet<String>, Filter<'c>),
}

/// Why a plugin refuses a node.
struct No {
    reasons: Vec<Reason>,
    /// Whether the end of other pods could change it.
    resolvable: bool,
}

/// Other pods are in the way.
fn taken(reason: Reason) -> Verdict {
    Err(No { reasons: vec![reason], resolvable: true })
}

/// The node is not for this pod.
fn unfit(reason: Reason) -> Verdict {
    Err(No { reasons: vec![reason], resolvable: false })
}

/// How a plugin likes nodes.
type Score = fn(&Cycle<'_>, &[NodeView<'_>]) -> Option<Vec<i64>>;

/// One rule or preference.
struct Plugin {
    name: &'static str,
    /// Reads the rule; an error refuses the pod on every node.
    #[expect(clippy::type_complexity, reason = "a function with the lifetimes of a turn")]
    filter: Option<for<'c> fn(&'c Cycle<'c>) -> Result<Asks<'c>, Whole>>,
    /// From 0 to 100 for each node that takes the pod, and the weight of that; `None`: all are alike to it.
    score: Option<(Score, i64)>,
}

/// In the order in which they are asked, as kube-scheduler does: the first that refuses is heard. Weights are its own,
/// too.
const PLUGINS: &[Plugin] = &[
    Plugin { name: "NodeUnschedulable", filter: Some(node_unschedulable::filter), score: None },
    Plugin { name: "NodeName", filter: Some(node_name::filter), score: None },
    Plugin {
        name: "TaintToleration",
        filter: Some(taint_toleration::filter),
        score: Some((taint_toleration::score, 3)),
    },
    Plugin {
        name: "NodeAffinity",
        filter: Some(node_affinity::filter),
        score: Some((node_affinity::score, 2)),
    },
    Plugin { name: "NodePorts", filter: Some(node_ports::filter), score: None },
    Plugin {
        name: "NodeResourcesFit",
        filter: Some(node_resources_fit::filter),
        score: Some((node_resources_fit::score, 1)),
    },
    Plugin { name: "VolumeRestrictions", filter: Some(volume_restrictions::filter), score: None },
    Plugin { name: "NodeVolumeLimits", filter: Some(node_volume_limits::filter), score: None },
    Plugin {
        name: "VolumeBinding",
        filter: Some(volume_binding::filter),
        score: Some((volume_binding::score, 1)),
    },
    Plugin { name: "VolumeZone", filter: Some(volume_zone::filter), score: None },
    Plugin {
        name: "PodTopologySpread",
        filter: Some(pod_topology_spread::filter),
        score: Some((pod_topology_spread::score, 2)),
    },
    Plugin {
        name: "InterPodAffinity",
        filter: Some(inter_pod_affinity::filter),
        score: Some((inter_pod_affinity::score, 2)),
    },
];

/// The plugins that matter to a pod which somebody else put on its node.
const ABOUT_VOLUMES: &[&str] = &["VolumeRestrictions", "NodeVolumeLimits", "VolumeBinding", "VolumeZone"];

/// All rules read for one pod.
pub(crate) struct Rules<'c> {
    asked: Vec<(&'static str, Filter<'c>)>,
    among: Option<(&'static str, BTreeSet<String>)>,
}

impl<'c> Rules<'c> {
    /// Every rule.
    ///
    /// # Errors
    /// What refuses the pod wherever it may go.
    pub(crate) fn read(cycle: &'c Cycle<'c>) -> Result<Self, Whole> {
        Self::of(cycle, |_| true)
    }

    /// Those about volumes.
    ///
    /// # Errors
    /// As of [`Self::read`].
    pub(crate) fn about_volumes(cycle: &'c Cycle<'c>) -> Result<Self, Whole> {
        Self::of(cycle, |name| ABOUT_VOLUMES.contains(&name))
    }

    fn of(cycle: &'c Cycle<'c>, wanted: impl Fn(&str) -> bool) -> Result<Self, Whole> {
        let mut rules = Self { asked: Vec::new(), among: None };
        for plugin in PLUGINS.iter().filter(|plugin| wanted(plugin.name)) {
            let Some(filter) = plugin.filter else { continue };
            match filter(cycle).map_err(|whole| Whole { plugin: plugin.name, ..whole })? {
                Asks::Nothing => {}
                Asks::Each(filter) => rules.asked.push((plugin.name, filter)),
                Asks::Among(names, filter) => {
                    rules.among = Some((plugin.name, names));
                    rules.asked.push((plugin.name, filter));
                }
            }
        }
        Ok(rules)
    }

    /// Whether a node takes the pod.
    ///
    /// # Errors
    /// The first plugin that refuses it, and why.
    pub(crate) fn judge(&self, node: &NodeView<'_>) -> Result<(), Refused> {
        if let Some((plugin, names)) = &self.among
            && !names.contains(node.name)
        {
            let reasons = vec![Reason::NotAmong(plugin)];
            return Err(Refused { plugin, stage: Stage::PreFilter, resolvable: false, reasons });
        }
        for (plugin, filter) in &self.asked {
            if let Err(No { reasons, resolvable }) = filter(node) {
                return Err(Refused { plugin, stage: Stage::Filter, resolvable, reasons });
            }
        }
        Ok(())
    }
}

/// What each plugin with preferences says of nodes that take the pod; `None`: all are alike to it.
pub(crate) fn scores(
    cycle: &Cycle<'_>,
    nodes: &[NodeView<'_>],
) -> Vec<(&'static str, i64, Option<Vec<i64>>)> {
    let scored = PLUGINS.iter().filter_map(|plugin| {
        let (score, weight) = plugin.score?;
        Some((plugin.name, weight, score(cycle, nodes)))
    });
    scored.collect()
}
