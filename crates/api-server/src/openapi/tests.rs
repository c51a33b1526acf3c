use serde_json::{Value, json};

use super::*;
use crate::kinds::BUILTIN;

fn builtin() -> Vec<Described<'static>> {
    BUILTIN.iter().map(|kind| Described { kind, schema: None }).collect()
}

/// Every `$ref` in the document leads to a type in it.
fn assert_references_resolve(document: &Value, value: &Value) {
    match value {
        Value::Object(fields) => {
            if let Some(reference) = fields.get("$ref").and_then(Value::as_str) {
                let pointer = reference.trim_start_matches('#');
                assert!(document.pointer(pointer).is_some(), "{reference}");
            }
            fields.values().for_each(|value| assert_references_resolve(document, value));
        }
        Value::Array(items) => items.iter().for_each(|item| assert_references_resolve(document, item)),
        _ => {}
    }
}

#[test]
fn documents_are_closed_and_carry_patch_metadata() {
    let kinds = builtin();
    let document = v3_document("", "v1", &kinds);
    assert_references_resolve(&document, &document["components"]);
    let schemas = &document["components"]["schemas"];
    let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
    assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
    let spec = &schemas["io.k8s.api.core.v1.PersistentVolumeClaim"]["properties"]["spec"];
    assert_eq!(spec["allOf"][0]["$ref"], "#/components/schemas/io.k8s.api.core.v1.PersistentVolumeClaimSpec");
    let patch = &document["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"];
    assert!(patch["requestBody"]["content"].get("application/strategic-merge-patch+json").is_some());
    assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "Pod");

    let document = v2(&kinds);
    assert_references_resolve(&document, &document["definitions"]);
}

#[test]
fn custom_kinds_are_described_and_change_the_hash() {
    let kind = Kind {
        group: "example.com".into(),
        kind: "Widget".into(),
        plural: "widgets".into(),
        list_kind: "WidgetList".into(),
        ..BUILTIN[0].clone()
    };
    let schema = |description: &str| {
        let root =
            json!({"type": "object", "properties": {"spec": {"type": "string", "description": description}}});
        Schema::from_crd_version(&json!({"schema": {"openAPIV3Schema": root}})).expect("structural")
    };
    let (first, second) = (schema("one"), schema("two"));
    let kinds = [Described { kind: &kind, schema: Some(&first) }];
    let document = v3_document("example.com", "v1", &kinds);
    assert_references_resolve(&document, &document["components"]);
    let widget = &document["components"]["schemas"]["com.example.v1.Widget"];
    assert_eq!(widget["properties"]["spec"]["description"], "one");
    assert_eq!(widget["x-kubernetes-group-version-kind"][0]["kind"], "Widget");

    let index = v3_index(&kinds);
    assert_ne!(index, v3_index(&[Described { kind: &kind, schema: Some(&second) }]));
    let url = index["paths"]["apis/example.com/v1"]["serverRelativeURL"].as_str().expect("a URL");
    assert!(url.starts_with("/openapi/v3/apis/example.com/v1?hash="), "{url}");
}
