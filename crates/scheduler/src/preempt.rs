//! Which pods make way for one of a higher priority, by kube-scheduler's rules (DefaultPreemption): on the node where
//! the least is lost, no more pods than needed. Claims make no way: what is on a volume stays there.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use resources::pod::priority;
use runtime::Key;

use crate::cycle::Cycle;
use crate::plugins::Rules;
use crate::world::World;

/// How many nodes on which a pod could be given room are compared; kube-scheduler's number.
const COMPARED: usize = 100;

/// What a refused pod can hope for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Pods are going already from the node that was chosen for it.
    Opens {
        /// The node.
        node: String,
    },
    /// These pods are to go.
    Force {
        /// The node.
        node: String,
        /// The pods, the most important first.
        victims: Vec<Key>,
    },
}

impl Way {
    pub(crate) fn node(&self) -> &str {
        match self {
            Self::Opens { node } | Self::Force { node, .. } => node,
        }
    }
}

/// Where a refused pod could go if pods of lower priority went. `None`: nowhere, or it may not. The world is as it was
/// afterwards.
pub(crate) fn way(world: &mut World, pod: &Pod, avoid: &HashSet<String>) -> Option<Way> {
    if pod.spec.as_ref()?.preemption_policy.as_deref() == Some("Never") {
        return None;
    }
    let own = priority(pod);
    // Most clusters have one priority: then nothing is looked at.
    if !world.placed.has_lower(own) {
        return None;
    }
    if let Some(node) = nominated(pod)
        && lower(world, node, own).any(|pod| pod.metadata.deletion_timestamp.is_some())
    {
        return Some(Way::Opens { node: node.to_owned() });
    }
    let mut best: Option<(Cost, Way)> = None;
    for node in promising(world, pod, avoid) {
        let Some(victims) = victims(world, pod, &node, avoid) else { continue };
        let cost = cost(&victims);
        if best.as_ref().is_none_or(|(lowest, _)| cost < *lowest) {
            let victims = victims.iter().map(|victim| Key::of(&**victim)).collect();
            best = Some((cost, Way::Force { node, victims }));
        }
    }
    best.map(|(_, way)| way)
}

/// The node that was chosen for a pod that waits for others to go.
fn nominated(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.nominated_node_name.as_deref().filter(|node| !node.is_empty())
}

/// The pods of lower priority that run on a node. Those that are only about to be bound there are nobody's victims.
fn lower<'w>(world: &'w World, node: &str, own: i32) -> impl Iterator<Item = &'w Arc<Pod>> {
    let pods = world.pods_on(node).filter(|key| !world.is_assumed(key));
    pods.filter_map(|key| world.pod(key)).filter(move |pod| priority(pod) < own)
}

/// Nodes that refuse a pod for what the end of others could change, and have such others.
fn promising(world: &World, pod: &Pod, avoid: &HashSet<String>) -> Vec<String> {
    let cycle = Cycle::new(world, pod, avoid);
    let Ok(rules) = Rules::read(&cycle) else { return Vec::new() };
    let own = priority(pod);
    let nodes = world.nodes.in_turn(&world.placed);
    let nodes = nodes.filter(|node| lower(world, node.name, own).next().is_some());
    let nodes = nodes.filter(|node| rules.judge(node).is_err_and(|refused| refused.resolvable));
    nodes.take(COMPARED).map(|node| node.name.to_owned()).collect()
}

/// The fewest and least important pods without which a node takes the pod, the most important first.
fn victims(world: &mut World, pod: &Pod, node: &str, avoid: &HashSet<String>) -> Option<Vec<Arc<Pod>>> {
    let mut pods: Vec<Arc<Pod>> = lower(world, node, priority(pod)).cloned().collect();
    pods.sort_by_cached_key(|pod| importance(pod));
    for pod in &pods {
        world.placed.remove(&Key::of(&**pod));
    }
    let mut victims = Vec::new();
    let fits = takes(world, pod, node, avoid);
    for other in &pods {
        let key = Key::of(&**other);
        world.placed.insert(&key, other, node);
        if fits && !takes(world, pod, node, avoid) {
            world.placed.remove(&key);
            victims.push(Arc::clone(other));
        }
    }
    for victim in &victims {
        world.placed.insert(&Key::of(&**victim), victim, node);
    }
    (!victims.is_empty()).then_some(victims)
}

fn takes(world: &World, pod: &Pod, node: &str, avoid: &HashSet<String>) -> bool {
    let cycle = Cycle::new(world, pod, avoid);
    let Ok(rules) = Rules::read(&cycle) else { return false };
    world.nodes.get(node, &world.placed).is_some_and(|node| rules.judge(&node).is_ok())
}

/// The most important first: of the highest priority, then that which runs longest.
fn importance(pod: &Pod) -> (Reverse<i32>, Option<Time>, Key) {
    (Reverse(priority(pod)), started(pod), Key::of(pod))
}

fn started(pod: &Pod) -> Option<Time> {
    pod.status.as_ref()?.start_time.clone()
}

/// What a node's victims cost, the lowest is chosen: the highest priority among them, the sum of all, their number; of
/// equals those whose most important ones began last.
type Cost = (i32, i64, usize, Reverse<Option<Time>>);

