//! What the cluster adds to a new pod, and what it refuses: service account, runtime class, priority.

use serde_json::Value;

use super::super::{
    fields::{default_field, text},
    priority_class,
    row::Cluster,
    service_account,
};
use crate::object;

/// The account of pods that name none. Every namespace gets it, maybe a moment after its first pod.
const ACCOUNT: &str = "default";

pub(super) fn on_create(pod: &mut Value, cluster: &dyn Cluster) -> Result<(), String> {
    let namespace = object::meta_str(pod, "namespace").to_owned();
    let Some(spec) = pod.get_mut("spec").filter(|spec| spec.is_object()) else { return Ok(()) };
    account(spec, &namespace, cluster)?;
    let runtime = text(&spec["runtimeClassName"]);
    if !runtime.is_empty() {
        return Err(format!("pod rejected: RuntimeClass \"{runtime}\" not found"));
    }
    if spec["overhead"].as_object().is_some_and(|overhead| !overhead.is_empty()) {
        let why = "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead";
        return Err(why.to_owned());
    }
    priority_class::admit(spec, cluster)
}

/// A replacement that leaves out what admission once gave keeps it.
pub(super) fn on_update(new: &mut Value, old: &Value, _: &dyn Cluster) -> Result<(), String> {
    for field in ["priority", "preemptionPolicy"] {
        if let Some(given) = old["spec"].get(field) {
            default_field(new, &["spec", field], given.clone());
        }
    }
    Ok(())
}

fn account(spec: &mut Value, namespace: &str, cluster: &dyn Cluster) -> Result<(), String> {
    if text(&spec["serviceAccountName"]).is_empty() {
        // The field's former name counts, too.
        let former = text(&spec["serviceAccount"]).to_owned();
        spec["serviceAccountName"] = if former.is_empty() { ACCOUNT.into() } else { former.into() };
    }
    let name = text(&spec["serviceAccountName"]).to_owned();
    spec["serviceAccount"] = name.as_str().into();
    if name != ACCOUNT && cluster.get(&service_account::KIND, namespace, &name).is_none() {
        return Err(format!(
            "error looking up service account {namespace}/{name}: serviceaccount \"{name}\" not found"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::row::Row;
    use super::*;

    /// Objects of the cluster: kind, namespace, object.
    struct Known(Vec<(&'static str, &'static str, Value)>);

    impl Cluster for Known {
        fn get(&self, of: &Row, namespace: &str, name: &str) -> Option<Value> {
            let here = |(kind, place, object): &&(&str, &str, Value)| {
                (*kind, *place) == (of.kind, namespace) && object::name(object) == name
            };
            self.0.iter().find(here).map(|(.., object)| object.clone())
        }

        fn list(&self, of: &Row) -> Vec<Value> {
            self.0.iter().filter(|(kind, ..)| *kind == of.kind).map(|(.., object)| object.clone()).collect()
        }

        fn is_taken(&self, _: &str, _: &str, _: &str) -> bool {
            false
        }
    }

    #[test]
    fn pods_get_what_is_theirs_or_are_refused_in_kubernetes_words() {
        let class = |name: &str, value: i64, more: Value| {
            let mut class = json!({"metadata": {"name": name}, "value": value, "preemptionPolicy": "PreemptLowerPriority"});
            class.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            ("PriorityClass", "", class)
        };
        let account =
            |namespace: &'static str| ("ServiceAccount", namespace, json!({"metadata": {"name": "acc"}}));
        let high = class("high", 1000, json!({}));
        let polite = class("polite", 5, json!({"preemptionPolicy": "Never"}));
        let usual = class("usual", 7, json!({"globalDefault": true}));
        let plain = json!({"serviceAccountName": "default", "serviceAccount": "default", "priority": 0,
            "preemptionPolicy": "PreemptLowerPriority"});
        let with = |more: Value| {
            let mut spec = plain.clone();
            spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            Ok(spec)
        };
        let refused = |why: &str| Err(why.to_owned());
        for (spec, cluster, expected) in [
            (json!({}), vec![], with(json!({}))),
            (
                json!({}),
                vec![usual.clone(), high.clone()],
                with(json!({"priority": 7, "priorityClassName": "usual"})),
            ),
            (json!({"priority": 0}), vec![high.clone()], with(json!({}))),
            (
                json!({"priorityClassName": "high"}),
                vec![usual.clone(), high.clone()],
                with(json!({"priority": 1000, "priorityClassName": "high"})),
            ),
            (
                json!({"priorityClassName": "polite", "priority": 5}),
                vec![polite.clone()],
                with(json!({"priority": 5, "priorityClassName": "polite", "preemptionPolicy": "Never"})),
            ),
            (
                json!({"priorityClassName": "none"}),
                vec![high.clone()],
                refused("no PriorityClass with name none was found"),
            ),
            (
                json!({"priorityClassName": "high", "priority": 3}),
                vec![high.clone()],
                refused(
                    "the integer value of priority (3) must not be provided in pod spec; priority admission controller \
                     computed 1000 from the given PriorityClass name",
                ),
            ),
            (
                json!({"priorityClassName": "high", "preemptionPolicy": "Never"}),
                vec![high],
                refused(
                    "the string value of PreemptionPolicy (Never) must not be provided in pod spec; priority admission \
                     controller computed PreemptLowerPriority from the given PriorityClass name",
                ),
            ),
            (
                json!({"serviceAccountName": "acc"}),
                vec![account("here")],
                with(json!({"serviceAccountName": "acc", "serviceAccount": "acc"})),
            ),
            (
                json!({"serviceAccount": "acc"}),
                vec![account("here")],
                with(json!({"serviceAccountName": "acc", "serviceAccount": "acc"})),
            ),
            (
                json!({"serviceAccountName": "acc"}),
                vec![account("elsewhere")],
                refused("error looking up service account here/acc: serviceaccount \"acc\" not found"),
            ),
            (
                json!({"runtimeClassName": "kata"}),
                vec![],
                refused("pod rejected: RuntimeClass \"kata\" not found"),
            ),
            (
                json!({"overhead": {"cpu": "1"}}),
                vec![],
                refused("pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead"),
            ),
        ] {
            let mut pod = json!({"metadata": {"namespace": "here"}, "spec": spec});
            let outcome = on_create(&mut pod, &Known(cluster)).map(|()| pod["spec"].clone());
            assert_eq!(outcome, expected, "{spec}");
        }
    }
}
