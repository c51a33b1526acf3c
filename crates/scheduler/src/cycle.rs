//! One pod's turn: the pod, read once for all rules, and the world that it meets.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::{Pod, Toleration};
use resources::taints;
use runtime::Key;

use crate::terms::Neighbours;
use crate::world::{Labels, World};

/// A pod that looks for a node.
pub(crate) struct Cycle<'a> {
    pub(crate) world: &'a World,
    pub(crate) pod: &'a Pod,
    pub(crate) key: Key,
    pub(crate) labels: &'a Labels,
    pub(crate) tolerations: &'a [Toleration],
    pub(crate) neighbours: Option<Box<Neighbours>>,
    /// Nodes on which its volumes could not be made a short while ago.
    pub(crate) avoid: &'a HashSet<String>,
}

impl<'a> Cycle<'a> {
    pub(crate) fn new(world: &'a World, pod: &'a Pod, avoid: &'a HashSet<String>) -> Self {
        static NONE: Labels = Labels::new();
        Self {
            world,
            pod,
            key: Key::of(pod),
            labels: pod.metadata.labels.as_ref().unwrap_or(&NONE),
            tolerations: taints::tolerations(pod),
            neighbours: Neighbours::of(pod),
            avoid,
        }
    }
}
