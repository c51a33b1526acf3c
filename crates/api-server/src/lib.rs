//! The embedded Kubernetes API: a `tower::Service` driven by a table of kinds.
//!
//! A request is parsed into one value (`request`); `server` finds the verb that answers it (`verbs`), which decides by
//! pure functions (`change`, `delete::plan`, `patch`) and then acts on the object store through the `context`. A kind is
//! a row in [`kinds`], never a handler: what is particular to it is data and pure functions there.
//!
//! Clients in the same process call the server as a function ([`ApiServer::in_process`]); all others come over TLS
//! with a credential ([`ApiServer::serve`]).

mod absent;
mod answer;
mod aside;
mod authorize;
mod body;
mod bootstrap;
mod bounds;
mod catalog;
mod change;
mod cleanup;
mod context;
pub mod credentials;
mod definitions;
mod discovery;
mod error;
mod events;
#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod growth;
pub mod kinds;
mod listener;
mod namespaces;
mod negotiate;
mod nodes;
mod object;
pub mod openapi;
mod patch;
mod path;
mod present;
mod protobuf;
mod request;
mod review;
pub mod schema;
mod seen;
mod selector;
mod server;
pub mod strategic_merge;
pub mod table;
mod unreadable;
mod user;
mod verbs;

pub use answer::AnswerBody;
pub use context::{Options, Uids};
pub use credentials::{Credentials, CredentialsError};
pub use nodes::{LogError, LogRequest, Nodes, Page, PageError};
pub use request::LogOptions;
pub use server::{ApiServer, InProcess, StartError};
pub use user::User;
