//! What attackers and accidents do to a whole Orlop, with real processes, sockets, devices and disks: `cargo xtask attack`.
//!
//! Every attack is bounded in count and time, stays on loopback and in directories of its own, and prints what it tried. After
//! each, an ordinary administrator's request, or a volume's ordinary life, must work. Left out of `cargo test`, where each fault
//! that an attack once found has a small test beside the code that was mended.

#[path = "../common/mod.rs"]
mod common;

mod bodies;
mod connections;
mod credentials;
mod damage;
mod disks;
mod frames;
mod holders;
mod kills;
mod sub_paths;
mod tally;
mod targets;
