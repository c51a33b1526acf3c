//! Claims that a populator fills: their data source is neither a snapshot nor a claim.
//!
//! A populator makes a claim of its own, fills that one's volume, and hands the volume over by changing its claimRef,
//! which the binder follows. What is left to do here is to say which claims nobody will ever fill: those whose kind of
//! source no populator registered, and those that are to be filled from each other. As the volume data source
//! validator of Kubernetes, this only ever records events.

mod judge;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::ResourceExt;
use parking_lot::Mutex;
use resources::populator::GroupKind;
use resources::source::{self, SourceKind};
use resources::{VolumePopulator, claim, populator, reference};
use runtime::{Change, Context, Informer, Key, Next, Queue};
use tokio::sync::Notify;

pub use judge::{Verdict, judge};

/// Claims looked at side by side.
const CONCURRENCY: usize = 4;
/// The pause after which a definition's kind is asked for again: it may be established a moment before it is served.
const PAUSE: Duration = Duration::from_millis(250);

/// The kinds of sources that are registered, how often each, and the claims that wait for one.
#[derive(Default)]
struct Registry {
    kinds: HashMap<GroupKind, BTreeSet<String>>,
    waiting: HashMap<GroupKind, BTreeSet<Key>>,
}

/// The kind that a claim waits to be filled from, if that takes a populator.
fn awaits(of: &PersistentVolumeClaim) -> Option<GroupKind> {
    match source::of(of)?.kind {
        SourceKind::Other { group, kind } if claim::volume_name(of).is_empty() => {
            Some(GroupKind { group, kind })
        }
        _ => None,
    }
}

/// Tells about claims that can't be filled, until the context is shut down.
pub async fn run(context: Context) {
    let queue = Queue::<Key>::new("populate", &context.metrics);
    let claims = context.informers.claims();
    if context.shutdown.run_until_cancelled(served(&context)).await.is_none() {
        return;
    }
    let populators = context.informers.of::<VolumePopulator>();
    let registry = Arc::new(Mutex::new(Registry::default()));
    let told = Arc::new(Mutex::new(HashMap::<String, Verdict>::new()));
    follow_populators(&populators, &registry, &queue);
    follow_claims(&claims, &registry, &told, &queue);
    let synced = async { tokio::join!(claims.synced(), populators.synced()) };
    if context.shutdown.run_until_cancelled(synced).await.is_none() {
        return;
    }
    let recorder = context.recorder("volume-data-source-validator", "");
    runtime::work(queue.clone(), CONCURRENCY, context.shutdown.clone(), |key| {
        if let Some(claim) = claims.get(&key.namespace, &key.name) {
            let is_registered = |kind: &GroupKind| registry.lock().kinds.contains_key(kind);
            let verdict = judge(&claim, &is_registered, &|namespace, name| claims.get(namespace, name));
            let uid = claim.uid().unwrap_or_default();
            let before = match &verdict {
                Verdict::Good => told.lock().remove(&uid),
                other => told.lock().insert(uid, other.clone()),
            };
            // Once, however often the claim is looked at; again if it was good meanwhile.
            if before.as_ref() != Some(&verdict)
                && let Some((reason, message)) = verdict.event()
            {
                recorder.warning(&reference(&*claim), reason, message);
                // The last claim of a circle closes it for those that came before.
                for (namespace, name) in verdict.others() {
                    queue.add(Key { namespace: namespace.to_owned(), name: name.to_owned() });
                }
            }
        }
        std::future::ready(Ok::<_, std::convert::Infallible>(Next::Done))
    })
    .await;
}

/// Waits until VolumePopulators are served: on a cluster without them nobody said that sources must be registered.
async fn served(context: &Context) {
    let changed = Arc::new(Notify::new());
    let definitions = context.informers.of::<CustomResourceDefinition>();
    definitions.subscribe({
        let changed = Arc::clone(&changed);
        move |change| {
            if change.object().spec.group == populator::GROUP {
                changed.notify_one();
            }
        }
    });
    loop {
        let api = kube::Api::<VolumePopulator>::all(context.client.clone());
        match api.list(&kube::api::ListParams::default().limit(1)).await {
            Ok(_) => return,
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            Err(error) => {
                tracing::debug!(error = runtime::explain(&error), "can't list volume populators yet")
            }
        }
        let name = format!("volumepopulators.{}", populator::GROUP);
        let is_defined = definitions.get("", &name).is_some();
        tokio::select! {
            biased;
            () = changed.notified() => {}
            () = tokio::time::sleep(PAUSE), if is_defined => {}
        }
    }
}

fn follow_populators(
    populators: &Informer<VolumePopulator>,
    registry: &Arc<Mutex<Registry>>,
    queue: &Queue<Key>,
) {
    let (registry, queue) = (Arc::clone(registry), queue.clone());
    populators.subscribe(move |change| {
        let mut registry = registry.lock();
        let name = change.object().name_any();
        let (old, new) = match change {
            Change::Applied { old, new } => (old.as_ref(), Some(new)),
            Change::Deleted(last) => (Some(last), None),
        };
        if let Some(kind) = old.map(|old| &old.source_kind)
            && let Some(names) = registry.kinds.get_mut(kind)
        {
            names.remove(&name);
            if names.is_empty() {
                registry.kinds.remove(kind);
            }
        }
        if let Some(new) = new {
            registry.kinds.entry(new.source_kind.clone()).or_default().insert(name);
        }
        for kind in old.into_iter().chain(new).map(|populator| &populator.source_kind) {
            registry.waiting.get(kind).into_iter().flatten().for_each(|key| queue.add(key.clone()));
        }
    });
}

fn follow_claims(
    claims: &Informer<PersistentVolumeClaim>,
    registry: &Arc<Mutex<Registry>>,
    told: &Arc<Mutex<HashMap<String, Verdict>>>,
    queue: &Queue<Key>,
) {
    let (registry, told, queue) = (Arc::clone(registry), Arc::clone(told), queue.clone());
    claims.subscribe(move |change| {
        let (old, new) = match change {
            Change::Applied { old, new } => (old.as_ref(), Some(new)),
            Change::Deleted(last) => (Some(last), None),
        };
        let key = Key::of(&**change.object());
        let mut registry = registry.lock();
        if let Some(kind) = old.and_then(|old| awaits(old))
            && let Some(keys) = registry.waiting.get_mut(&kind)
        {
            keys.remove(&key);
            if keys.is_empty() {
                registry.waiting.remove(&kind);
            }
        }
        if let Some(kind) = new.and_then(|new| awaits(new)) {
            registry.waiting.entry(kind).or_default().insert(key.clone());
        }
        match change {
            Change::Applied { new, .. } if source::of(new).is_some() => queue.add(key),
            Change::Applied { .. } => {}
            Change::Deleted(claim) => drop(told.lock().remove(&claim.uid().unwrap_or_default())),
        }
    });
}
