//! The time of day.
//!
//! What is decided by it has to be decided again in the same way when a simulation is played again: [`simulate`] makes
//! it pass as tokio's clock does, which stands still while anything is being done. Spans of time are tokio's `Instant`.

use std::cell::Cell;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

thread_local! {
    static SIMULATED: Cell<Option<(Timestamp, Instant)>> = const { Cell::new(None) };
}

/// What time it is. It may jump in either direction, as the machine's clock is set.
#[expect(clippy::disallowed_methods, reason = "the one place that asks the machine")]
pub fn now() -> Timestamp {
    match SIMULATED.get() {
        Some((began, at)) => began + SignedDuration::try_from(at.elapsed()).unwrap_or(SignedDuration::ZERO),
        None => Timestamp::now(),
    }
}

/// From here on it is `begin` on this thread, and later as tokio's clock goes on.
pub fn simulate(begin: Timestamp) {
    SIMULATED.set(Some((begin, Instant::now())));
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn time_passes_as_it_is_simulated() {
        simulate(Timestamp::UNIX_EPOCH);
        assert_eq!(now(), Timestamp::UNIX_EPOCH);
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(now().as_second(), 3600);
    }

    #[test]
    fn elsewhere_it_is_the_machines() {
        let now = std::thread::spawn(now).join().unwrap();
        assert!(now.as_second() > 1_700_000_000, "{now}");
    }
}
