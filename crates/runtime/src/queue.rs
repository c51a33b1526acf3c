use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::Metrics;
use crate::metrics::QueueMetrics;

/// Keys that a queue holds at most. Keys name objects, so this is far above what a cluster has.
const MAX_KEYS: usize = 1 << 20;

/// Keys of objects to look at.
///
/// A key waits once, however often it was added. A key that is being worked on is not handed out again until that
/// work ends; one that was added meanwhile is then handed out once more. So no change is missed, and no two workers
/// ever hold the same key. At most a million keys wait; further ones are refused, counted and logged.
pub struct Queue<T> {
    shared: Arc<Shared<T>>,
}

/// How long a key that keeps failing waits: doubling from `first` to `cap`, plus up to a quarter of jitter.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// The wait after the first failure.
    pub first: Duration,
    /// The longest wait, before jitter.
    pub cap: Duration,
}

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff { first: Duration::from_millis(50), cap: Duration::from_secs(60) }
    }
}

/// How long a key waits whose write came second, while no news of the first arrives.
const OVERTAKEN: Backoff = Backoff { first: Duration::from_millis(100), cap: Duration::from_secs(5) };

impl Backoff {
    fn after(&self, failures: u32) -> Duration {
        let doubled =
            self.first.saturating_mul(1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX));
        let wait = doubled.min(self.cap);
        wait + wait.mul_f64(jitter() / 4.0)
    }
}

/// A number in 0..1.
pub(crate) fn jitter() -> f64 {
    fastrand::f64()
}

struct Shared<T> {
    name: &'static str,
    backoff: Backoff,
    metrics: QueueMetrics,
    state: Mutex<State<T>>,
    changed: Notify,
}

struct State<T> {
    /// Keys to hand out, in order; `waiting` holds the same keys, and those to be handed out again after their work.
    ready: VecDeque<T>,
    waiting: HashSet<T>,
    working: HashSet<T>,
    /// Keys that become ready later, by time; the number tells apart those of one instant.
    later: BTreeMap<(Instant, u64), T>,
    due: HashMap<T, (Instant, u64)>,
    failures: HashMap<T, u32>,
    /// How often writes came second, in a row.
    overtaken: HashMap<T, u32>,
    sequence: u64,
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Queue { shared: self.shared.clone() }
    }
}

impl<T: Clone + Eq + Hash> Queue<T> {
    /// An empty queue, named in metrics and logs.
    pub fn new(name: &'static str, metrics: &Metrics) -> Queue<T> {
        Queue::with_backoff(name, metrics, Backoff::default())
    }

    /// An empty queue whose failing keys wait as told.
    pub fn with_backoff(name: &'static str, metrics: &Metrics, backoff: Backoff) -> Queue<T> {
        let state = State {
            ready: VecDeque::new(),
            waiting: HashSet::new(),
            working: HashSet::new(),
            later: BTreeMap::new(),
            due: HashMap::new(),
            failures: HashMap::new(),
            overtaken: HashMap::new(),
            sequence: 0,
        };
        let shared = Shared {
            name,
            backoff,
            metrics: metrics.queue(name),
            state: Mutex::new(state),
            changed: Notify::new(),
        };
        Queue { shared: Arc::new(shared) }
    }

