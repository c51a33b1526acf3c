//! The table of kinds: a row each, all of it in the kind's own file.
//!
//! A row ([`row::Row`]) has a kind's names, schema, defaults, rules, columns, selectable fields, subresources and what
//! happens besides when its objects are written; everything in it is data or a pure function over JSON. A custom
//! resource definition adds kinds of the same type at run time.

mod config_map;
mod controller_revision;
mod csi_driver;
mod csi_node;
pub(crate) mod custom_resource_definition;
mod event;
pub(crate) mod fields;
mod groups;
mod kind;
mod lease;
mod metadata;
mod namespace;
mod node;
mod persistent_volume;
mod persistent_volume_claim;
pub(crate) mod pod;
mod priority_class;
pub(crate) mod row;
mod secret;
mod service;
mod service_account;
mod snapshot;
mod stateful_set;
mod storage_capacity;
mod storage_class;
mod validation;
mod violations;
mod volume_attachment;
mod volume_attributes_class;

use std::sync::LazyLock;

pub(crate) use custom_resource_definition::KIND as DEFINITION;
pub(crate) use event::KIND as EVENT;
pub use kind::Kind;
pub(crate) use namespace::KIND as NAMESPACE;
pub(crate) use priority_class::system as system_priority_classes;
use row::Row;
pub use validation::{default_object, validate_create, validate_update, warnings};

/// The row of every built-in kind.
static ROWS: &[&Row] = &[
    &config_map::KIND,
    &event::KIND,
    &namespace::KIND,
    &node::KIND,
    &persistent_volume_claim::KIND,
    &persistent_volume::KIND,
    &pod::KIND,
    &secret::KIND,
    &service_account::KIND,
    &service::KIND,
    &custom_resource_definition::KIND,
    &controller_revision::KIND,
    &stateful_set::KIND,
    &lease::KIND,
    &priority_class::KIND,
    &csi_driver::KIND,
    &csi_node::KIND,
    &storage_capacity::KIND,
    &storage_class::KIND,
    &volume_attachment::KIND,
    &volume_attributes_class::KIND,
];

/// The rows of kinds that come from definitions, and whose rules everyone knows.
static KNOWN: &[&Row] = snapshot::KINDS;

/// Any other kind of a definition.
static CUSTOM: Row = Row::CUSTOM;

/// Every built-in kind.
pub static BUILTIN: LazyLock<Vec<Kind>> = LazyLock::new(|| ROWS.iter().map(|row| Kind::of(row)).collect());

/// The row of a kind that a definition defines.
pub(crate) fn custom(group: &str, kind: &str) -> &'static Row {
    KNOWN.iter().find(|row| row.group == group && row.kind == kind).copied().unwrap_or(&CUSTOM)
}

/// The row of the built-in kind that objects name so.
pub(crate) fn named(api_version: &str, kind: &str) -> Option<&'static Row> {
    BUILTIN
        .iter()
        .find(|known| known.kind == kind && known.api_version() == api_version)
        .map(|known| known.row)
}

/// The built-in kind of this name.
#[cfg(test)]
pub(crate) fn builtin(kind: &str) -> &'static Kind {
    BUILTIN.iter().find(|known| known.kind == kind).expect("a built-in kind")
}

#[cfg(test)]
mod tests;
