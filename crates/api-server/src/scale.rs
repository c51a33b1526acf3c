//! The `scale` subresource: how many replicas a set is asked for, and has.

use std::sync::Arc;

use http::StatusCode;
use object_store::Object;
use serde_json::{Value, json};

use crate::answer::{self, Answer};
use crate::body::{self, Payload};
use crate::change::{self, Part};
use crate::error::ApiError;
use crate::kinds::fields::{entries, items, text};
use crate::patch::Patch;
use crate::request::{Query, Verb};
use crate::server::{Shared, Target};
use crate::{object, read, write};

/// Answers a get.
pub(crate) fn get(shared: &Shared, target: &Target) -> Result<Answer, ApiError> {
    answered(target, &read::fetch(shared, target)?)
}

/// Answers an update or a patch: the set gets the replicas that the scale asks for.
pub(crate) async fn set(
    shared: &Arc<Shared>,
    verb: Verb,
    target: &Target,
    query: &Query,
    payload: &Payload,
) -> Result<Answer, ApiError> {
    let kind = &target.served.kind;
    let patch = match verb {
        // A scale is patched as custom resources are: it has no lists that could merge.
        Verb::Patch if payload.media_type == "application/strategic-merge-patch+json" => {
            Some(Patch::Merge(body::json(&payload.bytes)?.0))
        }
        Verb::Patch => Some(Patch::parse(payload, true)?.0),
        _ => None,
    };
    let stored = write::modify(shared, target, query, Part::Main, |old| {
        let before = of(old);
        let scale = match &patch {
            Some(patch) => patch.apply(kind, &before)?,
            None => payload.value()?.0,
        };
        let uid = object::meta_str(&scale, "uid");
        if !uid.is_empty() && uid != object::meta_str(old, "uid") {
            let why = change::wrong_uid(uid, object::meta_str(old, "uid"));
            return Err(ApiError::conflict(kind, &target.name, why));
        }
        let replicas = match &scale["spec"]["replicas"] {
            Value::Null => json!(0),
            Value::Number(number) if number.is_i64() => json!(number),
            other => {
                return Err(ApiError::BadRequest(format!("spec.replicas: {other} is not a whole number")));
            }
        };
        let mut new = old.clone();
        new["spec"]["replicas"] = replicas;
        new["metadata"]["resourceVersion"] = scale["metadata"]["resourceVersion"].clone();
        Ok(new)
    })
    .await?;
    answered(target, &stored)
}

fn answered(target: &Target, stored: &Object) -> Result<Answer, ApiError> {
    let set = object::decode(&object::with_api_version(&stored.value, &target.served.api_version))?;
    Ok(answer::json(StatusCode::OK, &of(&set)))
}

/// The scale of a set.
fn of(set: &Value) -> Value {
    let metadata: serde_json::Map<String, Value> = entries(&set["metadata"])
        .filter(|(field, _)| {
            ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"].contains(&field.as_str())
        })
        .map(|(field, value)| (field.clone(), value.clone()))
        .collect();
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata,
        "spec": {"replicas": set["spec"]["replicas"]},
        "status": {
            "replicas": set["status"]["replicas"].as_i64().unwrap_or(0),
            "selector": selector(&set["spec"]["selector"]),
        },
    })
}

/// A label selector in its text form.
fn selector(selector: &Value) -> String {
    let labels = entries(&selector["matchLabels"]).map(|(key, value)| format!("{key}={}", text(value)));
    let expressions = items(&selector["matchExpressions"]).iter().map(|one| {
        let (key, values) = (text(&one["key"]), items(&one["values"]).iter().map(text));
        let values = values.collect::<Vec<_>>().join(",");
        match text(&one["operator"]) {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        }
    });
    labels.chain(expressions).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_shows_what_is_asked_for_and_what_is_there() {
        let set = json!({
            "metadata": {"name": "db", "namespace": "shop", "uid": "7", "resourceVersion": "3", "labels": {"a": "b"}},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "db"}, "matchExpressions": [
                {"key": "tier", "operator": "In", "values": ["a", "b"]}, {"key": "old", "operator": "DoesNotExist"}]}},
            "status": {"replicas": 2},
        });
        assert_eq!(
            of(&set),
            json!({
                "kind": "Scale", "apiVersion": "autoscaling/v1",
                "metadata": {"name": "db", "namespace": "shop", "uid": "7", "resourceVersion": "3"},
                "spec": {"replicas": 3},
                "status": {"replicas": 2, "selector": "app=db,tier in (a,b),!old"},
            })
        );
    }
}
