use std::collections::{BTreeMap, BTreeSet};

use prost::Message as _;
use serde_json::{Value, json};

use super::*;
use crate::kinds::{self, BUILTIN};

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
        row: kinds::custom("example.com", "Widget"),
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

/// What kubectl's reader of the older generation refuses; one bad type makes the whole document useless to it.
fn assert_kubectl_reads(schema: &protobuf::Schema, known: &BTreeSet<&str>, path: &str) {
    let types: Vec<&str> = schema.ty.iter().flat_map(|types| &types.value).map(String::as_str).collect();
    if !schema.reference.is_empty() {
        let name = schema.reference.strip_prefix("#/definitions/").expect("a reference to a definition");
        assert!(known.contains(name), "{path}: {name} is not defined");
        assert!(types.is_empty() && schema.properties.is_none(), "{path}: a type beside a reference");
        return;
    }
    assert!(schema.items.is_some() == (types == ["array"]), "{path}: {types:?} with {:?}", schema.items);
    match types[..] {
        [] | ["object"] | ["array"] | ["string"] | ["number"] | ["integer"] | ["boolean"] => {}
        _ => panic!("{path}: types {types:?}"),
    }
    for items in schema.items.iter().flat_map(|items| &items.schema) {
        assert_kubectl_reads(items, known, &format!("{path}[]"));
    }
    if let Some(protobuf::Allowed::Of(others)) =
        schema.additional.as_ref().and_then(|additional| additional.allowed.as_ref())
    {
        assert_kubectl_reads(others, known, &format!("{path}{{}}"));
    }
    for field in schema.properties.iter().flat_map(|fields| &fields.schema) {
        let value = field.value.as_ref().expect("a value");
        assert_kubectl_reads(value, known, &format!("{path}.{}", field.name));
    }
}

#[test]
fn kubectl_reads_the_protobuf_document() {
    let root = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        // A field called as a keyword is a field.
        "not": {"type": "string", "description": "a word"},
        "port": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
        "named": {"type": "string", "x-kubernetes-int-or-string": true},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
            "properties": {"a": {"type": "string"}}},
        "maybe": {"type": "array", "nullable": true, "items": {"type": "string"}},
        "size": {"type": "integer", "default": 3, "enum": [1, 3]},
        "labels": {"type": "object", "additionalProperties": {"type": "string", "nullable": true}},
    }}}});
    let schema = Schema::from_crd_version(&json!({"schema": {"openAPIV3Schema": root}})).expect("structural");
    let row = kinds::custom("example.com", "Widget");
    let kind = Kind { group: "example.com".into(), kind: "Widget".into(), row, ..BUILTIN[0].clone() };
    let mut kinds = builtin();
    kinds.push(Described { kind: &kind, schema: Some(&schema) });

    let document = protobuf::Document::decode(&*v2_protobuf(&kinds)).expect("protobuf");
    assert_eq!((document.swagger.as_str(), document.info.expect("an info").title.as_str()), ("2.0", "Orlop"));
    let definitions = document.definitions.expect("definitions").schema;
    let known: BTreeSet<&str> = definitions.iter().map(|definition| definition.name.as_str()).collect();
    for definition in &definitions {
        assert_kubectl_reads(definition.value.as_ref().expect("a value"), &known, &definition.name);
    }
    let find = |name: &str| {
        let found = definitions.iter().find(|definition| definition.name == name).expect(name);
        found.value.clone().expect("a value")
    };
    let fields = |schema: &protobuf::Schema| -> BTreeMap<String, protobuf::Schema> {
        let fields = schema.properties.iter().flat_map(|fields| &fields.schema);
        fields.map(|field| (field.name.clone(), field.value.clone().expect("a value"))).collect()
    };
    let claim = find("io.k8s.api.core.v1.PersistentVolumeClaim");
    let gvk = r#"[{"group":"","kind":"PersistentVolumeClaim","version":"v1"}]"#;
    assert_eq!(claim.extensions[0].name, "x-kubernetes-group-version-kind");
    assert_eq!(claim.extensions[0].value.as_ref().expect("a value").yaml, gvk);

    let spec = fields(&fields(&find("com.example.v1.Widget"))["spec"]);
    assert_eq!(spec["not"].description, "a word");
    assert_eq!(spec["size"].default.as_ref().expect("a default").yaml, "3");
    assert!(spec["named"].ty.is_none() && spec["maybe"].ty.is_none() && spec["maybe"].items.is_none());
    assert!(spec["free"].properties.is_none());

    let paths = document.paths.expect("paths").path;
    let namespace = paths.iter().find(|path| path.name == "/api/v1/namespaces/{name}").expect("namespaces");
    let patch = namespace.value.as_ref().and_then(|path| path.patch.as_ref()).expect("a patch");
    let parameters =
        patch.parameters.iter().filter_map(|item| item.parameter.as_ref()?.simple.as_ref()?.query.as_ref());
    let names: Vec<&str> = parameters.map(|parameter| parameter.name.as_str()).collect();
    assert!(names.contains(&"fieldValidation") && names.contains(&"dryRun"), "{names:?}");
}
