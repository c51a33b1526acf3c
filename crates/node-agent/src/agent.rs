//! The loop of one pod: look, plan, carry out, report, until nothing is left to do.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ObjectReference, Pod, PodStatus};
use kube::{Client, Resource, ResourceExt};
use linux::Host;
use parking_lot::Mutex;
use runtime::{Change, Key, Next, Queue, Recorder};
use tokio::sync::Semaphore;

use crate::{
    Options,
    attach::Waiting,
    blocking::blocking,
    containers::{cgroup, environment::NodeFacts, oci, signal, start},
    in_use::InUse,
    layout::Layout,
    limits::{self, End},
    news, node,
    objects::Objects,
    observe::{Place, observe},
    plan::{Actual, Lifecycle, Step, plan},
    status::{self, Problem},
    steps::StepError,
    volumes::{self, Source, VolumeError, csi::Csi, flex::Flex},
    wanted,
};

/// Rounds of looking and planning before a pod lets others have their turn.
const ROUNDS: usize = 16;
/// Containers that are started at once on a node.
const STARTS: usize = 8;

/// Bytes of a failure's message in a pod's status.
const LONGEST_PROBLEM: usize = 1024;
/// How long a pod that is not as it should be after so many rounds is left alone.
const PAUSE: Duration = Duration::from_millis(100);

/// The agent of one node.
pub(crate) struct Agent {
    pub(crate) options: Options,
    pub(crate) layout: Layout,
    pub(crate) host: Arc<dyn Host>,
    pub(crate) client: Client,
    pub(crate) recorder: Recorder,
    pub(crate) queue: Queue<String>,
    /// Claims whose volume has to grow on this node.
    pub(crate) growing: Queue<Key>,
    /// Of these, the ones that wait for being mounted.
    pub(crate) awaited: Mutex<HashSet<Key>>,
    pub(crate) objects: Objects,
    pub(crate) csi: Arc<Csi>,
    pub(crate) flex: Arc<Flex>,
    pub(crate) in_use: Arc<InUse>,
    pub(crate) boot_id: String,
    pub(crate) facts: NodeFacts,
    /// The OCI runtime.
    pub(crate) oci: Option<PathBuf>,
    pub(crate) bounding: u64,
    pub(crate) starts: Semaphore,
    pods: Mutex<HashMap<String, Arc<Pod>>>,
    memories: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Memory>>>>,
    /// Monitors whose end is awaited: UID, container, number.
    watched: Arc<Mutex<HashSet<(String, String, u32)>>>,
}

/// Labels and annotations.
type Shown = (Option<BTreeMap<String, String>>, Option<BTreeMap<String, String>>);

/// What is known of a pod beyond the API and the node's state; all of it can be lost.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// hostPath volumes that were checked.
    pub(crate) checked: BTreeSet<String>,
    /// Volumes whose content may be out of date.
    pub(crate) stale: BTreeSet<String>,
    /// The objects behind its volumes are watched.
    pub(crate) followed: bool,
    /// Labels and annotations, as the pod's volumes may show them.
    pub(crate) shown: Option<Shown>,
    /// Last failure per container, and per volume (see [`status::volume_problem`]).
    pub(crate) problems: BTreeMap<String, Problem>,
    /// It was rejected or ended for good, which the watch has yet to say.
    pub(crate) rejected: bool,
    /// When the space that it uses was last counted.
    pub(crate) counted: Option<Timestamp>,
    /// Volumes that wait for being attached, and when that was last told.
    pub(crate) waiting: BTreeMap<String, Timestamp>,
    /// The status that was written last.
    pub(crate) status: Option<PodStatus>,
    /// Events that are written once.
    pub(crate) told: BTreeSet<String>,
}

/// What it was that failed for a pod; it is tried again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PodError {
    #[error("cannot look at pod {pod}: {source}")]
    Observe { pod: String, source: VolumeError },
    #[error("{pod}: {source}")]
    Step { pod: String, source: StepError },
    #[error("cannot write the status of pod {pod}: {}", runtime::explain(source))]
    Status { pod: String, source: kube::Error },
}

