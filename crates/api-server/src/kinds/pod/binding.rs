//! The binding of a pod to its node, once.

use serde_json::{Value, json};

use super::super::{
    fields::{entries, text},
    row::Refusal,
};
use crate::object;

/// A binding names a node.
pub(super) fn check(binding: &Value) -> Result<(), Refusal> {
    match text(&binding["target"]["name"]) {
        "" => Err(Refusal::Malformed("target.name: Required value: the node to bind the pod to".into())),
        _ => Ok(()),
    }
}

/// The pod with its node, and the annotations and the condition that go with it.
pub(super) fn bind(pod: &Value, binding: &Value) -> Result<Value, Refusal> {
    let (name, uid) = (object::name(pod), object::meta_str(binding, "uid"));
    if !uid.is_empty() && uid != object::meta_str(pod, "uid") {
        return Err(Refusal::Conflict(object::wrong_uid(uid, object::meta_str(pod, "uid"))));
    }
    if object::is_deleting(pod) {
        let why = format!("pod {name} is being deleted, cannot be assigned to a host");
        return Err(Refusal::Conflict(why));
    }
    let host = text(&pod["spec"]["nodeName"]);
    if !host.is_empty() {
        return Err(Refusal::Conflict(format!("pod {name} is already assigned to node {host:?}")));
    }
    let mut bound = pod.clone();
    bound["spec"]["nodeName"] = binding["target"]["name"].clone();
    for (key, value) in entries(&binding["metadata"]["annotations"]) {
        bound["metadata"]["annotations"][key] = value.clone();
    }
    set_scheduled(&mut bound);
    Ok(bound)
}

fn set_scheduled(pod: &mut Value) {
    let condition = json!({"type": "PodScheduled", "status": "True",
        "lastTransitionTime": object::time(clock::now())});
    match pod["status"]["conditions"].as_array_mut() {
        Some(conditions) => {
            conditions.retain(|known| known["type"] != "PodScheduled");
            conditions.push(condition);
        }
        None => pod["status"]["conditions"] = json!([condition]),
    }
}