fn cost(victims: &[Arc<Pod>]) -> Cost {
    let highest = victims.iter().map(|pod| priority(pod)).max().unwrap_or(i32::MIN);
    // Priorities below zero must not make more victims look cheaper.
    let sum = victims.iter().map(|pod| i64::from(priority(pod)) + i64::from(i32::MAX) + 1).sum();
    let first = victims.iter().filter(|pod| priority(pod) == highest).filter_map(|pod| started(pod)).min();
    (highest, sum, victims.len(), Reverse(first))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Node;
    use serde_json::{Value, json};

    use super::*;

    fn node(name: &str, cpu: &str) -> Arc<Node> {
        let node = json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "status": {"allocatable": {"cpu": cpu, "pods": "10"}}});
        Arc::new(serde_json::from_value(node).expect("a node"))
    }

    /// On a node, unless that is empty.
    fn pod(name: &str, node: &str, priority: i32, cpu: &str, more: Value) -> Arc<Pod> {
        let mut pod = json!({"metadata": {"namespace": "default", "name": name, "labels": {"app": name}},
            "spec": {"priority": priority, "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]},
            "status": {"startTime": "2026-01-01T00:00:00Z"}});
        if !node.is_empty() {
            pod["spec"]["nodeName"] = node.into();
        }
        for (part, fields) in more.as_object().expect("parts") {
            for (field, value) in fields.as_object().expect("fields") {
                pod[part][field] = value.clone();
            }
        }
        Arc::new(serde_json::from_value(pod).expect("a pod"))
    }

    /// The node, and who has to go.
    fn found(pods: &[Arc<Pod>], asks: &Pod) -> Option<(String, Vec<String>)> {
        let mut world = World::default();
        for name in ["a", "b"] {
            world.put_node(&node(name, "4"));
        }
        pods.iter().for_each(|pod| world.put_pod(pod));
        let usage = |world: &World| {
            ["a", "b"].map(|name| (world.pods_on(name).len(), world.placed.usage(name).requested.clone()))
        };
        let before = usage(&world);
        let way = way(&mut world, asks, &HashSet::new());
        assert!(usage(&world) == before, "the world is as it was");
        match way? {
            Way::Opens { node } => Some((node, Vec::new())),
            Way::Force { node, victims } => Some((node, victims.into_iter().map(|key| key.name).collect())),
        }
    }

    #[test]
    fn the_least_makes_way() {
        let none = || json!({});
        let asks = |priority: i32, cpu: &str, more: Value| pod("new", "", priority, cpu, more);
        let late = json!({"status": {"startTime": "2026-02-02T00:00:00Z"}});
        let going = json!({"metadata": {"deletionTimestamp": "2026-02-02T00:00:00Z"}});
        let keeps_apart = json!({"spec": {"affinity": {"podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "x"}}}]}}}});
        let full = |on: &str, priority: i32| pod(&format!("full-{on}"), on, priority, "4", none());
        type Case = (&'static str, Vec<Arc<Pod>>, Arc<Pod>, Option<(&'static str, Vec<&'static str>)>);
        let cases: Vec<Case> = vec![
            ("nobody is lower", vec![full("a", 5), full("b", 9)], asks(5, "1", none()), None),
            (
                "the lower one goes",
                vec![full("a", 4), full("b", 9)],
                asks(5, "1", none()),
                Some(("a", vec!["full-a"])),
            ),
            (
                "of two nodes that with the lower priority",
                vec![full("a", 4), full("b", 3)],
                asks(5, "1", none()),
                Some(("b", vec!["full-b"])),
            ),
            (
                "no more than needed, and the less important",
                vec![
                    pod("x", "a", 1, "1", none()),
                    pod("y", "a", 2, "1", none()),
                    pod("z", "a", 3, "2", none()),
                    full("b", 9),
                ],
                asks(5, "1", none()),
                Some(("a", vec!["x"])),
            ),
            (
                "of equals the later one",
                vec![pod("x", "a", 1, "2", late.clone()), pod("y", "a", 1, "2", none()), full("b", 9)],
                asks(5, "1", none()),
                Some(("a", vec!["x"])),
            ),
            (
                "few rather than many",
                vec![pod("x", "a", 1, "2", none()), pod("y", "a", 1, "2", none()), full("b", 1)],
                asks(5, "4", none()),
                Some(("b", vec!["full-b"])),
            ),
            ("a node that could never take it", vec![full("a", 1), full("b", 1)], asks(5, "5", none()), None),
            (
                "a pod that is polite",
                vec![full("a", 1), full("b", 1)],
                asks(5, "1", json!({"spec": {"preemptionPolicy": "Never"}})),
                None,
            ),
            (
                "who keeps it away goes",
                vec![pod("x", "a", 1, "1", none()), full("b", 9)],
                asks(5, "1", keeps_apart),
                Some(("a", vec!["x"])),
            ),
            (
                "others go already",
                vec![pod("x", "a", 1, "4", going), full("b", 1)],
                asks(5, "1", json!({"status": {"nominatedNodeName": "a"}})),
                Some(("a", vec![])),
            ),
            (
                "who was to go has gone, and another came",
                vec![full("a", 1), full("b", 9)],
                asks(5, "1", json!({"status": {"nominatedNodeName": "a"}})),
                Some(("a", vec!["full-a"])),
            ),
        ];
        for (what, pods, asks, expected) in cases {
            let expected = expected.map(|(node, names)| {
                (node.to_owned(), names.into_iter().map(str::to_owned).collect::<Vec<_>>())
            });
            assert_eq!(found(&pods, &asks), expected, "{what}");
        }
    }
}
