use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::Metrics;
use crate::bucket::{Bucket, Rate};
use crate::metrics::QueueMetrics;

/// Keys that a queue holds at most. Keys name objects, so this is far above what a cluster has.
const MAX_KEYS: usize = 1 << 20;
/// How often a key may be handed out: far more often than what happens to one object, far less than a loop that
/// causes its own news.
const PACE: Rate = Rate { burst: 100.0, refill: Duration::from_millis(100) };
/// Keys whose pace is remembered before those that rest are forgotten.
const PACED: usize = 4096;
/// How often news of a failing key is looked at before its wait is over. One more is allowed each `Backoff::cap`.
const EARLY: f64 = 5.0;
/// How often the log says that keys come too fast.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// Keys of objects to look at.
///
/// A key waits once, however often it was added. A key that is being worked on is not handed out again until that
/// work ends; one that was added meanwhile is then handed out once more. So no change is missed, and no two workers
/// ever hold the same key.
///
/// What a reconciliation writes comes back as news of its key. That never becomes a hot loop: news of a failing key is
/// looked at before its wait is over a few times only, and no key is handed out more than ten times a second for long.
/// Nothing is lost by that, only later.
///
/// Keys are handed out in the order in which they came, those of a higher rank first.
///
/// At most a million keys wait. Further ones are refused, counted and logged; when there is room again, the informers
/// of the process announce every object anew.
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

/// How long a reconciliation may take: all calls within have deadlines of their own, which are shorter.
const DEADLINE: Duration = Duration::from_secs(600);

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
    deadline: Duration,
    most: usize,
    metrics: QueueMetrics,
    state: Mutex<State<T>>,
    changed: Notify,
}

struct State<T> {
    /// Keys to hand out, the highest rank first, then in order; `waiting` holds the same keys, and those to be handed out
    /// again after their work.
    ready: BTreeMap<(Reverse<i32>, u64), T>,
    /// Ranks that are not zero, and how many there may be before those of keys that are not here are forgotten.
    ranks: HashMap<T, i32>,
    ranked: usize,
    waiting: HashSet<T>,
    working: HashSet<T>,
    /// Keys that become ready later, by time; the number tells apart those of one instant.
    later: BTreeMap<(Instant, u64), T>,
    due: HashMap<T, (Instant, u64)>,
    failing: HashMap<T, Failing>,
    /// How often writes came second, in a row.
    overtaken: HashMap<T, u32>,
    /// How fast keys came lately.
    pace: HashMap<T, Bucket>,
    /// How many of these there may be before those that rest are forgotten.
    paced: usize,
    /// When the log last said that a key comes too fast.
    said: Option<Instant>,
    /// A key was refused.
    overflowed: bool,
    sequence: u64,
}

/// A key whose last reconciliation failed.
struct Failing {
    /// How often in a row.
    times: u32,
    /// Of these, how often after the whole wait: only that makes the wait longer.
    waited: u32,
    /// It was handed out before its wait was over.
    early: bool,
    /// How often that may be.
    allowance: Bucket,
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Queue { shared: self.shared.clone() }
    }
}

impl<T: Clone + Eq + Hash + fmt::Display> Queue<T> {
    /// An empty queue, named in metrics and logs.
    pub fn new(name: &'static str, metrics: &Metrics) -> Queue<T> {
        Queue::with_backoff(name, metrics, Backoff::default())
    }

    /// An empty queue whose failing keys wait as told.
    pub fn with_backoff(name: &'static str, metrics: &Metrics, backoff: Backoff) -> Queue<T> {
        Queue::with_limits(name, metrics, backoff, DEADLINE, MAX_KEYS)
    }

    /// An empty queue whose reconciliations may take so long.
    pub fn with_deadline(
        name: &'static str,
        metrics: &Metrics,
        backoff: Backoff,
        deadline: Duration,
    ) -> Queue<T> {
        Queue::with_limits(name, metrics, backoff, deadline, MAX_KEYS)
    }

