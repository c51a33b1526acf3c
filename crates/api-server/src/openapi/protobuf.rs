//! The older generation's document in protobuf, which is the only form in which kubectl reads it.
//!
//! The field numbers are those of gnostic's published `openapi.v2` messages. Only fields that kubectl reads are here;
//! protobuf readers take all others as absent.

use prost::{Message, Oneof};
use serde_json::{Map, Value};

/// The document that [`super::v2`] renders, in protobuf.
pub(super) fn encode(document: &Value) -> Vec<u8> {
    Document {
        swagger: text(document, "swagger"),
        info: document
            .get("info")
            .map(|info| Info { title: text(info, "title"), version: text(info, "version") }),
        paths: Some(Paths { path: named(document.get("paths"), path_item) }),
        definitions: Some(schemas(document.get("definitions"))),
    }
    .encode_to_vec()
}

fn path_item(item: &Value) -> PathItem {
    let of = |verb: &str| item.get(verb).map(operation);
    PathItem { get: of("get"), put: of("put"), post: of("post"), delete: of("delete"), patch: of("patch") }
}

fn operation(operation: &Value) -> Operation {
    let parameters = operation.get("parameters").and_then(Value::as_array);
    Operation {
        consumes: texts(operation, "consumes"),
        parameters: parameters.into_iter().flatten().map(parameter).collect(),
        extensions: extensions(operation),
    }
}

/// All parameters of ours are in the query.
fn parameter(parameter: &Value) -> ParametersItem {
    let query = QueryParameter {
        place: text(parameter, "in"),
        name: text(parameter, "name"),
        ty: text(parameter, "type"),
    };
    ParametersItem { parameter: Some(Parameter { simple: Some(SimpleParameter { query: Some(query) }) }) }
}

fn schemas(schemas: Option<&Value>) -> Schemas {
    Schemas { schema: named(schemas, schema) }
}

fn schema(value: &Value) -> Schema {
    let present = |field: &str| value.get(field).filter(|value| !value.is_null());
    Schema {
        reference: text(value, "$ref"),
        format: text(value, "format"),
        description: text(value, "description"),
        default: present("default").map(any),
        required: texts(value, "required"),
        enumeration: present("enum").and_then(Value::as_array).into_iter().flatten().map(any).collect(),
        additional: present("additionalProperties").map(|allowed| {
            let allowed = match allowed {
                Value::Bool(allowed) => Allowed::Any(*allowed),
                of => Allowed::Of(Box::new(schema(of))),
            };
            Box::new(Additional { allowed: Some(allowed) })
        }),
        ty: present("type").map(|ty| Texts { value: vec![ty.as_str().unwrap_or_default().to_owned()] }),
        items: present("items").map(|items| Items { schema: vec![schema(items)] }),
        all_of: present("allOf").and_then(Value::as_array).into_iter().flatten().map(schema).collect(),
        // An object with an empty table of fields is one that takes any.
        properties: present("properties")
            .filter(|fields| fields.as_object().is_some_and(|fields| !fields.is_empty()))
            .map(|fields| schemas(Some(fields))),
        extensions: extensions(value),
    }
}

/// The fields that begin with `x-`.
fn extensions(value: &Value) -> Vec<Named<Any>> {
    let Some(fields) = value.as_object() else { return Vec::new() };
    fields
        .iter()
        .filter(|(name, _)| name.starts_with("x-"))
        .map(|(name, value)| Named { name: name.clone(), value: Some(any(value)) })
        .collect()
}

/// A value as YAML, of which JSON is a part.
fn any(value: &Value) -> Any {
    Any { yaml: value.to_string() }
}

