//! A node's conditions become taints that keep new pods away, as kube-controller-manager does it.

use k8s_openapi::api::core::v1::{Node, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{Api, ResourceExt};
use resources::taints;
use runtime::{Change, Context, Next, Queue};

/// Condition, its status, and the taint that stands for it.
const BY_CONDITION: &[(&str, &str, &str)] = &[
    ("Ready", "False", taints::NOT_READY),
    ("Ready", "Unknown", taints::UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
];
const EFFECT: &str = "NoSchedule";

/// The taints that a node should have: those of others as they are, ours by its conditions. `None`: it has them.
fn wanted(node: &Node) -> Option<Vec<Taint>> {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let holds = |(kind, status, _): &&(&str, &str, &str)| {
        conditions.iter().any(|condition| condition.type_ == *kind && condition.status == *status)
    };
    let mut due: Vec<&str> = BY_CONDITION.iter().filter(holds).map(|(_, _, taint)| *taint).collect();
    if node.spec.as_ref().is_some_and(|spec| spec.unschedulable == Some(true)) {
        due.push(taints::UNSCHEDULABLE);
    }
    let is_ours = |taint: &Taint| {
        let known = BY_CONDITION.iter().map(|(_, _, key)| *key).chain([taints::UNSCHEDULABLE]);
        taint.effect == EFFECT && known.into_iter().any(|key| key == taint.key)
    };
    let has = taints::of(node);
    let missing = |key: &&str| !has.iter().any(|taint| taint.effect == EFFECT && taint.key == **key);
    let stays = |taint: &&Taint| !is_ours(taint) || due.contains(&taint.key.as_str());
    let mut wanted: Vec<Taint> = has.iter().filter(stays).cloned().collect();
    let is_complete = wanted.len() == has.len() && !due.iter().any(missing);
    wanted.extend(due.iter().filter(|key| missing(key)).map(|key| Taint {
        key: (*key).to_owned(),
        effect: EFFECT.to_owned(),
        time_added: Some(Time(clock::now())),
        ..Taint::default()
    }));
    (!is_complete).then_some(wanted)
}

/// Keeps the taints of nodes until the context is shut down.
pub async fn run(context: Context) {
    let queue = Queue::<String>::new("node-taints", &context.metrics);
    let nodes = context.informers.nodes();
    nodes.subscribe({
        let queue = queue.clone();
        move |change| {
            if let Change::Applied { new, .. } = change
                && wanted(new).is_some()
            {
                queue.add(new.name_any());
            }
        }
    });
    if context.shutdown.run_until_cancelled(nodes.synced()).await.is_none() {
        return;
    }
    runtime::work(queue, 1, context.shutdown.clone(), |name| {
        let node = nodes.get("", &name);
        let api = Api::<Node>::all(context.client.clone());
        async move {
            let Some((node, taints)) = node.and_then(|node| Some((node.clone(), wanted(&node)?))) else {
                return Ok::<_, kube::Error>(Next::Done);
            };
            let written = runtime::update_if_changed(&api, &*node, |node| {
                node.spec.get_or_insert_default().taints = Some(taints);
            });
            match written.await {
                Ok(_) => Ok(Next::Done),
                Err(kube::Error::Api(status)) if status.is_not_found() => Ok(Next::Done),
                Err(kube::Error::Api(status)) if status.is_conflict() => Ok(Next::Overtaken),
                Err(error) => Err(error),
            }
        }
    })
    .await;
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn conditions_and_cordons_become_taints_and_go_again() {
        let taint = |key: &str| json!({"key": format!("node.kubernetes.io/{key}"), "effect": "NoSchedule"});
        let foreign = json!({"key": "disk", "effect": "NoExecute"});
        /// Conditions, whether it is cordoned, the taints that it has, the keys of those that it should have.
        type Case<'a> = (Value, bool, Vec<Value>, Option<Vec<&'a str>>);
        let cases: [Case<'_>; 8] = [
            (json!([]), false, vec![], None),
            (json!([{"type": "Ready", "status": "True"}]), false, vec![foreign.clone()], None),
            (json!([{"type": "Ready", "status": "False"}]), false, vec![], Some(vec!["not-ready"])),
            (
                json!([{"type": "Ready", "status": "Unknown"}]),
                false,
                vec![foreign.clone(), taint("not-ready")],
                Some(vec!["disk", "unreachable"]),
            ),
            (json!([{"type": "Ready", "status": "True"}]), false, vec![taint("not-ready")], Some(vec![])),
            (json!([]), true, vec![], Some(vec!["unschedulable"])),
            (json!([]), true, vec![taint("unschedulable")], None),
            (json!([{"type": "DiskPressure", "status": "True"}]), false, vec![], Some(vec!["disk-pressure"])),
        ];
        for (conditions, cordoned, has, expected) in cases {
            let node = json!({"metadata": {"name": "n"}, "spec": {"unschedulable": cordoned, "taints": has},
                "status": {"conditions": conditions}});
            let what = node.to_string();
            let node: Node = serde_json::from_value(node).expect("a node");
            let short = |taint: &Taint| taint.key.trim_start_matches("node.kubernetes.io/").to_owned();
            let got = wanted(&node).map(|taints| taints.iter().map(short).collect::<Vec<_>>());
            assert_eq!(got, expected.map(|keys| keys.into_iter().map(str::to_owned).collect()), "{what}");
        }
    }
}
