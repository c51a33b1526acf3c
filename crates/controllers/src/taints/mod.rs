//! Taints of nodes: what conditions put on them, and who must go because of them.

mod conditions;
mod evict;
mod stay;

pub use conditions::run as by_conditions;
pub use evict::run as evict;
pub use stay::{Stay, stay};
