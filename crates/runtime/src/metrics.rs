use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Metric, Registry};
use tokio::sync::Notify;

use crate::informer::Feeds;

type Labels = [(&'static str, String); 1];

/// The process's metrics: one registry, served in the Prometheus text format.
///
/// The names of queue metrics are those that Kubernetes' own controllers use, so that dashboards fit.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    queues: QueueFamilies,
    informer_objects: Family<Labels, Gauge>,
    informer_failures: Family<Labels, Counter>,
    informer_unreadable: Family<Labels, Gauge>,
    feeds: Feeds,
    events_dropped: Counter,
    resync: Arc<Notify>,
}

#[derive(Clone)]
struct QueueFamilies {
    depth: Family<Labels, Gauge>,
    adds: Family<Labels, Counter>,
    retries: Family<Labels, Counter>,
    refused: Family<Labels, Counter>,
    overtaken: Family<Labels, Counter>,
    paced: Family<Labels, Counter>,
    panics: Family<Labels, Counter>,
    work_duration: Family<Labels, Histogram, fn() -> Histogram>,
}

/// What one queue counts.
#[derive(Clone)]
pub(crate) struct QueueMetrics {
    pub(crate) depth: Gauge,
    pub(crate) adds: Counter,
    pub(crate) retries: Counter,
    pub(crate) refused: Counter,
    pub(crate) overtaken: Counter,
    pub(crate) paced: Counter,
    pub(crate) panics: Counter,
    pub(crate) work_duration: Histogram,
    /// Notified when there is room again after keys were refused.
    pub(crate) resync: Arc<Notify>,
}

/// What one informer counts.
#[derive(Clone)]
pub(crate) struct InformerMetrics {
    pub(crate) objects: Gauge,
    pub(crate) unreadable: Gauge,
    pub(crate) failures: Counter,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::new()
    }
}

impl Metrics {
    /// The media type of [`Metrics::encode`].
    pub const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

