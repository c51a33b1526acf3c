//! Why nodes were refused, in the words that Kubernetes' scheduler uses.

use std::collections::BTreeMap;
use std::time::Duration;

/// Promised storage is used or given back by then.
const PROMISES_SETTLE: Duration = Duration::from_secs(30);
/// A driver has published its capacity for a new class by then.
const CAPACITY_APPEARS: Duration = Duration::from_secs(3);

/// Why a node does not take a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// It is cordoned.
    Unschedulable,
    /// Its agent doesn't answer, or isn't ready.
    NotReady,
    /// It has a taint that the pod doesn't tolerate.
    Taint,
    /// The pod's nodeSelector or required affinity leaves it out.
    Affinity,
    /// Volumes could not be made there a short while ago.
    Avoided,
    /// A claim is bound to a volume that doesn't exist.
    VolumeGone,
    /// A claim's volume can't be used there.
    VolumeAffinity,
    /// A claim's volume is in another zone.
    VolumeZone,
    /// What a claim is to be filled from is on another node.
    SourceElsewhere,
    /// No existing volume fits, and none can be made there.
    NoVolume,
    /// The driver has too little free storage there.
    NoCapacity,
    /// Nothing is known yet about the free storage of the class there: the class, or the node, is new.
    Unpublished,
    /// There would be room but for what other pods in flight were promised.
    Promised,
    /// Its driver takes no more volumes.
    VolumeLimit,
}

impl Reason {
    /// What is said after the number of nodes.
    pub fn text(self) -> &'static str {
        match self {
            Self::Unschedulable => "node(s) were unschedulable",
            Self::NotReady => "node(s) were not ready",
            Self::Taint => "node(s) had untolerated taint(s)",
            Self::Affinity => "node(s) didn't match Pod's node affinity/selector",
            Self::Avoided => "node(s) failed to provision a volume for the pod a short while ago",
            Self::VolumeGone => "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)",
            Self::VolumeAffinity => "node(s) didn't match PersistentVolume's node affinity",
            Self::VolumeZone => "node(s) had no available volume zone",
            Self::SourceElsewhere => "node(s) didn't have the data source of a claim",
            Self::NoVolume => "node(s) didn't find available persistent volumes to bind",
            Self::NoCapacity => "node(s) did not have enough free storage",
            Self::Unpublished => "node(s) published no free storage for the claim's class",
            Self::Promised => "node(s) have promised their free storage to other pods",
            Self::VolumeLimit => "node(s) exceed max volume count",
        }
    }
}

/// Why a pod stays without a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refusal {
    /// How many nodes there are.
    pub nodes: usize,
    /// How many were refused for which reason.
    pub reasons: BTreeMap<Reason, usize>,
    /// What stands in the way on every node alike, in place of the reasons.
    pub pod_reason: Option<String>,
    /// More that helps, such as sizes.
    pub hint: Option<String>,
}

impl Refusal {
    /// Every node is refused for one reason.
    pub fn everywhere(nodes: usize, reason: impl Into<String>) -> Self {
        Self { nodes, pod_reason: Some(reason.into()), ..Self::default() }
    }

    /// How long to wait for the refusal to pass by itself before it is told, if it may: some node has room but for
    /// promises that others will have used up or given back soon, or its capacity is about to be published.
    pub fn passes_within(&self) -> Option<Duration> {
        if self.reasons.contains_key(&Reason::Promised) {
            Some(PROMISES_SETTLE)
        } else if self.reasons.contains_key(&Reason::Unpublished) {
            Some(CAPACITY_APPEARS)
        } else {
            None
        }
    }

    /// Whether another refusal differs at most in its hint.
    pub fn same_reasons(&self, other: &Self) -> bool {
        (self.nodes, &self.reasons, &self.pod_reason) == (other.nodes, &other.reasons, &other.pod_reason)
    }

    /// The message of the pod's event and condition.
    pub fn message(&self) -> String {
        let mut text = format!("0/{} nodes are available", self.nodes);
        if self.nodes == 0 && self.pod_reason.is_none() {
            return "no nodes available to schedule pods".to_owned();
        }
        let counted = self.reasons.iter().map(|(reason, count)| format!("{count} {}", reason.text()));
        let reasons: Vec<_> = self.pod_reason.iter().cloned().chain(counted).collect();
        text = format!("{text}: {}.", reasons.join(", "));
        if let Some(hint) = &self.hint {
            text = format!("{text} {hint}");
        }
        text
    }
}
