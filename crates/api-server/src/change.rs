//! What a new or replaced object becomes before it is stored: pure rules, the same for all kinds.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::catalog::Served;
use crate::error::ApiError;
use crate::kinds;
use crate::object;
use crate::request::FieldValidation;
use crate::schema::{CauseType, FieldError};

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
    let kind = &served.kind;
    ApiError::BadRequest(format!(
        "{0} in version {1:?} cannot be handled as a {0}: {why}",
        kind.kind, kind.version
    ))
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
    now: Timestamp,
) -> Result<(), ApiError> {
    let kind = &served.kind;
    if !object::meta_str(new, "resourceVersion").is_empty() {
        return Err(ApiError::BadRequest(
            "resourceVersion should not be set on objects to be created".into(),
        ));
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
    metadata.insert("uid".into(), uuid::Uuid::new_v4().to_string().into());
    metadata.insert("creationTimestamp".into(), object::time(now).into());
    if kind.counts_generations() {
        metadata.insert("generation".into(), 1.into());
    }
    // A node agent registers a node with its status in one request.
    if let (true, false, Some(fields)) = (kind.status, served.is_builtin("Node"), new.as_object_mut()) {
        fields.remove("status");
    }
    settle(served, new, None)
}

/// Defaults, after a look at the types that they rely on.
fn settle(served: &Served, new: &mut Value, old: Option<&Value>) -> Result<(), ApiError> {
    match &served.custom {
        Some(custom) => custom.schema.apply_defaults(new),
        None => {
            schema_errors(served, new)?;
            kinds::default_object(&served.kind, new, old);
        }
    }
    Ok(())
}

/// Refuses a new object that breaks a rule of its kind.
pub(crate) fn check_new(served: &Served, new: &Value) -> Result<(), ApiError> {
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
    settle(served, &mut new, Some(old))?;
    if served.kind.counts_generations() && counted(served, &new) != counted(served, old) {
        let generation = object::metadata(old).get("generation").and_then(Value::as_i64).unwrap_or(0);
        object::metadata_mut(&mut new).insert("generation".into(), (generation + 1).into());
    }
    if &new == old && !is_finished(&new) {
        return Ok(Outcome::Same);
    }
    // A binding is the one way to give a pod its node; to an update, that is immutable.
    let mut errors =
        if part == Part::Binding { Vec::new() } else { kinds::validate_update(&served.kind, &new, old) };
    errors.extend(schema_errors(served, &new)?);
    refuse_if_any(served, &new, errors)?;
    if is_finished(&new) { Ok(Outcome::Remove(new)) } else { Ok(Outcome::Put(new)) }
}

/// Whether a deleted object has nothing left to wait for.
pub(crate) fn is_finished(object: &Value) -> bool {
    let grace =
        object::metadata(object).get("deletionGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(0);
    object::is_deleting(object)
        && grace == 0
        && object::finalizers(object).next().is_none()
        && !has_content_to_finalize(object)
}

/// A namespace's own finalizers are in its spec.
pub(crate) fn has_content_to_finalize(object: &Value) -> bool {
    object["kind"] == "Namespace"
        && object["apiVersion"] == "v1"
        && object.pointer("/spec/finalizers").and_then(Value::as_array).is_some_and(|list| !list.is_empty())
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
    if !given.is_empty() && given != object::meta_str(old, "resourceVersion") {
        return Err(ApiError::modified(&served.kind, name));
    }
    let (uid, old_uid) = (object::meta_str(new, "uid"), object::meta_str(old, "uid"));
    if !uid.is_empty() && uid != old_uid {
        return Err(ApiError::conflict(&served.kind, name, wrong_uid(uid, old_uid)));
    }
    Ok(())
}

/// Kubernetes' words for an object that is not the one that was meant.
pub(crate) fn wrong_uid(asked: &str, found: &str) -> String {
    format!("Precondition failed: UID in precondition: {asked}, UID in object meta: {found}")
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
