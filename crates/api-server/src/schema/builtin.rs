//! Schemas of the built-in kinds, derived from `k8s-openapi` when first used.

use std::sync::{Arc, LazyLock, OnceLock};

use k8s_openapi::{
    api::{apps::v1 as apps, coordination::v1 as coordination, core::v1 as core, storage::v1 as storage},
    apiextensions_apiserver::pkg::apis::apiextensions::v1 as extensions,
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::Value;

use super::{Document, Schema, node};

struct Row {
    kind: &'static str,
    render: fn() -> Value,
    schema: OnceLock<Schema>,
}

const fn row(kind: &'static str, render: fn() -> Value) -> Row {
    Row { kind, render, schema: OnceLock::new() }
}

static ROWS: [Row; 20] = [
    row("ConfigMap", render::<core::ConfigMap>),
    row("Event", render::<core::Event>),
    row("Namespace", render::<core::Namespace>),
    row("Node", render::<core::Node>),
    row("PersistentVolumeClaim", render::<core::PersistentVolumeClaim>),
    row("PersistentVolume", render::<core::PersistentVolume>),
    row("Pod", render::<core::Pod>),
    row("Secret", render::<core::Secret>),
    row("ServiceAccount", render::<core::ServiceAccount>),
    row("Service", render::<core::Service>),
    row("ControllerRevision", render::<apps::ControllerRevision>),
    row("StatefulSet", render::<apps::StatefulSet>),
    row("CustomResourceDefinition", render::<extensions::CustomResourceDefinition>),
    row("Lease", render::<coordination::Lease>),
    row("CSIDriver", render::<storage::CSIDriver>),
    row("CSINode", render::<storage::CSINode>),
    row("CSIStorageCapacity", render::<storage::CSIStorageCapacity>),
    row("StorageClass", render::<storage::StorageClass>),
    row("VolumeAttachment", render::<storage::VolumeAttachment>),
    row("VolumeAttributesClass", render::<storage::VolumeAttributesClass>),
];

pub(super) fn schema(kind: &str) -> Option<&'static Schema> {
    let row = ROWS.iter().find(|row| row.kind == kind)?;
    Some(row.schema.get_or_init(|| {
        let (nodes, root) = node::builtin(&(row.render)());
        Schema(Arc::new(Document { nodes, root, custom: None }))
    }))
}

/// The JSON schema of a built-in kind: its types in `$defs`, its type's name as `title`. Rendered anew each time,
/// because only OpenAPI documents need the descriptions.
pub(crate) fn json_schema(kind: &str) -> Option<Value> {
    ROWS.iter().find(|row| row.kind == kind).map(|row| (row.render)())
}

/// The JSON schema of `ObjectMeta`.
pub(crate) fn object_meta() -> &'static Value {
    static OBJECT_META: LazyLock<Value> = LazyLock::new(render::<ObjectMeta>);
    &OBJECT_META
}

fn render<T: JsonSchema>() -> Value {
    let mut schema = SchemaGenerator::default().into_root_schema_for::<T>().to_value();
    schema["title"] = Value::from(T::schema_name());
    schema
}
