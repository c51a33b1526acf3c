//! CustomResourceDefinitions: what they say becomes served, and goes with its objects when they are deleted.

use std::sync::Arc;

use object_store::{Key, Object};
use serde_json::Value;

use crate::catalog::{Custom, Definition, Served};
use crate::context::Context;
use crate::kinds::row::ScalePaths;
use crate::kinds::{self, DEFINITION, Kind};
use crate::object;
use crate::schema::{FieldError, Patterns, Schema};

/// Serves every stored definition. One that can't be served keeps none of the others from it.
pub(crate) fn load(context: &Context) {
    let page = context.store.list(&DEFINITION.resource(), None, None, None, 0, |_| true);
    for stored in page.map(|page| page.objects).unwrap_or_default() {
        let name = &*stored.key.name;
        if !context.unreadable.allows(&stored) {
            continue;
        }
        match object::decode(&stored.value)
            .map_err(|error| error.to_string())
            .and_then(|value| definition(&value, stored.revision).map_err(|errors| described(&errors)))
        {
            Ok(definition) => serve(context, name, definition),
            Err(why) => not_served(name, &why),
        }
    }
}

/// Serves what a definition says, after a look at the objects that are there already.
fn serve(context: &Context, name: &str, definition: Definition) {
    for served in &definition.versions {
        context.unreadable.examine(&context.store, &served.resource);
    }
    context.catalog.define(name, definition);
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
    let pointer = |field: &str| scale[field].as_str().map(|path| path.replace('.', "/").into());
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
    let group = text(crd, "/spec/group");
    Kind {
        row: kinds::custom(group, &kind),
        group: group.to_owned().into(),
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

/// Serves what a definition says after it was written, and begins to clean up after one that is being deleted.
pub(crate) fn after_write(context: &Context, written: &Served, stored: &Object) {
    if !written.kind.row.defines {
        return;
    }
    let Ok(crd) = object::decode(&stored.value) else { return };
    let current = current(context, &stored.key.name);
    let gone =
        current.is_none_or(|current| object::meta_str(&current, "uid") != object::meta_str(&crd, "uid"));
    let now_served = match gone {
        true => Ok(Definition { revision: stored.revision, versions: Vec::new() }),
        false => definition(&crd, stored.revision),
    };
    match now_served {
        Ok(now_served) => serve(context, &stored.key.name, now_served),
        Err(errors) => not_served(&stored.key.name, &described(&errors)),
    }
    if !gone && object::is_deleting(&crd) {
        context.cleanups.ask(&stored.key.name);
    }
}

/// The definition of this name as it is stored now.
pub(crate) fn current(context: &Context, name: &str) -> Option<Value> {
    let stored = context.store.get(&Key::new(&*DEFINITION.resource(), "", name))?;
    object::decode(&stored.value).ok()
}

/// Asks for the clean-ups that a stop interrupted.
pub(crate) fn resume_cleanups(context: &Context) {
    let deleting = |stored: &Object| object::decode(&stored.value).is_ok_and(|crd| object::is_deleting(&crd));
    let page = context.store.list(&DEFINITION.resource(), None, None, None, 0, deleting);
    for stored in page.map(|page| page.objects).unwrap_or_default() {
        context.cleanups.ask(&stored.key.name);
    }
}
