//! The executor: keeps the world up to date, places pods that wait, and writes what was decided.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Service};
use parking_lot::Mutex;
use resources::{VolumeSnapshot, VolumeSnapshotContent, claim, reference, volume};
use runtime::{Context, Key, Next, Queue, Recorder};
use tokio::time::Instant;

use crate::capacity::Promise;
use crate::place::{Placement, Provision, concerns, place, place_on};
use crate::preempt::{Way, way};
use crate::reasons::{Reason, Refusal};
use crate::sources;
use crate::world::{Cause, World, claims_of, node_of};

/// Pods whose writes may be under way at a time.
const CONCURRENCY: usize = 64;
/// How long a pod's claims may take to be bound before the pod says so.
const BIND_TIME: Duration = Duration::from_secs(600);
/// How long a node is left out after a volume could not be made there; doubles with every time, up to the longest.
pub(crate) const AVOID: Duration = Duration::from_secs(30);
pub(crate) const AVOID_LONGEST: Duration = Duration::from_secs(300);
/// When to look again at a pod that waits for space which others were promised, should nothing else wake it.
const CONTENDED: Duration = Duration::from_secs(5);
/// How often a pod that stays refused for the same reasons says anew how much storage is free.
const TELL_AGAIN: Duration = Duration::from_secs(30);

/// What is looked at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Task {
    /// A pod that waits for a node or for its volumes.
    Pod(Key),
    /// A claim whose chosen node is gone.
    Claim(Key),
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Task::Pod(key) => write!(f, "pod {key}"),
            Task::Claim(key) => write!(f, "claim {key}"),
        }
    }
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) world: World,
    /// Per pod: nodes to leave out until when, and for how long the last time.
    pub(crate) avoid: HashMap<Key, HashMap<String, (Instant, Duration)>>,
    /// What was said last about a pod without a node, and when.
    pub(crate) told: HashMap<Key, (Refusal, Instant)>,
    /// Since when pods wait for space that others were promised.
    pub(crate) contended: HashMap<Key, Instant>,
    /// Since when pods wait for their claims to be bound.
    pub(crate) since: HashMap<Key, Instant>,
}

#[derive(Clone)]
pub(crate) struct Scheduler {
    pub(crate) context: Context,
    pub(crate) recorder: Recorder,
    pub(crate) queue: Queue<Task>,
    pub(crate) state: Arc<Mutex<State>>,
}

/// What a placement still takes before the pod can go to its node.
#[derive(Default)]
struct Plan {
    placement: Option<Placement>,
    volumes: Vec<(Arc<PersistentVolume>, Arc<PersistentVolumeClaim>)>,
    claims: Vec<Arc<PersistentVolumeClaim>>,
}

/// Why a pod gets no node now.
struct Refused {
    refusal: Refusal,
    /// When to look again, should nothing happen before.
    again: Option<Duration>,
    /// Where others make way for it.
    way: Option<Way>,
}

/// Places pods until the context is shut down.
pub async fn run(context: Context) {
    let scheduler = Scheduler {
        recorder: context.recorder("default-scheduler", ""),
        queue: Queue::new("schedule", &context.metrics),
        state: Arc::default(),
        context,
    };
    let informers = &scheduler.context.informers;
    macro_rules! follow {
        ($informer:ident, $handler:ident) => {{
            let informer = informers.$informer();
            let it = scheduler.clone();
            informer.subscribe(move |change| it.$handler(change));
            informer
        }};
    }
    let nodes = follow!(nodes, node_changed);
    let csi_nodes = follow!(csi_nodes, csi_node_changed);
    let drivers = follow!(csi_drivers, driver_changed);
    let classes = follow!(classes, class_changed);
    let capacities = follow!(capacities, capacity_changed);
    let volumes = follow!(volumes, volume_changed);
    let claims = follow!(claims, claim_changed);
    let pods = follow!(pods, pod_changed);
    let namespaces = follow!(namespaces, namespace_changed);
    // Not waited for: a cluster may have no snapshots, and the others are for preferences only.
    let it = scheduler.clone();
    informers.of::<VolumeSnapshot>().subscribe(move |change| it.snapshot_changed(change));
    let it = scheduler.clone();
    informers.of::<VolumeSnapshotContent>().subscribe(move |change| it.content_changed(change));
    let it = scheduler.clone();
    informers.of::<Service>().subscribe(move |change| it.service_changed(change));
    let it = scheduler.clone();
    informers.of::<StatefulSet>().subscribe(move |change| it.stateful_set_changed(change));
    let synced = async {
        tokio::join!(
            nodes.synced(),
            csi_nodes.synced(),
            drivers.synced(),
            classes.synced(),
            capacities.synced(),
            volumes.synced(),
            claims.synced(),
            pods.synced(),
            namespaces.synced()
        )
    };
    if scheduler.context.shutdown.run_until_cancelled(synced).await.is_some() {
        let (queue, shutdown) = (scheduler.queue.clone(), scheduler.context.shutdown.clone());
        runtime::work(queue, CONCURRENCY, shutdown, |task| {
            let scheduler = &scheduler;
            Box::pin(async move {
                match task {
                    Task::Pod(pod) => scheduler.schedule(pod).await,
                    Task::Claim(claim) => scheduler.free_from_lost_node(claim).await,
                }
            })
        })
        .await;
    }
}

