//! Objects as `meta.k8s.io/v1` Tables, the way `kubectl get` prints them.

mod age;
mod claim;
mod columns;
mod custom;
mod event;
pub(crate) mod json_path;
mod node;
mod pod;
mod workload;

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
        let printer = columns::of(&kind.kind);
        let definitions = printer.columns.iter().map(Column::definition).collect();
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

/// How objects of one kind are printed.
struct Printer {
    columns: &'static [Column],
    cells: fn(&Value, Timestamp) -> Vec<Value>,
}

/// One column.
struct Column {
    name: &'static str,
    ty: &'static str,
    description: &'static str,
    /// Printed only by `-o wide`.
    wide: bool,
}

impl Column {
    fn definition(&self) -> Value {
        json!({
            "name": self.name,
            "type": self.ty,
            "format": if self.name == "Name" && !self.wide { "name" } else { "" },
            "description": self.description,
            "priority": i32::from(self.wide),
        })
    }
}

#[cfg(test)]
mod tests;
