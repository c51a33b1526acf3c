//! CustomResourceDefinitions: what they say becomes served, and goes with its objects when they are deleted.

use std::collections::HashSet;
use std::sync::Arc;

use object_store::{EventKind, Object, WriteError};
use serde_json::{Value, json};

use crate::admission::DEFINITION_CLEANUP;
use crate::catalog::{Catalog, Custom, Definition, ScalePaths, Served};
use crate::change::Part;
use crate::delete::{self, DeleteOptions};
use crate::error::ApiError;
use crate::kinds::Kind;
use crate::request::Query;
use crate::schema::{FieldError, Patterns, Schema};
use crate::server::{Shared, Target};
use crate::{object, write};

/// Under what the store keeps definitions.
const RESOURCE: &str = "customresourcedefinitions.apiextensions.k8s.io";

/// Serves every stored definition. One that can't be served keeps none of the others from it.
pub(crate) fn load(shared: &Shared) {
    let page = shared.store.list(RESOURCE, None, None, None, 0, |_| true);
    for stored in page.map(|page| page.objects).unwrap_or_default() {
        let name = &*stored.key.name;
        if !shared.unreadable.allows(&stored) {
            continue;
        }
        match object::decode(&stored.value)
            .map_err(|error| error.to_string())
            .and_then(|value| definition(&value, stored.revision).map_err(|errors| described(&errors)))
        {
            Ok(definition) => serve(shared, name, definition),
            Err(why) => not_served(name, &why),
        }
    }
}

/// Serves what a definition says, after a look at the objects that are there already.
fn serve(shared: &Shared, name: &str, definition: Definition) {
    for served in &definition.versions {
        shared.unreadable.examine(&shared.store, &served.resource);
    }
    shared.catalog.define(name, definition);
}

fn not_served(definition: &str, why: &str) {
    tracing::error!(
        definition,
        why,
        "a stored CustomResourceDefinition can't be served, nor can its objects: change it or delete it"
    );
}

fn described(errors: &[FieldError]) -> String {
    errors.iter().take(5).map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

fn texts(value: &Value, pointer: &str) -> Vec<std::borrow::Cow<'static, str>> {
    let list = value.pointer(pointer).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).map(|text| text.to_owned().into()).collect()
}

/// What a definition serves.
fn definition(crd: &Value, revision: u64) -> Result<Definition, Vec<FieldError>> {
    if !is_established(crd) {
        return Ok(Definition { revision, versions: Vec::new() });
    }
    let served = |version: &&Value| version["served"] == true;
    let versions = crd.pointer("/spec/versions").and_then(Value::as_array);
    let mut patterns = Patterns::default();
    let versions = versions
        .into_iter()
        .flatten()
        .filter(served)
        .map(|version| {
            let custom = Custom {
                schema: Schema::of_version(version, &mut patterns)?,
                columns: version.get("additionalPrinterColumns").cloned(),
                selectable: version["selectableFields"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(|field| field["jsonPath"].as_str())
                    .map(str::to_owned)
                    .collect(),
                scale: scale(version),
            };
            Ok(Arc::new(Served::new(row(crd, version), Some(custom))))
        })
        .collect::<Result<_, Vec<FieldError>>>()?;
    Ok(Definition { revision, versions })
}

fn scale(version: &Value) -> Option<ScalePaths> {
    let scale = version.pointer("/subresources/scale")?;
    // `.spec.replicas` as `/spec/replicas`.
    let pointer = |field: &str| scale[field].as_str().map(|path| path.replace('.', "/"));
    Some(ScalePaths {
        wanted: pointer("specReplicasPath")?,
        observed: pointer("statusReplicasPath")?,
        selector: pointer("labelSelectorPath"),
    })
}

fn is_established(crd: &Value) -> bool {
    let conditions = crd.pointer("/status/conditions").and_then(Value::as_array);
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == "Established" && condition["status"] == "True")
}

