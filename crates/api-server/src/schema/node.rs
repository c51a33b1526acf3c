//! The nodes of a schema, and how they are built from a JSON schema document.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::lists::{self, ListType, Patch};
use super::patterns::{Pattern, Patterns};

/// Index of a node within its schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NodeId(pub(super) usize);

/// The JSON type that a value must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Type {
    #[default]
    Any,
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
    IntOrString,
    /// A string or number that is a resource quantity.
    Quantity,
}

/// One place in a schema.
#[derive(Debug, Default)]
pub(crate) struct Node {
    pub(crate) ty: Type,
    pub(crate) format: Option<Box<str>>,
    pub(crate) nullable: bool,
    /// Known fields of an object.
    pub(crate) fields: BTreeMap<Box<str>, NodeId>,
    /// Those of them that have a default.
    pub(crate) defaulted: Vec<(Box<str>, NodeId)>,
    /// What any other field of an object must be; with neither this nor `preserve`, there may be no other.
    pub(crate) others: Option<NodeId>,
    pub(crate) items: Option<NodeId>,
    /// Unknown fields stay.
    pub(crate) preserve: bool,
    /// What the value must be if it is an object, for values that may also be something simpler.
    pub(crate) if_object: Option<NodeId>,
    pub(crate) default: Option<Value>,
    pub(crate) required: Vec<Box<str>>,
    pub(crate) list: ListType,
    pub(crate) patch: Option<Patch>,
    pub(crate) limits: Option<Box<Limits>>,
}

/// Value rules, which only custom resources have.
#[derive(Debug, Default)]
pub(crate) struct Limits {
    pub(crate) enumeration: Enumeration,
    pub(crate) pattern: Option<Arc<Pattern>>,
    pub(crate) minimum: Option<(f64, bool)>,
    pub(crate) maximum: Option<(f64, bool)>,
    pub(crate) multiple_of: Option<f64>,
    pub(crate) min_length: Option<usize>,
    pub(crate) max_length: Option<usize>,
    pub(crate) min_items: Option<usize>,
    pub(crate) max_items: Option<usize>,
    pub(crate) min_properties: Option<usize>,
    pub(crate) max_properties: Option<usize>,
    pub(crate) unique_items: bool,
    pub(crate) all_of: Vec<NodeId>,
    pub(crate) any_of: Vec<NodeId>,
    pub(crate) one_of: Vec<NodeId>,
    pub(crate) not: Option<NodeId>,
}

/// The values that are allowed, if not all are.
#[derive(Debug, Default)]
pub(crate) struct Enumeration {
    pub(crate) values: Vec<Value>,
    /// As JSON: a long list is not gone through for every value.
    texts: HashSet<String>,
}

impl Enumeration {
    fn of(values: Option<&Value>) -> Enumeration {
        let values = values.and_then(Value::as_array).cloned().unwrap_or_default();
        Enumeration { texts: values.iter().map(Value::to_string).collect(), values }
    }

    pub(crate) fn allows(&self, value: &Value) -> bool {
        self.values.is_empty() || self.texts.contains(&value.to_string())
    }
}

const INT_OR_STRING: &str = "x-kubernetes-int-or-string";
const PRESERVE: &str = "x-kubernetes-preserve-unknown-fields";
const EMBEDDED: &str = "x-kubernetes-embedded-resource";

/// The nodes of a built-in kind's JSON schema, as `schemars` renders it with `$defs`.
pub(super) fn builtin(root: &Value) -> (Vec<Node>, NodeId) {
    let mut builder =
        Builder { definitions: root.get("$defs").and_then(Value::as_object), ..Builder::default() };
    let type_name = root["title"].as_str().map(short_name).unwrap_or_default().to_owned();
    let root = builder.add(root, &type_name);
    (builder.nodes, root)
}

