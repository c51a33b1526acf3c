//! Stateful sets, as far as their claims need them: pods with names that stay, each with claims of its own.
//!
//! [`step`] decides, from a set, its pods, claims and revisions, what to write; the controller writes it, in order, one
//! set at a time per worker.

mod claims;
mod controller;
mod pods;
mod revisions;
mod seen;
mod set;
mod step;

pub use controller::run;
pub use step::{Notice, Plan, View, Write, step};
