//! What a new or replaced object becomes before it is stored: pure rules, the same for all kinds.

use std::collections::HashSet;

use jiff::Timestamp;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::bounds;
use crate::catalog::Served;
use crate::error::ApiError;
use crate::kinds;
use crate::object;
use crate::request::FieldValidation;
use crate::schema::{CauseType, FieldError, TooLarge};

/// Checks that a decoded body is an object of this kind and takes out what clients may not know of; returns warnings
/// about unknown and duplicate fields (`duplicates`), or refuses them.
pub(crate) fn admit_fields(
    served: &Served,
    new: &mut Value,
    duplicates: Vec<String>,
    validation: FieldValidation,
) -> Result<Vec<String>, ApiError> {
    let kind = &served.kind;
    let Some(fields) = new.as_object_mut() else {
        return Err(ApiError::BadRequest(format!("the body is no {}: it is not a JSON object", kind.kind)));
    };
    let given = |field: &str| fields.get(field).and_then(Value::as_str).unwrap_or("").to_owned();
    let (given_version, given_kind) = (given("apiVersion"), given("kind"));
    if !given_kind.is_empty() && given_kind != kind.kind {
        return Err(ApiError::BadRequest(format!(
            "{given_kind} in version {given_version:?} cannot be handled as a {}: the kind does not match the path",
            kind.kind
        )));
    }
    if !given_version.is_empty() && given_version != served.api_version {
        return Err(ApiError::BadRequest(format!(
            "the API version in the data ({given_version}) does not match the expected API version ({})",
            served.api_version
        )));
    }
    fields.insert("apiVersion".into(), served.api_version.as_str().into());
    fields.insert("kind".into(), kind.kind.as_ref().into());
    if fields.get("metadata").is_some_and(|metadata| !metadata.is_object()) {
        return Err(undecodable(served, "metadata is not an object"));
    }
    let metadata = object::metadata_mut(new);
    // Neither is kept: server-side apply is not offered, and links have gone from the API.
    metadata.remove("managedFields");
    metadata.remove("selfLink");
    let mut unknown = served.schema().map(|schema| schema.prune(new)).unwrap_or_default();
    unknown.extend(duplicates);
    match validation {
        FieldValidation::Ignore => Ok(Vec::new()),
        FieldValidation::Warn => Ok(unknown),
        FieldValidation::Strict if unknown.is_empty() => Ok(unknown),
        FieldValidation::Strict => {
            Err(undecodable(served, &format!("strict decoding error: {}", unknown.join(", "))))
        }
    }
}

fn undecodable(served: &Served, why: &str) -> ApiError {
    let (kind, version) = (served.kind.kind.to_string(), served.kind.version.to_string());
    ApiError::Undecodable { kind, version, why: why.to_owned() }
}

/// What the schema says against the object. A built-in kind's field of the wrong type could not even be decoded in
/// Kubernetes, hence a bad request; everything else is invalid.
fn schema_errors(served: &Served, new: &Value) -> Result<Vec<FieldError>, ApiError> {
    let errors = served.schema().map(|schema| schema.validate(new)).unwrap_or_default();
    let mistyped = errors.iter().find(|error| error.reason == CauseType::FieldValueTypeInvalid);
    match mistyped {
        Some(error) if served.custom.is_none() => {
            Err(undecodable(served, &format!("{}: {}", error.field, error.message)))
        }
        _ => Ok(errors),
    }
}

fn refuse_if_any(served: &Served, new: &Value, errors: Vec<FieldError>) -> Result<(), ApiError> {
    if errors.is_empty() {
        return Ok(());
    }
    Err(ApiError::invalid(&served.kind, object::name(new), errors))
}