/// The nodes of a custom resource's `openAPIV3Schema`, with `object_meta` (a JSON schema) for its metadata.
pub(super) fn custom<'a>(
    schema: &'a Value,
    object_meta: &'a Value,
    patterns: &'a mut Patterns,
) -> (Vec<Node>, NodeId) {
    let definitions = object_meta.get("$defs").and_then(Value::as_object);
    let mut builder = Builder { definitions, patterns: Some(patterns), ..Builder::default() };
    let metadata = builder.add(object_meta, "ObjectMeta");
    builder.metadata = Some(metadata);
    let root = builder.add(schema, "");
    builder.make_resource(root);
    (builder.nodes, root)
}

/// `PodSpec` of `io.k8s.api.core.v1.PodSpec`.
pub(crate) fn short_name(definition: &str) -> &str {
    definition.rsplit('.').next().unwrap_or(definition)
}

#[derive(Default)]
struct Builder<'a> {
    nodes: Vec<Node>,
    definitions: Option<&'a Map<String, Value>>,
    named: HashMap<&'a str, NodeId>,
    /// The node of `ObjectMeta`, for custom resources and the resources embedded in them.
    metadata: Option<NodeId>,
    /// Where the patterns of a custom resource's schema are compiled.
    patterns: Option<&'a mut Patterns>,
}

