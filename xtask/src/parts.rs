//! How long each part of the test command takes.

use std::time::{Duration, Instant};

use anyhow::Context;

/// The parts so far; printed at the end, whatever the end.
#[derive(Default)]
pub(crate) struct Parts(Vec<(&'static str, Duration)>);

impl Parts {
    /// Runs a part and notes its time.
    pub(crate) fn run(
        &mut self,
        name: &'static str,
        part: impl FnOnce() -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let began = Instant::now();
        let outcome = part();
        self.0.push((name, began.elapsed()));
        outcome.context(name)
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        let total: Duration = self.0.iter().map(|(_, time)| *time).sum();
        eprintln!("\nhow long each part took:");
        for (name, time) in self.0.iter().chain([&("all", total)]) {
            eprintln!("  {:>6.0} s  {name}", time.as_secs_f64());
        }
    }
}