impl Scheduler {
    async fn schedule(&self, key: Key) -> Result<Next, kube::Error> {
        let Some((pod, plan)) = self.decide(&key) else { return Ok(Next::Done) };
        let plan = match plan {
            Ok(plan) => plan,
            Err(Refused { refusal, again, way }) => {
                // A pod that somebody else placed may well wait for the binder.
                let ours = node_of(&pod).is_none() || refusal.pod_reason.is_none();
                if ours
                    && self.is_worth_telling(&key, &refusal)
                    && let Some(next) = self.tell(&pod, &refusal).await?
                {
                    return Ok(next);
                }
                if let Some(Way::Force { node, victims }) = way
                    && let Some(next) = self.make_way(&pod, &node, &victims).await?
                {
                    return Ok(next);
                }
                return Ok(again.map_or(Next::Done, Next::After));
            }
        };
        let Some(placement) = plan.placement else { return Ok(Next::Done) };
        for (volume, claim) in &plan.volumes {
            if let Some(next) = self.give(volume, claim).await? {
                return Ok(next);
            }
        }
        for claim in &plan.claims {
            if let Some(next) = self.select(claim, &placement.node).await? {
                return Ok(next);
            }
        }
        if !placement.is_complete() {
            return Ok(self.wait(&pod, &key));
        }
        if node_of(&pod).is_some() {
            return Ok(Next::Done);
        }
        self.bind(&pod, &key, &placement.node).await
    }

    /// Places a pod and marks what it takes, in one go. `None`: there is nothing to decide about it.
    fn decide(&self, key: &Key) -> Option<(Arc<Pod>, Result<Plan, Refused>)> {
        let mut state = self.state.lock();
        let pod = Arc::clone(state.world.pod(key).filter(|pod| concerns(pod))?);
        state.world.ledger.sweep();
        let (avoid, avoid_ends) = avoided(&mut state, key);
        let placed = match node_of(&pod) {
            Some(node) => place_on(&state.world, &pod, node, &avoid),
            None if state.world.is_bound(key) => return None,
            None => {
                state.world.unassume(key);
                place(&state.world, &pod, &avoid)
            }
        };
        let waited = state.contended.get(key).map(Instant::elapsed).unwrap_or_default();
        let world = &mut state.world;
        let plan = match placed {
            Ok(placement) => Ok(reserve(world, key, placement)),
            Err(refusal) => {
                world.park(key, causes(world, &pod, &refusal));
                let promised = refusal.reasons.contains_key(&Reason::Promised);
                let passing = refusal.passes_within().filter(|within| promised || waited < *within);
                let passing = passing.map(|within| within.min(CONTENDED));
                let way = node_of(&pod).is_none().then(|| way(world, &pod, &avoid)).flatten();
                if let Some(way) = &way {
                    // It counts there from now on, so that nobody else takes what is given up for it.
                    world.assume(key, way.node(), false);
                }
                Err(Refused { refusal, again: passing.into_iter().chain(avoid_ends).min(), way })
            }
        };
        if let Ok(Plan { placement: Some(placement), .. }) = &plan
            && node_of(&pod).is_none()
        {
            world.assume(key, &placement.node, placement.is_complete());
        }
        Some((pod, plan))
    }