impl Agent {
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn new(
        options: Options,
        host: Arc<dyn Host>,
        client: Client,
        recorder: Recorder,
        queue: Queue<String>,
        growing: Queue<Key>,
        csi: Arc<Csi>,
        in_use: Arc<InUse>,
        boot_id: String,
        oci: Option<PathBuf>,
    ) -> Agent {
        let facts = NodeFacts {
            name: options.node_name.clone(),
            address: options.address.clone(),
            processors: i64::try_from(node::processors()).unwrap_or(1),
            memory: i64::try_from(node::memory_kib() << 10).unwrap_or(i64::MAX),
        };
        let layout = csi.layout.clone();
        let objects = Objects::new(client.clone(), queue.clone());
        Agent {
            flex: Arc::new(Flex::new(options.volume_plugins.clone())),
            options,
            layout,
            host,
            client,
            recorder,
            queue,
            growing,
            awaited: Mutex::default(),
            objects,
            csi,
            in_use,
            boot_id,
            facts,
            oci,
            bounding: crate::containers::bounding_set(),
            starts: Semaphore::new(STARTS),
            pods: Mutex::default(),
            memories: Mutex::default(),
            watched: Arc::default(),
        }
    }

    /// Takes notice of a change in the API.
    pub(crate) fn notice(&self, change: &Change<Pod>) {
        let mut pods = self.pods.lock();
        let uid = |pod: &Pod| pod.uid().unwrap_or_default();
        match change {
            Change::Applied { old, new } => {
                // A pod that was deleted and made again in between is another pod.
                if let Some(old) = old.as_ref().filter(|old| uid(old) != uid(new)) {
                    pods.remove(&uid(old));
                    self.queue.add(uid(old));
                }
                pods.insert(uid(new), new.clone());
                if old.as_ref().is_none_or(|old| news::concerns_node(old, new)) {
                    self.queue.add(uid(new));
                }
            }
            Change::Deleted(pod) => {
                pods.remove(&uid(pod));
                self.queue.add(uid(pod));
            }
        }
    }

    /// The pods of this node in a namespace.
    pub(crate) fn pods_of(&self, namespace: &str) -> Vec<Arc<Pod>> {
        let pods = self.pods.lock();
        let all = pods.values().filter(|pod| pod.metadata.namespace.as_deref() == Some(namespace));
        all.cloned().collect()
    }

    /// Removes control groups and logs of pods that neither the API nor this node's directories know. Blocks.
    pub(crate) fn remove_strays(&self) -> linux::Result<()> {
        let mut known: BTreeSet<String> = self.pods.lock().keys().cloned().collect();
        known.extend(
            self.host.list(&self.layout.pods())?.into_iter().filter_map(|uid| uid.into_string().ok()),
        );
        for uid in cgroup::names(&start::node_cgroup(&self.facts.name)).difference(&known) {
            cgroup::remove(&start::pod_cgroup(&self.facts.name, uid));
        }
        for logs in self.host.list(&self.layout.logs())? {
            let uid = logs.to_str().and_then(|name| name.rsplit_once('_')).map(|(_, uid)| uid);
            if uid.is_some_and(|uid| !known.contains(uid)) {
                self.host.remove_tree(&self.layout.logs().join(logs))?;
            }
        }
        Ok(())
    }

    /// Wakes every pod that the API or this node's directories know.
    pub(crate) fn wake_all(&self) -> linux::Result<()> {
        self.pods.lock().keys().for_each(|uid| self.queue.add(uid.clone()));
        for uid in self.host.list(&self.layout.pods())? {
            if let Ok(uid) = uid.into_string() {
                self.queue.add(uid);
            }
        }
        Ok(())
    }

