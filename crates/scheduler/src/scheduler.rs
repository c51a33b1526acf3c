//! The executor: keeps the world up to date, places pods that wait, and writes what was decided.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{
    Binding, Node, ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod, PodCondition,
};
use k8s_openapi::api::storage::v1::CSIStorageCapacity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::PostParams;
use kube::{Api, ResourceExt};
use parking_lot::Mutex;
use resources::{annotations, claim, reference, volume};
use runtime::{Change, Context, Key, Next, Queue, Recorder, update_if_changed};
use tokio::time::Instant;

use crate::capacity::Promise;
use crate::node::is_ready;
use crate::place::{Placement, Provision, concerns, deselect, place, place_on};
use crate::reasons::Refusal;
use crate::world::{Cause, World, claims_of, node_of};

/// Pods whose writes may be under way at a time.
const CONCURRENCY: usize = 64;
/// How long a pod's claims may take to be bound before the pod says so.
const BIND_TIME: Duration = Duration::from_secs(600);
/// How long a node is left out after a volume could not be made there; doubles with every time, up to the longest.
const AVOID: Duration = Duration::from_secs(30);
const AVOID_LONGEST: Duration = Duration::from_secs(300);
/// When to look again at a pod that waits for space which others were promised, should nothing else wake it.
const CONTENDED: Duration = Duration::from_secs(5);
/// How long a pod waits so before it says why.
const CONTENDED_QUIETLY: Duration = Duration::from_secs(30);
/// How often a pod that stays refused for the same reasons says anew how much storage is free.
const TELL_AGAIN: Duration = Duration::from_secs(30);
/// When to look again after somebody else's write came first; its news usually arrive sooner.
const AFTER_CONFLICT: Duration = Duration::from_millis(100);

/// What is looked at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Task {
    /// A pod that waits for a node or for its volumes.
    Pod(Key),
    /// A claim whose chosen node is gone.
    Claim(Key),
}

#[derive(Default)]
struct State {
    world: World,
    /// Per pod: nodes to leave out until when, and for how long the last time.
    avoid: HashMap<Key, HashMap<String, (Instant, Duration)>>,
    /// What was said last about a pod without a node, and when.
    told: HashMap<Key, (Refusal, Instant)>,
    /// Since when pods wait for space that others were promised.
    contended: HashMap<Key, Instant>,
    /// Since when pods wait for their claims to be bound.
    since: HashMap<Key, Instant>,
}

#[derive(Clone)]
struct Scheduler {
    context: Context,
    recorder: Recorder,
    queue: Queue<Task>,
    state: Arc<Mutex<State>>,
}