    /// The queue's name.
    pub fn name(&self) -> &'static str {
        self.shared.name
    }

    /// Hands the key out as soon as a worker is free. A delayed add of the same key is thereby done.
    pub fn add(&self, key: T) {
        let mut state = self.shared.state.lock();
        state.forget_later(&key);
        if self.admit(&state, &key) && state.add(key) {
            self.shared.metrics.adds.inc();
            self.ready_changed(&state);
        }
    }

    /// Hands the key out after a delay, or sooner if it is already due sooner.
    pub fn add_after(&self, key: T, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let mut state = self.shared.state.lock();
        if !self.admit(&state, &key) {
            return;
        }
        let at = Instant::now() + delay;
        if state.due.get(&key).is_some_and(|(due, _)| *due <= at) {
            return;
        }
        state.forget_later(&key);
        state.sequence += 1;
        let slot = (at, state.sequence);
        state.due.insert(key.clone(), slot);
        state.later.insert(slot, key);
        self.shared.changed.notify_one();
    }

    /// Keys that wait for a worker now.
    pub fn depth(&self) -> usize {
        self.shared.state.lock().ready.len()
    }

    /// Whether nothing waits for a worker, nothing is due later and nothing is being worked on.
    pub fn is_idle(&self) -> bool {
        let state = self.shared.state.lock();
        state.waiting.is_empty() && state.working.is_empty() && state.later.is_empty()
    }

    /// The next key; the caller owns it until [`Queue::finish`].
    pub(crate) async fn next(&self) -> T {
        loop {
            let wake = {
                let mut state = self.shared.state.lock();
                let due = state.promote(Instant::now());
                self.shared.metrics.adds.inc_by(due);
                if let Some(key) = state.ready.pop_front() {
                    state.waiting.remove(&key);
                    state.working.insert(key.clone());
                    self.shared.metrics.depth.set(state.ready.len() as i64);
                    if !state.ready.is_empty() {
                        self.shared.changed.notify_one();
                    }
                    return key;
                }
                state.later.keys().next().map(|(at, _)| *at)
            };
            match wake {
                Some(at) => {
                    tokio::select! {
                        biased;
                        () = tokio::time::sleep_until(at) => {}
                        () = self.shared.changed.notified() => {}
                    }
                }
                None => self.shared.changed.notified().await,
            }
        }
    }

    /// Ends the work on a key that [`Queue::next`] handed out.
    pub(crate) fn finish(&self, key: &T, took: Duration) {
        self.shared.metrics.work_duration.observe(took.as_secs_f64());
        let mut state = self.shared.state.lock();
        state.working.remove(key);
        if state.waiting.contains(key) {
            state.ready.push_back(key.clone());
            self.ready_changed(&state);
        }
    }

    /// Forgets past failures of a key.
    pub(crate) fn succeeded(&self, key: &T) {
        let mut state = self.shared.state.lock();
        state.failures.remove(key);
        state.overtaken.remove(key);
    }

    /// Hands a key out again whose write came second.
    pub(crate) fn overtaken(&self, key: &T) {
        let times = {
            let mut state = self.shared.state.lock();
            count(&mut state.overtaken, key)
        };
        self.add_after(key.clone(), OVERTAKEN.after(times));
    }

    /// Hands a failed key out again after its backoff. Returns how often it failed in a row, and the wait.
    pub(crate) fn failed(&self, key: &T) -> (u32, Duration) {
        let failures = {
            let mut state = self.shared.state.lock();
            count(&mut state.failures, key)
        };
        self.shared.metrics.retries.inc();
        let wait = self.shared.backoff.after(failures);
        self.add_after(key.clone(), wait);
        (failures, wait)
    }

    fn admit(&self, state: &State<T>, key: &T) -> bool {
        let known = state.waiting.contains(key) || state.due.contains_key(key);
        let admitted = known || state.waiting.len() + state.due.len() < MAX_KEYS;
        if !admitted {
            self.shared.metrics.refused.inc();
            tracing::error!(
                queue = self.shared.name,
                "the queue is full, a change is lost until the next restart"
            );
        }
        admitted
    }

    fn ready_changed(&self, state: &State<T>) {
        self.shared.metrics.depth.set(state.ready.len() as i64);
        self.shared.changed.notify_one();
    }
}

/// One more for a key; how many there are.
fn count<T: Clone + Eq + Hash>(of: &mut HashMap<T, u32>, key: &T) -> u32 {
    let times = of.entry(key.clone()).or_insert(0);
    *times = times.saturating_add(1);
    *times
}

