//! Delete and deletecollection: finalizers, grace, preconditions, propagation.

use std::sync::Arc;

use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use object_store::{Object, WriteError};
use serde_json::{Value, json};

use crate::answer::{self, Answer};
use crate::body::Payload;
use crate::catalog::Served;
use crate::change::{self, Outcome};
use crate::error::{ApiError, ResourceName};
use crate::negotiate::Shape;
use crate::request::Query;
use crate::schema::FieldError;
use crate::server::{Shared, Target, written};
use crate::{crds, namespaces, object, read, unreadable, write};

/// How often a changed object is read again before the client gets the conflict.
const RETRIES: usize = 10;
/// What becomes of dependents: deleted before the object goes, or left alone. Both are finalizers that the garbage
/// collector works off.
const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

/// `metav1.DeleteOptions`, from the body or else from the query.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct DeleteOptions {
    pub(crate) grace_period_seconds: Option<i64>,
    pub(crate) propagation: Option<String>,
    pub(crate) uid: Option<String>,
    pub(crate) resource_version: Option<String>,
    pub(crate) dry_run: bool,
}

impl DeleteOptions {
    fn parse(payload: &Payload, query: &Query) -> Result<Self, ApiError> {
        let body = if payload.is_empty() { json!({}) } else { payload.value()?.0 };
        let kind = body["kind"].as_str().unwrap_or("DeleteOptions");
        if kind != "DeleteOptions" {
            return Err(ApiError::BadRequest(format!("the body is no DeleteOptions: its kind is {kind:?}")));
        }
        let text = |pointer: &str| body.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let orphan = body.get("orphanDependents").and_then(Value::as_bool).or(query.orphan_dependents);
        let propagation = text("/propagationPolicy")
            .or_else(|| query.propagation_policy.clone())
            .or_else(|| orphan.map(|orphan| if orphan { "Orphan" } else { "Background" }.to_owned()));
        if let Some(policy) = &propagation
            && !matches!(policy.as_str(), "Foreground" | "Background" | "Orphan")
        {
            let known = ["Foreground", "Background", "Orphan", "nil"];
            let error = FieldError::not_supported("propagationPolicy", policy.as_str(), known);
            return Err(ApiError::invalid_options("DeleteOptions", error));
        }
        let dry_run = body.get("dryRun").and_then(Value::as_array).is_some_and(|list| !list.is_empty());
        Ok(Self {
            grace_period_seconds: body
                .get("gracePeriodSeconds")
                .and_then(Value::as_i64)
                .or(query.grace_period_seconds),
            propagation,
            uid: text("/preconditions/uid"),
            resource_version: text("/preconditions/resourceVersion"),
            dry_run: dry_run || query.dry_run,
        })
    }
}

/// What a delete does to an object: pure.
pub(crate) fn plan(
    served: &Served,
    old: &Value,
    options: &DeleteOptions,
    now: Timestamp,
) -> Result<Outcome, ApiError> {
    check_preconditions(served, old, options)?;
    if served.is_builtin("Namespace") && namespaces::is_immortal(object::name(old)) {
        return Err(ApiError::forbidden(
            &served.kind,
            object::name(old),
            "this namespace may not be deleted",
        ));
    }
    let mut new = old.clone();
    match options.propagation.as_deref() {
        Some("Foreground") => {
            object::remove_finalizer(&mut new, ORPHAN);
            object::add_finalizer(&mut new, FOREGROUND);
        }
        Some("Orphan") => {
            object::remove_finalizer(&mut new, FOREGROUND);
            object::add_finalizer(&mut new, ORPHAN);
        }
        Some(_) => {
            object::remove_finalizer(&mut new, FOREGROUND);
            object::remove_finalizer(&mut new, ORPHAN);
        }
        None => {}
    }
    let waits = object::finalizers(&new).next().is_some() || change::has_content_to_finalize(&new);
    let grace = grace_period(served, old, options);
    if !waits && grace == 0 {
        if served.is_builtin("Pod") {
            end_at_once(old, &mut new, now);
        }
        return Ok(Outcome::Remove(new));
    }
    let granted = object::metadata(old).get("deletionGracePeriodSeconds").and_then(Value::as_i64);
    // A second delete can only shorten the time that the first one granted.
    if !object::is_deleting(old) || granted.is_some_and(|granted| grace < granted) {
        let ends = now.checked_add(SignedDuration::from_secs(grace)).unwrap_or(Timestamp::MAX);
        if let (false, true, Some(generation)) = (
            object::is_deleting(old),
            served.kind.counts_generations(),
            object::metadata(old).get("generation").and_then(Value::as_i64),
        ) {
            object::metadata_mut(&mut new).insert("generation".into(), (generation + 1).into());
        }
        let metadata = object::metadata_mut(&mut new);
        metadata.insert("deletionTimestamp".into(), object::time(ends).into());
        if !served.is_builtin("Namespace") {
            metadata.insert("deletionGracePeriodSeconds".into(), grace.into());
        }
    }
    if served.is_builtin("Namespace") {
        new["status"]["phase"] = "Terminating".into();
    }
    if &new == old { Ok(Outcome::Same) } else { Ok(Outcome::Put(new)) }
}

