//! Create, update and patch: deciding is done by [`change`](crate::change) and [`patch`](crate::patch), here it is
//! acted upon.

use std::sync::Arc;

use http::StatusCode;
use object_store::{Object, Precondition, WriteError};
use serde_json::Value;

use super::read;
use crate::answer::Answer;
use crate::body::Payload;
use crate::change::{self, Outcome, Part};
use crate::context::{Context, Target};
use crate::error::ApiError;
use crate::kinds::row::Act;
use crate::negotiate::Shape;
use crate::patch::Patch;
use crate::present::written;
use crate::request::Query;
use crate::schema::FieldError;
use crate::{definitions, kinds, namespaces, object};

/// How often a changed object is read again before the client gets the conflict; Kubernetes' number.
const RETRIES: usize = 5;
/// Names tried for a `generateName` before giving up; Kubernetes' number.
const GENERATED_NAMES: usize = 8;

/// Answers a create.
pub(crate) async fn create(
    context: &Arc<Context>,
    target: &Target,
    shape: Shape,
    query: &Query,
    payload: Payload,
) -> Result<Answer, ApiError> {
    let served = &target.served;
    let (mut new, duplicates) = payload.value()?;
    let mut warnings = change::admit_fields(served, &mut new, duplicates, query.field_validation)?;
    warnings.extend(kinds::warnings(&served.kind, &new));
    let target = &in_namespace(target, &new)?;
    let uid = context.options.uids.choose(served, &target.namespace, object::name(&new));
    change::begin(served, &mut new, &target.namespace, uid, clock::now())?;
    // Until the object is written, its namespace does not begin to terminate.
    let _still = context.namespaces.read().await;
    namespaces::check_open(context, target, object::name(&new))?;
    let prefix = object::meta_str(&new, "generateName").to_owned();
    let generate = object::name(&new).is_empty() && !prefix.is_empty();
    for attempt in 1.. {
        if generate {
            object::metadata_mut(&mut new).insert("name".into(), generated_name(&prefix).into());
        }
        (served.kind.row.hooks.on_create)(&mut new, &**context)
            .map_err(|why| ApiError::forbidden(&served.kind, object::name(&new), why))?;
        change::check_new(served, &new)?;
        match put_new(context, target, query, &new).await {
            Err(ApiError::AlreadyExists { .. }) if generate && attempt < GENERATED_NAMES => {}
            Err(error) => return Err(error),
            Ok(stored) => return written(target, shape, query, StatusCode::CREATED, &stored, &warnings),
        }
    }
    Err(ApiError::Internal("no name could be generated".into()))
}

/// The target of a create: the namespace may be given by the body alone to clients that post to the whole collection.
fn in_namespace(target: &Target, new: &Value) -> Result<Target, ApiError> {
    let given = object::meta_str(new, "namespace");
    if !target.served.kind.namespaced {
        return Ok(target.clone());
    }
    if target.namespace.is_empty() {
        return Err(ApiError::BadRequest("an empty namespace may not be set during creation".into()));
    }
    if !given.is_empty() && given != target.namespace {
        return Err(ApiError::BadRequest(
            "the namespace of the provided object does not match the namespace sent on the request".into(),
        ));
    }
    Ok(target.clone())
}

async fn put_new(
    context: &Arc<Context>,
    target: &Target,
    query: &Query,
    new: &Value,
) -> Result<bytes::Bytes, ApiError> {
    let served = &target.served;
    let name = object::name(new);
    let key = served.key(&target.namespace, name);
    if query.dry_run {
        return match context.store.get(&key) {
            Some(_) => Err(ApiError::already_exists(&served.kind, name)),
            None => Ok(new.to_string().into()),
        };
    }
    let stored = context
        .store
        .put(key, Precondition::Absent, object::encode(new))
        .await
        .map_err(|error| ApiError::from_write(&served.kind, name, error))?;
    definitions::after_write(context, served, &stored);
    (served.kind.row.hooks.created)(new);
    Ok(stored.value)
}

/// The prefix, cut to what leaves room, and five random characters that form no words.
fn generated_name(prefix: &str) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let random = uuid::Uuid::new_v4().into_bytes();
    // The first six bytes of a version 4 id are random.
    let suffix = random[..5].iter().map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()]));
    prefix.chars().take(58).chain(suffix).collect()
}

/// Answers an update.
pub(crate) async fn update(
    context: &Arc<Context>,
    target: &Target,
    shape: Shape,
    query: &Query,
    payload: Payload,
) -> Result<Answer, ApiError> {
    let part = part(target)?;
    let (mut new, duplicates) = payload.value()?;
    let mut warnings = change::admit_fields(&target.served, &mut new, duplicates, query.field_validation)?;
    warnings.extend(kinds::warnings(&target.served.kind, &new));
    check_place(target, &new)?;
    let stored = modify(context, target, query, part, |_| Ok(new.clone())).await?;
    written(target, shape, query, StatusCode::OK, &stored.value, &warnings)
}

