//! Why nodes were refused, in the words that Kubernetes' scheduler uses.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

/// Promised storage is used or given back by then.
const PROMISES_SETTLE: Duration = Duration::from_secs(30);
/// A driver has published its capacity for a new class by then.
const CAPACITY_APPEARS: Duration = Duration::from_secs(3);

/// Why a node does not take a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// A plugin named the nodes that come into question, and this is none of them.
    NotAmong(&'static str),
    /// It is cordoned.
    Unschedulable,
    /// The pod names another one.
    OtherNode,
    /// It has a taint that the pod doesn't tolerate.
    Taint,
    /// The pod's nodeSelector or required affinity leaves it out.
    Affinity,
    /// A port that the pod wants is another pod's.
    Ports,
    /// It has as many pods as it takes.
    TooManyPods,
    /// It has too little left of a resource.
    Insufficient(String),
    /// A claim that is for one pod alone is another pod's.
    ClaimInUse,
    /// A disk that one pod may write is another pod's.
    DiskInUse,
    /// Its driver takes no more volumes.
    VolumeLimit,
    /// Volumes could not be made there a short while ago.
    Avoided,
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
    /// It doesn't have the label over whose values the pod is to be spread.
    SpreadKey,
    /// It has its share of the pods that are to be spread.
    Spread,
    /// No pod is near that the pod must be near to.
    PodAffinity,
    /// A pod is near that the pod must be apart from.
    PodAntiAffinity,
    /// A pod is near that must be apart from the pod.
    ExistingAntiAffinity,
}

impl Reason {
    /// What is said after the number of nodes.
    pub fn text(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::NotAmong(plugin) => return format!("node(s) didn't satisfy plugin(s) [{plugin}]").into(),
            Self::Insufficient(resource) => return format!("Insufficient {resource}").into(),
            Self::Unschedulable => "node(s) were unschedulable",
            Self::OtherNode => "node(s) didn't match the requested node name",
            Self::Taint => "node(s) had untolerated taint(s)",
            Self::Affinity => "node(s) didn't match Pod's node affinity/selector",
            Self::Ports => "node(s) didn't have free ports for the requested pod ports",
            Self::TooManyPods => "Too many pods",
            Self::ClaimInUse => {
                "node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use \
                 by another pod"
            }
            Self::DiskInUse => "node(s) had no available disk",
            Self::VolumeLimit => "node(s) exceed max volume count",
            Self::Avoided => "node(s) failed to provision a volume for the pod a short while ago",
            Self::VolumeAffinity => "node(s) didn't match PersistentVolume's node affinity",
            Self::VolumeZone => "node(s) had no available volume zone",
            Self::SourceElsewhere => "node(s) didn't have the data source of a claim",
            Self::NoVolume => "node(s) didn't find available persistent volumes to bind",
            Self::NoCapacity | Self::Unpublished => "node(s) did not have enough free storage",
            Self::Promised => "node(s) have promised their free storage to other pods",
            Self::SpreadKey => {
                "node(s) didn't match pod topology spread constraints (missing required label)"
            }
            Self::Spread => "node(s) didn't match pod topology spread constraints",
            Self::PodAffinity => "node(s) didn't match pod affinity rules",
            Self::PodAntiAffinity => "node(s) didn't match pod anti-affinity rules",
            Self::ExistingAntiAffinity => "node(s) didn't satisfy existing pods anti-affinity rules",
        })
    }
}

/// When a pod was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Before it was looked at.
    PreEnqueue,
    /// Before any node was looked at.
    PreFilter,
    /// At a node.
    Filter,
}

/// What a plugin says against a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// The plugin.
    pub(crate) plugin: &'static str,
    /// When it said so.
    pub(crate) stage: Stage,
    /// Whether the end of other pods could change it.
    pub(crate) resolvable: bool,
    /// All of its reasons.
    pub(crate) reasons: Vec<Reason>,
}

/// What refuses a pod wherever it may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whole {
    /// The plugin that says so.
    pub plugin: &'static str,
    /// In its words.
    pub reason: String,
    /// What to do.
    pub hint: Option<String>,
}

impl Whole {
    pub(crate) fn new(reason: impl Into<String>) -> Self {
        Self { plugin: "", reason: reason.into(), hint: None }
    }

    pub(crate) fn hint(self, hint: &str) -> Self {
        Self { hint: Some(hint.to_owned()), ..self }
    }
}

/// Why a pod stays without a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refusal {
    /// How many nodes there are.
    pub nodes: usize,
    /// How many were refused for which reason; a node may have several.
    pub reasons: BTreeMap<Reason, usize>,
    /// What stands in the way on every node alike, in place of the reasons.
    pub pod_reason: Option<String>,
    /// More that helps, such as sizes.
    pub hint: Option<String>,
}

impl Refusal {
    /// Every node is refused for one reason.
    pub fn everywhere(nodes: usize, whole: Whole) -> Self {
        Self { nodes, pod_reason: Some(whole.reason), hint: whole.hint, ..Self::default() }
    }

    /// Counts a node's refusal.
    pub(crate) fn count(&mut self, refused: Refused) {
        for reason in refused.reasons {
            *self.reasons.entry(reason).or_default() += 1;
        }
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
        let mut counts = BTreeMap::new();
        for (reason, count) in &self.reasons {
            *counts.entry(reason.text()).or_default() += count;
        }
        // Ordered as texts, as kube-scheduler has them.
        let mut counted: Vec<_> =
            counts.into_iter().map(|(text, count): (_, usize)| format!("{count} {text}")).collect();
        counted.sort();
        let reasons: Vec<_> = self.pod_reason.iter().cloned().chain(counted).collect();
        text = format!("{text}: {}.", reasons.join(", "));
        if let Some(hint) = &self.hint {
            text = format!("{text} {hint}");
        }
        text
    }
}
