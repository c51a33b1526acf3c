//! What a kind's row says of its Table: the columns, and the cells of an object.

use jiff::Timestamp;
use serde_json::{Value, json};

/// How objects of one kind are printed.
pub(crate) struct Printer {
    pub(crate) columns: &'static [Column],
    /// A cell for each column.
    pub(crate) cells: fn(&Value, Timestamp) -> Vec<Value>,
}

/// One column.
pub(crate) struct Column {
    name: &'static str,
    ty: &'static str,
    description: &'static str,
    /// Printed only by `-o wide`.
    wide: bool,
}

pub(crate) const fn column(name: &'static str, ty: &'static str, description: &'static str) -> Column {
    Column { name, ty, description, wide: false }
}

pub(crate) const fn wide(name: &'static str, description: &'static str) -> Column {
    Column { name, ty: "string", description, wide: true }
}

pub(crate) const NAME: Column =
    column("Name", "string", "Name of the object, unique in its namespace and kind.");
pub(crate) const AGE: Column = column("Age", "string", "Time since the object was created.");

/// A kind without columns of its own.
pub(crate) const OTHER: Printer = Printer {
    columns: &[NAME, column("Created At", "date", "Time at which the object was created.")],
    cells: |object, _| vec![name(object), object["metadata"]["creationTimestamp"].clone()],
};

/// The object's name, in the first column of most kinds.
pub(crate) fn name(object: &Value) -> Value {
    object["metadata"]["name"].as_str().unwrap_or_default().into()
}

/// A boolean that may be left out.
pub(crate) fn flag(value: &Value, default: bool) -> Value {
    json!(value.as_bool().unwrap_or(default))
}

impl Column {
    /// The column as a Table describes it.
    pub(super) fn definition(&self) -> Value {
        json!({
            "name": self.name,
            "type": self.ty,
            "format": if self.name == "Name" && !self.wide { "name" } else { "" },
            "description": self.description,
            "priority": i32::from(self.wide),
        })
    }
}
