//! The types of a document: every kind, its list, and what they are made of.

use serde_json::{Map, Value, json};

use super::Described;
use crate::schema::{
    self,
    lists::{self, ATOMIC_STRUCTS, ListType},
    node::short_name,
};

/// The two generations of OpenAPI differ in where types are and how a reference gets a description.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    V2,
    V3,
}

impl Dialect {
    fn reference(self, name: &str) -> Value {
        match self {
            Dialect::V2 => json!({"$ref": format!("#/definitions/{name}")}),
            Dialect::V3 => json!({"$ref": format!("#/components/schemas/{name}")}),
        }
    }
}

const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";
const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// Adds a kind's types to `types`.
pub(super) fn add(described: &Described<'_>, dialect: Dialect, types: &mut Map<String, Value>) {
    let kind = described.kind;
    let gvk = json!([{"group": kind.group, "version": kind.version, "kind": kind.kind}]);
    let name = match described.schema.and_then(|schema| schema.custom()) {
        Some(schema) => {
            let name = custom_name(&kind.group, &kind.version, &kind.kind);
            add_definitions(schema::object_meta(), OBJECT_META, dialect, types);
            types.insert(name.clone(), custom(schema, &gvk, dialect));
            name
        }
        None => {
            let Some(document) = kind.row.schema else { return };
            let document = document.json();
            let name = document["title"].as_str().unwrap_or_default().to_owned();
            add_definitions(&document, &name, dialect, types);
            if let Some(root) = types.get_mut(&name) {
                root["x-kubernetes-group-version-kind"] = gvk;
            }
            name
        }
    };
    types.insert(format!("{name}List"), list(described, &name, dialect));
    types.entry(LIST_META).or_insert_with(list_meta);
}

/// Adds a JSON schema under `root` and all that it refers to.
fn add_definitions(document: &Value, root: &str, dialect: Dialect, types: &mut Map<String, Value>) {
    let definitions = document.get("$defs").and_then(Value::as_object);
    for (name, schema) in definitions.into_iter().flatten() {
        if !types.contains_key(name) {
            types.insert(name.clone(), definition(name, schema, dialect));
        }
    }
    let mut schema = document.clone();
    if let Some(fields) = schema.as_object_mut() {
        for field in ["$defs", "$schema", "title"] {
            fields.remove(field);
        }
    }
    types.insert(root.to_owned(), definition(root, &schema, dialect));
}

fn definition(name: &str, schema: &Value, dialect: Dialect) -> Value {
    let type_name = short_name(name);
    let described = |value: Value| {
        let mut value = value;
        value["description"] = schema["description"].clone();
        value
    };
    match (type_name, dialect) {
        ("Quantity", Dialect::V3) => described(json!({"oneOf": [{"type": "string"}, {"type": "number"}]})),
        ("Quantity", Dialect::V2) => described(json!({"type": "string"})),
        ("IntOrString", Dialect::V3) => {
            described(json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]}))
        }
        ("IntOrString", Dialect::V2) => described(json!({"type": "string", "format": "int-or-string"})),
        ("JSON" | "JSONSchemaPropsOrBool" | "JSONSchemaPropsOrArray" | "JSONSchemaPropsOrStringArray", _) => {
            described(json!({}))
        }
        _ => {
            let mut converted = convert(schema, dialect);
            for (field, property) in converted["properties"].as_object_mut().into_iter().flatten() {
                add_list_rules(type_name, field, property);
            }
            if converted["properties"].is_null() {
                remove(&mut converted, "properties");
            }
            if ATOMIC_STRUCTS.contains(&type_name) {
                converted["x-kubernetes-map-type"] = "atomic".into();
            }
            converted
        }
    }
}

fn add_list_rules(type_name: &str, field: &str, property: &mut Value) {
    if property["type"] != "array" {
        return;
    }
    let Some(rules) = lists::rules(type_name, field) else {
        property["x-kubernetes-list-type"] = "atomic".into();
        return;
    };
    match rules.list() {
        ListType::Atomic => property["x-kubernetes-list-type"] = "atomic".into(),
        ListType::Set => property["x-kubernetes-list-type"] = "set".into(),
        ListType::Map(keys) => {
            property["x-kubernetes-list-type"] = "map".into();
            property["x-kubernetes-list-map-keys"] = keys.into();
        }
    }
    if let Some(patch) = rules.patch {
        property["x-kubernetes-patch-strategy"] = patch.strategy().into();
        if let Some(key) = patch.key() {
            property["x-kubernetes-patch-merge-key"] = key.into();
        }
    }
}

