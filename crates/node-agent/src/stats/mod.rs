//! How full the volumes of a node's pods are: what kubelet tells in `/stats/summary` and in `kubelet_volume_stats_*`.
//!
//! Every volume is counted by a task of its own, once a minute and when somebody asks: one that hangs keeps its old
//! figures, is not asked again while it hangs, and delays no other.

mod metrics;
mod mounted;
mod space;
mod summary;

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use kube::Resource;
use parking_lot::Mutex;
use runtime::{Informer, Recorder};
use serde_json::Value;
use tokio::{sync::Semaphore, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;
use values::Quantity;

use crate::{
    blocking::blocking,
    volumes::{VolumeError, csi::Csi},
};
use mounted::Mounted;
use space::Counted;

pub use metrics::VolumeMetrics;

/// How often volumes are counted: kubelet's period.
const PERIOD: Duration = Duration::from_secs(60);
/// What was counted so recently is not counted again for who asks.
const FRESH: SignedDuration = SignedDuration::from_secs(10);
/// How long who asks waits for volumes that are being counted; then their old figures are told.
const PATIENCE: Duration = Duration::from_secs(3);
/// Volumes that are counted at once.
const AT_ONCE: usize = 32;

/// A handle on the figures of one node, to be given to its agent by [`Options`](crate::Options). Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Stats(Arc<State>);

struct State {
    /// What the figures are about, as long as the agent runs.
    watched: Mutex<Weak<Watched>>,
    places: Arc<Semaphore>,
    volumes: Mutex<Volumes>,
}

impl Default for State {
    fn default() -> State {
        State {
            watched: Mutex::default(),
            places: Arc::new(Semaphore::new(AT_ONCE)),
            volumes: Mutex::default(),
        }
    }
}

/// The node whose volumes are counted.
pub(crate) struct Watched {
    pub(crate) node: String,
    pub(crate) started: Timestamp,
    pub(crate) csi: Arc<Csi>,
    /// Its pods.
    pub(crate) pods: Informer<Pod>,
    pub(crate) recorder: Recorder,
}

/// By the pod's UID and its name for the volume.
type Volumes = BTreeMap<(String, String), Entry>;

struct Entry {
    mounted: Arc<Mounted>,
    counted: Option<Counted>,
    /// Why it could not be counted, as the log has it.
    failed: Option<String>,
    /// Somebody has it while the volume is being counted.
    counting: Weak<()>,
}

/// The figures can't be told.
#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    /// The agent has not started, or has stopped.
    #[error("the node's agent is not running")]
    NotRunning,
    /// The node's own directories can't be read.
    #[error("cannot look for the pods' volumes: {0}")]
    Unreadable(String),
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} volumes", self.volumes.lock().len())
    }
}

impl Stats {
    /// Tells of this node from now on, until it is dropped.
    pub(crate) fn of(&self, watched: &Arc<Watched>) {
        *self.0.watched.lock() = Arc::downgrade(watched);
    }

    /// Whether the node's agent runs.
    pub fn is_running(&self) -> bool {
        self.watched().is_ok()
    }

    /// Counts until `shutdown`, so that metrics are never much older than a minute.
    pub(crate) async fn keep(&self, shutdown: &CancellationToken) {
        loop {
            if let Err(error) = self.count(SignedDuration::from_secs(30)).await {
                tracing::warn!(%error, "how full volumes are is not known");
            }
            if shutdown.run_until_cancelled(tokio::time::sleep(PERIOD)).await.is_none() {
                return;
            }
        }
    }

    /// What kubelet answers to `/stats/summary`, as far as it concerns the node's file system and volumes. Figures are at
    /// most ten seconds old, but for volumes that do not answer.
    pub async fn summary(&self) -> Result<Value, StatsError> {
        self.count(FRESH).await?;
        let watched = self.watched()?;
        let (host, root) = (watched.csi.host.clone(), watched.csi.layout.root().to_path_buf());
        let file_system = blocking("asking for the node's free space", move || Ok(host.space(&root)?)).await;
        let file_system = file_system.map_err(unreadable)?;
        let volumes = self.0.volumes.lock();
        let told = volumes.values().map(|entry| (&*entry.mounted, entry.counted.as_ref()));
        Ok(summary::render(&watched.node, watched.started, clock::now(), &file_system, told))
    }

