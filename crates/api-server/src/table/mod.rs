//! Objects as `meta.k8s.io/v1` Tables, the way `kubectl get` prints them.

pub(crate) mod age;
pub(crate) mod column;
mod custom;
pub(crate) mod json_path;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kinds::Kind;

/// What of each object goes into its row (`includeObject`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IncludeObject {
    /// Nothing.
    None,
    /// Its metadata (the default).
    #[default]
    Metadata,
    /// The whole object.
    Object,
}

/// A Table of objects of one kind (no list metadata); `crd_columns` are a custom kind's `additionalPrinterColumns`.
pub fn render(
    kind: &Kind,
    objects: &[Value],
    crd_columns: Option<&Value>,
    include_object: IncludeObject,
    now: Timestamp,
) -> Value {
    let (definitions, cells): (Vec<Value>, Cells<'_>) = if kind.is_custom() {
        let columns = custom::columns(crd_columns);
        let definitions = columns.iter().map(custom::Column::definition).collect();
        (definitions, Box::new(move |object| columns.iter().map(|column| column.cell(object, now)).collect()))
    } else {
        let printer = &kind.row.table;
        let definitions = printer.columns.iter().map(column::Column::definition).collect();
        (definitions, Box::new(move |object| (printer.cells)(object, now)))
    };
    let rows: Vec<Value> = objects.iter().map(|object| row(object, cells(object), include_object)).collect();
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {},
        "columnDefinitions": definitions,
        "rows": rows,
    })
}

type Cells<'a> = Box<dyn Fn(&Value) -> Vec<Value> + 'a>;

fn row(object: &Value, cells: Vec<Value>, include_object: IncludeObject) -> Value {
    let object = match include_object {
        IncludeObject::None => Value::Null,
        IncludeObject::Metadata => json!({
            "kind": "PartialObjectMetadata",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": object["metadata"],
        }),
        IncludeObject::Object => object.clone(),
    };
    json!({"cells": cells, "object": object})
}

#[cfg(test)]
mod tests;
