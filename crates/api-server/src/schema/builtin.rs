//! Schemas of the types of built-in kinds, derived from `k8s-openapi` when first used.

use std::sync::{Arc, LazyLock, OnceLock};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::Value;

use super::{Document, Schema, node};

/// The schema of a built-in kind's type.
pub(crate) struct TypeSchema {
    render: fn() -> Value,
    schema: OnceLock<Schema>,
}

impl TypeSchema {
    /// The schema of `T`.
    pub(crate) const fn of<T: JsonSchema>() -> TypeSchema {
        TypeSchema { render: render::<T>, schema: OnceLock::new() }
    }

    /// The structural schema, derived on first use.
    pub(crate) fn get(&self) -> &Schema {
        self.schema.get_or_init(|| {
            let (nodes, root) = node::builtin(&self.json());
            Schema(Arc::new(Document { nodes, root, custom: None }))
        })
    }

    /// The JSON schema: its types in `$defs`, its type's name as `title`. Rendered anew each time, because only OpenAPI
    /// documents need the descriptions.
    pub(crate) fn json(&self) -> Value {
        (self.render)()
    }
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
