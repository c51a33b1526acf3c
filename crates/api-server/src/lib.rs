//! The embedded Kubernetes API: a `tower::Service` driven by a table of kinds.
//!
//! A request is parsed into one value ([`request`]), decided upon by pure functions, and then acted out against the
//! object store. A kind is a row in [`kinds`], never a handler.

pub mod kinds;
pub mod openapi;
pub mod schema;
pub mod strategic_merge;
pub mod table;