impl<'a> Builder<'a> {
    /// Adds a schema and everything below it; `type_name` is the Go type whose fields these are, or empty.
    fn add(&mut self, schema: &'a Value, type_name: &str) -> NodeId {
        if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
            return self.add_definition(reference.trim_start_matches("#/$defs/"));
        }
        let id = self.reserve();
        self.fill(id, schema, type_name);
        id
    }

    fn reserve(&mut self) -> NodeId {
        self.nodes.push(Node::default());
        NodeId(self.nodes.len() - 1)
    }

    fn add_definition(&mut self, name: &'a str) -> NodeId {
        if let Some(id) = self.named.get(name) {
            return *id;
        }
        let id = self.reserve();
        self.named.insert(name, id);
        let schema = self.definitions.and_then(|definitions| definitions.get(name)).unwrap_or(&Value::Null);
        match short_name(name) {
            // Any JSON, though published as an object.
            "JSON" | "RawExtension" | "FieldsV1" => self.nodes[id.0].preserve = true,
            "Quantity" => self.nodes[id.0].ty = Type::Quantity,
            // A schema, or a boolean or list in its place.
            "JSONSchemaPropsOrBool" | "JSONSchemaPropsOrArray" | "JSONSchemaPropsOrStringArray" => {
                if let Some(reference) = schema["oneOf"][0]["$ref"].as_str() {
                    let object = self.add_definition(reference.trim_start_matches("#/$defs/"));
                    self.nodes[id.0].if_object = Some(object);
                }
            }
            type_name => self.fill(id, schema, type_name),
        }
        id
    }

    fn fill(&mut self, id: NodeId, schema: &'a Value, type_name: &str) {
        let flag = |name: &str| schema.get(name) == Some(&Value::Bool(true));
        let mut node = Node {
            ty: if flag(INT_OR_STRING) { Type::IntOrString } else { json_type(schema) },
            format: schema.get("format").and_then(Value::as_str).map(Box::from),
            nullable: flag("nullable"),
            preserve: flag(PRESERVE),
            default: schema.get("default").filter(|value| !value.is_null()).cloned(),
            list: list_type(schema),
            ..Node::default()
        };
        if let Some(required) = schema.get("required").and_then(Value::as_array) {
            node.required = required.iter().filter_map(Value::as_str).map(Box::from).collect();
        }
        if let Some(fields) = schema.get("properties").and_then(Value::as_object) {
            for (name, field) in fields {
                let field_id = self.add(field, "");
                if self.nodes[field_id.0].default.is_some() {
                    node.defaulted.push((name.as_str().into(), field_id));
                }
                node.fields.insert(name.as_str().into(), self.with_list_rules(field_id, type_name, name));
            }
        }
        match schema.get("additionalProperties") {
            Some(others @ Value::Object(_)) => node.others = Some(self.add(others, "")),
            Some(Value::Bool(true)) => node.preserve = true,
            _ => {}
        }
        if let Some(items @ Value::Object(_)) = schema.get("items") {
            node.items = Some(self.add(items, ""));
        }
        node.limits = self.limits(schema);
        self.nodes[id.0] = node;
        if flag(EMBEDDED) {
            self.make_resource(id);
        }
    }

    /// Gives a list field of a built-in type its keys and patch strategy.
    fn with_list_rules(&mut self, id: NodeId, type_name: &str, field: &str) -> NodeId {
        if let Some(rules) = lists::rules(type_name, field) {
            let node = &mut self.nodes[id.0];
            node.list = rules.list();
            node.patch = rules.patch;
        }
        id
    }

    /// Adds `apiVersion`, `kind` and real metadata, whatever the schema says of them.
    fn make_resource(&mut self, id: NodeId) {
        let Some(metadata) = self.metadata else { return };
        for name in ["apiVersion", "kind"] {
            let string = self.reserve();
            self.nodes[string.0].ty = Type::String;
            self.nodes[id.0].fields.insert(name.into(), string);
        }
        self.nodes[id.0].fields.insert("metadata".into(), metadata);
    }

    fn limits(&mut self, schema: &'a Value) -> Option<Box<Limits>> {
        let size =
            |name: &str| schema.get(name).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
        let bound = |name: &str, exclusive: &str| {
            let bound = schema.get(name).and_then(Value::as_f64)?;
            Some((bound, schema.get(exclusive) == Some(&Value::Bool(true))))
        };
        let names = [
            "enum",
            "pattern",
            "minimum",
            "maximum",
            "multipleOf",
            "minLength",
            "maxLength",
            "minItems",
            "maxItems",
            "minProperties",
            "maxProperties",
            "uniqueItems",
            "allOf",
            "anyOf",
            "oneOf",
            "not",
        ];
        if !names.iter().any(|name| schema.get(name).is_some()) {
            return None;
        }
        let text = schema.get("pattern").and_then(Value::as_str);
        // Checked before: what does not compile is refused with the field's name.
        let pattern = text.zip(self.patterns.as_mut()).and_then(|(text, all)| all.compile(text).ok());
        let mut each = |name: &str| -> Vec<NodeId> {
            let schemas = schema.get(name).and_then(Value::as_array);
            schemas.into_iter().flatten().map(|schema| self.add(schema, "")).collect()
        };
        Some(Box::new(Limits {
            enumeration: Enumeration::of(schema.get("enum")),
            pattern,
            minimum: bound("minimum", "exclusiveMinimum"),
            maximum: bound("maximum", "exclusiveMaximum"),
            multiple_of: schema.get("multipleOf").and_then(Value::as_f64),
            min_length: size("minLength"),
            max_length: size("maxLength"),
            min_items: size("minItems"),
            max_items: size("maxItems"),
            min_properties: size("minProperties"),
            max_properties: size("maxProperties"),
            unique_items: schema.get("uniqueItems") == Some(&Value::Bool(true)),
            all_of: each("allOf"),
            any_of: each("anyOf"),
            one_of: each("oneOf"),
            not: schema.get("not").map(|schema| self.add(schema, "")),
        }))
    }
}

fn json_type(schema: &Value) -> Type {
    match schema.get("type").and_then(Value::as_str) {
        Some("object") => Type::Object,
        Some("array") => Type::Array,
        Some("string") => Type::String,
        Some("integer") => Type::Integer,
        Some("number") => Type::Number,
        Some("boolean") => Type::Boolean,
        _ => Type::Any,
    }
}

fn list_type(schema: &Value) -> ListType {
    let keys = || schema.get("x-kubernetes-list-map-keys").and_then(Value::as_array);
    match schema.get("x-kubernetes-list-type").and_then(Value::as_str) {
        Some("set") => ListType::Set,
        Some("map") => {
            ListType::Map(keys().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect())
        }
        _ => ListType::Atomic,
    }
}
