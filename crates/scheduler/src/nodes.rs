//! The nodes, with what is asked of each read once.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;

use crate::amounts::Amounts;
use crate::placed::{PlacedPods, Usage};
use crate::world::Labels;

struct Known {
    node: Arc<Node>,
    allocatable: Amounts,
    max_pods: i64,
}

/// The nodes by name.
#[derive(Default)]
pub(crate) struct Nodes {
    known: BTreeMap<String, Known>,
    chosen_last: String,
}

/// A node as the rules look at it.
#[derive(Clone, Copy)]
pub(crate) struct NodeView<'a> {
    pub(crate) name: &'a str,
    pub(crate) node: &'a Node,
    pub(crate) labels: &'a Labels,
    pub(crate) allocatable: &'a Amounts,
    /// How many pods it takes.
    pub(crate) max_pods: i64,
    /// What its pods take.
    pub(crate) usage: &'a Usage,
}

impl Nodes {
    pub(crate) fn put(&mut self, node: &Arc<Node>) {
        let (allocatable, max_pods) = Amounts::of_node(node);
        self.known.insert(node.name_any(), Known { node: Arc::clone(node), allocatable, max_pods });
    }

    pub(crate) fn remove(&mut self, name: &str) {
        self.known.remove(name);
    }

    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.known.contains_key(name)
    }

    /// A node's labels, if it is known.
    pub(crate) fn labels(&self, name: &str) -> Option<&Labels> {
        self.known.get(name).map(|known| labels_of(&known.node))
    }

    pub(crate) fn get<'a>(&'a self, name: &str, placed: &'a PlacedPods) -> Option<NodeView<'a>> {
        self.known.get_key_value(name).map(|known| view(known, placed))
    }

    pub(crate) fn all<'a>(&'a self, placed: &'a PlacedPods) -> impl Iterator<Item = NodeView<'a>> {
        self.known.iter().map(|known| view(known, placed))
    }

    /// All nodes, beginning after the one that was chosen last, so that all have their turn.
    pub(crate) fn in_turn<'a>(&'a self, placed: &'a PlacedPods) -> impl Iterator<Item = NodeView<'a>> {
        let last = self.chosen_last.as_str();
        let after = self.known.range::<str, _>((Bound::Excluded(last), Bound::Unbounded));
        let before = self.known.range::<str, _>((Bound::Unbounded, Bound::Included(last)));
        after.chain(before).map(|known| view(known, placed))
    }

    /// Where the next search begins.
    pub(crate) fn choose(&mut self, name: &str) {
        self.chosen_last.clear();
        self.chosen_last.push_str(name);
    }
}

fn view<'a>((name, known): (&'a String, &'a Known), placed: &'a PlacedPods) -> NodeView<'a> {
    NodeView {
        name,
        node: &known.node,
        labels: labels_of(&known.node),
        allocatable: &known.allocatable,
        max_pods: known.max_pods,
        usage: placed.usage(name),
    }
}

fn labels_of(node: &Node) -> &Labels {
    static NONE: Labels = Labels::new();
    node.metadata.labels.as_ref().unwrap_or(&NONE)
}
