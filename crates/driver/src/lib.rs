//! The CSI driver: Identity, Controller and Node services over [`drives`].
//!
//! A call goes through three rooms: [`request`] checks it without looking at anything else, the service asks [`drives`]
//! (which own all state: what they say exists, exists), and [`status`] turns refusals into codes. The driver itself
//! remembers only which volumes have a call under way ([`flight`]). Nothing here knows an orchestrator: the same socket
//! serves any that speaks CSI.

mod call;
mod controller;
mod ephemeral;
mod flight;
mod groups;
mod identity;
mod name;
mod node;
mod request;
mod serve;
mod snapshots;
mod status;
mod throttle;

pub use call::Calls;
pub use controller::ACCESS_TYPE;
pub use name::{Name, UnknownName};
pub use request::EPHEMERAL;
pub use serve::{InvalidNode, NodeInfo, ServeError, serve};