/// What a patch makes of an object, and is none, is the patch's fault.
fn of_patch(error: ApiError, payload: &Payload) -> ApiError {
    const SHOWN: usize = 200;
    let ApiError::Undecodable { why, .. } = error else { return error };
    let patch: String = String::from_utf8_lossy(&payload.bytes).chars().take(SHOWN).collect();
    ApiError::Invalid {
        group: String::new(),
        kind: String::new(),
        name: String::new(),
        errors: vec![FieldError::invalid("patch", patch, &why)],
    }
}

/// Refuses a replacement that names another object than the path does, or none.
fn check_place(target: &Target, new: &Value) -> Result<(), ApiError> {
    if object::name(new).is_empty() {
        return Err(ApiError::BadRequest(format!(
            "the name of the object ({} based on URL) was undeterminable: name must be provided",
            target.name
        )));
    }
    for (field, given, asked) in [
        ("name", object::name(new), &target.name),
        ("namespace", object::meta_str(new, "namespace"), &target.namespace),
    ] {
        if !given.is_empty() && given != asked {
            return Err(ApiError::BadRequest(format!(
                "the {field} of the object ({given}) does not match the {field} on the URL ({asked})"
            )));
        }
    }
    Ok(())
}

/// Refuses a patch that makes another object of it. (A replacement of another object comes too late: a conflict.)
fn check_uid(target: &Target, old: &Value, new: &Value) -> Result<(), ApiError> {
    let uid = object::meta_str(new, "uid");
    if uid.is_empty() || uid == object::meta_str(old, "uid") {
        return Ok(());
    }
    let error = FieldError::invalid("metadata.uid", uid, "field is immutable");
    Err(ApiError::invalid(&target.served.kind, object::name(old), vec![error]))
}

/// Answers a patch.
pub(crate) async fn patch(
    context: &Arc<Context>,
    target: &Target,
    shape: Shape,
    query: &Query,
    payload: Payload,
) -> Result<Answer, ApiError> {
    let part = part(target)?;
    let (patch, duplicates) = Patch::parse(&payload, target.served.custom.is_some())?;
    let mut warnings = Vec::new();
    let stored = modify(context, target, query, part, |old| {
        let mut new = patch.apply(&target.served.kind, old)?;
        warnings =
            change::admit_fields(&target.served, &mut new, duplicates.clone(), query.field_validation)?;
        check_place(target, &new)?;
        check_uid(target, old, &new)?;
        Ok(new)
    })
    .await
    .map_err(|error| of_patch(error, &payload))?;
    written(target, shape, query, StatusCode::OK, &stored.value, &warnings)
}

fn part(target: &Target) -> Result<Part, ApiError> {
    match target.subresource.as_deref() {
        None => Ok(Part::Main),
        Some("status") => Ok(Part::Status),
        Some(name) => match target.served.kind.row.subresource(name).map(|subresource| &subresource.act) {
            Some(Act::Finalize) => Ok(Part::Finalize),
            _ => Err(ApiError::UnknownPath),
        },
    }
}

/// Changes one object: reads it, decides, writes on condition that it is still what was read, and begins again if not.
/// A client that named the revision that it saw gets the conflict from deciding anew.
pub(crate) async fn modify(
    context: &Arc<Context>,
    target: &Target,
    query: &Query,
    part: Part,
    mut new_for: impl FnMut(&Value) -> Result<Value, ApiError> + Send,
) -> Result<Object, ApiError> {
    let served = &target.served;
    for attempt in 1.. {
        let current = read::fetch(context, target)?;
        let old = object::decode(&object::with_api_version(&current.value, &served.api_version))?;
        let mut outcome = change::replace(served, part, &old, new_for(&old)?)?;
        if let (Outcome::Put(new), Part::Main) = (&mut outcome, part) {
            (served.kind.row.hooks.on_update)(new, &old, &**context)
                .map_err(|why| ApiError::forbidden(&served.kind, object::name(new), why))?;
        }
        match apply(context, target, query, &current, outcome).await {
            Err(WriteError::Conflict { .. }) if attempt < RETRIES => {}
            Err(error) => return Err(ApiError::from_write(&served.kind, &target.name, error)),
            Ok(stored) => {
                if !query.dry_run {
                    definitions::after_write(context, served, &stored);
                }
                return Ok(stored);
            }
        }
    }
    Err(ApiError::modified(&served.kind, &target.name))
}

/// Acts on an outcome; the object as it is (or would be) afterwards.
pub(crate) async fn apply(
    context: &Context,
    target: &Target,
    query: &Query,
    current: &Object,
    outcome: Outcome,
) -> Result<Object, WriteError> {
    let key = target.served.key(&target.namespace, &target.name);
    let shown =
        |value: &Value| Object { value: object::encode_at(value, current.revision), ..current.clone() };
    match outcome {
        Outcome::Same => Ok(current.clone()),
        Outcome::Put(new) | Outcome::Remove(new) if query.dry_run => Ok(shown(&new)),
        Outcome::Put(new) => {
            context.store.put(key, Precondition::Revision(current.revision), object::encode(&new)).await
        }
        Outcome::Remove(last) => context.store.delete(key, current.revision, object::encode(&last)).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_names_are_short_and_differ() {
        let name = generated_name(&"x".repeat(80));
        assert_eq!(name.len(), 63);
        assert_ne!(generated_name("a-"), generated_name("a-"));
    }
}
