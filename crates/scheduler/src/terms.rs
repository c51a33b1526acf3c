//! Which pods a rule of another pod is about, and what counts as near.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, PodAffinityTerm, WeightedPodAffinityTerm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1;
use kube::ResourceExt;
use values::LabelSelector;

use crate::world::Labels;

/// A term of pod affinity or anti-affinity, read for matching. Pods with the same term share its count.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Term {
    pub(crate) namespaces: BTreeSet<String>,
    /// By the namespace's labels; `None` selects no further ones.
    pub(crate) namespace_selector: Option<LabelSelector>,
    /// `None` matches no pod.
    pub(crate) selector: Option<LabelSelector>,
    pub(crate) topology_key: String,
}

impl Term {
    fn of(pod: &Pod, term: &PodAffinityTerm) -> Self {
        let listed = term.namespaces.as_deref().unwrap_or_default();
        let own = listed.is_empty() && term.namespace_selector.is_none();
        Self {
            namespaces: if own {
                pod.namespace().into_iter().collect()
            } else {
                listed.iter().cloned().collect()
            },
            namespace_selector: term.namespace_selector.as_ref().and_then(selector),
            selector: term.label_selector.as_ref().and_then(selector),
            topology_key: term.topology_key.clone(),
        }
    }

    /// Whether the term is about pods in a namespace with these labels.
    pub(crate) fn takes_namespace(&self, namespace: &str, labels: &Labels) -> bool {
        self.namespaces.contains(namespace)
            || self.namespace_selector.as_ref().is_some_and(|selector| selector.matches_labels(Some(labels)))
    }

    /// Whether the term is about a pod in a namespace with these labels.
    pub(crate) fn takes(&self, pod: &Pod, namespace_labels: &Labels) -> bool {
        self.selector.as_ref().is_some_and(|selector| selector.matches_labels(pod.metadata.labels.as_ref()))
            && self.takes_namespace(pod.metadata.namespace.as_deref().unwrap_or_default(), namespace_labels)
    }
}

/// What a pod says about pods near to it.
#[derive(Debug, Default)]
pub(crate) struct Neighbours {
    pub(crate) required: Vec<Arc<Term>>,
    pub(crate) forbidden: Vec<Arc<Term>>,
    /// With weights, which are negative for those that are better away.
    pub(crate) preferred: Vec<(i64, Arc<Term>)>,
}

impl Neighbours {
    /// A pod's terms; `None`, it has none.
    pub(crate) fn of(pod: &Pod) -> Option<Box<Self>> {
        let affinity = pod.spec.as_ref()?.affinity.as_ref()?;
        let (near, apart) = (affinity.pod_affinity.as_ref(), affinity.pod_anti_affinity.as_ref());
        if near.is_none() && apart.is_none() {
            return None;
        }
        let read = |terms: Option<&Vec<PodAffinityTerm>>| -> Vec<_> {
            terms.into_iter().flatten().map(|term| Arc::new(Term::of(pod, term))).collect()
        };
        let weighted = |sign: i64, terms: Option<&Vec<WeightedPodAffinityTerm>>| -> Vec<_> {
            let term = |weighted: &WeightedPodAffinityTerm| {
                (sign * i64::from(weighted.weight), Arc::new(Term::of(pod, &weighted.pod_affinity_term)))
            };
            terms.into_iter().flatten().map(term).collect()
        };
        let mut preferred = weighted(
            1,
            near.and_then(|near| near.preferred_during_scheduling_ignored_during_execution.as_ref()),
        );
        preferred.extend(weighted(
            -1,
            apart.and_then(|apart| apart.preferred_during_scheduling_ignored_during_execution.as_ref()),
        ));
        Some(Box::new(Self {
            required: read(
                near.and_then(|near| near.required_during_scheduling_ignored_during_execution.as_ref()),
            ),
            forbidden: read(
                apart.and_then(|apart| apart.required_during_scheduling_ignored_during_execution.as_ref()),
            ),
            preferred,
        }))
    }
}

/// Whether a pod's required affinity or its spreading is about another pod.
pub(crate) fn asks_about(pod: &Pod, other: &Pod, namespace_labels: &Labels) -> bool {
    let near = Neighbours::of(pod);
    let near = near.iter().flat_map(|own| &own.required).any(|term| term.takes(other, namespace_labels));
    let spread = pod.spec.as_ref().and_then(|spec| spec.topology_spread_constraints.as_deref());
    let spread =
        spread.unwrap_or_default().iter().filter_map(|constraint| constraint.label_selector.as_ref());
    let selects = |of| selector(of).is_some_and(|one| one.matches_labels(other.metadata.labels.as_ref()));
    near || (pod.metadata.namespace == other.metadata.namespace && spread.into_iter().any(selects))
}

/// A label selector read for matching; one that can't be read matches nothing.
pub(crate) fn selector(of: &v1::LabelSelector) -> Option<LabelSelector> {
    let labels = of.match_labels.iter().flatten().map(|(key, value)| (key.as_str(), value.as_str()));
    let expressions = of
        .match_expressions
        .iter()
        .flatten()
        .map(|one| (one.key.as_str(), one.operator.as_str(), one.values.as_deref().unwrap_or_default()));
    LabelSelector::new(labels, expressions).ok()
}