    fn watched(&self) -> Result<Arc<Watched>, StatsError> {
        self.0.watched.lock().upgrade().ok_or(StatsError::NotRunning)
    }

    /// Counts the volumes whose figures are older than `fresh`; returns when all have answered, or a little later.
    async fn count(&self, fresh: SignedDuration) -> Result<(), StatsError> {
        let watched = self.watched()?;
        let (csi, pods) = (watched.csi.clone(), watched.pods.all());
        let find = move || mounted::find(&csi.layout, &csi.boot_id, &pods);
        let found = blocking("looking for mounted volumes", find).await.map_err(unreadable)?;
        let mut counting = self.begin(&watched, found, fresh);
        let all = async {
            while let Some(ended) = counting.join_next().await {
                if let Err(panic) = ended {
                    tracing::error!(error = %panic, "counting a volume panicked");
                }
            }
        };
        if timeout(PATIENCE, all).await.is_err() {
            counting.detach_all();
        }
        Ok(())
    }

    /// Notes what there is, and begins to count what is due.
    fn begin(&self, watched: &Arc<Watched>, found: Vec<Mounted>, fresh: SignedDuration) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        let mut volumes = self.0.volumes.lock();
        let mut before = std::mem::take(&mut *volumes);
        for one in found {
            let key = one.key();
            let mounted = Arc::new(one);
            let mut entry = before.remove(&key).unwrap_or(Entry {
                mounted: mounted.clone(),
                counted: None,
                failed: None,
                counting: Weak::new(),
            });
            entry.mounted = mounted.clone();
            let due = entry.counted.as_ref().is_none_or(|last| clock::now().duration_since(last.at) > fresh);
            if due && entry.counting.strong_count() == 0 {
                let token = Arc::new(());
                entry.counting = Arc::downgrade(&token);
                let (stats, watched, places) = (self.clone(), watched.clone(), self.0.places.clone());
                let key = key.clone();
                tasks.spawn(async move {
                    let Ok(_place) = places.acquire_owned().await else { return };
                    let counted = mounted.count(&watched.csi, token).await;
                    stats.note(&watched.recorder, &key, counted);
                });
            }
            volumes.insert(key, entry);
        }
        tasks
    }

    /// Takes what was counted, and tells what is new of it: once, not every minute.
    fn note(&self, recorder: &Recorder, key: &(String, String), counted: Result<Counted, VolumeError>) {
        let mut volumes = self.0.volumes.lock();
        let Some(entry) = volumes.get_mut(key) else { return };
        let Mounted { pod, volume, .. } = &*entry.mounted;
        let reference = pod.object_ref(&());
        match counted {
            Ok(counted) => {
                let before = entry.counted.as_ref().and_then(|last| last.abnormal.as_deref());
                if let Some(message) = counted.abnormal.as_deref()
                    && before != Some(message)
                {
                    let message = format!("Volume {volume}: {message}");
                    recorder.warning(&reference, "VolumeConditionAbnormal", message);
                }
                if entry.counted.is_none()
                    && let Some((shown, size)) = counted.shown.zip(counted.space.capacity)
                {
                    let [shown, size] = [shown, size].map(Quantity::from_bytes);
                    let message = format!(
                        "Volume {volume} ends at {size}, but df in its containers shows the {shown} of the file system that \
                         it shares: see `orlop volumes` or kubelet_volume_stats_* for how full it is"
                    );
                    recorder.normal(&reference, "VolumeSizeNotShown", message);
                }
                entry.counted = Some(counted);
                entry.failed = None;
            }
            Err(error) => {
                let error = error.to_string();
                if entry.failed.as_ref() != Some(&error) {
                    let (namespace, pod) = (&pod.metadata.namespace, &pod.metadata.name);
                    tracing::warn!(?namespace, ?pod, volume, error, "how full a volume is can't be told");
                    entry.failed = Some(error);
                }
            }
        }
    }
}

fn unreadable(error: VolumeError) -> StatsError {
    StatsError::Unreadable(error.to_string())
}