    fn with_limits(
        name: &'static str,
        metrics: &Metrics,
        backoff: Backoff,
        deadline: Duration,
        most: usize,
    ) -> Queue<T> {
        let state = State {
            ready: BTreeMap::new(),
            ranks: HashMap::new(),
            ranked: PACED,
            waiting: HashSet::new(),
            working: HashSet::new(),
            later: BTreeMap::new(),
            due: HashMap::new(),
            failing: HashMap::new(),
            overtaken: HashMap::new(),
            pace: HashMap::new(),
            paced: PACED,
            said: None,
            overflowed: false,
            sequence: 0,
        };
        let shared = Shared {
            name,
            backoff,
            deadline,
            most,
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

    /// How long one reconciliation may take.
    pub(crate) fn deadline(&self) -> Duration {
        self.shared.deadline
    }

    /// Hands the key out as soon as a worker is free, or, if it keeps failing, when its wait is over. A delayed add of
    /// the same key is thereby done.
    pub fn add(&self, key: T) {
        let mut state = self.shared.state.lock();
        let waits = state.due.contains_key(&key) && !state.working.contains(&key);
        if waits && !state.may_be_early(&key, self.shared.early()) {
            return;
        }
        state.forget_later(&key);
        if self.admit(&mut state, &key) && state.add(key) {
            self.shared.metrics.adds.inc();
            self.ready_changed(&state);
        }
    }

    /// Hands the key out as [`Queue::add`] does, before all keys of a lower rank; those that were never given one have
    /// rank 0. The rank stays the key's own while it is here.
    pub fn add_ranked(&self, key: T, rank: i32) {
        self.shared.state.lock().rank(&key, rank);
        self.add(key);
    }

    /// Hands the key out after a delay, or sooner if it is already due sooner.
    pub fn add_after(&self, key: T, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let mut state = self.shared.state.lock();
        if self.admit(&mut state, &key) {
            state.add_at(key, Instant::now() + delay);
            self.shared.changed.notify_one();
        }
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
                let now = Instant::now();
                let due = state.promote(now);
                self.shared.metrics.adds.inc_by(due);
                if let Some(key) = self.take(&mut state, now) {
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

    /// The first key that is ready and does not come too fast.
    fn take(&self, state: &mut State<T>, now: Instant) -> Option<T> {
        let key = loop {
            let (_, key) = state.ready.pop_first()?;
            state.waiting.remove(&key);
            let Some(wait) = state.too_fast(&key, now) else { break key };
            self.shared.metrics.paced.inc();
            if state.said.is_none_or(|said| now.duration_since(said) >= SAY_AGAIN) {
                state.said = Some(now);
                tracing::warn!(
                    queue = self.shared.name,
                    key = %key,
                    "a key comes back without end, each time at once; it is slowed down"
                );
            }
            state.add_at(key, now + wait);
        };
        state.working.insert(key.clone());
        self.shared.metrics.depth.set(state.ready.len() as i64);
        if !state.ready.is_empty() {
            self.shared.changed.notify_one();
        }
        if state.overflowed && state.waiting.len() + state.due.len() <= self.shared.most / 2 {
            state.overflowed = false;
            self.shared.metrics.resync.notify_one();
        }
        Some(key)
    }

    /// Ends the work on a key that [`Queue::next`] handed out.
    pub(crate) fn finish(&self, key: &T, took: Duration) {
        self.shared.metrics.work_duration.observe(took.as_secs_f64());
        let mut state = self.shared.state.lock();
        state.working.remove(key);
        if !state.waiting.contains(key) {
            return;
        }
        if state.due.contains_key(key) && !state.may_be_early(key, self.shared.early()) {
            state.waiting.remove(key);
            return;
        }
        state.make_ready(key.clone());
        self.ready_changed(&state);
    }

    /// Forgets past failures of a key.
    pub(crate) fn succeeded(&self, key: &T) {
        let mut state = self.shared.state.lock();
        state.failing.remove(key);
        state.overtaken.remove(key);
    }

    /// Hands a key out again whose write came second. Returns how often that was so in a row.
    pub(crate) fn overtaken(&self, key: &T) -> u32 {
        let times = {
            let mut state = self.shared.state.lock();
            let times = state.overtaken.entry(key.clone()).or_insert(0);
            *times = times.saturating_add(1);
            *times
        };
        self.shared.metrics.overtaken.inc();
        self.add_after(key.clone(), OVERTAKEN.after(times));
        times
    }

    /// Hands a failed key out again after its backoff. Returns how often it failed in a row, and the wait.
    pub(crate) fn failed(&self, key: &T) -> (u32, Duration) {
        let (times, wait) = {
            let mut state = self.shared.state.lock();
            let new = || Failing {
                times: 0,
                waited: 0,
                early: false,
                allowance: Bucket::full(self.shared.early(), Instant::now()),
            };
            let failing = state.failing.entry(key.clone()).or_insert_with(new);
            failing.times = failing.times.saturating_add(1);
            failing.waited = failing.waited.saturating_add(u32::from(!failing.early)).max(1);
            failing.early = false;
            (failing.times, self.shared.backoff.after(failing.waited))
        };
        self.shared.metrics.retries.inc();
        self.add_after(key.clone(), wait);
        (times, wait)
    }

    /// Counts a reconciliation that panicked.
    pub(crate) fn panicked(&self) {
        self.shared.metrics.panics.inc();
    }

    fn admit(&self, state: &mut State<T>, key: &T) -> bool {
        let known = state.waiting.contains(key) || state.due.contains_key(key);
        let admitted = known || state.waiting.len() + state.due.len() < self.shared.most;
        if !admitted {
            self.shared.metrics.refused.inc();
            if !std::mem::replace(&mut state.overflowed, true) {
                tracing::error!(
                    queue = self.shared.name,
                    most = self.shared.most,
                    "the queue is full: what changes now is looked at when there is room again"
                );
            }
        }
        admitted
    }

    fn ready_changed(&self, state: &State<T>) {
        self.shared.metrics.depth.set(state.ready.len() as i64);
        self.shared.changed.notify_one();
    }
}

impl<T> Shared<T> {
    /// How often news of a failing key is looked at early.
    fn early(&self) -> Rate {
        Rate { burst: EARLY, refill: self.backoff.cap }
    }
}

impl<T: Clone + Eq + Hash> State<T> {
    /// Whether the key was not waiting already.
    fn add(&mut self, key: T) -> bool {
        let new = self.waiting.insert(key.clone());
        if new && !self.working.contains(&key) {
            self.make_ready(key);
        }
        new
    }

    fn make_ready(&mut self, key: T) {
        let rank = self.ranks.get(&key).copied().unwrap_or_default();
        self.sequence += 1;
        self.ready.insert((Reverse(rank), self.sequence), key);
    }

    fn rank(&mut self, key: &T, rank: i32) {
        if rank == 0 {
            self.ranks.remove(key);
            return;
        }
        if self.ranks.len() >= self.ranked {
            let State { ranks, waiting, working, due, .. } = self;
            ranks.retain(|key, _| waiting.contains(key) || working.contains(key) || due.contains_key(key));
            self.ranked = PACED.max(self.ranks.len() * 2);
        }
        self.ranks.insert(key.clone(), rank);
    }

    /// Makes the key due at a time, unless it is due sooner.
    fn add_at(&mut self, key: T, at: Instant) {
        if self.due.get(&key).is_some_and(|(due, _)| *due <= at) {
            return;
        }
        self.forget_later(&key);
        self.sequence += 1;
        let slot = (at, self.sequence);
        self.due.insert(key.clone(), slot);
        self.later.insert(slot, key);
    }

    /// Whether a key that is due later may be looked at now. One that failed may only now and then: the news may be of
    /// what its own reconciliation wrote.
    fn may_be_early(&mut self, key: &T, rate: Rate) -> bool {
        let Some(failing) = self.failing.get_mut(key) else { return true };
        failing.early = failing.allowance.take(rate, Instant::now());
        failing.early
    }

    /// How long a key must wait that comes too fast.
    fn too_fast(&mut self, key: &T, now: Instant) -> Option<Duration> {
        if self.pace.len() >= self.paced {
            self.pace.retain(|_, pace| !pace.is_full(PACE, now));
            self.paced = PACED.max(self.pace.len() * 2);
        }
        let pace = self.pace.entry(key.clone()).or_insert_with(|| Bucket::full(PACE, now));
        (!pace.take(PACE, now)).then(|| pace.wait(PACE, now))
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
    use futures::FutureExt;

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
    async fn higher_ranks_come_first_and_keep_their_rank_while_they_are_here() {
        let queue = queue();
        queue.add("a");
        queue.add_ranked("low", -1);
        queue.add_ranked("high", 7);
        queue.add("b");
        queue.add_ranked("top", 9);
        for expected in ["top", "high", "a"] {
            assert_eq!(poll(&queue).await, Some(expected));
        }
        // Its work brings it back, as a failure would.
        queue.add("high");
        queue.finish(&"high", Duration::ZERO);
        for expected in ["high", "b", "low"] {
            assert_eq!(poll(&queue).await, Some(expected));
        }
        queue.finish(&"top", Duration::ZERO);
        for rank in 0..3 * PACED {
            queue.shared.state.lock().rank(&"gone", i32::try_from(rank).unwrap_or_default());
        }
        assert!(queue.shared.state.lock().ranks.len() <= PACED);
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

    /// Hands the key out as often as it comes in a minute; each time its reconciliation fails or not, and news arrives of
    /// what it wrote.
    async fn hand_outs_in_a_minute(queue: &Queue<&'static str>, fails: bool) -> u32 {
        queue.add("a");
        let end = Instant::now() + Duration::from_secs(60);
        let mut times = 0;
        while let Ok(key) = tokio::time::timeout_at(end, queue.next()).await {
            times += 1;
            // Some news comes while the work goes on, some after it.
            if times % 2 == 0 {
                queue.add(key);
            }
            match fails {
                true => _ = queue.failed(&key),
                false => queue.succeeded(&key),
            }
            queue.finish(&key, Duration::ZERO);
            queue.add(key);
        }
        times
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_failing_key_writes_does_not_wake_it_past_its_back_off() {
        // Waits of 50 ms to a minute, and a few early ones.
        let queue = queue();
        let times = hand_outs_in_a_minute(&queue, true).await;
        assert!((10..=18).contains(&times), "{times} in the first minute");
        let times = hand_outs_in_a_minute(&queue, true).await;
        assert!(times <= 4, "{times} in the second minute");
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_wakes_itself_is_slowed_down() {
        let times = hand_outs_in_a_minute(&queue(), false).await;
        assert!((600..=720).contains(&times), "{times} in a minute");
    }

    #[tokio::test(start_paused = true)]
    async fn news_of_a_key_that_has_failed_for_long_is_looked_at_at_once() {
        let queue = queue();
        queue.add("a");
        for _ in 0..20 {
            let key = queue.next().await;
            queue.failed(&key);
            queue.finish(&key, Duration::ZERO);
        }
        assert_eq!(poll(&queue).await, None);
        queue.add("a");
        assert_eq!(poll(&queue).await, Some("a"));
        // And an early failure does not make the wait longer.
        assert!(queue.failed(&"a").1 <= Duration::from_secs(75));
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_full_queue_refuses_is_announced_again_when_there_is_room() {
        let metrics = Metrics::new();
        let queue = Queue::with_limits("test", &metrics, Backoff::default(), DEADLINE, 4);
        ["a", "b", "c", "d", "e", "f"].into_iter().for_each(|key| queue.add(key));
        queue.add_after("g", Duration::from_secs(1));
        queue.add("a");
        assert_eq!(queue.depth(), 4);
        assert_eq!(queue.shared.metrics.refused.get(), 3);
        assert_eq!(poll(&queue).await, Some("a"));
        assert!(metrics.resync().notified().now_or_never().is_none(), "there is no room yet");
        assert_eq!(poll(&queue).await, Some("b"));
        assert!(metrics.resync().notified().now_or_never().is_some(), "there is room");
        assert_eq!(poll(&queue).await, Some("c"));
        assert!(metrics.resync().notified().now_or_never().is_none(), "once");
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
