//! The executor: keeps the world up to date, looks at what changed, and makes the writes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;
use parking_lot::Mutex;
use resources::claim;
use runtime::{Change, Context, Next, Queue, Recorder};
use tokio::time::Instant;

use super::claim::{is_terminated, sync_claim};
use super::cluster::{Cluster, Written, write_all};
use super::operation;
use super::step::{Notice, Operation, Step, Write};
use super::volume::{Live, Look, sync_volume};
use super::world::{ClaimKey, Filed, Key, World, claims_of_pod};

/// Looks whose writes may be under way at a time. The API server commits such writes together.
const CONCURRENCY: usize = 64;
/// The pause after an operation's first failure, which doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(122);

/// Why a look came to no end; it is repeated after a while.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Refused(String),
    #[error("the API server did not take a write: {0}")]
    Api(#[from] kube::Error),
}

#[derive(Default)]
struct State {
    world: World,
    /// Operations that failed: how often, and until when they pause.
    pauses: HashMap<Key, (u32, Instant)>,
}

#[derive(Clone)]
struct Binder {
    context: Context,
    recorder: Recorder,
    queue: Queue<Key>,
    state: Arc<Mutex<State>>,
}

/// Binds claims and reclaims volumes until the context is shut down.
pub async fn run(context: Context) {
    let binder = Binder {
        recorder: context.recorder("persistentvolume-controller", ""),
        queue: Queue::new("bind", &context.metrics),
        state: Arc::default(),
        context,
    };
    let informers = &binder.context.informers;
    let (classes, volumes, claims, pods) =
        (informers.classes(), informers.volumes(), informers.claims(), informers.pods());
    let it = binder.clone();
    classes.subscribe(move |change| it.class_changed(change));
    let it = binder.clone();
    volumes.subscribe(move |change| it.volume_changed(change));
    let it = binder.clone();
    claims.subscribe(move |change| it.claim_changed(change));
    let it = binder.clone();
    pods.subscribe(move |change| it.pod_changed(change));
    let synced = async { tokio::join!(classes.synced(), volumes.synced(), claims.synced(), pods.synced()) };
    if binder.context.shutdown.run_until_cancelled(synced).await.is_some() {
        let (queue, shutdown) = (binder.queue.clone(), binder.context.shutdown.clone());
        runtime::work(queue, CONCURRENCY, shutdown, |key| Box::pin(binder.look(key))).await;
    }
}

impl Binder {
    fn class_changed(&self, change: &Change<StorageClass>) {
        let mut state = self.state.lock();
        let name = change.object().name_any();
        match change {
            Change::Applied { new, .. } => state.world.put_class(Arc::clone(new)),
            Change::Deleted(_) => state.world.remove_class(&name),
        }
        for claim in state.world.claims_of_class(&name) {
            self.queue.add(Key::Claim(claim));
        }
    }

    fn claim_changed(&self, change: &Change<PersistentVolumeClaim>) {
        let mut state = self.state.lock();
        let key = ClaimKey::of(change.object());
        match change {
            Change::Applied { new, .. } => {
                if state.world.put_claim(Arc::clone(new)) != Filed::News {
                    return;
                }
                self.queue.add(Key::Claim(key.clone()));
            }
            Change::Deleted(_) => {
                state.world.remove_claim(&key);
                if let Some(volume) = state.world.heard(&key) {
                    self.offer(&mut state, &volume);
                }
            }
        }
        for volume in state.world.volumes.referring_to(&key) {
            self.queue.add(Key::Volume(volume.name_any()));
        }
    }

    fn volume_changed(&self, change: &Change<PersistentVolume>) {
        let mut state = self.state.lock();
        let name = change.object().name_any();
        match change {
            Change::Applied { new, .. } => {
                if state.world.volumes.put(Arc::clone(new)) != Filed::News {
                    return;
                }
                self.queue.add(Key::Volume(name.clone()));
                self.offer(&mut state, &name);
            }
            Change::Deleted(_) => {
                state.world.volumes.remove(&name);
            }
        }
        let referred = ClaimKey::referred(change.object());
        for claim in state.world.claims_naming(&name).cloned().chain(referred) {
            self.queue.add(Key::Claim(claim));
        }
    }

    fn pod_changed(&self, change: &Change<Pod>) {
        let facts = |pod: &Pod| {
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
            (node, is_terminated(pod))
        };
        let mut state = self.state.lock();
        match change {
            Change::Applied { old, new } => {
                state.world.put_pod(new);
                if old.as_ref().is_some_and(|old| facts(old) == facts(new)) {
                    return;
                }
            }
            Change::Deleted(pod) => state.world.remove_pod(pod),
        }
        for key in claims_of_pod(change.object()) {
            match state.world.claim(&key) {
                Some(claim) if claim::volume_name(claim).is_empty() => self.queue.add(Key::Claim(key)),
                Some(_) => {}
                None => {
                    for volume in state.world.volumes.referring_to(&key) {
                        self.queue.add(Key::Volume(volume.name_any()));
                    }
                }
            }
        }
    }