/// A client's object as a new one: the server's metadata, no status, defaults. Its name may still be missing.
pub(crate) fn begin(
    served: &Served,
    new: &mut Value,
    namespace: &str,
    uid: Uuid,
    now: Timestamp,
) -> Result<(), ApiError> {
    let kind = &served.kind;
    if !object::meta_str(new, "resourceVersion").is_empty() {
        return Err(ApiError::VersionOnCreate);
    }
    let metadata = object::metadata_mut(new);
    for field in
        ["resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds", "generation", "namespace"]
    {
        metadata.remove(field);
    }
    if kind.namespaced {
        metadata.insert("namespace".into(), namespace.into());
    }
    metadata.insert("uid".into(), uid.to_string().into());
    metadata.insert("creationTimestamp".into(), object::time(now).into());
    if kind.row.generations {
        metadata.insert("generation".into(), 1.into());
    }
    if let (true, false, Some(fields)) = (kind.status, kind.row.status_on_create, new.as_object_mut()) {
        fields.remove("status");
    }
    complete(served, new, None)
}

/// Defaults, after a look at the types that they rely on.
fn complete(served: &Served, new: &mut Value, old: Option<&Value>) -> Result<(), ApiError> {
    match &served.custom {
        Some(custom) => custom
            .schema
            .apply_defaults(new, bounds::LARGEST)
            .map_err(|TooLarge(most)| ApiError::RequestTooLarge(most))?,
        None => {
            schema_errors(served, new)?;
            kinds::default_object(&served.kind, new, old);
        }
    }
    Ok(())
}

/// Refuses a new object that breaks a rule of its kind.
pub(crate) fn check_new(served: &Served, new: &Value) -> Result<(), ApiError> {
    bounds::check(new, None)?;
    let mut errors = kinds::validate_create(&served.kind, new);
    errors.extend(schema_errors(served, new)?);
    refuse_if_any(served, new, errors)
}

/// Which part of an object a request may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Everything but the status, where that is a subresource.
    Main,
    /// The status; of built-in kinds also the metadata, as Kubernetes has it.
    Status,
    /// `spec.finalizers` of a namespace.
    Finalize,
    /// A pod's node, with the annotations and the condition that go with it.
    Binding,
}

/// What is to be done for a replacement.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Outcome {
    /// Nothing: the object is so already.
    Same,
    /// Store this.
    Put(Value),
    /// The last finalizer of a deleted object is gone: remove it, this being its last state.
    Remove(Value),
}

/// What replacing `old` by a client's `new` means. Both carry the served `apiVersion`, `old` its `resourceVersion`.
pub(crate) fn replace(served: &Served, part: Part, old: &Value, mut new: Value) -> Result<Outcome, ApiError> {
    check_identity(served, old, &new)?;
    match part {
        Part::Main if served.kind.status => copy_field(&mut new, old, "status"),
        Part::Main | Part::Binding => {}
        Part::Status if served.custom.is_some() => {
            let status = new.get_mut("status").map(Value::take);
            new = old.clone();
            set_field(&mut new, "status", status);
        }
        Part::Status => {
            let (status, metadata) =
                (new.get_mut("status").map(Value::take), new.get_mut("metadata").map(Value::take));
            new = old.clone();
            set_field(&mut new, "status", status);
            set_field(&mut new, "metadata", metadata);
        }
        Part::Finalize => {
            let finalizers = new.pointer_mut("/spec/finalizers").map(Value::take);
            new = old.clone();
            new["spec"]["finalizers"] = finalizers.unwrap_or_else(|| json!([]));
        }
    }
    carry_metadata(served, old, &mut new);
    if lets_go(served, old, &new) {
        return Ok(if is_finished(served, &new) { Outcome::Remove(new) } else { Outcome::Put(new) });
    }
    // Before anything walks over it, and again with what was filled in.
    bounds::check(&new, Some(old))?;
    complete(served, &mut new, Some(old))?;
    bounds::check(&new, Some(old))?;
    if served.kind.row.generations && counted(served, &new) != counted(served, old) {
        let generation = object::metadata(old).get("generation").and_then(Value::as_i64).unwrap_or(0);
        object::metadata_mut(&mut new).insert("generation".into(), (generation + 1).into());
    }
    if &new == old && !is_finished(served, &new) {
        return Ok(Outcome::Same);
    }
    // A binding is the one way to give a pod its node; to an update, that is immutable.
    let mut errors =
        if part == Part::Binding { Vec::new() } else { kinds::validate_update(&served.kind, &new, old) };
    errors.extend(schema_errors(served, &new)?);
    refuse_if_any(served, &new, errors)?;
    if is_finished(served, &new) { Ok(Outcome::Remove(new)) } else { Ok(Outcome::Put(new)) }
}

