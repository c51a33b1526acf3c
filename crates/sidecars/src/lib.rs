//! What the CSI sidecars do, for any CSI driver: register, provision, attach, resize, modify, snapshot, publish capacity.
//!
//! Everything here is node-local: it talks to a driver over a unix socket of this machine and takes care of the
//! claims and volumes of this node. Several nodes may be served by one process; they share its informers.

pub mod announce;
pub mod attach;
pub mod capacity;
mod driver;
pub mod modify;
mod place;
pub mod provision;
pub mod register;
pub mod resize;
mod secret;
mod serve;
mod settle;
pub mod snapshot;

pub use driver::{Driver, DriverError};
pub use secret::SecretError;
pub use serve::{Job, Options, serve};