    /// Tells one waiting claim of a free volume: only one can have it.
    fn offer(&self, state: &mut State, volume: &str) {
        if let Some(claim) = state.world.offer(volume) {
            self.queue.add(Key::Claim(claim));
        }
    }

    async fn look(&self, key: Key) -> Result<Next, Failure> {
        let mut live = Live::Unread;
        let (step, volumes) = loop {
            match self.decide(&key, live) {
                Some(Look::Decided(step)) => {
                    let volumes = step.volumes();
                    break (step, volumes);
                }
                Some(Look::Ask(claim)) => {
                    live = Live::Read(self.context.client.claim(&claim).await?.map(Box::new));
                }
                None => return Ok(Next::Done),
            }
        };
        let Step { writes, notices, next, operation, refused } = step;
        let bound = writes.iter().any(|write| matches!(write, Write::Claim(_)));
        let result =
            write_all(&self.context.client, writes, |write, written| self.file(write, written)).await;
        self.ended(&key, &volumes, bound && result.is_ok());
        if result.is_err() {
            // The claim may be gone before its volume was written to; then nothing else tells of the volume.
            volumes.into_iter().for_each(|volume| self.queue.add(Key::Volume(volume)));
        }
        match result {
            Ok(()) => {}
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_not_found() => {
                return Ok(Next::Overtaken);
            }
            Err(error) => return Err(error.into()),
        }
        self.record(&notices);
        next.into_iter().for_each(|key| self.queue.add(key));
        if let Some(operation) = operation {
            Box::pin(self.operate(operation)).await?;
        }
        refused.map_or(Ok(Next::Done), |why| Err(Failure::Refused(why)))
    }

    /// Looks at an object and marks the volumes of the decision. `None`: it is gone, or another decision about one of
    /// the volumes is still being written; this one is looked at again then.
    fn decide(&self, key: &Key, live: Live) -> Option<Look> {
        let mut state = self.state.lock();
        let world = &mut state.world;
        let look = match key {
            Key::Claim(claim) => Look::Decided(sync_claim(world, world.claim(claim)?)),
            Key::Volume(name) => sync_volume(world, world.volumes.get(name)?, live),
        };
        match &look {
            Look::Decided(step) if !world.take(&step.volumes(), key) => None,
            _ => Some(look),
        }
    }

    /// Files an own write at once; the watch may take its time.
    fn file(&self, write: &Write, written: Written) {
        let mut state = self.state.lock();
        let world = &mut state.world;
        match written {
            // What the watch saw deleted must not come back.
            Written::Volume(volume) => {
                let known = world.volumes.get(&volume.name_any());
                if known.is_some_and(|known| known.uid() == volume.uid())
                    || matches!(write, Write::CreateVolume(_))
                {
                    world.volumes.put(Arc::new(*volume));
                }
            }
            Written::Claim(claim) => {
                if world.claim(&ClaimKey::of(&claim)).is_some_and(|known| known.uid() == claim.uid()) {
                    world.put_claim(Arc::new(*claim));
                }
            }
            Written::Gone => {}
        }
    }

    /// A look's writes have ended: others may write to its volumes.
    fn ended(&self, key: &Key, volumes: &[String], bound: bool) {
        let mut state = self.state.lock();
        for waiting in state.world.release(volumes) {
            self.queue.add(waiting);
        }
        for volume in volumes {
            self.offer(&mut state, volume);
        }
        if let Key::Claim(claim) = key
            && let Some(told) = state.world.heard(claim)
            && bound
            && !volumes.contains(&told)
        {
            self.offer(&mut state, &told);
        }
    }

    fn record(&self, notices: &[Notice]) {
        for Notice { about, warning, reason, message } in notices {
            if *warning {
                self.recorder.warning(about, reason, message);
            } else {
                self.recorder.normal(about, reason, message);
            }
        }
    }

    /// Runs an operation, unless its last failure was too recent.
    async fn operate(&self, operation: Operation) -> Result<(), Failure> {
        let key = operation.key();
        let paused = self.state.lock().pauses.get(&key).map(|(_, until)| *until);
        if let Some(until) = paused.filter(|until| *until > Instant::now()) {
            self.queue.add_after(key, until - Instant::now());
            return Ok(());
        }
        let outcome = Box::pin(operation::run(&self.context.client, operation)).await?;
        let again = outcome.again;
        if again {
            let mut state = self.state.lock();
            let failures = state.pauses.get(&key).map_or(0, |(failures, _)| *failures);
            let pause = FIRST_PAUSE.saturating_mul(1 << failures.min(16)).min(LONGEST_PAUSE);
            state.pauses.insert(key.clone(), (failures + 1, Instant::now() + pause));
            self.queue.add_after(key, pause);
        } else {
            self.state.lock().pauses.remove(&key);
        }
        let Step { writes, notices, .. } = outcome.step;
        write_all(&self.context.client, writes, |write, written| self.file(write, written)).await?;
        self.record(&notices);
        Ok(())
    }
}
