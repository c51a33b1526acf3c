//! The two protocols between an orchestrator and a storage driver on one machine, and the unix sockets they run over.
//!
//! [`v1`] is the Container Storage Interface, [`registration`] how a driver makes itself known on a node. Both are
//! generated from `proto/`, clients and servers alike. Secrets never show in `Debug`: see `build.rs`.

mod authority;
mod client;
mod code;
mod secret;
mod server;
mod why_none;

pub use authority::Connection;
pub use client::{CALL_DEADLINE, CONNECT_DEADLINE, ConnectError, connect, connect_within};
pub use code::final_error;
pub use prost_types::Timestamp;
pub use server::{ListenError, Listener, listen};
pub use why_none::{brief, tell_why_none, why_none};

/// The Container Storage Interface, package `csi.v1`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::unwrap_used, clippy::large_futures)]
pub mod v1 {
    tonic::include_proto!("csi.v1");
    include!(concat!(env!("OUT_DIR"), "/debug.rs"));
}

/// Plugin registration on a node, package `pluginregistration`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::unwrap_used, clippy::large_futures)]
pub mod registration {
    tonic::include_proto!("pluginregistration");
}