    /// Brings one pod a step nearer to what is wanted.
    pub(crate) async fn reconcile(&self, uid: String) -> Result<Next, PodError> {
        let memory = self.memories.lock().entry(uid.clone()).or_default().clone();
        let mut memory = memory.lock().await;
        for _ in 0..ROUNDS {
            let pod = self.pods.lock().get(&uid).cloned();
            let name = pod.as_ref().map_or_else(|| uid.clone(), |pod| status::pod_id(pod));
            tracing::Span::current().record("pod", &name);
            let mut actual = self.observe(&uid, &memory).await.map_err(|source| {
                if let Some(pod) = &pod {
                    let message = format!("cannot look at what the node has of the pod: {source}");
                    self.recorder.warning(&reference(pod), "NodeStateUnreadable", message);
                }
                PodError::Observe { pod: name.clone(), source }
            })?;
            self.tell_faults(&uid, pod.as_deref(), &actual, &mut memory);
            if let Some(pod) = &pod {
                self.mark_stale(pod, &uid, &actual, &mut memory);
            }
            actual.stale =
                memory.stale.iter().filter(|name| actual.ready.contains_key(*name)).cloned().collect();
            self.watch_monitors(&uid, &actual);
            let wanted = wanted::of(pod.as_deref(), self.oci.is_some());
            // The watch has yet to say so.
            if memory.rejected && matches!(wanted.lifecycle, Lifecycle::Run) {
                return Ok(Next::Done);
            }
            if !matches!(wanted.lifecycle, Lifecycle::Run) && actual.present.is_empty() {
                self.in_use.give_up_all(&uid);
            }
            if let Some(pod) = &pod {
                self.report(pod, &wanted, &actual, &mut memory)
                    .await
                    .map_err(|source| PodError::Status { pod: name.clone(), source })?;
            }
            let mut plan = plan(&wanted, &actual, clock::now());
            if let (Some(pod), Lifecycle::Run) = (&pod, &wanted.lifecycle) {
                let (end, look) = self.limits(&uid, pod, &mut memory).await;
                if let Some(end) = end {
                    self.recorder.warning(&reference(pod), end.reason, end.message.clone());
                    let failed = self.fail(pod, &mut memory, end.reason, end.message).await;
                    failed.map_err(|source| PodError::Status { pod: name, source })?;
                    return Ok(Next::Done);
                }
                plan.again = [plan.again, look].into_iter().flatten().min();
            }
            if plan.steps.is_empty() {
                if pod.is_none() && !actual.directory {
                    self.forget(&uid);
                }
                return Ok(next(plan.again));
            }
            let outcomes =
                join_all(plan.steps.iter().map(|step| self.carry_out(&uid, pod.as_ref(), &actual, step)))
                    .await;
            let (mut failure, mut in_vain, mut waits, mut again) = (None, None, 0, plan.again);
            for (step, outcome) in plan.steps.iter().zip(outcomes) {
                if let (Err(error), Some(pod)) = (&outcome, &pod)
                    && error.is_wait()
                {
                    match self.wait(pod, &mut memory, step, error) {
                        Waiting::Until(at) => again = Some(again.map_or(at, |again| again.min(at))),
                        Waiting::InVain(message) => in_vain = Some(message),
                    }
                    waits += 1;
                    continue;
                }
                let failed = self.remember(pod.as_deref(), &mut memory, step, outcome);
                failure = failure.or(failed);
            }
            // One whose containers have run before keeps waiting: it came back after a boot.
            if let (Some(pod), Some(message), true) = (&pod, in_vain, actual.attempts.is_empty()) {
                let rejected = self.reject(pod, &mut memory, message).await;
                rejected.map_err(|source| PodError::Status { pod: name, source })?;
                return Ok(Next::Done);
            }
            if let Some(source) = failure {
                let problems = memory.problems.clone();
                if let (Some(pod), false) = (&pod, problems.is_empty()) {
                    // Best effort: the failure itself is what is reported upwards.
                    let _ = self.report(pod, &wanted, &actual, &mut memory).await;
                }
                return Err(PodError::Step { pod: name, source });
            }
            if let (Some(pod), true) = (&pod, waits == plan.steps.len()) {
                self.report(pod, &wanted, &actual, &mut memory)
                    .await
                    .map_err(|source| PodError::Status { pod: name, source })?;
                return Ok(next(again));
            }
            if plan.steps.contains(&Step::Delete) {
                self.pods.lock().remove(&uid);
                self.forget(&uid);
                return Ok(Next::Done);
            }
            if plan.steps.iter().all(|step| matches!(step, Step::Terminate { .. } | Step::Kill { .. })) {
                // Their effect is an event; look once more now, so that the end of the grace period is not missed.
                return Ok(Next::After(Duration::from_millis(if plan.again.is_some() { 1000 } else { 0 })));
            }
        }
        Ok(Next::After(PAUSE))
    }

    pub(crate) async fn observe(&self, uid: &str, memory: &Memory) -> Result<Actual, VolumeError> {
        let (place, uid, checked) = (self.place(), uid.to_owned(), memory.checked.clone());
        blocking("looking at a pod", move || observe(&place, &uid, &checked)).await
    }

    fn place(&self) -> Place {
        Place {
            host: self.host.clone(),
            layout: self.layout.clone(),
            node: self.facts.name.clone(),
            boot_id: self.boot_id.clone(),
            runtime: self.oci.clone().unwrap_or_else(|| oci::KNOWN[0].into()),
        }
    }

