//! What a pod asks of its node: the sum over its containers, as kubelet and kube-scheduler count it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod};
use k8s_openapi::apimachinery::pkg::api::resource;
use values::Quantity;

/// Amounts by resource name.
pub type Amounts = BTreeMap<String, Quantity>;

/// Which requests count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// Those of the spec: a pod that has no node yet.
    Spec,
    /// During a resize the larger of what is asked for and what is given: a pod on its node.
    Node,
}

/// What a pod asks for. Init containers run one after the other, so each resource counts with the largest of them;
/// those that keep running (`restartPolicy: Always`) count beside all that come after. What the pod itself asks for
/// takes the place of its containers' sum, resource by resource; its overhead is added.
pub fn of_pod(pod: &Pod, of: Of) -> Amounts {
    let Some(spec) = &pod.spec else { return Amounts::new() };
    let mut sum = Amounts::new();
    for container in &spec.containers {
        add(&mut sum, &of_container(pod, container, of));
    }
    let (mut sidecars, mut starting) = (Amounts::new(), Amounts::new());
    for container in spec.init_containers.iter().flatten() {
        if is_sidecar(container) {
            let asked = of_container(pod, container, of);
            add(&mut sum, &asked);
            add(&mut sidecars, &asked);
            raise(&mut starting, &sidecars);
        } else {
            let mut alone = of_container(pod, container, Of::Spec);
            add(&mut alone, &sidecars);
            raise(&mut starting, &alone);
        }
    }
    raise(&mut sum, &starting);
    let whole = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    for (name, amount) in read(whole).into_iter().filter(|(name, _)| is_pod_level(name)) {
        sum.insert(name, amount);
    }
    add(&mut sum, &read(spec.overhead.as_ref()));
    sum
}

/// Whether an init container keeps running beside the others.
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// Resources that a pod as a whole can ask for.
fn is_pod_level(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || name.starts_with("hugepages-")
}

fn of_container(pod: &Pod, container: &Container, of: Of) -> Amounts {
    let mut asked = read(container.resources.as_ref().and_then(|resources| resources.requests.as_ref()));
    let Some(status) = pod.status.as_ref().filter(|_| of == Of::Node) else { return asked };
    let statuses = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    let named = |status: &&ContainerStatus| status.name == container.name;
    let given =
        statuses.into_iter().find(named).and_then(|status| Some((status, status.resources.as_ref()?)));
    if let Some((status, resources)) = given {
        let infeasible = |condition: &k8s_openapi::api::core::v1::PodCondition| {
            condition.type_ == "PodResizePending" && condition.reason.as_deref() == Some("Infeasible")
        };
        if pod.status.iter().flat_map(|status| status.conditions.iter().flatten()).any(infeasible) {
            asked.clear();
        }
        raise(&mut asked, &read(resources.requests.as_ref()));
        raise(&mut asked, &read(status.allocated_resources.as_ref()));
    }
    asked
}

/// Amounts as the API has them; what can't be read is left out.
pub fn read(amounts: Option<&BTreeMap<String, resource::Quantity>>) -> Amounts {
    let parse = |(name, amount): (&String, &resource::Quantity)| Some((name.clone(), amount.0.parse().ok()?));
    amounts.into_iter().flatten().filter_map(parse).collect()
}

fn add(sum: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let before = sum.remove(name).unwrap_or_else(Quantity::zero);
        sum.insert(name.clone(), before + amount.clone());
    }
}

fn raise(to: &mut Amounts, least: &Amounts) {
    for (name, amount) in least {
        if to.get(name).is_none_or(|known| known < amount) {
            to.insert(name.clone(), amount.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn cpu(spec: Value, status: Value, of: Of) -> Option<i64> {
        let pod = json!({"metadata": {"name": "p"}, "spec": spec, "status": status});
        let pod: Pod = serde_json::from_value(pod).expect("a pod");
        of_pod(&pod, of).get("cpu").and_then(Quantity::milli)
    }

    #[test]
    fn containers_sidecars_and_the_pod_itself_add_up() {
        let asks = |name: &str, cpu: &str| json!({"name": name, "resources": {"requests": {"cpu": cpu}}});
        let sidecar = |name: &str, cpu: &str| {
            let mut container = asks(name, cpu);
            container["restartPolicy"] = "Always".into();
            container
        };
        let main = [asks("a", "100m"), asks("b", "200m")];
        for (spec, sum) in [
            (json!({"containers": [{"name": "a"}]}), None),
            (json!({"containers": main}), Some(300)),
            (json!({"containers": main, "initContainers": [asks("i", "250m")]}), Some(300)),
            (json!({"containers": main, "initContainers": [asks("i", "400m"), asks("j", "50m")]}), Some(400)),
            (json!({"containers": main, "initContainers": [sidecar("s", "50m")]}), Some(350)),
            (
                json!({"containers": main, "initContainers": [sidecar("s", "50m"), asks("i", "400m")]}),
                Some(450),
            ),
            (
                json!({"containers": main, "initContainers": [asks("i", "400m"), sidecar("s", "50m")]}),
                Some(400),
            ),
            (json!({"containers": main, "resources": {"requests": {"cpu": "1"}}}), Some(1000)),
            (json!({"containers": main, "overhead": {"cpu": "10m"}}), Some(310)),
            (json!({"containers": [asks("a", "0.0005"), asks("b", "0.0005")]}), Some(1)),
        ] {
            assert_eq!(cpu(spec.clone(), json!({}), Of::Spec), sum, "{spec}");
        }
    }

    #[test]
    fn a_pod_on_its_node_counts_with_what_it_was_given() {
        let spec =
            |cpu: &str| json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": cpu}}}]});
        let given = |cpu: &str| {
            json!({"containerStatuses": [{"name": "a", "image": "", "imageID": "", "ready": true,
                "restartCount": 0, "resources": {"requests": {"cpu": cpu}}, "allocatedResources": {"cpu": cpu}}]})
        };
        assert_eq!(cpu(spec("1"), given("2"), Of::Spec), Some(1000));
        assert_eq!(cpu(spec("1"), given("2"), Of::Node), Some(2000));
        assert_eq!(cpu(spec("2"), given("1"), Of::Node), Some(2000));
        let mut status = given("1");
        status["conditions"] =
            json!([{"type": "PodResizePending", "status": "True", "reason": "Infeasible"}]);
        assert_eq!(cpu(spec("2"), status, Of::Node), Some(1000));
    }
}