    /// A registry with the metrics of this crate and of the process itself.
    pub fn new() -> Metrics {
        let queues = QueueFamilies {
            depth: Family::default(),
            adds: Family::default(),
            retries: Family::default(),
            refused: Family::default(),
            overtaken: Family::default(),
            paced: Family::default(),
            panics: Family::default(),
            // From a millisecond to a bit over a minute.
            work_duration: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.001, 4.0, 9))
            }),
        };
        let metrics = Metrics {
            registry: Arc::new(Mutex::new(Registry::default())),
            queues,
            informer_objects: Family::default(),
            informer_failures: Family::default(),
            informer_unreadable: Family::default(),
            feeds: Feeds::default(),
            events_dropped: Counter::default(),
            resync: Arc::default(),
        };
        metrics.register("workqueue_depth", "Keys waiting in a queue", metrics.queues.depth.clone());
        metrics.register("workqueue_adds", "Keys that entered a queue", metrics.queues.adds.clone());
        metrics.register("workqueue_retries", "Keys retried after a failure", metrics.queues.retries.clone());
        metrics.register("workqueue_refused", "Keys refused by a full queue", metrics.queues.refused.clone());
        for (name, help, family) in [
            ("overtaken", "Keys looked at again because another write came first", &metrics.queues.overtaken),
            ("paced", "Keys slowed down because they came too fast", &metrics.queues.paced),
            ("panics", "Reconciliations that panicked", &metrics.queues.panics),
        ] {
            metrics.register(&format!("workqueue_{name}"), help, family.clone());
        }
        metrics.register(
            "workqueue_work_duration_seconds",
            "Time from taking a key to finishing it",
            metrics.queues.work_duration.clone(),
        );
        metrics.register(
            "informer_objects",
            "Objects in an informer's store",
            metrics.informer_objects.clone(),
        );
        let unreadable = metrics.informer_unreadable.clone();
        metrics.register(
            "informer_unreadable",
            "Objects not seen, for not being of their kind's form",
            unreadable,
        );
        metrics.register("informer_failures", "Broken lists and watches", metrics.informer_failures.clone());
        metrics.register("events_dropped", "Events not written", metrics.events_dropped.clone());
        metrics.registry.lock().register_collector(Box::new(Process));
        metrics.registry.lock().register_collector(Box::new(metrics.feeds.clone()));
        metrics
    }

    /// Adds a metric. Counters get the suffix `_total` when served, so their name must not have it.
    pub fn register(&self, name: &str, help: &str, metric: impl Metric) {
        self.registry.lock().register(name, help, metric);
    }

    /// Adds figures that are taken when somebody asks for them.
    pub fn register_collector(&self, collector: impl Collector) {
        self.registry.lock().register_collector(Box::new(collector));
    }

    /// All metrics in the OpenMetrics text format. Reads /proc, so call it where blocking is allowed.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        match prometheus_client::encoding::text::encode(&mut text, &self.registry.lock()) {
            Ok(()) => text,
            // Formatting into a string only fails if a metric's own encoder does.
            Err(std::fmt::Error) => "# EOF\n".to_owned(),
        }
    }

    pub(crate) fn queue(&self, name: &str) -> QueueMetrics {
        let labels = [("name", name.to_owned())];
        QueueMetrics {
            depth: self.queues.depth.get_or_create_owned(&labels),
            adds: self.queues.adds.get_or_create_owned(&labels),
            retries: self.queues.retries.get_or_create_owned(&labels),
            refused: self.queues.refused.get_or_create_owned(&labels),
            overtaken: self.queues.overtaken.get_or_create_owned(&labels),
            paced: self.queues.paced.get_or_create_owned(&labels),
            panics: self.queues.panics.get_or_create_owned(&labels),
            resync: Arc::clone(&self.resync),
            work_duration: self.queues.work_duration.get_or_create_owned(&labels),
        }
    }

    /// Notified when a queue that had refused keys has room again: what it refused must be announced once more.
    pub(crate) fn resync(&self) -> &Notify {
        &self.resync
    }

    pub(crate) fn informer(&self, kind: &str) -> InformerMetrics {
        let labels = [("kind", kind.to_owned())];
        InformerMetrics {
            objects: self.informer_objects.get_or_create_owned(&labels),
            unreadable: self.informer_unreadable.get_or_create_owned(&labels),
            failures: self.informer_failures.get_or_create_owned(&labels),
        }
    }

    /// What is watched by the process.
    pub(crate) fn feeds(&self) -> &Feeds {
        &self.feeds
    }

    pub(crate) fn events_dropped(&self) -> Counter {
        self.events_dropped.clone()
    }
}

/// Resident memory and open files of this process, read when scraped.
#[derive(Debug)]
struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let values = [
            ("process_resident_memory_bytes", "Resident memory", resident_bytes()),
            ("process_open_fds", "Open file descriptors", open_files()),
        ];
        for (name, help, value) in values {
            let Some(value) = value else { continue };
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

fn resident_bytes() -> Option<i64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: i64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

fn open_files() -> Option<i64> {
    // The directory handle that counts is itself one of them.
    i64::try_from(std::fs::read_dir("/proc/self/fd").ok()?.count()).ok().map(|count| count - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_names_queues_informers_and_the_process() {
        let metrics = Metrics::new();
        metrics.queue("bind").adds.inc();
        metrics.informer("Pod").objects.set(7);
        metrics.events_dropped().inc();
        let page = metrics.encode();
        for line in [
            "workqueue_adds_total{name=\"bind\"} 1",
            "workqueue_depth{name=\"bind\"} 0",
            "informer_objects{kind=\"Pod\"} 7",
            "events_dropped_total 1",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} is missing in:\n{page}");
        }
        assert!(page.contains("process_resident_memory_bytes "), "{page}");
        assert!(page.contains("process_open_fds "), "{page}");
    }
}
