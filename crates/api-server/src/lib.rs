//! The embedded Kubernetes API: a `tower::Service` driven by a table of kinds.
//!
//! A request is parsed into one value (`request`), decided upon by pure functions (`change`, `delete::plan`, `patch`),
//! and then acted out against the object store. A kind is a row in [`kinds`], never a handler.
//!
//! Clients in the same process call the server as a function ([`ApiServer::in_process`]); all others come over TLS
//! with a credential ([`ApiServer::serve`]).

mod admission;
mod answer;
mod aside;
mod authorize;
mod body;
mod bounds;
mod catalog;
mod change;
mod crds;
pub mod credentials;
mod delete;
mod discovery;
mod error;
mod events;
#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod growth;
pub mod kinds;
mod listener;
mod log;
mod namespaces;
mod negotiate;
mod object;
pub mod openapi;
mod patch;
mod path;
mod pods;
mod present;
mod protobuf;
mod read;
mod request;
mod review;
mod scale;
pub mod schema;
mod selector;
mod server;
pub mod strategic_merge;
pub mod table;
mod unreadable;
mod watch;
mod write;

pub use answer::AnswerBody;
pub use credentials::{Credentials, CredentialsError};
pub use log::{LogError, LogOptions, LogRequest, Logs};
pub use server::{ApiServer, InProcess, Options, StartError, Uids, User};