/// What a placement still takes before the pod can go to its node.
#[derive(Default)]
struct Plan {
    placement: Option<Placement>,
    volumes: Vec<(Arc<PersistentVolume>, Arc<PersistentVolumeClaim>)>,
    claims: Vec<Arc<PersistentVolumeClaim>>,
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
    let synced = async {
        tokio::join!(
            nodes.synced(),
            csi_nodes.synced(),
            drivers.synced(),
            classes.synced(),
            capacities.synced(),
            volumes.synced(),
            claims.synced(),
            pods.synced()
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

/// What follows from changes of the world.
impl Scheduler {
    fn wake(&self, world: &mut World, cause: &Cause) {
        for pod in world.wake(cause) {
            self.queue.add(Task::Pod(pod));
        }
    }

    fn node_changed(&self, change: &Change<Node>) {
        let facts = |node: &Node| {
            let spec = node.spec.as_ref();
            let taints = spec.and_then(|spec| spec.taints.clone());
            (node.metadata.labels.clone(), taints, spec.and_then(|spec| spec.unschedulable), is_ready(node))
        };
        let mut state = self.state.lock();
        let world = &mut state.world;
        match change {
            Change::Applied { old, new } => {
                world.nodes.insert(new.name_any(), Arc::clone(new));
                if old.as_ref().is_none_or(|old| facts(old) != facts(new)) {
                    self.wake(world, &Cause::Nodes);
                }
            }
            Change::Deleted(node) => {
                world.nodes.remove(&node.name_any());
                for claim in world.ledger.claims_on(&node.name_any()) {
                    self.queue.add(Task::Claim(claim));
                }
            }
        }
    }

    fn csi_node_changed(&self, change: &Change<k8s_openapi::api::storage::v1::CSINode>) {
        let world = &mut self.state.lock().world;
        match change {
            Change::Applied { new, .. } => _ = world.csi_nodes.insert(new.name_any(), Arc::clone(new)),
            Change::Deleted(node) => _ = world.csi_nodes.remove(&node.name_any()),
        }
        self.wake(world, &Cause::Nodes);
    }

    fn driver_changed(&self, change: &Change<k8s_openapi::api::storage::v1::CSIDriver>) {
        let world = &mut self.state.lock().world;
        match change {
            Change::Applied { new, .. } => _ = world.drivers.insert(new.name_any(), Arc::clone(new)),
            Change::Deleted(driver) => _ = world.drivers.remove(&driver.name_any()),
        }
        self.wake(world, &Cause::Nodes);
    }

    fn class_changed(&self, change: &Change<k8s_openapi::api::storage::v1::StorageClass>) {
        let world = &mut self.state.lock().world;
        let name = change.object().name_any();
        match change {
            Change::Applied { new, .. } => _ = world.classes.insert(name.clone(), Arc::clone(new)),
            Change::Deleted(_) => _ = world.classes.remove(&name),
        }
        self.wake(world, &Cause::Class(name));
    }

    fn capacity_changed(&self, change: &Change<CSIStorageCapacity>) {
        let world = &mut self.state.lock().world;
        match change {
            Change::Applied { new, .. } => world.ledger.publish(new),
            Change::Deleted(capacity) => _ = world.ledger.withdraw(capacity),
        }
        self.wake(world, &Cause::Storage(change.object().storage_class_name.clone()));
    }

    fn volume_changed(&self, change: &Change<PersistentVolume>) {
        let world = &mut self.state.lock().world;
        match change {
            Change::Applied { new, .. } => {
                world.put_volume(new);
                if new.spec.as_ref().is_some_and(|spec| spec.claim_ref.is_none()) {
                    self.wake(world, &Cause::Storage(volume::class(new).to_owned()));
                }
            }
            Change::Deleted(volume) => world.remove_volume(&volume.name_any()),
        }
    }

    fn claim_changed(&self, change: &Change<PersistentVolumeClaim>) {
        let mut state = self.state.lock();
        let key = Key::of(&**change.object());
        match change {
            Change::Applied { new, .. } => {
                if !state.world.put_claim(new) {
                    return;
                }
                self.follow_promise(&mut state, &key, new);
            }
            Change::Deleted(_) => state.world.remove_claim(&key),
        }
        let users = state.world.users_of(&key);
        for pod in users.filter(|pod| state.world.pod(pod).is_some_and(|pod| concerns(pod))) {
            self.queue.add(Task::Pod(pod.clone()));
        }
    }

    /// Keeps what a claim was promised in step with what the claim says.
    fn follow_promise(&self, state: &mut State, key: &Key, claim: &PersistentVolumeClaim) {
        if !claim::volume_name(claim).is_empty() {
            state.world.ledger.made(key);
            return;
        }
        let version = version(claim.metadata.resource_version.as_deref());
        match claim::selected_node(claim) {
            Some(node) => {
                if state.world.ledger.get(key).is_none_or(|promise| promise.node != node) {
                    promise(&mut state.world, key, claim, node, None);
                    state.world.ledger.written(key, version);
                }
                if !state.world.nodes.contains_key(node) {
                    self.queue.add(Task::Claim(key.clone()));
                }
            }
            None => {
                let written = state.world.ledger.get(key).and_then(|promise| promise.written);
                if written.is_some_and(|written| version.is_some_and(|version| version > written)) {
                    self.provisioning_failed(state, key);
                }
            }
        }
    }

    /// The provisioner took the chosen node off the claim: another one, for a while.
    fn provisioning_failed(&self, state: &mut State, claim: &Key) {
        let Some(promise) = state.world.ledger.settle(claim) else { return };
        let users = state.world.users_of(claim).cloned().collect::<Vec<_>>();
        for pod in users {
            let nodes = state.avoid.entry(pod.clone()).or_default();
            let before = nodes.get(&promise.node).map(|(_, pause)| *pause);
            let pause = before.map_or(AVOID, |pause| (pause * 2).min(AVOID_LONGEST));
            nodes.insert(promise.node.clone(), (Instant::now() + pause, pause));
            self.queue.add(Task::Pod(pod));
        }
    }

    fn pod_changed(&self, change: &Change<Pod>) {
        let mut state = self.state.lock();
        let key = Key::of(&**change.object());
        match change {
            Change::Applied { old, new } => {
                state.world.put_pod(new);
                let same =
                    old.as_ref().is_some_and(|old| old.spec == new.spec && concerns(old) == concerns(new));
                if !same && concerns(new) {
                    self.queue.add(Task::Pod(key));
                }
            }
            Change::Deleted(pod) => {
                state.world.remove_pod(pod);
                state.avoid.remove(&key);
                state.told.remove(&key);
                state.contended.remove(&key);
                state.since.remove(&key);
                self.wake(&mut state.world, &Cause::Pods);
            }
        }
    }
}

/// What is done about pods and claims.
impl Scheduler {
    async fn schedule(&self, key: Key) -> Result<Next, kube::Error> {
        let Some((pod, plan)) = self.decide(&key) else { return Ok(Next::Done) };
        let plan = match plan {
            Ok(plan) => plan,
            Err((refusal, again)) => {
                if node_of(&pod).is_none() && self.is_worth_telling(&key, &refusal) {
                    self.tell(&pod, &refusal).await?;
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
    #[expect(clippy::type_complexity, reason = "a decision, or a refusal with when to look again")]
    fn decide(&self, key: &Key) -> Option<(Arc<Pod>, Result<Plan, (Refusal, Option<Duration>)>)> {
        let mut state = self.state.lock();
        let pod = Arc::clone(state.world.pod(key).filter(|pod| concerns(pod))?);
        state.world.ledger.sweep();
        let (avoid, avoid_ends) = avoided(&mut state, key);
        let placed = match node_of(&pod) {
            Some(node) => place_on(&state.world, &pod, node),
            None if state.world.is_placed(key) => return None,
            None => place(&state.world, &pod, &avoid),
        };
        let world = &mut state.world;
        let plan = match placed {
            Ok(placement) => Ok(reserve(world, key, placement)),
            Err(refusal) => {
                world.park(key, causes(world, &pod));
                let contended = refusal.is_contended().then_some(CONTENDED);
                Err((refusal, contended.into_iter().chain(avoid_ends).min()))
            }
        };
        if let Ok(Plan { placement: Some(placement), .. }) = &plan
            && placement.is_complete()
            && node_of(&pod).is_none()
        {
            world.assume(key, &placement.node);
        }
        Some((pod, plan))
    }

    /// Writes a claim into a free volume: the binder completes what follows.
    async fn give(
        &self,
        volume: &Arc<PersistentVolume>,
        claim: &PersistentVolumeClaim,
    ) -> Result<Option<Next>, kube::Error> {
        let api = Api::<PersistentVolume>::all(self.context.client.clone());
        let written = update_if_changed(&api, &**volume, |volume| {
            volume.annotations_mut().insert(annotations::BOUND_BY_CONTROLLER.to_owned(), "yes".to_owned());
            volume.spec.get_or_insert_default().claim_ref = Some(reference(claim));
        });
        let result = written.await;
        let world = &mut self.state.lock().world;
        match result {
            Ok(written) => {
                written.into_iter().for_each(|volume| world.put_volume(&Arc::new(volume)));
                Ok(None)
            }
            Err(error) => {
                world.take_back(&volume.name_any());
                look_again(error)
            }
        }
    }

    /// Writes the chosen node on a claim: its provisioner takes it from there.
    async fn select(
        &self,
        claim: &Arc<PersistentVolumeClaim>,
        node: &str,
    ) -> Result<Option<Next>, kube::Error> {
        let key = Key::of(&**claim);
        let api = Api::<PersistentVolumeClaim>::namespaced(self.context.client.clone(), &key.namespace);
        let written = update_if_changed(&api, &**claim, |claim| {
            claim.annotations_mut().insert(annotations::SELECTED_NODE.to_owned(), node.to_owned());
        });
        let result = written.await;
        let world = &mut self.state.lock().world;
        match result {
            Ok(written) => {
                if let Some(claim) = written {
                    world.ledger.written(&key, version(claim.metadata.resource_version.as_deref()));
                    world.put_claim(&Arc::new(claim));
                }
                Ok(None)
            }
            Err(error) => {
                world.ledger.settle(&key);
                look_again(error)
            }
        }
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

    async fn bind(&self, pod: &Pod, key: &Key, node: &str) -> Result<Next, kube::Error> {
        let binding = Binding {
            metadata: kube::core::ObjectMeta {
                name: pod.metadata.name.clone(),
                namespace: pod.metadata.namespace.clone(),
                uid: pod.metadata.uid.clone(),
                ..Default::default()
            },
            target: ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Node".to_owned()),
                name: Some(node.to_owned()),
                ..ObjectReference::default()
            },
        };
        let api = Api::<Pod>::namespaced(self.context.client.clone(), &key.namespace);
        let posted: Result<serde_json::Value, _> =
            api.create_subresource("binding", &key.name, &PostParams::default(), &binding).await;
        let mut state = self.state.lock();
        match posted {
            Ok(_) => {
                state.told.remove(key);
                state.contended.remove(key);
                state.avoid.remove(key);
                state.since.remove(key);
                let message = format!("Successfully assigned {key} to {node}");
                self.recorder.normal(&reference(pod), "Scheduled", message);
                Ok(Next::Done)
            }
            Err(error) => {
                state.world.unassume(key);
                look_again(error).map(|next| next.unwrap_or(Next::Done))
            }
        }
    }

    /// Whether a refusal is news, and more than a moment's shortage.
    fn is_worth_telling(&self, key: &Key, refusal: &Refusal) -> bool {
        let mut state = self.state.lock();
        if refusal.is_contended() {
            let since = *state.contended.entry(key.clone()).or_insert_with(Instant::now);
            if since.elapsed() < CONTENDED_QUIETLY {
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

    /// Says on the pod why it has no node.
    async fn tell(&self, pod: &Pod, refusal: &Refusal) -> Result<(), kube::Error> {
        let message = refusal.message();
        self.recorder.warning(&reference(pod), "FailedScheduling", message.clone());
        let api = Api::<Pod>::namespaced(self.context.client.clone(), &pod.namespace().unwrap_or_default());
        let written = runtime::update_status_if_changed(&api, pod, |pod| {
            let conditions = pod.status.get_or_insert_default().conditions.get_or_insert_default();
            let before = conditions.iter().position(|condition| condition.type_ == "PodScheduled");
            let before = before.map(|at| conditions.remove(at));
            let was_false = before.filter(|condition| condition.status == "False");
            conditions.push(PodCondition {
                type_: "PodScheduled".to_owned(),
                status: "False".to_owned(),
                reason: Some("Unschedulable".to_owned()),
                message: Some(message),
                last_transition_time: was_false
                    .and_then(|condition| condition.last_transition_time)
                    .or_else(|| Some(Time(k8s_openapi::jiff::Timestamp::now()))),
                ..PodCondition::default()
            });
        });
        match written.await {
            Ok(_) => Ok(()),
            // The event says it all the same.
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_not_found() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Takes a vanished node off a claim, so that another one is chosen.
    async fn free_from_lost_node(&self, key: Key) -> Result<Next, kube::Error> {
        let claim = {
            let state = self.state.lock();
            let claim = state.world.claim(&key).filter(|claim| {
                let lost =
                    claim::selected_node(claim).is_some_and(|node| !state.world.nodes.contains_key(node));
                lost && claim::volume_name(claim).is_empty()
            });
            claim.cloned()
        };
        let Some(claim) = claim else { return Ok(Next::Done) };
        let api = Api::<PersistentVolumeClaim>::namespaced(self.context.client.clone(), &key.namespace);
        match update_if_changed(&api, &*claim, deselect).await {
            Ok(_) => {
                self.state.lock().world.ledger.settle(&key);
                Ok(Next::Done)
            }
            Err(error) => look_again(error).map(|next| next.unwrap_or(Next::Done)),
        }
    }
}

/// Somebody else wrote first, or took the object away: decide again from the news.
fn look_again(error: kube::Error) -> Result<Option<Next>, kube::Error> {
    match error {
        kube::Error::Api(status) if status.is_conflict() || status.is_not_found() => {
            Ok(Some(Next::After(AFTER_CONFLICT)))
        }
        error => Err(error),
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
    plan.placement = Some(placement);
    plan
}

fn promise(world: &mut World, key: &Key, claim: &PersistentVolumeClaim, node: &str, pod: Option<Key>) {
    let Some(class) = world.classes.get(claim::class(claim)) else { return };
    let driver = class.provisioner.clone();
    let size = resources::fit::requested(claim).and_then(|size| size.ceil_bytes()).unwrap_or_default();
    let labels = world.nodes.get(node).and_then(|node| node.metadata.labels.clone()).unwrap_or_default();
    let classes = world.classes_of(&driver);
    world.ledger.promise(key.clone(), Promise::new(node, &driver, pod), size, &classes, &labels);
}

/// What may give a refused pod its chance.
fn causes(world: &World, pod: &Pod) -> Vec<Cause> {
    let mut causes = vec![Cause::Nodes, Cause::Pods];
    for (key, _) in claims_of(pod) {
        if let Some(claim) = world.claim(&key) {
            let class = claim::class(claim).to_owned();
            causes.push(Cause::Class(class.clone()));
            causes.push(Cause::Storage(class));
        }
    }
    causes
}

fn version(text: Option<&str>) -> Option<u64> {
    text?.parse().ok()
}
