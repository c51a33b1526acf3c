//! How well news of a kind arrives.

use std::collections::BTreeMap;
use std::fmt::{self, Debug};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use tokio::time::{Instant, sleep};

use crate::bucket::{Bucket, Rate};
use crate::metrics::InformerMetrics;

/// A watch that breaks now and then is ordinary; one that can't be had for this long makes the process unready.
const PATIENCE: Duration = Duration::from_secs(30);
/// Nor may it be silent for longer: a watch that hears nothing is begun again long before.
const OLDEST: Duration = Duration::from_secs(360);
/// How often the same failure is told anew.
const SAY_AGAIN: Duration = Duration::from_secs(600);
/// Kinds that a check names.
const NAMED: usize = 5;
/// How often a watch is begun that ends at once.
const PACE: Rate = Rate { burst: 5.0, refill: Duration::from_secs(1) };

/// The state of one list and watch.
pub(crate) struct Feed {
    /// What it is of.
    kind: String,
    metrics: InformerMetrics,
    state: Mutex<State>,
}

struct State {
    /// When something was heard last; at first, when it was begun.
    heard: Instant,
    synced: bool,
    /// What goes wrong, since when.
    failing: Option<(String, Instant)>,
    /// What the log was told last, and when.
    said: Option<(String, Instant)>,
    pace: Bucket,
}

impl Feed {
    pub(crate) fn new(kind: String, metrics: InformerMetrics) -> Feed {
        let now = Instant::now();
        let pace = Bucket::full(PACE, now);
        let state = State { heard: now, synced: false, failing: None, said: None, pace };
        Feed { kind, metrics, state: Mutex::new(state) }
    }

    pub(crate) fn metrics(&self) -> &InformerMetrics {
        &self.metrics
    }

    /// Waits while watches are begun too often.
    pub(crate) async fn pace(&self) {
        let take = || {
            let (mut state, now) = (self.state.lock(), Instant::now());
            (!state.pace.take(PACE, now)).then(|| state.pace.wait(PACE, now))
        };
        while let Some(wait) = take() {
            sleep(wait).await;
        }
    }

    /// The server answered well; a `watch` that is heard of is in order.
    pub(crate) fn heard(&self, watch: bool) {
        let mut state = self.state.lock();
        state.heard = Instant::now();
        if watch && let Some((_, since)) = state.failing.take() {
            let seconds = since.elapsed().as_secs();
            // Only of what the log was told.
            if state.said.as_ref().is_some_and(|(_, at)| *at >= since) {
                tracing::info!(kind = self.kind, seconds, "the watch works again");
            }
        }
    }

    /// The whole is known, or that there is none.
    pub(crate) fn complete(&self) {
        self.state.lock().synced = true;
        self.heard(true);
    }

    /// A custom resource that is not installed here, or not yet. Objects of a kind that was served before stay known: they
    /// are announced as deleted before their kind goes. Returns whether that is the first that is known.
    pub(crate) fn not_served(&self) -> bool {
        let first = !self.state.lock().synced;
        if first {
            tracing::info!(kind = self.kind, "the server has no such kind; asking again now and then");
        }
        self.complete();
        first
    }

    /// Something went wrong with what was to be done (`list`, `watch`).
    pub(crate) fn failed(&self, doing: &'static str, error: String) {
        self.metrics.failures.inc();
        let now = Instant::now();
        let mut state = self.state.lock();
        let since = state.failing.as_ref().map_or(now, |(_, since)| *since);
        state.failing = Some((error.clone(), since));
        if state.said.as_ref().is_some_and(|(said, at)| *said == error && now - *at < SAY_AGAIN) {
            tracing::debug!(kind = self.kind, doing, error, "trying again");
            return;
        }
        tracing::warn!(kind = self.kind, doing, error, "no news of a kind, trying again");
        state.said = Some((error, now));
    }

    /// How long ago the last news is.
    pub(crate) fn age(&self) -> Duration {
        self.state.lock().heard.elapsed()
    }

    pub(crate) fn kind(&self) -> &str {
        &self.kind
    }

    /// Whether what is known can be acted upon.
    pub(crate) fn check(&self) -> Result<(), String> {
        let state = self.state.lock();
        let (kind, age) = (&self.kind, state.heard.elapsed());
        match &state.failing {
            Some((error, since)) if !state.synced || since.elapsed() >= PATIENCE => {
                Err(format!("no news of {kind} for {} s: {error}", age.as_secs()))
            }
            _ if !state.synced => Err(format!("{kind} not listed yet")),
            _ if age >= OLDEST => Err(format!("no news of {kind} for {} s", age.as_secs())),
            _ => Ok(()),
        }
    }
}

/// The feeds of a process, however many informers it has.
#[derive(Clone, Default)]
pub(crate) struct Feeds(Arc<Mutex<Vec<Weak<Feed>>>>);

impl Feeds {
    pub(crate) fn add(&self, feed: &Arc<Feed>) {
        let mut feeds = self.0.lock();
        feeds.retain(|feed| feed.strong_count() > 0);
        feeds.push(Arc::downgrade(feed));
    }

    fn all(&self) -> Vec<Arc<Feed>> {
        self.0.lock().iter().filter_map(Weak::upgrade).collect()
    }

    /// Whether all that is known can be acted upon.
    pub(crate) fn check(&self) -> Result<(), String> {
        let wrong: Vec<String> = self.all().iter().filter_map(|feed| feed.check().err()).collect();
        let more = wrong.len().saturating_sub(NAMED);
        match wrong.len() {
            0 => Ok(()),
            _ if more == 0 => Err(wrong.join("; ")),
            _ => Err(format!("{}; and {more} more", wrong[..NAMED].join("; "))),
        }
    }
}

impl Debug for Feeds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.all().iter().map(|feed| feed.kind().to_owned())).finish()
    }
}

/// The age of what is known of each kind, when scraped.
impl Collector for Feeds {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut ages = BTreeMap::<String, f64>::new();
        for feed in self.all() {
            let age = ages.entry(feed.kind().to_owned()).or_default();
            *age = age.max(feed.age().as_secs_f64());
        }
        let help = "Seconds since something was heard of a kind, if only that nothing changed";
        let mut metric =
            encoder.encode_descriptor("informer_news_age_seconds", help, None, MetricType::Gauge)?;
        for (kind, age) in ages {
            ConstGauge::new(age).encode(metric.encode_family(&[("kind", kind)])?)?;
        }
        Ok(())
    }
}
