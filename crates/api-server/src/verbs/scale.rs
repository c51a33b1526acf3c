//! The `scale` subresource: how many replicas a set is asked for, and has.

use std::sync::Arc;

use http::StatusCode;
use object_store::Object;
use serde_json::{Value, json};

use super::{read, write};
use crate::answer::{self, Answer};
use crate::body::{self, Payload};
use crate::change::Part;
use crate::context::{Context, Target};
use crate::error::ApiError;
use crate::kinds::fields::{entries, items, text};
use crate::kinds::row::ScalePaths;
use crate::object;
use crate::patch::Patch;
use crate::request::{Query, Verb};

/// Answers a get.
pub(crate) fn get(context: &Context, target: &Target) -> Result<Answer, ApiError> {
    answered(target, &read::fetch(context, target)?)
}

/// Answers an update or a patch: the set gets the replicas that the scale asks for.
pub(crate) async fn set(
    context: &Arc<Context>,
    verb: Verb,
    target: &Target,
    query: &Query,
    payload: &Payload,
) -> Result<Answer, ApiError> {
    let kind = &target.served.kind;
    let paths = paths(target)?;
    let patch = match verb {
        // A scale is patched as custom resources are: it has no lists that could merge.
        Verb::Patch if payload.media_type == "application/strategic-merge-patch+json" => {
            Some(Patch::Merge(body::json(&payload.bytes)?.0))
        }
        Verb::Patch => Some(Patch::parse(payload, true)?.0),
        _ => None,
    };
    let stored = write::modify(context, target, query, Part::Main, |old| {
        let before = of(old, paths)?;
        let scale = match &patch {
            Some(patch) => patch.apply(kind, &before)?,
            None => payload.value()?.0,
        };
        let uid = object::meta_str(&scale, "uid");
        if !uid.is_empty() && uid != object::meta_str(old, "uid") {
            let why = object::wrong_uid(uid, object::meta_str(old, "uid"));
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
        set_at(&mut new, &paths.wanted, replicas);
        // Who names no revision means the one that is there.
        let asked = &scale["metadata"]["resourceVersion"];
        if object::meta_str(&scale, "resourceVersion").is_empty() {
            new["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"].clone();
        } else {
            new["metadata"]["resourceVersion"] = asked.clone();
        }
        Ok(new)
    })
    .await?;
    answered(target, &stored)
}

fn answered(target: &Target, stored: &Object) -> Result<Answer, ApiError> {
    let set = object::decode(&object::with_api_version(&stored.value, &target.served.api_version))?;
    Ok(answer::json(StatusCode::OK, &of(&set, paths(target)?)?))
}

fn paths(target: &Target) -> Result<&ScalePaths, ApiError> {
    target.served.scale().ok_or(ApiError::UnknownPath)
}

/// Sets the field at a pointer, making the objects on the way.
fn set_at(object: &mut Value, pointer: &str, value: Value) {
    let mut at = object;
    for name in pointer.split('/').skip(1) {
        if !at.is_object() {
            *at = json!({});
        }
        at = &mut at[name];
    }
    *at = value;
}

/// The scale of an object.
fn of(object: &Value, paths: &ScalePaths) -> Result<Value, ApiError> {
    let metadata: serde_json::Map<String, Value> = entries(&object["metadata"])
        .filter(|(field, _)| {
            ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"].contains(&field.as_str())
        })
        .map(|(field, value)| (field.clone(), value.clone()))
        .collect();
    let Some(wanted) = object.pointer(&paths.wanted).filter(|value| value.is_i64()) else {
        let path = paths.wanted.replace('/', ".");
        return Err(ApiError::Internal(format!("the spec replicas field {path:?} does not exist")));
    };
    let mut scale = json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata,
        "spec": {"replicas": wanted},
        "status": {"replicas": object.pointer(&paths.observed).and_then(Value::as_i64).unwrap_or(0)},
    });
    let selected = paths.selector.as_ref().and_then(|path| object.pointer(path));
    let text = match selected {
        Some(Value::String(text)) => text.clone(),
        Some(labels) => selector(labels),
        None => String::new(),
    };
    if !text.is_empty() {
        scale["status"]["selector"] = text.into();
    }
    Ok(scale)
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
        let paths = |selector: &'static str| ScalePaths {
            wanted: "/spec/replicas".into(),
            observed: "/status/replicas".into(),
            selector: Some(selector.into()),
        };
        assert_eq!(
            of(&set, &paths("/spec/selector")).unwrap(),
            json!({
                "kind": "Scale", "apiVersion": "autoscaling/v1",
                "metadata": {"name": "db", "namespace": "shop", "uid": "7", "resourceVersion": "3"},
                "spec": {"replicas": 3},
                "status": {"replicas": 2, "selector": "app=db,tier in (a,b),!old"},
            })
        );
        assert_eq!(of(&set, &paths("/metadata/labels/a")).unwrap()["status"]["selector"], "b");
        assert!(of(&json!({"spec": {}}), &paths("")).is_err(), "nobody asked for a number");
        let mut bare = json!({"metadata": {}});
        set_at(&mut bare, "/spec/size/count", json!(3));
        assert_eq!(bare["spec"]["size"]["count"], 3);
    }
}