/// Whether all that changes is that an object that is being deleted loses finalizers. That is never refused, also when
/// what is stored breaks a rule that is newer than it.
fn lets_go(served: &Served, old: &Value, new: &Value) -> bool {
    if !object::is_deleting(old) {
        return false;
    }
    let (before, after): (HashSet<&str>, HashSet<&str>) =
        (object::finalizers(old).collect(), object::finalizers(new).collect());
    if after.len() >= before.len() || !after.is_subset(&before) {
        return false;
    }
    let mut expected = old.clone();
    let metadata = object::metadata_mut(&mut expected);
    match object::metadata(new).get("finalizers") {
        Some(left) => metadata.insert("finalizers".into(), left.clone()),
        None => metadata.remove("finalizers"),
    };
    if &expected == new {
        return true;
    }
    // A client's object has lost what its schema does not know.
    served.schema().is_some_and(|schema| {
        schema.prune(&mut expected);
        &expected == new
    })
}

/// Whether a deleted object has nothing left to wait for.
fn is_finished(served: &Served, object: &Value) -> bool {
    let grace =
        object::metadata(object).get("deletionGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(0);
    object::is_deleting(object)
        && grace == 0
        && object::finalizers(object).next().is_none()
        && !(served.kind.row.hooks.waits)(object)
}

fn copy_field(new: &mut Value, old: &Value, field: &str) {
    set_field(new, field, old.get(field).cloned());
}

fn set_field(object: &mut Value, field: &str, value: Option<Value>) {
    if let Some(fields) = object.as_object_mut() {
        match value {
            Some(value) if !value.is_null() => fields.insert(field.to_owned(), value),
            _ => fields.remove(field),
        };
    }
}

fn check_identity(served: &Served, old: &Value, new: &Value) -> Result<(), ApiError> {
    let name = object::name(old);
    let given = object::meta_str(new, "resourceVersion");
    if given.is_empty() && served.custom.is_some() {
        // Built-in kinds may be overwritten whatever they are now; custom ones may not.
        let error = FieldError {
            field: "metadata.resourceVersion".into(),
            reason: CauseType::FieldValueInvalid,
            message: "Invalid value: 0: must be specified for an update".into(),
        };
        return Err(ApiError::invalid(&served.kind, name, vec![error]));
    }
    let unconditional = given.is_empty() || (given == "0" && served.custom.is_none());
    if !unconditional && given != object::meta_str(old, "resourceVersion") {
        return Err(ApiError::modified(&served.kind, name));
    }
    let (uid, old_uid) = (object::meta_str(new, "uid"), object::meta_str(old, "uid"));
    let (ends, old_ends) =
        (object::meta_str(new, "deletionTimestamp"), object::meta_str(old, "deletionTimestamp"));
    if !ends.is_empty() && ends != old_ends {
        let error = FieldError::invalid("metadata.deletionTimestamp", ends, "field is immutable");
        return Err(ApiError::invalid(&served.kind, name, vec![error]));
    }
    if !uid.is_empty() && uid != old_uid {
        return Err(ApiError::conflict(&served.kind, name, object::wrong_uid(uid, old_uid)));
    }
    Ok(())
}

/// Metadata that a replacement can't change.
fn carry_metadata(served: &Served, old: &Value, new: &mut Value) {
    let before = object::metadata(old).clone();
    let metadata = object::metadata_mut(new);
    for field in [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "resourceVersion",
        "generateName",
    ] {
        match before.get(field) {
            Some(value) => metadata.insert(field.to_owned(), value.clone()),
            None => metadata.remove(field),
        };
    }
    if served.kind.namespaced {
        metadata.insert("namespace".into(), before.get("namespace").cloned().unwrap_or_default());
    } else {
        metadata.remove("namespace");
    }
}

/// What `metadata.generation` counts changes of.
fn counted(served: &Served, object: &Value) -> Value {
    let mut counted = object.clone();
    if let Some(fields) = counted.as_object_mut() {
        fields.remove("metadata");
        if served.kind.status {
            fields.remove("status");
        }
    }
    counted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(kind: &str) -> Served {
        Served::new(crate::kinds::builtin(kind).clone(), None)
    }

    /// A stored pod, complete, so that a replacement by itself is none.
    fn pod() -> Value {
        let served = served("Pod");
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
            "spec": {"containers": [{"name": "c", "image": "host"}]}});
        begin(&served, &mut pod, "default", Uuid::nil(), Timestamp::UNIX_EPOCH).unwrap();
        object::metadata_mut(&mut pod).insert("resourceVersion".into(), "5".into());
        pod
    }

    fn with(mut object: Value, pointer: &str, value: Value) -> Value {
        let (parent, field) = pointer.rsplit_once('/').unwrap();
        object.pointer_mut(parent).unwrap()[field] = value;
        object
    }

    #[test]
    fn only_the_part_that_was_written_to_changes() {
        let (served, old) = (served("Pod"), pod());
        let same = |part, new| assert_eq!(replace(&served, part, &old, new).unwrap(), Outcome::Same);
        same(Part::Main, old.clone());
        same(Part::Main, with(old.clone(), "/status/message", json!("x")));
        same(Part::Main, with(old.clone(), "/metadata/creationTimestamp", json!("2000-01-01T00:00:00Z")));
        same(Part::Status, with(old.clone(), "/spec/hostname", json!("x")));
        let status = with(old.clone(), "/status/message", json!("x"));
        let Outcome::Put(new) = replace(&served, Part::Status, &old, status).unwrap() else { panic!() };
        assert_eq!((&new["status"]["message"], &new["metadata"]["generation"]), (&json!("x"), &json!(1)));
        let main = with(old.clone(), "/spec/activeDeadlineSeconds", json!(9));
        let Outcome::Put(new) = replace(&served, Part::Main, &old, main).unwrap() else { panic!() };
        assert_eq!(new["metadata"]["generation"], 2, "a change of the spec is counted");
    }

    #[test]
    fn nobody_says_when_an_object_goes() {
        let (served, old) = (served("Pod"), pod());
        let new = with(old.clone(), "/metadata/deletionTimestamp", json!("2000-01-01T00:00:00Z"));
        let refused = replace(&served, Part::Main, &old, new);
        assert!(matches!(refused, Err(ApiError::Invalid { .. })), "{refused:?}");
    }

    #[test]
    fn another_revision_or_object_is_a_conflict() {
        let (served, old) = (served("Pod"), pod());
        for (field, value) in [("resourceVersion", "4"), ("uid", "another")] {
            let new = with(old.clone(), &format!("/metadata/{field}"), json!(value));
            assert!(
                matches!(replace(&served, Part::Main, &old, new), Err(ApiError::Conflict { .. })),
                "{field}"
            );
        }
        let unconditional = with(old.clone(), "/metadata/resourceVersion", json!(""));
        assert_eq!(replace(&served, Part::Main, &old, unconditional).unwrap(), Outcome::Same);
    }

    #[test]
    fn the_last_finalizer_of_a_deleted_object_removes_it_unless_grace_is_left() {
        let served = served("Pod");
        let mut old = pod();
        object::add_finalizer(&mut old, "example.com/hold");
        old["metadata"]["deletionTimestamp"] = "1970-01-01T00:00:00Z".into();
        let mut released = old.clone();
        object::remove_finalizer(&mut released, "example.com/hold");
        for (grace, removed) in [(0, true), (30, false)] {
            old["metadata"]["deletionGracePeriodSeconds"] = grace.into();
            let outcome = replace(&served, Part::Main, &old, released.clone()).unwrap();
            assert_eq!(matches!(outcome, Outcome::Remove(_)), removed, "grace {grace}");
        }
    }

    #[test]
    fn a_body_of_another_kind_is_refused() {
        let served = served("Pod");
        for body in [json!([]), json!({"kind": "Node"}), json!({"apiVersion": "v2"}), json!({"metadata": 1})]
        {
            let refused = admit_fields(&served, &mut body.clone(), Vec::new(), FieldValidation::Warn);
            let code = refused.map_err(|error| error.status_code().as_u16());
            assert_eq!(code, Err(400), "{body}");
        }
    }
}