/// A JSON schema with its references in the document's form; one with a description beside it is wrapped.
fn convert(schema: &Value, dialect: Dialect) -> Value {
    match schema {
        Value::Object(fields) => {
            if let Some(reference) = fields.get("$ref").and_then(Value::as_str) {
                let reference = dialect.reference(reference.trim_start_matches("#/$defs/"));
                return match fields.get("description") {
                    Some(description) if dialect == Dialect::V3 => {
                        json!({"allOf": [reference], "description": description})
                    }
                    Some(description) => {
                        let mut reference = reference;
                        reference["description"] = description.clone();
                        reference
                    }
                    None => reference,
                };
            }
            fields.iter().map(|(name, value)| (name.clone(), convert(value, dialect))).collect()
        }
        Value::Array(items) => items.iter().map(|item| convert(item, dialect)).collect(),
        scalar => scalar.clone(),
    }
}

/// A custom resource's schema with the fields that every object has.
fn custom(schema: &Value, gvk: &Value, dialect: Dialect) -> Value {
    let mut schema = schema.clone();
    if dialect == Dialect::V2 {
        forget_v3(&mut schema);
    }
    let metadata = dialect.reference(OBJECT_META);
    schema["properties"]["apiVersion"] = api_version();
    schema["properties"]["kind"] = kind_field();
    schema["properties"]["metadata"] = match dialect {
        Dialect::V3 => json!({"allOf": [metadata], "description": METADATA}),
        Dialect::V2 => metadata,
    };
    schema["x-kubernetes-group-version-kind"] = gvk.clone();
    schema
}

/// Drops what the older generation can't say, and what kubectl's reader of it can't take: beside a type or none, a
/// nullable value has no fields, and a value with unknown fields has no known ones.
fn forget_v3(schema: &mut Value) {
    let Some(fields) = schema.as_object_mut() else { return };
    let flag = |fields: &Map<String, Value>, name: &str| fields.get(name) == Some(&Value::Bool(true));
    let mut forget: Vec<&str> =
        vec!["nullable", "oneOf", "anyOf", "allOf", "not", "x-kubernetes-validations"];
    if flag(fields, "nullable") {
        forget.extend(["type", "items", "properties", "additionalProperties"]);
    }
    if flag(fields, "x-kubernetes-int-or-string") {
        forget.push("type");
    }
    if flag(fields, "x-kubernetes-preserve-unknown-fields") {
        forget.extend(["items", "properties", "additionalProperties"]);
        if fields.get("type").is_some_and(|ty| ty == "array") {
            forget.push("type");
        }
    }
    for field in forget {
        fields.remove(field);
    }
    for field in ["items", "additionalProperties"] {
        if let Some(inner) = fields.get_mut(field) {
            forget_v3(inner);
        }
    }
    for (_, field) in fields.get_mut("properties").and_then(Value::as_object_mut).into_iter().flatten() {
        forget_v3(field);
    }
}

fn list(described: &Described<'_>, item: &str, dialect: Dialect) -> Value {
    let kind = described.kind;
    json!({
        "description": format!("{} is a list of {} objects.", kind.list_kind, kind.kind),
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": api_version(),
            "kind": kind_field(),
            "metadata": dialect.reference(LIST_META),
            "items": {"type": "array", "items": dialect.reference(item)},
        },
        "x-kubernetes-group-version-kind":
            [{"group": kind.group, "version": kind.version, "kind": kind.list_kind}],
    })
}

fn list_meta() -> Value {
    json!({
        "description": "Metadata of a list.",
        "type": "object",
        "properties": {
            "continue": {"type": "string", "description": "Set when there is more; pass it on to get the next page."},
            "remainingItemCount": {"type": "integer", "format": "int64", "description": "How many items follow."},
            "resourceVersion": {"type": "string", "description": "Revision of the list."},
            "selfLink": {"type": "string", "description": "Unused."},
        },
    })
}

const METADATA: &str = "Standard metadata of every object.";

fn api_version() -> Value {
    json!({"type": "string", "description": "Group and version of this representation of the object."})
}

fn kind_field() -> Value {
    json!({"type": "string", "description": "Kind of the object."})
}

/// `com.example.v1.Widget` of group `example.com`.
fn custom_name(group: &str, version: &str, kind: &str) -> String {
    let reversed: Vec<&str> = group.split('.').rev().collect();
    format!("{}.{version}.{kind}", reversed.join("."))
}

fn remove(value: &mut Value, field: &str) {
    if let Some(fields) = value.as_object_mut() {
        fields.remove(field);
    }
}