fn text(value: &Value, field: &str) -> String {
    value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn texts(value: &Value, field: &str) -> Vec<String> {
    let texts = value.get(field).and_then(Value::as_array);
    texts.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// A JSON object as gnostic writes maps: a list of names with values.
fn named<T: Message + Default + std::fmt::Debug>(
    object: Option<&Value>,
    convert: fn(&Value) -> T,
) -> Vec<Named<T>> {
    let fields: Option<&Map<String, Value>> = object.and_then(Value::as_object);
    fields
        .into_iter()
        .flatten()
        .map(|(name, value)| Named { name: name.clone(), value: Some(convert(value)) })
        .collect()
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Document {
    #[prost(string, tag = "1")]
    pub(super) swagger: String,
    #[prost(message, optional, tag = "2")]
    pub(super) info: Option<Info>,
    #[prost(message, optional, tag = "8")]
    pub(super) paths: Option<Paths>,
    #[prost(message, optional, tag = "9")]
    pub(super) definitions: Option<Schemas>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Info {
    #[prost(string, tag = "1")]
    pub(super) title: String,
    #[prost(string, tag = "2")]
    pub(super) version: String,
}

/// `NamedPathItem`, `NamedSchema` and `NamedAny`, which differ in the value only.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Named<T: Message + Default + std::fmt::Debug> {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(message, optional, tag = "2")]
    pub(super) value: Option<T>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Paths {
    #[prost(message, repeated, tag = "2")]
    pub(super) path: Vec<Named<PathItem>>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PathItem {
    #[prost(message, optional, tag = "2")]
    pub(super) get: Option<Operation>,
    #[prost(message, optional, tag = "3")]
    pub(super) put: Option<Operation>,
    #[prost(message, optional, tag = "4")]
    pub(super) post: Option<Operation>,
    #[prost(message, optional, tag = "5")]
    pub(super) delete: Option<Operation>,
    #[prost(message, optional, tag = "8")]
    pub(super) patch: Option<Operation>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Operation {
    #[prost(string, repeated, tag = "7")]
    pub(super) consumes: Vec<String>,
    #[prost(message, repeated, tag = "8")]
    pub(super) parameters: Vec<ParametersItem>,
    #[prost(message, repeated, tag = "13")]
    pub(super) extensions: Vec<Named<Any>>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ParametersItem {
    #[prost(message, optional, tag = "1")]
    pub(super) parameter: Option<Parameter>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Parameter {
    /// `non_body_parameter`.
    #[prost(message, optional, tag = "2")]
    pub(super) simple: Option<SimpleParameter>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct SimpleParameter {
    #[prost(message, optional, tag = "3")]
    pub(super) query: Option<QueryParameter>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct QueryParameter {
    #[prost(string, tag = "2")]
    pub(super) place: String,
    #[prost(string, tag = "4")]
    pub(super) name: String,
    #[prost(string, tag = "6")]
    pub(super) ty: String,
}

/// `Definitions` and `Properties`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Schemas {
    #[prost(message, repeated, tag = "1")]
    pub(super) schema: Vec<Named<Schema>>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Schema {
    #[prost(string, tag = "1")]
    pub(super) reference: String,
    #[prost(string, tag = "2")]
    pub(super) format: String,
    #[prost(string, tag = "4")]
    pub(super) description: String,
    #[prost(message, optional, tag = "5")]
    pub(super) default: Option<Any>,
    #[prost(string, repeated, tag = "19")]
    pub(super) required: Vec<String>,
    #[prost(message, repeated, tag = "20")]
    pub(super) enumeration: Vec<Any>,
    #[prost(message, optional, boxed, tag = "21")]
    pub(super) additional: Option<Box<Additional>>,
    #[prost(message, optional, tag = "22")]
    pub(super) ty: Option<Texts>,
    #[prost(message, optional, tag = "23")]
    pub(super) items: Option<Items>,
    #[prost(message, repeated, tag = "24")]
    pub(super) all_of: Vec<Schema>,
    #[prost(message, optional, tag = "25")]
    pub(super) properties: Option<Schemas>,
    #[prost(message, repeated, tag = "31")]
    pub(super) extensions: Vec<Named<Any>>,
}

/// `AdditionalPropertiesItem`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Additional {
    #[prost(oneof = "Allowed", tags = "1, 2")]
    pub(super) allowed: Option<Allowed>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum Allowed {
    #[prost(message, boxed, tag = "1")]
    Of(Box<Schema>),
    #[prost(bool, tag = "2")]
    Any(bool),
}

/// `ItemsItem`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Items {
    #[prost(message, repeated, tag = "1")]
    pub(super) schema: Vec<Schema>,
}

/// `TypeItem`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Texts {
    #[prost(string, repeated, tag = "1")]
    pub(super) value: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Any {
    #[prost(string, tag = "2")]
    pub(super) yaml: String,
}
