//! `cargo xtask attack`: what attackers and accidents do to a whole Orlop, one attack after the other.

use crate::command::cargo;

/// Runs the attacks whose name contains `filter`; each prints how much it tried and how that was met.
pub(crate) fn run(filter: &str) -> anyhow::Result<()> {
    // One at a time: each loads the machine by itself, and says what it saw of its own Orlop only.
    cargo(&["test", "--package", "orlop", "--test", "attack", "--"])
        .arguments(&["--ignored", "--nocapture", "--test-threads=1", filter])
        .run()
}
