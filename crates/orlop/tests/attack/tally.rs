//! Counts of what an attack tried and how it was met; printed at its end, whatever the end.

use std::collections::BTreeMap;

/// The counts of one attack.
pub(crate) struct Tally {
    attack: &'static str,
    outcomes: BTreeMap<&'static str, usize>,
}

impl Tally {
    pub(crate) fn new(attack: &'static str) -> Tally {
        Tally { attack, outcomes: BTreeMap::new() }
    }

    /// One more try, and what became of it.
    pub(crate) fn count(&mut self, outcome: &'static str) {
        *self.outcomes.entry(outcome).or_default() += 1;
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        let tried: usize = self.outcomes.values().sum();
        let outcomes: Vec<String> =
            self.outcomes.iter().map(|(outcome, count)| format!("{count} {outcome}")).collect();
        println!("attack {}: {tried} tried: {}", self.attack, outcomes.join(", "));
    }
}