impl<T: Clone + Eq + Hash> State<T> {
    /// Whether the key was not waiting already.
    fn add(&mut self, key: T) -> bool {
        let new = self.waiting.insert(key.clone());
        if new && !self.working.contains(&key) {
            self.ready.push_back(key);
        }
        new
    }

    fn forget_later(&mut self, key: &T) {
        if let Some(slot) = self.due.remove(key) {
            self.later.remove(&slot);
        }
    }

    /// Makes everything ready that is due; returns how many keys that added.
    fn promote(&mut self, now: Instant) -> u64 {
        let mut added = 0;
        while let Some(entry) = self.later.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let key = entry.remove();
            self.due.remove(&key);
            added += u64::from(self.add(key));
        }
        added
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue() -> Queue<&'static str> {
        Queue::new("test", &Metrics::new())
    }

    /// The next key if one is ready now.
    async fn poll(queue: &Queue<&'static str>) -> Option<&'static str> {
        tokio::select! {
            biased;
            key = queue.next() => Some(key),
            () = std::future::ready(()) => None,
        }
    }

    #[tokio::test]
    async fn a_key_waits_once_and_order_is_kept() {
        let queue = queue();
        for key in ["a", "b", "a", "c", "b"] {
            queue.add(key);
        }
        assert_eq!(queue.depth(), 3);
        assert_eq!(poll(&queue).await, Some("a"));
        assert_eq!(poll(&queue).await, Some("b"));
        assert_eq!(poll(&queue).await, Some("c"));
        assert_eq!(poll(&queue).await, None);
    }

    #[tokio::test]
    async fn a_key_in_work_is_handed_out_again_only_after_its_work() {
        let queue = queue();
        queue.add("a");
        assert_eq!(poll(&queue).await, Some("a"));
        queue.add("a");
        queue.add("a");
        assert_eq!(poll(&queue).await, None);
        queue.finish(&"a", Duration::ZERO);
        assert_eq!(poll(&queue).await, Some("a"));
        queue.finish(&"a", Duration::ZERO);
        assert!(queue.is_idle());
    }

    #[tokio::test]
    async fn the_sooner_of_two_delays_wins_and_an_add_overtakes_both() {
        let queue = queue();
        queue.add_after("a", Duration::from_millis(20));
        queue.add_after("a", Duration::from_secs(3600));
        assert_eq!(poll(&queue).await, None);
        assert_eq!(tokio::time::timeout(Duration::from_secs(5), queue.next()).await, Ok("a"));
        queue.finish(&"a", Duration::ZERO);
        assert!(queue.is_idle());

        queue.add_after("b", Duration::from_secs(3600));
        queue.add_after("b", Duration::from_secs(1800));
        queue.add("b");
        assert_eq!(poll(&queue).await, Some("b"));
        queue.finish(&"b", Duration::ZERO);
        assert!(queue.is_idle());
    }

    #[tokio::test]
    async fn a_waiting_worker_is_woken_by_an_earlier_delay() {
        let queue = queue();
        queue.add_after("late", Duration::from_secs(3600));
        let waiting = tokio::spawn({
            let queue = queue.clone();
            async move { queue.next().await }
        });
        tokio::task::yield_now().await;
        queue.add_after("soon", Duration::from_millis(5));
        let key = tokio::time::timeout(Duration::from_secs(5), waiting).await;
        assert_eq!(key.expect("in time").expect("no panic"), "soon");
    }

    #[test]
    fn backoff_doubles_up_to_its_cap() {
        let backoff = Backoff { first: Duration::from_millis(50), cap: Duration::from_secs(60) };
        for (failures, base) in [(1, 50), (2, 100), (3, 200), (11, 51_200), (12, 60_000), (1000, 60_000)] {
            let wait = backoff.after(failures).as_millis();
            assert!((base..=base + base / 4).contains(&wait), "{failures} failures: {wait} ms");
        }
    }
}
