//! Collecting what nobody owns any more: dependents of deleted owners, contents of deleted namespaces, pods and
//! VolumeAttachments of vanished nodes.

mod collector;
mod graph;
mod kinds;
mod lost_nodes;
mod namespaces;

pub use collector::run as owners;
pub use graph::{Action, Graph, Object, Owner};
pub use kinds::{Kind, Kinds};
pub use lost_nodes::{attachments as lost_attachments, pods as lost_pods};
pub use namespaces::run as namespaces;
