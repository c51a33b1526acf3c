use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use prometheus_client::metrics::counter::Counter;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::bucket::{Bucket, Rate};
use crate::{Parts, explain};

/// Events that may wait to be written; further ones are dropped and counted.
const WAITING: usize = 1024;
/// Kinds of events, and objects with events, that are remembered for counting. Of more, those that were quiet the
/// longest are forgotten.
const REMEMBERED: usize = 4096;
/// An object's events beyond 25 in a row are dropped, and one more is allowed each five minutes, as in Kubernetes.
const RATE: Rate = Rate { burst: 25.0, refill: Duration::from_secs(300) };
/// How long events that wait at shutdown may take to be written.
const GRACE: Duration = Duration::from_secs(5);
/// Attempts to write one event.
const ATTEMPTS: u32 = 3;

/// Writes core/v1 Events about objects, as `kubectl describe` shows them.
///
/// Recording never waits: events are written in the background, in order, from a bounded queue. An event that
/// repeats (same object, type, reason and message) raises the count of the first one. Events are best effort: those
/// that don't fit, come too fast or can't be written are dropped and counted.
#[derive(Clone)]
pub struct Recorder {
    queue: mpsc::Sender<Occurrence>,
    dropped: Counter,
}

/// What makes two events the same event.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Identity {
    kind: String,
    namespace: String,
    name: String,
    uid: String,
    type_: &'static str,
    reason: String,
    message: String,
}

struct Occurrence {
    object: ObjectReference,
    type_: &'static str,
    reason: String,
    message: String,
    at: Timestamp,
}

impl Recorder {
    /// A recorder for a component (`persistentvolume-controller`, `kubelet`) on a host ("" if it has none). Must be
    /// called within a tokio runtime; the writer ends when the last clone is dropped.
    pub fn new(client: Client, component: impl Into<String>, host: &str) -> Recorder {
        let parts = Parts::new(CancellationToken::new());
        Recorder::among(&parts, client, component, host, Counter::default())
    }

    /// A recorder whose writer is one of the `parts`.
    pub(crate) fn among(
        parts: &Parts,
        client: Client,
        component: impl Into<String>,
        host: &str,
        dropped: Counter,
    ) -> Recorder {
        let (queue, occurrences) = mpsc::channel(WAITING);
        let component = component.into();
        let name = format!("recorder of {component}");
        let writer = Writer {
            client,
            component,
            host: host.to_owned(),
            written: HashMap::new(),
            allowances: HashMap::new(),
            dropped: dropped.clone(),
        };
        parts.spawn_helper(name, writer.run(occurrences, parts.shutdown()));
        Recorder { queue, dropped }
    }

    /// Records that something went as it should.
    pub fn normal(&self, object: &ObjectReference, reason: &str, message: impl Into<String>) {
        self.record(object, "Normal", reason, message.into());
    }

    /// Records that something needs attention.
    pub fn warning(&self, object: &ObjectReference, reason: &str, message: impl Into<String>) {
        self.record(object, "Warning", reason, message.into());
    }

    fn record(&self, object: &ObjectReference, type_: &'static str, reason: &str, mut message: String) {
        // The API refuses notes above 1024 bytes.
        if message.len() > 1024 {
            let end = (0..=1021).rev().find(|end| message.is_char_boundary(*end)).unwrap_or(0);
            message.truncate(end);
            message.push('…');
        }
        let occurrence = Occurrence {
            object: object.clone(),
            type_,
            reason: reason.to_owned(),
            message,
            at: clock::now(),
        };
        if self.queue.try_send(occurrence).is_err() {
            self.dropped.inc();
        }
    }
}

struct Writer {
    client: Client,
    component: String,
    host: String,
    written: HashMap<Identity, Written>,
    allowances: HashMap<(String, String), Bucket>,
    dropped: Counter,
}

struct Written {
    event: String,
    count: i32,
    last: Instant,
}

impl Writer {
    /// Writes until nobody records any more, or until `shutdown` and then what waits.
    async fn run(mut self, mut occurrences: mpsc::Receiver<Occurrence>, shutdown: CancellationToken) {
        let all = async {
            while let Some(occurrence) = occurrences.recv().await {
                self.consider(occurrence).await;
            }
        };
        if shutdown.run_until_cancelled(all).await.is_some() {
            return;
        }
        let rest = async {
            while let Ok(occurrence) = occurrences.try_recv() {
                self.consider(occurrence).await;
            }
        };
        if tokio::time::timeout(GRACE, rest).await.is_err() {
            self.dropped.inc_by(occurrences.len() as u64);
        }
    }

    async fn consider(&mut self, occurrence: Occurrence) {
        if !self.allow(&occurrence.object) {
            self.dropped.inc();
            return;
        }
        let (reason, object) = (occurrence.reason.clone(), occurrence.object.name.clone());
        if let Err(error) = self.write(occurrence).await {
            self.dropped.inc();
            tracing::debug!(reason, object, error = explain(&error), "an event was not written");
        }
    }

    fn allow(&mut self, object: &ObjectReference) -> bool {
        let now = Instant::now();
        forget_oldest(&mut self.allowances, Bucket::used);
        let key = (object.uid.clone().unwrap_or_default(), object.name.clone().unwrap_or_default());
        self.allowances.entry(key).or_insert_with(|| Bucket::full(RATE, now)).take(RATE, now)
    }