/// What a pod that goes without grace looks like at last.
fn end_at_once(old: &Value, new: &mut Value, now: Timestamp) {
    let generation = object::metadata(old).get("generation").and_then(Value::as_i64);
    let metadata = object::metadata_mut(new);
    if !object::is_deleting(old) {
        metadata.insert("deletionTimestamp".into(), object::time(now).into());
        if let Some(generation) = generation {
            metadata.insert("generation".into(), (generation + 1).into());
        }
    }
    metadata.insert("deletionGracePeriodSeconds".into(), 0.into());
}

fn check_preconditions(served: &Served, old: &Value, options: &DeleteOptions) -> Result<(), ApiError> {
    let found = object::meta_str(old, "uid");
    if let Some(asked) = options.uid.as_deref().filter(|asked| *asked != found) {
        return Err(ApiError::Conflict {
            resource: ResourceName {
                group: served.kind.group.to_string(),
                plural: served.kind.kind.to_string(),
            },
            name: object::name(old).to_owned(),
            why: format!(
                "the UID in the precondition ({asked}) does not match the UID in record ({found}). The object might have \
                 been deleted and then recreated"
            ),
        });
    }
    let found = object::meta_str(old, "resourceVersion");
    match options.resource_version.as_deref().filter(|asked| *asked != found) {
        None => Ok(()),
        Some(asked) => Err(ApiError::conflict(
            &served.kind,
            object::name(old),
            format!(
                "Precondition failed: ResourceVersion in precondition: {asked}, ResourceVersion in object meta: {found}"
            ),
        )),
    }
}

/// Seconds that the object gets to end by itself; only a pod that may be running gets any.
fn grace_period(served: &Served, pod: &Value, options: &DeleteOptions) -> i64 {
    if !served.is_builtin("Pod") {
        return 0;
    }
    let assigned = pod.pointer("/spec/nodeName").and_then(Value::as_str).is_some_and(|node| !node.is_empty());
    let phase = pod.pointer("/status/phase").and_then(Value::as_str).unwrap_or("");
    if !assigned || matches!(phase, "Succeeded" | "Failed") {
        return 0;
    }
    let own = pod.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(30);
    match options.grace_period_seconds.unwrap_or(own) {
        negative if negative < 0 => 1,
        seconds => seconds,
    }
}

/// Answers a delete of one object.
pub(crate) async fn delete(
    shared: &Arc<Shared>,
    target: &Target,
    shape: Shape,
    query: &Query,
    payload: Payload,
) -> Result<Answer, ApiError> {
    let options = DeleteOptions::parse(&payload, query)?;
    let (stored, removed) = delete_one(shared, target, &options).await?;
    let shows_object = !removed || RETURNS_DELETED.contains(&target.served.kind.kind.as_ref());
    if shows_object && target.served.custom.is_none() || !removed {
        return written(target, shape, query, StatusCode::OK, &stored.value, &[]);
    }
    let last = object::decode(&stored.value)?;
    let kind = &target.served.kind;
    let mut details =
        json!({"name": target.name, "kind": kind.plural, "uid": object::meta_str(&last, "uid")});
    if !kind.group.is_empty() {
        details["group"] = kind.group.as_ref().into();
    }
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details});
    Ok(answer::json(StatusCode::OK, &status))
}

/// Kinds whose delete answers with the deleted object instead of a Status.
const RETURNS_DELETED: &[&str] = &[
    "Pod",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "ServiceAccount",
    "StorageClass",
    "CSIDriver",
    "CSINode",
    "VolumeAttachment",
];

/// Deletes one object; how it is (or was last), and whether it is gone.
pub(crate) async fn delete_one(
    shared: &Arc<Shared>,
    target: &Target,
    options: &DeleteOptions,
) -> Result<(Object, bool), ApiError> {
    let served = &target.served;
    // Nothing is created in a namespace from the moment on that it terminates.
    let _alone = match served.is_builtin("Namespace") {
        true => Some(shared.namespaces.write().await),
        false => None,
    };
    let query = Query { dry_run: options.dry_run, ..Default::default() };
    for attempt in 1.. {
        let current = read::fetch_any(shared, target)?;
        let old = known(shared, served, &current);
        let outcome = plan(served, &old, options, clock::now())?;
        let removed = matches!(outcome, Outcome::Remove(_));
        match write::apply(shared, target, &query, &current, outcome).await {
            Err(WriteError::Conflict { .. }) if attempt < RETRIES => {}
            Err(error) => return Err(ApiError::from_write(&served.kind, &target.name, error)),
            Ok(stored) => {
                if !options.dry_run {
                    crds::after_write(shared, target, &stored);
                }
                return Ok((stored, removed));
            }
        }
    }
    Err(ApiError::modified(&served.kind, &target.name))
}

