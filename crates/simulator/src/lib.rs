//! For tests only: a seeded world in which volumes live through lost writes, late news and crashes.
//!
//! One thread, paused time: an hour takes as long as what happens in it. The API server is the real one, in memory; so
//! are the controllers, the scheduler and, on two nodes, what provisions, attaches, resizes, modifies and takes snapshots.
//! Between them and the API lies a [`Network`] that delays and loses requests, answers and watches. Their CSI driver's
//! [`storage`] fails now and then, and knows what it must never be asked to do. [`Story`] plays what users do meanwhile,
//! kills processes and starts them again; the [`Ledger`] looks at every write when it is made, and [`settled`] at what
//! is left when all has calmed down.
//!
//! # A seed determines a run
//! What users do, and which process dies when, follows from the seed; so do UIDs, the time of day, and the delay and the
//! fate of a request: they depend on who makes it, its method and path, and how many such it made before; not on what
//! else happens. The API server answers one request at a time, in no time. Two runs of a seed are the same request for
//! request (`tests/seeds.rs`). To keep it so, nothing here or in what runs here may have a thread of its own, ask the
//! machine for the time, choose at random otherwise than by `fastrand`, or act in the order of a `HashMap`, of a
//! `select!` that is not `biased`, or of the receivers of a `tokio::sync::watch`.

mod agents;
mod deeds;
mod dice;
mod driver;
mod ledger;
mod network;
mod populator;
pub mod reference;
mod scenario;
mod settled;
pub mod storage;
mod story;
mod world;

pub use dice::Dice;
pub use ledger::Ledger;
pub use network::{Conditions, Fault, Network};
pub use scenario::{Quiet, every_write_fails, once};
pub use settled::settled;
pub use story::{Outcome, Story, play};
pub use world::{Role, World};