    /// Whether the pod has to end, and when to look again.
    async fn limits(
        &self,
        uid: &str,
        pod: &Arc<Pod>,
        memory: &mut Memory,
    ) -> (Option<End>, Option<Timestamp>) {
        let now = clock::now();
        let deadline = limits::deadline(pod);
        if deadline.is_some_and(|deadline| deadline <= now) {
            return (Some(limits::deadline_exceeded()), None);
        }
        if !limits::has_limits(pod) {
            return (None, deadline);
        }
        let due = memory.counted.map_or(now, |counted| counted + limits::PERIOD);
        if due > now {
            return (None, deadline.into_iter().chain([due]).min());
        }
        memory.counted = Some(now);
        let (layout, uid, pod) = (self.layout.clone(), uid.to_owned(), pod.clone());
        let counted = blocking("counting the space that a pod uses", move || {
            Ok(limits::overuse(&pod, &limits::measure(&layout, &uid, &pod)))
        });
        match counted.await {
            Ok(end) => (end, deadline.into_iter().chain([now + limits::PERIOD]).min()),
            Err(error) => {
                tracing::warn!(%error, "a pod's limits of local space are not looked at now");
                (None, Some(now + limits::PERIOD))
            }
        }
    }

    fn mark_stale(&self, pod: &Pod, uid: &str, actual: &Actual, memory: &mut Memory) {
        // After a restart nobody watches the objects of volumes that are there already: reading them anew does.
        let first = !std::mem::replace(&mut memory.followed, true);
        let shown = (pod.metadata.labels.clone(), pod.metadata.annotations.clone());
        let relabelled = memory.shown.replace(shown.clone()).is_some_and(|before| before != shown);
        // Its own labels and annotations are content as well.
        if !self.objects.take_changed(uid) && !first && !relabelled {
            return;
        }
        for volume in volumes::used(pod) {
            let content = matches!(Source::of(volume), Source::Content { .. });
            if content && actual.ready.contains_key(&volume.name) {
                memory.stale.insert(volume.name.clone());
            }
        }
    }

    /// Makes sure that the end of each running container wakes the pod.
    fn watch_monitors(&self, uid: &str, actual: &Actual) {
        for attempt in actual.attempts.values().flatten() {
            let Some(monitor) = attempt.monitor else { continue };
            let key = (uid.to_owned(), attempt.record.container.clone(), attempt.record.number);
            if !self.watched.lock().insert(key.clone()) {
                continue;
            }
            let directory = self.layout.attempt(uid, &key.1, key.2);
            let (watched, queue, uid) = (self.watched.clone(), self.queue.clone(), uid.to_owned());
            match signal::monitor_end(directory, monitor) {
                Ok(end) => {
                    tokio::spawn(async move {
                        end.await;
                        watched.lock().remove(&key);
                        queue.add(uid);
                    });
                }
                // It has just started or just ended.
                Err(_) => {
                    watched.lock().remove(&key);
                    queue.add_after(uid, Duration::from_millis(20));
                }
            }
        }
    }

    fn remember(
        &self,
        pod: Option<&Pod>,
        memory: &mut Memory,
        step: &Step,
        outcome: Result<(), StepError>,
    ) -> Option<StepError> {
        let subject = match step {
            Step::SetUp(volume) => Some(status::volume_problem(volume)),
            Step::Start { container, .. } => Some(container.clone()),
            _ => None,
        };
        match outcome {
            Ok(()) => {
                if let Some(subject) = subject {
                    memory.problems.remove(&subject);
                }
                if let Step::SetUp(volume) = step {
                    memory.waiting.remove(volume);
                    memory.stale.remove(volume);
                    let host_path = pod.is_some_and(|pod| {
                        volumes::used(pod)
                            .into_iter()
                            .any(|of| of.name == *volume && matches!(Source::of(of), Source::HostPath { .. }))
                    });
                    if host_path {
                        memory.checked.insert(volume.clone());
                    }
                }
                None
            }
            Err(error) => {
                if let (Step::TearDown(volume), Some(pod)) = (step, pod) {
                    let message =
                        format!("UnmountVolume.TearDown failed for volume \"{}\" : {error}", volume.name);
                    self.recorder.warning(&reference(pod), "FailedUnMount", message);
                }
                if let (Some(subject), Some(pod)) = (subject, pod) {
                    let (reason, message) = error.event(step, pod);
                    self.recorder.warning(&reference(pod), reason, message);
                    let message = status::bounded(&error.to_string(), LONGEST_PROBLEM);
                    memory.problems.insert(subject, Problem { reason: error.waiting_reason(), message });
                }
                Some(error)
            }
        }
    }

    fn forget(&self, uid: &str) {
        self.objects.forget(uid);
        self.in_use.give_up_all(uid);
        self.memories.lock().remove(uid);
    }
}

fn next(again: Option<Timestamp>) -> Next {
    match again {
        None => Next::Done,
        Some(at) => {
            let wait = at.duration_since(clock::now());
            Next::After(Duration::try_from(wait).unwrap_or_default() + Duration::from_millis(1))
        }
    }
}

/// The object that events about the pod refer to.
pub(crate) fn reference(pod: &Pod) -> ObjectReference {
    pod.object_ref(&())
}