/// The object, or what stands in for one that can't be read.
fn known(shared: &Shared, served: &Served, stored: &Object) -> Value {
    let decoded = shared
        .unreadable
        .check(served, stored)
        .and_then(|()| object::decode(&object::with_api_version(&stored.value, &served.api_version)));
    decoded.unwrap_or_else(|error| {
        tracing::warn!(key = %stored.key, %error, "an object that can't be read is being deleted");
        unreadable::stand_in(served, stored)
    })
}

/// Answers a deletecollection: deletes what the selectors select, and lists it.
pub(crate) async fn collection(
    shared: &Arc<Shared>,
    target: &Target,
    query: &Query,
    payload: Payload,
) -> Result<Answer, ApiError> {
    let options = DeleteOptions::parse(&payload, query)?;
    let (page, metadata) = read::page(shared, target, query)?;
    // Without a selector everything is meant, also what can't be looked at.
    let unreadable = match target.selection(query)?.is_everything() {
        true => shared.unreadable.of(&shared.store, &target.served.resource, target.list_namespace()),
        false => Vec::new(),
    };
    let mut items = Vec::with_capacity(page.objects.len());
    for found in page.objects.into_iter().chain(unreadable) {
        let one = Target {
            namespace: found.key.namespace.to_string(),
            name: found.key.name.to_string(),
            ..target.clone()
        };
        match delete_one(shared, &one, &options).await {
            Ok((stored, _)) => items.push(object::decode(&stored.value)?),
            Err(ApiError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    let list = json!({"kind": target.served.kind.list_kind, "apiVersion": target.served.api_version,
        "metadata": metadata, "items": items});
    Ok(answer::json(StatusCode::OK, &list))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::BUILTIN;

    fn served(kind: &str) -> Served {
        Served::new(BUILTIN.iter().find(|row| row.kind == kind).unwrap().clone(), None)
    }

    fn planned(kind: &str, old: &Value, options: &DeleteOptions) -> Outcome {
        plan(&served(kind), old, options, Timestamp::UNIX_EPOCH).unwrap()
    }

    #[test]
    fn a_bound_pod_gets_grace_and_a_second_delete_shortens_it() {
        let pod =
            json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n", "terminationGracePeriodSeconds": 7}});
        let Outcome::Put(first) = planned("Pod", &pod, &Default::default()) else { panic!() };
        assert_eq!(first["metadata"]["deletionTimestamp"], "1970-01-01T00:00:07Z");
        assert_eq!(first["metadata"]["deletionGracePeriodSeconds"], 7);
        assert_eq!(planned("Pod", &first, &Default::default()), Outcome::Same);
        let longer = DeleteOptions { grace_period_seconds: Some(60), ..Default::default() };
        assert_eq!(planned("Pod", &first, &longer), Outcome::Same);
        let shorter = DeleteOptions { grace_period_seconds: Some(1), ..Default::default() };
        assert!(
            matches!(planned("Pod", &first, &shorter), Outcome::Put(new) if new["metadata"]["deletionGracePeriodSeconds"] == 1)
        );
        let now = DeleteOptions { grace_period_seconds: Some(0), ..Default::default() };
        assert!(matches!(planned("Pod", &first, &now), Outcome::Remove(_)));
    }

    #[test]
    fn an_unscheduled_or_ended_pod_goes_at_once() {
        for pod in [
            json!({"metadata": {"name": "p"}, "spec": {}}),
            json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n"}, "status": {"phase": "Succeeded"}}),
        ] {
            assert!(matches!(planned("Pod", &pod, &Default::default()), Outcome::Remove(_)), "{pod}");
        }
    }

    #[test]
    fn finalizers_and_propagation_keep_an_object() {
        let claim = json!({"metadata": {"name": "c", "finalizers": ["kubernetes.io/pvc-protection"]}});
        let Outcome::Put(marked) = planned("PersistentVolumeClaim", &claim, &Default::default()) else {
            panic!()
        };
        assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 0);
        let plain = json!({"metadata": {"name": "c"}});
        let foreground = DeleteOptions { propagation: Some("Foreground".into()), ..Default::default() };
        let Outcome::Put(kept) = planned("ConfigMap", &plain, &foreground) else { panic!() };
        assert_eq!(kept["metadata"]["finalizers"], json!(["foregroundDeletion"]));
        let background = DeleteOptions { propagation: Some("Background".into()), ..Default::default() };
        assert!(matches!(planned("ConfigMap", &kept, &background), Outcome::Remove(_)));
    }

    #[test]
    fn preconditions_are_checked() {
        let object = json!({"metadata": {"name": "c", "uid": "a", "resourceVersion": "3"}});
        for options in [
            DeleteOptions { uid: Some("b".into()), ..Default::default() },
            DeleteOptions { resource_version: Some("2".into()), ..Default::default() },
        ] {
            let refused = plan(&served("ConfigMap"), &object, &options, Timestamp::UNIX_EPOCH);
            assert!(matches!(refused, Err(ApiError::Conflict { .. })));
        }
    }
}
