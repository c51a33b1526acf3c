//! Quantities, selectors, topology, access modes and names: pure, no async.
//!
//! Everything here follows the Kubernetes API's own rules and wording, and knows none of its object types: callers
//! pass strings and maps, so that typed objects and plain JSON use the same rules.

mod access;
mod bytes;
mod fields;
mod label_syntax;
mod labels;
pub mod names;
mod nodes;
mod quantity;
mod topology;
pub mod unserved;

pub use access::{AccessMode, AccessModes, UnknownAccessMode};
pub use bytes::{Bytes, BytesError};
pub use fields::{FieldSelector, FieldSelectorError, FieldTerm};
pub use labels::{LabelSelector, Operator, Requirement, SelectorError};
pub use nodes::{NodeSelector, NodeSelectorTerm};
pub use quantity::{Format, Quantity, QuantityError};
pub use topology::{Segments, accessible};
