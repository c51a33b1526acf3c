//! The operations of a document: which paths a kind has, and what writes to them take.

use serde_json::{Map, Value, json};

use super::version_path;
use crate::kinds::Kind;

/// Adds a kind's paths in the newer generation.
pub(super) fn add_v3(kind: &Kind, paths: &mut Map<String, Value>) {
    let patch_types: Map<String, Value> =
        patch_types(kind).iter().map(|media_type| ((*media_type).to_owned(), json!({}))).collect();
    add(kind, paths, &|kind, verb| {
        let mut operation =
            operation(kind, verb, &|name| json!({"name": name, "in": "query", "schema": {"type": "string"}}));
        if verb == "patch" {
            operation["requestBody"] = json!({"content": patch_types, "required": true});
        }
        operation
    });
}

/// Adds a kind's paths in the older generation.
pub(super) fn add_v2(kind: &Kind, paths: &mut Map<String, Value>) {
    add(kind, paths, &|kind, verb| {
        let mut operation =
            operation(kind, verb, &|name| json!({"name": name, "in": "query", "type": "string"}));
        if verb == "patch" {
            operation["consumes"] = json!(patch_types(kind));
        }
        operation
    });
}

fn add(kind: &Kind, paths: &mut Map<String, Value>, operation: &dyn Fn(&Kind, &str) -> Value) {
    let version = version_path(&kind.group, &kind.version);
    let all = format!("/{version}/{}", kind.plural);
    let collection = match kind.namespaced {
        true => format!("/{version}/namespaces/{{namespace}}/{}", kind.plural),
        false => all.clone(),
    };
    let item = format!("{collection}/{{name}}");
    let mut insert = |path: String, verbs: &[&str]| {
        let operations: Map<String, Value> =
            verbs.iter().map(|verb| ((*verb).to_owned(), operation(kind, verb))).collect();
        paths.insert(path, operations.into());
    };
    if kind.namespaced {
        insert(all, &["get"]);
    }
    let changes = &["get", "put", "patch", "delete"];
    if kind.status {
        insert(format!("{item}/status"), &["get", "put", "patch"]);
    }
    if kind.scales() {
        insert(format!("{item}/scale"), &["get", "put", "patch"]);
    }
    insert(item, changes);
    insert(collection, &["get", "post", "delete"]);
}

fn operation(kind: &Kind, verb: &str, query: &dyn Fn(&str) -> Value) -> Value {
    let parameters: Vec<Value> = match verb {
        "post" | "put" | "patch" => vec![query("dryRun"), query("fieldManager"), query("fieldValidation")],
        "delete" => vec![query("dryRun"), query("gracePeriodSeconds"), query("propagationPolicy")],
        _ => vec![],
    };
    json!({
        "parameters": parameters,
        "responses": {"200": {"description": "OK"}},
        "x-kubernetes-group-version-kind":
            {"group": kind.group, "version": kind.version, "kind": kind.kind},
    })
}

/// The kinds of patch that the kind takes.
fn patch_types(kind: &Kind) -> &'static [&'static str] {
    const ALL: &[&str] = &[
        "application/json-patch+json",
        "application/merge-patch+json",
        "application/strategic-merge-patch+json",
    ];
    if kind.is_custom() { &ALL[..2] } else { ALL }
}