fn row(crd: &Value, version: &Value) -> Kind {
    let kind = text(crd, "/spec/names/kind").to_owned();
    let or = |given: &str, other: String| if given.is_empty() { other } else { given.to_owned() };
    Kind {
        group: text(crd, "/spec/group").to_owned().into(),
        version: text(version, "/name").to_owned().into(),
        list_kind: or(text(crd, "/spec/names/listKind"), format!("{kind}List")).into(),
        plural: text(crd, "/spec/names/plural").to_owned().into(),
        singular: or(text(crd, "/spec/names/singular"), kind.to_lowercase()).into(),
        short_names: texts(crd, "/spec/names/shortNames").into(),
        categories: texts(crd, "/spec/names/categories").into(),
        namespaced: text(crd, "/spec/scope") == "Namespaced",
        status: version.pointer("/subresources/status").is_some(),
        kind: kind.into(),
    }
}

/// Gives a definition the status that Kubernetes' naming and establishing controllers give it, in the same write: its
/// kind is served when its creation is answered.
pub(crate) fn establish(catalog: &Catalog, crd: &mut Value) {
    let kind = text(crd, "/spec/names/kind").to_owned();
    for (field, default) in [("singular", kind.to_lowercase()), ("listKind", format!("{kind}List"))] {
        if crd["spec"]["names"][field].as_str().is_none_or(str::is_empty) {
            crd["spec"]["names"][field] = default.into();
        }
    }
    if crd.pointer("/spec/conversion/strategy").is_none() {
        crd["spec"]["conversion"] = json!({"strategy": "None"});
    }
    let taken = is_taken(catalog, crd);
    let old = crd.get("status").cloned().unwrap_or_default();
    let conditions = if taken {
        let message = format!("the kind or plural of {kind:?} is already in use");
        [
            ("NamesAccepted", "False", "KindConflict", message),
            ("Established", "False", "NotAccepted", "not all names are accepted".to_owned()),
        ]
    } else {
        [
            ("NamesAccepted", "True", "NoConflicts", "no conflicts found".to_owned()),
            (
                "Established",
                "True",
                "InitialNamesAccepted",
                "the initial names have been accepted".to_owned(),
            ),
        ]
    };
    let now = object::time(clock::now());
    let conditions: Vec<Value> = conditions
        .into_iter()
        .map(|(kind, status, reason, message)| {
            let before = old["conditions"].as_array().into_iter().flatten();
            let same = before.clone().find(|known| known["type"] == kind && known["status"] == status);
            let since = same.map_or_else(|| now.as_str().into(), |known| known["lastTransitionTime"].clone());
            json!({"type": kind, "status": status, "lastTransitionTime": since, "reason": reason, "message": message})
        })
        .collect();
    let mut stored = old["storedVersions"].as_array().cloned().unwrap_or_default();
    let mut known: HashSet<String> = stored.iter().map(Value::to_string).collect();
    for version in crd["spec"]["versions"].as_array().into_iter().flatten() {
        if version["storage"] == true && known.insert(version["name"].to_string()) {
            stored.push(version["name"].clone());
        }
    }
    let accepted = if taken { json!({"kind": "", "plural": ""}) } else { crd["spec"]["names"].clone() };
    crd["status"] = json!({"conditions": conditions, "acceptedNames": accepted, "storedVersions": stored});
}

/// Whether another kind of the same group has the definition's kind, or a built-in one its plural.
fn is_taken(catalog: &Catalog, crd: &Value) -> bool {
    let names = |field: &str| crd["spec"]["names"][field].as_str().unwrap_or("");
    let (group, plural, kind) = (text(crd, "/spec/group"), names("plural"), names("kind"));
    catalog.now().all.iter().filter(|served| served.kind.group == group).any(|served| {
        let own = served.custom.is_some() && served.kind.plural == plural;
        !own && (served.kind.kind == kind || served.kind.plural == plural)
    })
}

/// Serves what a definition says after it was written, and begins to clean up after one that is being deleted.
pub(crate) fn after_write(shared: &Arc<Shared>, target: &Target, stored: &Object) {
    if !target.served.is_builtin("CustomResourceDefinition") {
        return;
    }
    let Ok(crd) = object::decode(&stored.value) else { return };
    let current = current(shared, &stored.key.name);
    let gone =
        current.is_none_or(|current| object::meta_str(&current, "uid") != object::meta_str(&crd, "uid"));
    let now_served = match gone {
        true => Ok(Definition { revision: stored.revision, versions: Vec::new() }),
        false => definition(&crd, stored.revision),
    };
    match now_served {
        Ok(now_served) => serve(shared, &stored.key.name, now_served),
        Err(errors) => not_served(&stored.key.name, &described(&errors)),
    }
    if !gone && object::is_deleting(&crd) {
        spawn_cleanup(shared, target.clone());
    }
}

