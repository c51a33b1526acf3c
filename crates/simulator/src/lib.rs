//! For tests only: a seeded world in which volumes live through lost writes, late news and crashes.
//!
//! One thread, paused time: an hour takes as long as what happens in it. The API server is the real one, in memory; so
//! are the controllers, the scheduler and, on two nodes, what provisions, attaches and takes snapshots. Between them and
//! the API lies a [`Network`] that delays and loses requests, answers and watches. Their CSI driver's [`storage`] fails
//! now and then, and knows what it must never be asked to do. [`Story`] plays what users do meanwhile, kills processes
//! and starts them again; the [`Ledger`] looks at every write when it is made, and [`settled`] at what is left when all
//! has calmed down.
//!
//! # How far a seed determines a run
//! What users do, and which process dies when, follows from the seed alone. So do UIDs, and the delay and the fate of a
//! request: they depend on who makes it, its method and path, and how many such it made before; not on what else happens.
//! The API server answers one request at a time, in no time. What is left to chance is the order of requests that are
//! due in the same millisecond, where it follows from the order of a `HashMap`. Most runs of a seed are the same write
//! for write; `tests/seeds.rs` measures how many.

mod agents;
mod deeds;
mod dice;
mod driver;
mod ledger;
mod network;
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