    /// The pod's claims are about to be bound; their changes bring it back.
    fn wait(&self, pod: &Pod, key: &Key) -> Next {
        let mut state = self.state.lock();
        let since = *state.since.entry(key.clone()).or_insert_with(Instant::now);
        let left = BIND_TIME.saturating_sub(since.elapsed());
        if !left.is_zero() {
            return Next::After(left);
        }
        state.since.remove(key);
        let message = "running PreBind plugin \"VolumeBinding\": binding volumes: timed out waiting for the condition; \
                       see the events of the pod's claims";
        self.recorder.warning(&reference(pod), "FailedScheduling", message);
        Next::After(BIND_TIME)
    }

    /// Whether a refusal is news, and more than a moment's shortage.
    fn is_worth_telling(&self, key: &Key, refusal: &Refusal) -> bool {
        let mut state = self.state.lock();
        if let Some(within) = refusal.passes_within() {
            let since = *state.contended.entry(key.clone()).or_insert_with(Instant::now);
            if since.elapsed() < within {
                return false;
            }
        } else {
            state.contended.remove(key);
        }
        let known = state.told.get(key).is_some_and(|(before, when)| {
            before == refusal || (before.same_reasons(refusal) && when.elapsed() < TELL_AGAIN)
        });
        if !known {
            state.told.insert(key.clone(), (refusal.clone(), Instant::now()));
        }
        !known
    }
}

/// The nodes that a pod leaves out now, and when the first of them counts again.
fn avoided(state: &mut State, pod: &Key) -> (HashSet<String>, Option<Duration>) {
    let now = Instant::now();
    let nodes = state.avoid.get(pod).into_iter().flatten().filter(|(_, (until, _))| *until > now);
    let ends = nodes.clone().map(|(_, (until, _))| *until - now).min();
    (nodes.map(|(node, _)| node.clone()).collect(), ends)
}

/// Marks what a placement takes, so that nobody else is given it, and says what is to be written.
fn reserve(world: &mut World, pod: &Key, placement: Placement) -> Plan {
    let mut plan = Plan::default();
    for (claim_key, name) in &placement.give {
        let (Some(claim), Some(volume)) = (world.claim(claim_key), world.volume(name)) else { continue };
        let (claim, volume) = (Arc::clone(claim), Arc::clone(volume));
        if !volume::is_bound_to(&volume, &claim) {
            world.give(name, claim_key);
            plan.volumes.push((volume, claim));
        }
    }
    for Provision { claim: key, .. } in &placement.provision {
        let Some(claim) = world.claim(key).cloned() else { continue };
        if claim::selected_node(&claim).is_none() {
            promise(world, key, &claim, &placement.node, Some(pod.clone()));
            plan.claims.push(claim);
        }
    }
    world.nodes.choose(&placement.node);
    plan.placement = Some(placement);
    plan
}

pub(crate) fn promise(
    world: &mut World,
    key: &Key,
    claim: &PersistentVolumeClaim,
    node: &str,
    pod: Option<Key>,
) {
    let Some(class) = world.classes.get(claim::class(claim)) else { return };
    let driver = class.provisioner.clone();
    let size = resources::fit::requested_bytes(claim);
    let labels = world.nodes.labels(node).cloned().unwrap_or_default();
    let classes = world.classes_of(&driver);
    world.ledger.promise(key.clone(), Promise::new(node, &driver, pod), size, &classes, &labels);
}

/// What may give a refused pod its chance.
fn causes(world: &World, pod: &Pod, refusal: &Refusal) -> Vec<Cause> {
    let mut causes = vec![Cause::Nodes, Cause::Pods];
    let about_pods = |reason: &Reason| {
        use Reason::{ExistingAntiAffinity, PodAffinity, PodAntiAffinity, Spread};
        matches!(reason, Spread | PodAffinity | PodAntiAffinity | ExistingAntiAffinity)
    };
    if refusal.reasons.keys().any(about_pods) {
        causes.extend([Cause::Arrivals, Cause::Namespaces]);
    }
    for (key, _) in claims_of(pod) {
        if let Some(claim) = world.claim(&key) {
            let class = claim::class(claim).to_owned();
            causes.extend(sources::awaited(claim).map(Cause::Source));
            causes.push(Cause::Class(class.clone()));
            causes.push(Cause::Storage(class));
        }
    }
    causes
}

pub(crate) fn version(text: Option<&str>) -> Option<u64> {
    text?.parse().ok()
}