fn current(shared: &Shared, name: &str) -> Option<Value> {
    let stored = shared.store.get(&object_store::Key::new(RESOURCE, "", name))?;
    object::decode(&stored.value).ok()
}

/// Goes on with clean-ups that a stop interrupted.
pub(crate) fn resume_cleanups(shared: &Arc<Shared>) {
    let Some(served) = shared.catalog.now().builtin("CustomResourceDefinition") else { return };
    let deleting = |stored: &Object| object::decode(&stored.value).is_ok_and(|crd| object::is_deleting(&crd));
    let page = shared.store.list(RESOURCE, None, None, None, 0, deleting);
    for stored in page.map(|page| page.objects).unwrap_or_default() {
        let name = stored.key.name.to_string();
        let target = Target { served: served.clone(), namespace: String::new(), name, subresource: None };
        spawn_cleanup(shared, target);
    }
}

/// Starts the clean-up after a deleted definition, unless one runs.
fn spawn_cleanup(shared: &Arc<Shared>, target: Target) {
    let shared = shared.clone();
    if !shared.cleanups.lock().insert(target.name.clone()) {
        return;
    }
    tokio::spawn(async move {
        let shutdown = shared.shutdown.clone();
        let cleanup = Box::pin(clean_up(&shared, &target));
        if let Some(Err(error)) = shutdown.run_until_cancelled(cleanup).await {
            tracing::warn!(definition = target.name, %error, "clean-up of a definition failed; it is tried again at the next start");
        }
        shared.cleanups.lock().remove(&target.name);
    });
}

/// Deletes the objects of a deleted definition, waits for their finalizers, then lets the definition go.
async fn clean_up(shared: &Arc<Shared>, target: &Target) -> Result<(), ApiError> {
    if !current(shared, &target.name).is_some_and(|crd| object::is_deleting(&crd)) {
        return Ok(());
    }
    // The store keeps a definition's objects under the definition's own name, PLURAL.GROUP.
    let resource = target.name.as_str();
    let (page, mut changes) = shared
        .store
        .list_and_watch(resource, None, |_| true)
        .map_err(|error| ApiError::from_list(error, 0))?;
    let mut left = page.objects.len();
    for found in page.objects {
        delete_object(shared, found).await?;
    }
    while left > 0 {
        let event = changes.next().await.map_err(|end| ApiError::Unavailable(end.to_string()))?;
        match event.kind {
            EventKind::Deleted => left -= 1,
            // Made while the definition was still served.
            EventKind::Created => {
                left += 1;
                delete_object(shared, event.object.clone()).await?;
            }
            EventKind::Updated => {}
        }
    }
    let without = |crd: &Value| {
        let mut crd = crd.clone();
        object::remove_finalizer(&mut crd, DEFINITION_CLEANUP);
        Ok(crd)
    };
    match Box::pin(write::modify(shared, target, &Query::default(), Part::Main, without)).await {
        Ok(_) | Err(ApiError::NotFound { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Deletes one object of a definition that is being deleted.
async fn delete_object(shared: &Arc<Shared>, found: Object) -> Result<(), ApiError> {
    let served =
        shared.catalog.now().all.iter().find(|served| served.resource == found.key.resource).cloned();
    let Some(served) = served else { return drop_unserved(shared, found).await };
    let namespace = found.key.namespace.to_string();
    let one = Target { served, namespace, name: found.key.name.to_string(), subresource: None };
    match delete::delete_one(shared, &one, &DeleteOptions::default()).await {
        Ok(_) | Err(ApiError::NotFound { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes an object of a definition that can't be served: nobody could ever take its finalizers off.
async fn drop_unserved(shared: &Shared, found: Object) -> Result<(), ApiError> {
    tracing::warn!(key = %found.key, "an object of a definition that can't be served was removed with it");
    let last = found.value.clone();
    match shared.store.delete(found.key, found.revision, Box::new(move |_| last)).await {
        Ok(_) | Err(WriteError::Missing) => Ok(()),
        Err(error) => Err(ApiError::Unavailable(format!("the object store can't take writes: {error}"))),
    }
}
