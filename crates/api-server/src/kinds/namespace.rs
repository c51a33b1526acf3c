//! Namespaces.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    fields::{default_field, items, text},
    groups,
    metadata::NameRule,
    row::{Act, Cluster, Field, Hooks, Row, Rules, Subresource},
};
use crate::object;
use crate::protobuf::wire::{
    Encoding::{self, Ignored, Texts},
    METADATA, Message,
};
use crate::schema::TypeSchema;
use crate::table::age;
use crate::table::column::{AGE, Column, NAME, Printer, column, name};

static SCHEMA: TypeSchema = TypeSchema::of::<k8s_openapi::api::core::v1::Namespace>();

pub(crate) static KIND: Row = Row {
    group: groups::CORE,
    kind: "Namespace",
    plural: "namespaces",
    short_names: &["ns"],
    namespaced: false,
    status: true,
    schema: Some(&SCHEMA),
    rules: Rules { name: NameRule::Label, default, ..Rules::NONE },
    table: Printer { columns: COLUMNS, cells },
    fields: &[Field::at("status.phase")],
    protobuf: Some(PROTOBUF),
    subresources: &[Subresource {
        name: "finalize",
        kind: None,
        group: None,
        verbs: &["update"],
        act: Act::Finalize,
    }],
    hooks: Hooks { on_create, kept, ending, waits, stand_in, ..Hooks::NONE },
    collectable: false,
    houses: true,
    ..Row::PLAIN
};

fn default(namespace: &mut Value, _: Option<&Value>) {
    default_field(namespace, &["status", "phase"], "Active");
}

fn on_create(namespace: &mut Value, _: &dyn Cluster) -> Result<(), String> {
    namespace["spec"]["finalizers"] = json!(["kubernetes"]);
    namespace["status"] = json!({"phase": "Active"});
    let name = object::name(namespace).to_owned();
    namespace["metadata"]["labels"]["kubernetes.io/metadata.name"] = name.into();
    Ok(())
}

fn kept(namespace: &Value) -> Option<&'static str> {
    ["default", "kube-system", "kube-public"]
        .contains(&object::name(namespace))
        .then_some("this namespace may not be deleted")
}

/// A namespace ends when it is empty, not after a time.
fn ending(namespace: &mut Value) {
    object::metadata_mut(namespace).remove("deletionGracePeriodSeconds");
    namespace["status"]["phase"] = "Terminating".into();
}

/// A namespace's own finalizers are in its spec.
fn waits(namespace: &Value) -> bool {
    !items(&namespace["spec"]["finalizers"]).is_empty()
}

fn stand_in(namespace: &mut Value) {
    namespace["spec"] = json!({"finalizers": ["kubernetes"]});
    namespace["status"] = json!({"phase": "Active"});
}

const COLUMNS: &[Column] = &[NAME, column("Status", "string", "Phase of the namespace."), AGE];

fn cells(namespace: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(namespace), text(&namespace["status"]["phase"]).into(), age::of(namespace, now)]
}

const PROTOBUF: Message = &[
    (1, "metadata", Encoding::Message(METADATA)),
    (2, "spec", Encoding::Message(&[(1, "finalizers", Texts)])),
    (3, "status", Ignored),
];
