//! Subresources that only pods have: binding and eviction.

use std::sync::Arc;

use http::StatusCode;
use serde_json::{Value, json};

use crate::answer::{self, Answer};
use crate::body::Payload;
use crate::change::Part;
use crate::delete::{self, DeleteOptions};
use crate::error::ApiError;
use crate::request::Query;
use crate::server::{Shared, Target};
use crate::{object, write};

/// The name of a subresource of pods that a cluster has and this server has not.
pub(crate) fn unserved(subresource: &str) -> Option<&'static str> {
    ["exec", "attach", "portforward", "proxy", "ephemeralcontainers", "resize"]
        .into_iter()
        .find(|name| *name == subresource)
}

/// Answers `POST pods/NAME/binding`: the pod goes to a node, once.
pub(crate) async fn bind(
    shared: &Arc<Shared>,
    target: &Target,
    query: &Query,
    payload: Payload,
) -> Result<Answer, ApiError> {
    let (binding, _) = payload.value()?;
    let node = binding.pointer("/target/name").and_then(Value::as_str).unwrap_or("").to_owned();
    if node.is_empty() {
        return Err(ApiError::BadRequest("target.name: Required value: the node to bind the pod to".into()));
    }
    let uid = object::meta_str(&binding, "uid").to_owned();
    let kind = &target.served.kind;
    write::modify(shared, target, query, Part::Binding, |pod| {
        let refused = |why: String| Err(ApiError::conflict(kind, &target.name, why));
        if !uid.is_empty() && uid != object::meta_str(pod, "uid") {
            return refused(crate::change::wrong_uid(&uid, object::meta_str(pod, "uid")));
        }
        if object::is_deleting(pod) {
            return refused(format!("pod {} is being deleted, cannot be assigned to a host", target.name));
        }
        if let Some(host) =
            pod.pointer("/spec/nodeName").and_then(Value::as_str).filter(|host| !host.is_empty())
        {
            return refused(format!("pod {} is already assigned to node {host:?}", target.name));
        }
        let mut bound = pod.clone();
        bound["spec"]["nodeName"] = node.as_str().into();
        if let Some(annotations) = binding.pointer("/metadata/annotations").and_then(Value::as_object) {
            for (key, value) in annotations {
                bound["metadata"]["annotations"][key] = value.clone();
            }
        }
        set_scheduled(&mut bound);
        Ok(bound)
    })
    .await?;
    Ok(success(StatusCode::CREATED))
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

/// Answers `POST pods/NAME/eviction`: there are no disruption budgets here, so it is a delete.
pub(crate) async fn evict(
    shared: &Arc<Shared>,
    target: &Target,
    query: &Query,
    payload: Payload,
) -> Result<Answer, ApiError> {
    let (eviction, _) = payload.value()?;
    let options = &eviction["deleteOptions"];
    let options = DeleteOptions {
        grace_period_seconds: options["gracePeriodSeconds"].as_i64(),
        uid: options["preconditions"]["uid"].as_str().map(str::to_owned),
        dry_run: query.dry_run || options["dryRun"].as_array().is_some_and(|list| !list.is_empty()),
        ..Default::default()
    };
    delete::delete_one(shared, target, &options).await?;
    Ok(success(StatusCode::CREATED))
}

fn success(code: StatusCode) -> Answer {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": code.as_u16()});
    answer::json(code, &status)
}
