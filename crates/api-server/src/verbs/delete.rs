//! Delete and deletecollection: finalizers, grace, preconditions, propagation.

use std::sync::Arc;

use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use object_store::{Object, WriteError};
use serde_json::{Value, json};

use super::{read, write};
use crate::answer::{self, Answer};
use crate::body::Payload;
use crate::catalog::Served;
use crate::change::Outcome;
use crate::context::{Context, Target};
use crate::error::{ApiError, ResourceName};
use crate::negotiate::Shape;
use crate::present::written;
use crate::request::Query;
use crate::schema::FieldError;
use crate::{definitions, object, unreadable};

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
    let hooks = &served.kind.row.hooks;
    if let Some(why) = (hooks.kept)(old) {
        return Err(ApiError::forbidden(&served.kind, object::name(old), why));
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
    let waits = object::finalizers(&new).next().is_some() || (hooks.waits)(&new);
    let grace = (hooks.grace)(old, options.grace_period_seconds);
    if !waits && grace == 0 {
        (hooks.ended)(&mut new, now);
        return Ok(Outcome::Remove(new));
    }
    let granted = object::metadata(old).get("deletionGracePeriodSeconds").and_then(Value::as_i64);
    // A second delete can only shorten the time that the first one granted.
    if !object::is_deleting(old) || granted.is_some_and(|granted| grace < granted) {
        let ends = now.checked_add(SignedDuration::from_secs(grace)).unwrap_or(Timestamp::MAX);
        if let (false, true, Some(generation)) = (
            object::is_deleting(old),
            served.kind.row.generations,
            object::metadata(old).get("generation").and_then(Value::as_i64),
        ) {
            object::metadata_mut(&mut new).insert("generation".into(), (generation + 1).into());
        }
        let metadata = object::metadata_mut(&mut new);
        metadata.insert("deletionTimestamp".into(), object::time(ends).into());
        metadata.insert("deletionGracePeriodSeconds".into(), grace.into());
    }
    (hooks.ending)(&mut new);
    if &new == old { Ok(Outcome::Same) } else { Ok(Outcome::Put(new)) }
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

/// Answers a delete of one object.
pub(crate) async fn delete(
    context: &Arc<Context>,
    target: &Target,
    shape: Shape,
    query: &Query,
    payload: Payload,
) -> Result<Answer, ApiError> {
    let options = DeleteOptions::parse(&payload, query)?;
    let (stored, removed) = delete_one(context, target, &options).await?;
    if !removed || target.served.kind.row.shows_deleted {
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

/// Deletes one object; how it is (or was last), and whether it is gone.
pub(crate) async fn delete_one(
    context: &Arc<Context>,
    target: &Target,
    options: &DeleteOptions,
) -> Result<(Object, bool), ApiError> {
    let served = &target.served;
    // Nothing is created in a namespace from the moment on that it terminates.
    let _alone = match served.kind.row.houses {
        true => Some(context.namespaces.write().await),
        false => None,
    };
    let query = Query { dry_run: options.dry_run, ..Default::default() };
    for attempt in 1.. {
        let current = read::fetch_any(context, target)?;
        let old = known(context, served, &current);
        let outcome = plan(served, &old, options, clock::now())?;
        let removed = matches!(outcome, Outcome::Remove(_));
        match write::apply(context, target, &query, &current, outcome).await {
            Err(WriteError::Conflict { .. }) if attempt < RETRIES => {}
            Err(error) => return Err(ApiError::from_write(&served.kind, &target.name, error)),
            Ok(stored) => {
                if !options.dry_run {
                    definitions::after_write(context, served, &stored);
                }
                return Ok((stored, removed));
            }
        }
    }
    Err(ApiError::modified(&served.kind, &target.name))
}

/// The object, or what stands in for one that can't be read.
fn known(context: &Context, served: &Served, stored: &Object) -> Value {
    let decoded = context
        .unreadable
        .check(served, stored)
        .and_then(|()| Ok(object::decode(&object::with_api_version(&stored.value, &served.api_version))?));
    decoded.unwrap_or_else(|error| {
        tracing::warn!(key = %stored.key, %error, "an object that can't be read is being deleted");
        unreadable::stand_in(served, stored)
    })
}

/// Answers a deletecollection: deletes what the selectors select, and lists it.
pub(crate) async fn collection(
    context: &Arc<Context>,
    target: &Target,
    query: &Query,
    payload: Payload,
) -> Result<Answer, ApiError> {
    let options = DeleteOptions::parse(&payload, query)?;
    let (page, metadata) = read::page(context, target, query)?;
    // Without a selector everything is meant, also what can't be looked at.
    let unreadable = match target.selection(query)?.is_everything() {
        true => context.unreadable.of(&context.store, &target.served.resource, target.list_namespace()),
        false => Vec::new(),
    };
    let mut items = Vec::with_capacity(page.objects.len());
    for found in page.objects.into_iter().chain(unreadable) {
        let one = Target {
            namespace: found.key.namespace.to_string(),
            name: found.key.name.to_string(),
            ..target.clone()
        };
        match delete_one(context, &one, &options).await {
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

    fn served(kind: &str) -> Served {
        Served::new(crate::kinds::builtin(kind).clone(), None)
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
