//! Pods that have a node, filed by what rules of other pods ask: node, namespace and labels, and their own rules.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use resources::pod::priority;
use resources::requests::Of;
use runtime::Key;
use values::{LabelSelector, Operator};

use crate::amounts::Amounts;
use crate::ports::{self, HostPort};
use crate::terms::{Neighbours, Term};
use crate::world::Labels;

/// A pod on a node.
pub(crate) struct Placed {
    pub(crate) pod: Arc<Pod>,
    pub(crate) node: String,
    requests: Amounts,
    ports: Vec<HostPort>,
    neighbours: Option<Box<Neighbours>>,
}

impl Placed {
    /// Whether nothing has changed of what it is filed by: most news of a pod is about its containers.
    fn is_filed_as(&self, pod: &Pod, node: &str, requests: &Amounts) -> bool {
        self.node == node
            && self.requests == *requests
            && self.pod.metadata.labels == pod.metadata.labels
            && self.pod.spec == pod.spec
    }
}

/// What the pods on a node take of it.
#[derive(Default)]
pub(crate) struct Usage {
    pub(crate) pods: HashSet<Key>,
    pub(crate) requested: Amounts,
    pub(crate) ports: Vec<HostPort>,
}

/// How many pods on each node have a term, and the sum of their weights.
type TermsOnNodes = HashMap<Arc<Term>, HashMap<String, (usize, i64)>>;

#[derive(Default)]
struct InNamespace {
    all: HashSet<Key>,
    by_label: HashMap<String, HashMap<String, HashSet<Key>>>,
}

/// All pods that have a node and are not over.
#[derive(Default)]
pub(crate) struct PlacedPods {
    pods: HashMap<Key, Placed>,
    /// How many there are of each priority.
    priorities: BTreeMap<i32, usize>,
    on_node: HashMap<String, Usage>,
    namespaces: HashMap<String, InNamespace>,
    forbidden: TermsOnNodes,
    attracting: TermsOnNodes,
}

impl PlacedPods {
    pub(crate) fn get(&self, key: &Key) -> Option<&Placed> {
        self.pods.get(key)
    }

    pub(crate) fn insert(&mut self, key: &Key, pod: &Arc<Pod>, node: &str) {
        let requests = Amounts::of_pod(pod, Of::Node);
        if let Some(known) = self.pods.get_mut(key)
            && known.is_filed_as(pod, node, &requests)
        {
            known.pod = Arc::clone(pod);
            return;
        }
        self.remove(key);
        let placed = Placed {
            pod: Arc::clone(pod),
            node: node.to_owned(),
            requests,
            ports: ports::of_pod(pod),
            neighbours: Neighbours::of(pod),
        };
        let usage = self.on_node.entry(node.to_owned()).or_default();
        usage.pods.insert(key.clone());
        usage.requested.add(&placed.requests);
        usage.ports.extend(placed.ports.iter().cloned());
        let namespace = self.namespaces.entry(key.namespace.clone()).or_default();
        namespace.all.insert(key.clone());
        for (label, value) in pod.metadata.labels.iter().flatten() {
            let values = namespace.by_label.entry(label.clone()).or_default();
            values.entry(value.clone()).or_default().insert(key.clone());
        }
        for (term, weight, file) in terms(&placed) {
            let file = if file == File::Forbidden { &mut self.forbidden } else { &mut self.attracting };
            let (count, sum) = file.entry(Arc::clone(term)).or_default().entry(node.to_owned()).or_default();
            *count += 1;
            *sum += weight;
        }
        *self.priorities.entry(priority(pod)).or_default() += 1;
        self.pods.insert(key.clone(), placed);
    }