    async fn write(&mut self, occurrence: Occurrence) -> Result<(), kube::Error> {
        let now = Instant::now();
        forget_oldest(&mut self.written, |written| written.last);
        let namespace = occurrence.object.namespace.clone().filter(|namespace| !namespace.is_empty());
        let namespace = namespace.unwrap_or_else(|| "default".to_owned());
        let events = Api::namespaced(self.client.clone(), &namespace);
        let identity = occurrence.identity();
        if let Some(written) = self.written.get_mut(&identity) {
            let last = Time(whole_seconds(occurrence.at));
            let repeated = Patch::Merge(json!({ "count": written.count + 1, "lastTimestamp": last }));
            let parameters = PatchParams::default();
            match persist(|| events.patch(&written.event, &parameters, &repeated)).await {
                Ok(_) => {
                    written.count += 1;
                    written.last = now;
                    return Ok(());
                }
                // Events expire: start over.
                Err(kube::Error::Api(status)) if status.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        let event = self.event(&namespace, &occurrence);
        let name = event.metadata.name.clone().unwrap_or_default();
        let parameters = PostParams::default();
        match persist(|| events.create(&parameters, &event)).await {
            Ok(_) => {}
            // An attempt whose answer was lost.
            Err(kube::Error::Api(status)) if status.is_already_exists() => {}
            Err(error) => return Err(error),
        }
        self.written.insert(identity, Written { event: name, count: 1, last: now });
        Ok(())
    }

    fn event(&self, namespace: &str, occurrence: &Occurrence) -> Event {
        let object = occurrence.object.name.clone().unwrap_or_default();
        let time = Some(Time(whole_seconds(occurrence.at)));
        Event {
            metadata: ObjectMeta {
                name: Some(name(&object, occurrence.at.as_nanosecond() + self.offset(occurrence))),
                namespace: Some(namespace.to_owned()),
                ..ObjectMeta::default()
            },
            involved_object: occurrence.object.clone(),
            type_: Some(occurrence.type_.to_owned()),
            reason: Some(occurrence.reason.clone()),
            message: Some(occurrence.message.clone()),
            source: Some(EventSource {
                component: Some(self.component.clone()),
                host: Some(self.host.clone()).filter(|host| !host.is_empty()),
            }),
            reporting_component: Some(self.component.clone()),
            reporting_instance: Some(self.host.clone()),
            first_timestamp: time.clone(),
            last_timestamp: time,
            count: Some(1),
            ..Event::default()
        }
    }

    /// A part of a millisecond by which events differ that components write about an object in the same moment.
    fn offset(&self, occurrence: &Occurrence) -> i128 {
        let mut hasher = DefaultHasher::new();
        (&self.component, &self.host, occurrence.identity()).hash(&mut hasher);
        i128::from(hasher.finish() % 1_000_000)
    }
}

/// The longest name of an object.
const LONGEST_NAME: usize = 253;

/// As client-go names events: by the object and the time of the first occurrence. Of an object whose name leaves no room
/// for the time, the beginning; client-go has a random name then, which nobody could find by the object's.
fn name(object: &str, time: i128) -> String {
    let time = format!("{time:x}");
    let room = LONGEST_NAME - 1 - time.len().min(32);
    let end = (0..=object.len().min(room)).rev().find(|end| object.is_char_boundary(*end)).unwrap_or(0);
    let object = if end < object.len() { object[..end].trim_end_matches(['.', '-']) } else { object };
    format!("{object}.{time}")
}

/// `metav1.Time` has whole seconds.
fn whole_seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

/// Tries a write again when the server could not be reached or could not serve.
async fn persist<T, Fut>(mut write: impl FnMut() -> Fut) -> Result<T, kube::Error>
where
    Fut: Future<Output = Result<T, kube::Error>>,
{
    let mut attempt = 1;
    loop {
        match write().await {
            Err(kube::Error::Api(status)) if status.code < 500 && status.code != 429 => {
                return Err(kube::Error::Api(status));
            }
            Err(_) if attempt < ATTEMPTS => tokio::time::sleep(Duration::from_millis(200) * attempt).await,
            result => return result,
        }
        attempt += 1;
    }
}

impl Occurrence {
    fn identity(&self) -> Identity {
        Identity {
            kind: self.object.kind.clone().unwrap_or_default(),
            namespace: self.object.namespace.clone().unwrap_or_default(),
            name: self.object.name.clone().unwrap_or_default(),
            uid: self.object.uid.clone().unwrap_or_default(),
            type_: self.type_,
            reason: self.reason.clone(),
            message: self.message.clone(),
        }
    }
}

/// Keeps the younger half of what is remembered, if there is too much.
fn forget_oldest<K: Eq + Hash, V>(remembered: &mut HashMap<K, V>, last: impl Fn(&V) -> Instant) {
    if remembered.len() < REMEMBERED {
        return;
    }
    let mut times: Vec<Instant> = remembered.values().map(&last).collect();
    let (_, middle, _) = times.select_nth_unstable(REMEMBERED / 2);
    let middle = *middle;
    remembered.retain(|_, value| last(value) > middle);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_events_are_names_however_long_the_object_is_called() {
        let time = 0x1811_2233_4455_6677;
        let table = [
            ("web-0".to_owned(), "web-0".to_owned()),
            ("n".repeat(236), "n".repeat(236)),
            ("n".repeat(253), "n".repeat(236)),
            // No part of a name ends in a dash or is empty.
            (format!("{}-.{}", "n".repeat(234), "m".repeat(17)), "n".repeat(234)),
        ];
        for (object, kept) in table {
            let name = name(&object, time);
            assert_eq!(name, format!("{kept}.1811223344556677"));
            assert!(name.len() <= 253, "{} characters", name.len());
        }
    }
}
