//! What the scheduler goes by, as Kubernetes' API server completes it: host ports, requests of the pod as a whole, label
//! keys that rules take over from the pod itself, and the condition of a pod that is gated.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use values::Quantity;

use super::super::super::{
    fields::{default_field, entries, items, items_mut, text},
    violations::quantity,
};
use crate::object;

pub(in super::super) fn default(pod: &mut Value, old: Option<&Value>) {
    default_host_ports(&mut pod["spec"]);
    default_requests(&mut pod["spec"]);
    if old.is_none() {
        take_over_labels(pod);
        gate(pod);
    }
}

/// On the host's network a container's ports are the host's.
fn default_host_ports(spec: &mut Value) {
    if spec["hostNetwork"] != true {
        return;
    }
    for list in ["initContainers", "containers"] {
        let Some(containers) = spec.get_mut(list) else { continue };
        for container in items_mut(containers) {
            for port in container.get_mut("ports").map(items_mut).unwrap_or_default() {
                let number = port["containerPort"].clone();
                if port["hostPort"].as_i64().unwrap_or_default() == 0 {
                    port["hostPort"] = number;
                }
            }
        }
    }
}

/// A pod with limits as a whole requests what its containers do; of what none of them requests, as much as its limit.
fn default_requests(spec: &mut Value) {
    let limits: Vec<(String, Value)> = entries(&spec["resources"]["limits"])
        .map(|(name, limit)| (name.clone(), limit.clone()))
        .filter(|(name, _)| matches!(name.as_str(), "cpu" | "memory") || name.starts_with("hugepages-"))
        .collect();
    if limits.is_empty() {
        return;
    }
    let asked = of_containers(spec);
    for name in ["cpu", "memory"] {
        if let Some(sum) = asked.get(name) {
            default_field(spec, &["resources", "requests", name], sum.to_string());
        }
    }
    for (name, limit) in limits {
        default_field(spec, &["resources", "requests", &name], limit);
    }
}

/// What the containers request: all that run together, or the most that one which runs before them needs.
fn of_containers(spec: &Value) -> BTreeMap<String, Quantity> {
    let requests = |container: &Value| -> Vec<(String, Quantity)> {
        let requests = entries(&container["resources"]["requests"]);
        requests.filter_map(|(name, amount)| Some((name.clone(), quantity(amount)?))).collect()
    };
    let add = |sum: &mut BTreeMap<String, Quantity>, container: &Value| {
        for (name, amount) in requests(container) {
            let before = sum.remove(&name).unwrap_or_else(Quantity::zero);
            sum.insert(name, before + amount);
        }
    };
    let (mut sum, mut sidecars, mut most) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    items(&spec["containers"]).iter().for_each(|container| add(&mut sum, container));
    for container in items(&spec["initContainers"]) {
        let mut starting = sidecars.clone();
        add(&mut starting, container);
        if container["restartPolicy"] == "Always" {
            add(&mut sum, container);
            sidecars.clone_from(&starting);
        }
        raise(&mut most, starting);
    }
    raise(&mut sum, most);
    sum
}

fn raise(to: &mut BTreeMap<String, Quantity>, least: BTreeMap<String, Quantity>) {
    for (name, amount) in least {
        if to.get(&name).is_none_or(|known| *known < amount) {
            to.insert(name, amount);
        }
    }
}

/// `matchLabelKeys` and `mismatchLabelKeys`: the pod's own values become part of the selectors.
fn take_over_labels(pod: &mut Value) {
    let labels = pod["metadata"]["labels"].clone();
    let spec = &mut pod["spec"];
    if let Some(constraints) = spec.get_mut("topologySpreadConstraints") {
        items_mut(constraints).iter_mut().for_each(|constraint| narrow(constraint, &labels));
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let Some(rules) = spec.get_mut("affinity").and_then(|affinity| affinity.get_mut(kind)) else {
            continue;
        };
        if let Some(terms) = rules.get_mut("requiredDuringSchedulingIgnoredDuringExecution") {
            items_mut(terms).iter_mut().for_each(|term| narrow(term, &labels));
        }
        if let Some(terms) = rules.get_mut("preferredDuringSchedulingIgnoredDuringExecution") {
            for term in items_mut(terms).iter_mut().filter_map(|term| term.get_mut("podAffinityTerm")) {
                narrow(term, &labels);
            }
        }
    }
}

fn narrow(rule: &mut Value, labels: &Value) {
    if !rule["labelSelector"].is_object() {
        return;
    }
    let mut more = Vec::new();
    for (field, operator) in [("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")] {
        for key in items(&rule[field]) {
            if let Some(value) = labels[text(key)].as_str() {
                more.push(json!({"key": key, "operator": operator, "values": [value]}));
            }
        }
    }
    if !more.is_empty() {
        let mut all = items(&rule["labelSelector"]["matchExpressions"]).to_vec();
        all.append(&mut more);
        rule["labelSelector"]["matchExpressions"] = all.into();
    }
}