    pub(crate) fn remove(&mut self, key: &Key) {
        let Some(placed) = self.pods.remove(key) else { return };
        let own = priority(&placed.pod);
        if let Some(count) = self.priorities.get_mut(&own) {
            *count -= 1;
            if *count == 0 {
                self.priorities.remove(&own);
            }
        }
        if let Some(usage) = self.on_node.get_mut(&placed.node) {
            usage.pods.remove(key);
            usage.requested.remove(&placed.requests);
            for port in &placed.ports {
                if let Some(at) = usage.ports.iter().position(|taken| taken == port) {
                    usage.ports.swap_remove(at);
                }
            }
            if usage.pods.is_empty() {
                self.on_node.remove(&placed.node);
            }
        }
        if let Some(namespace) = self.namespaces.get_mut(&key.namespace) {
            namespace.all.remove(key);
            for (label, value) in placed.pod.metadata.labels.iter().flatten() {
                let Some(values) = namespace.by_label.get_mut(label) else { continue };
                if let Some(keys) = values.get_mut(value) {
                    keys.remove(key);
                    if keys.is_empty() {
                        values.remove(value);
                    }
                }
                if values.is_empty() {
                    namespace.by_label.remove(label);
                }
            }
            if namespace.all.is_empty() {
                self.namespaces.remove(&key.namespace);
            }
        }
        for (term, weight, file) in terms(&placed) {
            let file = if file == File::Forbidden { &mut self.forbidden } else { &mut self.attracting };
            let Some(nodes) = file.get_mut(term) else { continue };
            if let Some((count, sum)) = nodes.get_mut(&placed.node) {
                *count -= 1;
                *sum -= weight;
                if *count == 0 {
                    nodes.remove(&placed.node);
                }
            }
            if nodes.is_empty() {
                file.remove(term);
            }
        }
    }

    /// Whether any pod has a lower priority.
    pub(crate) fn has_lower(&self, own: i32) -> bool {
        self.priorities.first_key_value().is_some_and(|(lowest, _)| *lowest < own)
    }

    /// What the pods on a node take of it.
    pub(crate) fn usage(&self, node: &str) -> &Usage {
        static NONE: std::sync::LazyLock<Usage> = std::sync::LazyLock::new(Usage::default);
        self.on_node.get(node).unwrap_or(&NONE)
    }

    /// Terms that keep pods away, with the nodes whose pods have them.
    pub(crate) fn forbidding(&self) -> impl Iterator<Item = (&Term, impl Iterator<Item = &str>)> {
        self.forbidden.iter().map(|(term, nodes)| (&**term, nodes.keys().map(String::as_str)))
    }

    /// Terms that draw pods near or push them off, with the nodes whose pods have them and the sum of the weights.
    pub(crate) fn attracting(&self) -> impl Iterator<Item = (&Term, impl Iterator<Item = (&str, i64)>)> {
        self.attracting
            .iter()
            .map(|(term, nodes)| (&**term, nodes.iter().map(|(node, (_, weight))| (node.as_str(), *weight))))
    }

    /// The pods in a namespace that a selector takes.
    pub(crate) fn selected<'a: 's, 's>(
        &'a self,
        namespace: &str,
        selector: &'s LabelSelector,
    ) -> impl Iterator<Item = &'a Placed> + 's {
        let found = self.namespaces.get(namespace).into_iter();
        let keys = found.flat_map(move |namespace| namespace.candidates(selector));
        keys.filter_map(|key| self.pods.get(key))
            .filter(move |placed| selector.matches_labels(placed.pod.metadata.labels.as_ref()))
    }

    /// The pods that a term is about. `labels`: those of a namespace.
    pub(crate) fn taken_by<'a>(
        &'a self,
        term: &'a Term,
        labels: impl Fn(&str) -> Arc<Labels>,
    ) -> impl Iterator<Item = &'a Placed> {
        let mut namespaces: Vec<&str> = term.namespaces.iter().map(String::as_str).collect();
        if term.namespace_selector.is_some() {
            let others = self.namespaces.keys().filter(|name| !term.namespaces.contains(*name));
            namespaces
                .extend(others.filter(|name| term.takes_namespace(name, &labels(name))).map(String::as_str));
        }
        let selector = term.selector.as_ref().into_iter();
        selector.flat_map(move |selector| {
            namespaces.clone().into_iter().flat_map(move |namespace| self.selected(namespace, selector))
        })
    }
}

