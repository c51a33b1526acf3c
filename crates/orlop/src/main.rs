//! The binary: one subcommand per role; wiring only.
fn main() {}