/// A pod with scheduling gates says so from the start.
fn gate(pod: &mut Value) {
    if items(&pod["spec"]["schedulingGates"]).is_empty()
        || items(&pod["status"]["conditions"]).iter().any(|condition| condition["type"] == "PodScheduled")
    {
        return;
    }
    let condition = json!({"type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
        "message": "Scheduling is blocked due to non-empty scheduling gates",
        "lastTransitionTime": object::time(clock::now())});
    let mut conditions = items(&pod["status"]["conditions"]).to_vec();
    conditions.push(condition);
    pod["status"]["conditions"] = conditions.into();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_take_over_the_pod_s_own_labels_once() {
        let term = json!({"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "db"}},
            "matchLabelKeys": ["rev", "none"], "mismatchLabelKeys": ["tenant"]});
        let without = json!({"topologyKey": "zone", "matchLabelKeys": ["rev"]});
        let mut pod = json!({"metadata": {"labels": {"rev": "2", "tenant": "a"}}, "spec": {
            "topologySpreadConstraints": [term],
            "affinity": {
                "podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term, without]},
                "podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
                    {"weight": 1, "podAffinityTerm": term}]}}}});
        default(&mut pod, None);
        let expected = json!([{"key": "rev", "operator": "In", "values": ["2"]},
            {"key": "tenant", "operator": "NotIn", "values": ["a"]}]);
        for path in [
            "/spec/topologySpreadConstraints/0",
            "/spec/affinity/podAffinity/requiredDuringSchedulingIgnoredDuringExecution/0",
            "/spec/affinity/podAntiAffinity/preferredDuringSchedulingIgnoredDuringExecution/0/podAffinityTerm",
        ] {
            let rule = pod.pointer(path).expect("a rule");
            assert_eq!(rule["labelSelector"]["matchExpressions"], expected, "{path}");
        }
        let nothing = "/spec/affinity/podAffinity/requiredDuringSchedulingIgnoredDuringExecution/1";
        assert_eq!(pod.pointer(nothing), Some(&without));
        let before = pod.clone();
        default(&mut pod, Some(&before));
        assert_eq!(pod, before, "an update changes nothing");
    }

    #[test]
    fn the_pod_s_own_requests_follow_from_its_limits() {
        let asks = |cpu: &str| json!({"resources": {"requests": {"cpu": cpu}}});
        let limits = json!({"limits": {"cpu": "3", "memory": "1Gi"}});
        for (mut spec, requests) in [
            (json!({"containers": [asks("1")]}), Value::Null),
            (json!({"containers": [asks("1")], "resources": limits}), json!({"cpu": "1", "memory": "1Gi"})),
            (json!({"containers": [{}], "resources": limits}), json!({"cpu": "3", "memory": "1Gi"})),
            (
                json!({"containers": [asks("1")], "initContainers": [asks("2")], "resources": limits}),
                json!({"cpu": "2", "memory": "1Gi"}),
            ),
            (
                json!({"containers": [asks("1")], "resources": {"limits": {"cpu": "3"}, "requests": {"cpu": "2"}}}),
                json!({"cpu": "2"}),
            ),
        ] {
            default_requests(&mut spec);
            assert_eq!(spec["resources"]["requests"], requests, "{spec}");
        }
    }

    #[test]
    fn ports_on_the_host_s_network_are_the_host_s() {
        let ports = json!([{"containerPort": 80}, {"containerPort": 81, "hostPort": 8081}]);
        let spec = |host: bool| json!({"hostNetwork": host, "containers": [{"ports": ports}]});
        let (mut on, mut off) = (spec(true), spec(false));
        default_host_ports(&mut on);
        default_host_ports(&mut off);
        assert_eq!(off, spec(false));
        assert_eq!(on["containers"][0]["ports"][0]["hostPort"], 80);
        assert_eq!(on["containers"][0]["ports"][1]["hostPort"], 8081);
    }

    #[test]
    fn a_gated_pod_says_so() {
        let mut pod = json!({"spec": {"schedulingGates": [{"name": "example.com/wait"}]}});
        default(&mut pod, None);
        let condition = &pod["status"]["conditions"][0];
        assert_eq!(
            (text(&condition["type"]), text(&condition["reason"])),
            ("PodScheduled", "SchedulingGated")
        );
        let mut free = json!({"spec": {}});
        default(&mut free, None);
        assert_eq!(free, json!({"spec": {}}));
    }
}