impl InNamespace {
    /// Few pods among which are all that a selector takes: by the label that leads to the fewest.
    fn candidates<'a: 's, 's>(
        &'a self,
        selector: &'s LabelSelector,
    ) -> Box<dyn Iterator<Item = &'a Key> + 's> {
        let named = selector.requirements().iter().filter(|one| one.operator() == Operator::In);
        let sets = |one: &'s values::Requirement| {
            let values = self.by_label.get(one.key());
            one.values().iter().filter_map(move |value| values?.get(value))
        };
        match named.min_by_key(|one| sets(one).map(HashSet::len).sum::<usize>()) {
            Some(one) => Box::new(sets(one).flatten()),
            None => Box::new(self.all.iter()),
        }
    }
}

#[derive(PartialEq, Eq)]
enum File {
    Forbidden,
    Attracting,
}

/// How much a pod's required affinity draws others near it, as kube-scheduler has it.
const REQUIRED_DRAWS: i64 = 1;

/// A placed pod's own terms, by what they mean to others.
fn terms(placed: &Placed) -> impl Iterator<Item = (&Arc<Term>, i64, File)> {
    placed.neighbours.iter().flat_map(|neighbours| {
        let forbidden = neighbours.forbidden.iter().map(|term| (term, 0, File::Forbidden));
        let required = neighbours.required.iter().map(|term| (term, REQUIRED_DRAWS, File::Attracting));
        let preferred = neighbours.preferred.iter().map(|(weight, term)| (term, *weight, File::Attracting));
        forbidden.chain(required).chain(preferred)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, node: &str) -> (Key, Arc<Pod>) {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"namespace": "default", "name": name, "labels": {"app": "db", "name": name}},
            "spec": {
                "nodeName": node,
                "affinity": {
                    "podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
                        {"weight": 7, "podAffinityTerm": {"topologyKey": "zone", "labelSelector": {}}}]},
                    "podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
                        {"topologyKey": "host", "labelSelector": {"matchLabels": {"app": "db"}}}]},
                },
                "containers": [{"name": "c", "ports": [{"containerPort": 1, "hostPort": 80}],
                    "resources": {"requests": {"cpu": "100m", "example.com/gpu": "1"}}}],
            },
        }))
        .expect("a pod");
        (Key::of(&pod), Arc::new(pod))
    }

    #[test]
    fn what_comes_goes_without_a_trace() {
        let mut placed = PlacedPods::default();
        let (first, second) = (pod("p-0", "a"), pod("p-1", "b"));
        placed.insert(&first.0, &first.1, "a");
        placed.insert(&second.0, &second.1, "b");
        // Moved, as when the watch shows another node than the one that was assumed.
        placed.insert(&second.0, &second.1, "a");
        assert_eq!(placed.usage("a").requested.cpu, 200);
        assert_eq!(placed.usage("a").requested.get("example.com/gpu"), 2);
        assert_eq!((placed.usage("a").pods.len(), placed.usage("a").ports.len()), (2, 2));
        assert!(placed.usage("b").pods.is_empty());
        assert_eq!(placed.forbidding().count(), 1, "both have the same term");
        let weights: Vec<_> =
            placed.attracting().flat_map(|(_, nodes)| nodes.map(|(_, weight)| weight)).collect();
        assert_eq!(weights, [14]);
        for (text, names) in
            [("app=db", 2), ("name=p-1", 1), ("app=db,name in (p-0,p-1)", 2), ("!app", 0), ("", 2)]
        {
            let selector: LabelSelector = text.parse().expect("a selector");
            assert_eq!(placed.selected("default", &selector).count(), names, "{text}");
        }
        placed.remove(&first.0);
        placed.remove(&second.0);
        assert!(placed.pods.is_empty() && placed.on_node.is_empty() && placed.namespaces.is_empty());
        assert!(placed.forbidden.is_empty() && placed.attracting.is_empty() && placed.priorities.is_empty());
    }
}
