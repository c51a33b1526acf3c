//! Secrets. Violations never quote a value.

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde_json::{Map, Value};
use values::names;

use super::{
    config_map::{MOST_BYTES, check_frozen, decoded_length},
    fields::{default_field, entries, remove, text},
    groups,
    row::{Field, Row, Rules},
    violations::Violations,
};
use crate::protobuf::wire::{
    Encoding::{self, Boolean, BytesMap, Text, TextMap},
    METADATA, Message,
};
use crate::schema::FieldError;
use crate::schema::TypeSchema;
use crate::table::age;
use crate::table::column::{AGE, Column, NAME, Printer, column, name};

static SCHEMA: TypeSchema = TypeSchema::of::<k8s_openapi::api::core::v1::Secret>();

pub(crate) static KIND: Row = Row {
    group: groups::CORE,
    kind: "Secret",
    plural: "secrets",
    schema: Some(&SCHEMA),
    rules: Rules { default, check, check_change, ..Rules::NONE },
    table: Printer { columns: COLUMNS, cells },
    fields: &[Field::at("type")],
    protobuf: Some(PROTOBUF),
    ..Row::PLAIN
};

fn default(secret: &mut Value, _: Option<&Value>) {
    default_field(secret, &["type"], "Opaque");
    if let Some(Value::Object(plain)) = remove(secret, "stringData")
        && !plain.is_empty()
    {
        default_field(secret, &["data"], Value::Object(Map::new()));
        for (key, value) in plain {
            secret["data"][key] = STANDARD.encode(text(&value)).into();
        }
    }
}

fn check(secret: &Value, violations: &mut Violations) {
    let data = &secret["data"];
    let mut size = 0;
    for (key, value) in entries(data) {
        violations.named(&format!("data[{key}]"), &Value::from(key.as_str()), names::config_key);
        size += decoded_length(value);
    }
    if size > MOST_BYTES {
        violations.add(FieldError::too_long("data", MOST_BYTES));
    }
    let mut require = |keys: &[&str]| {
        for key in keys.iter().filter(|key| data[**key].is_null()) {
            violations.add(FieldError::required(format!("data[{key}]"), ""));
        }
    };
    match text(&secret["type"]) {
        "kubernetes.io/dockercfg" => require(&[".dockercfg"]),
        "kubernetes.io/dockerconfigjson" => require(&[".dockerconfigjson"]),
        "kubernetes.io/ssh-auth" => require(&["ssh-privatekey"]),
        "kubernetes.io/tls" => require(&["tls.crt", "tls.key"]),
        "kubernetes.io/basic-auth" if data["username"].is_null() && data["password"].is_null() => {
            require(&["username", "password"]);
        }
        _ => {}
    }
}

fn check_change(new: &Value, old: &Value, violations: &mut Violations) {
    violations.immutable("type", &new["type"], &old["type"]);
    check_frozen(&["data"], new, old, violations);
}

const COLUMNS: &[Column] =
    &[NAME, column("Type", "string", "Use of the secret."), column("Data", "string", "Number of keys."), AGE];

fn cells(secret: &Value, now: Timestamp) -> Vec<Value> {
    let keys = entries(&secret["data"]).count();
    vec![name(secret), text(&secret["type"]).into(), keys.into(), age::of(secret, now)]
}

const PROTOBUF: Message = &[
    (1, "metadata", Encoding::Message(METADATA)),
    (2, "data", BytesMap),
    (3, "type", Text),
    (4, "stringData", TextMap),
    (5, "immutable", Boolean),
];
