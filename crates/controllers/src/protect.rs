//! Finalizers that keep a claim until no pod uses it, a volume until it is not bound, and a VolumeAttributesClass until
//! no claim and no volume names it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use kube::api::ListParams;
use kube::{Api, Resource, ResourceExt};
use parking_lot::Mutex;
use resources::finalizers::{ATTRIBUTES_CLASS_PROTECTION, CLAIM_PROTECTION, VOLUME_PROTECTION};
use resources::{claim, fit, volume};
use runtime::{Change, Context, Next, Queue, update_if_changed};

use crate::bind::{ClaimKey, claims_of_pod};

/// Objects looked at side by side.
const CONCURRENCY: usize = 16;

/// What a look at an object's finalizer leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// Nothing to do.
    Keep,
    /// Put the finalizer on.
    Protect,
    /// Take it off: the object is going and nobody uses it.
    Release,
}

/// What to do about an object's protection.
pub fn guard(object: &impl Resource, finalizer: &str, in_use: bool) -> Guard {
    let protected = object.finalizers().iter().any(|name| name == finalizer);
    match (object.meta().deletion_timestamp.is_some(), protected) {
        (false, false) => Guard::Protect,
        (true, true) if !in_use => Guard::Release,
        _ => Guard::Keep,
    }
}

/// Whether a pod keeps a claim: it has a node, even if its containers have ended, until its object is gone. A generic
/// ephemeral volume keeps only the claim that was made for this pod, and not once the pod was shut down.
pub fn pod_uses(pod: &Pod, claim: &PersistentVolumeClaim) -> bool {
    let Some(spec) =
        pod.spec.as_ref().filter(|spec| spec.node_name.as_ref().is_some_and(|node| !node.is_empty()))
    else {
        return false;
    };
    let shut_down =
        pod.metadata.deletion_timestamp.is_some() && pod.metadata.deletion_grace_period_seconds == Some(0);
    let owned = || {
        claim
            .owner_references()
            .iter()
            .any(|owner| owner.controller == Some(true) && Some(&owner.uid) == pod.metadata.uid.as_ref())
    };
    pod.namespace() == claim.namespace()
        && spec.volumes.iter().flatten().any(|volume| {
            let its = claim::of_volume(pod, volume).is_some_and(|name| name == claim.name_any());
            its && (volume.persistent_volume_claim.is_some() || !shut_down && owned())
        })
}

type PodsByClaim = HashMap<ClaimKey, BTreeMap<String, Arc<Pod>>>;

/// Protects claims until the context is shut down.
pub async fn claims(context: Context) {
    let queue = Queue::<ClaimKey>::new("protect-claims", &context.metrics);
    let pods = Arc::new(Mutex::new(PodsByClaim::new()));
    let (claim_informer, pod_informer) = (context.informers.claims(), context.informers.pods());
    pod_informer.subscribe({
        let (queue, pods) = (queue.clone(), pods.clone());
        move |change| {
            let mut pods = pods.lock();
            for key in claims_of_pod(change.object()) {
                let users = pods.entry(key.clone()).or_default();
                match change {
                    Change::Applied { new, .. } => _ = users.insert(new.name_any(), Arc::clone(new)),
                    Change::Deleted(pod) => _ = users.remove(&pod.name_any()),
                }
                if users.is_empty() {
                    pods.remove(&key);
                }
                let ends = match change {
                    Change::Applied { new, .. } => new.metadata.deletion_timestamp.is_some(),
                    Change::Deleted(_) => true,
                };
                if ends {
                    queue.add(key);
                }
            }
        }
    });
    claim_informer.subscribe({
        let queue = queue.clone();
        move |change| {
            if let Change::Applied { new, .. } = change {
                queue.add(ClaimKey::of(new));
            }
        }
    });
    let synced = async { tokio::join!(claim_informer.synced(), pod_informer.synced()) };
    if context.shutdown.run_until_cancelled(synced).await.is_none() {
        return;
    }
    runtime::work(queue, CONCURRENCY, context.shutdown.clone(), |key| {
        let claim = claim_informer.get(&key.namespace, &key.name);
        let users: Vec<_> = pods.lock().get(&key).into_iter().flat_map(BTreeMap::values).cloned().collect();
        let context = &context;
        async move {
            let Some(claim) = claim else { return Ok(Next::Done) };
            let in_use = users.iter().any(|pod| pod_uses(pod, &claim));
            let guard = guard(&*claim, CLAIM_PROTECTION, in_use);
            // What the watch may not have told yet: a pod that was just given a node.
            if guard == Guard::Release {
                let pods = Api::<Pod>::namespaced(context.client.clone(), &key.namespace);
                if pods.list(&ListParams::default()).await?.iter().any(|pod| pod_uses(pod, &claim)) {
                    return Ok(Next::Done);
                }
            }
            let api = Api::namespaced(context.client.clone(), &key.namespace);
            write(&api, &*claim, CLAIM_PROTECTION, guard).await
        }
    })
    .await;
}

/// Protects volumes until the context is shut down.
pub async fn volumes(context: Context) {
    let queue = Queue::<String>::new("protect-volumes", &context.metrics);
    let informer = context.informers.volumes();
    informer.subscribe({
        let queue = queue.clone();
        move |change| {
            if let Change::Applied { new, .. } = change {
                queue.add(new.name_any());
            }
        }
    });
    if context.shutdown.run_until_cancelled(informer.synced()).await.is_none() {
        return;
    }
    runtime::work(queue, CONCURRENCY, context.shutdown.clone(), |name| {
        let volume = informer.get("", &name);
        let api = Api::<PersistentVolume>::all(context.client.clone());
        async move {
            let Some(volume) = volume else { return Ok(Next::Done) };
            let guard = guard(&*volume, VOLUME_PROTECTION, volume::phase(&volume) == "Bound");
            write(&api, &*volume, VOLUME_PROTECTION, guard).await
        }
    })
    .await;
}

/// How many claims and volumes name each VolumeAttributesClass.
type Namers = Mutex<HashMap<String, usize>>;

/// Protects VolumeAttributesClasses until the context is shut down. Nothing is read live before one is let go: a claim
/// may name a class that does not exist, so a claim that comes in that moment is as well off as one that comes later.
pub async fn attributes_classes(context: Context) {
    let queue = Queue::<String>::new("protect-attributes-classes", &context.metrics);
    let namers = Arc::new(Namers::default());
    let informers = &context.informers;
    let (claims, volumes, classes) =
        (informers.claims(), informers.volumes(), informers.of::<VolumeAttributesClass>());
    claims.subscribe({
        let (namers, queue) = (namers.clone(), queue.clone());
        move |change| recount(&namers, &queue, change, named_by_claim)
    });
    volumes.subscribe({
        let (namers, queue) = (namers.clone(), queue.clone());
        move |change| recount(&namers, &queue, change, named_by_volume)
    });
    classes.subscribe({
        let queue = queue.clone();
        move |change| {
            if let Change::Applied { new, .. } = change {
                queue.add(new.name_any());
            }
        }
    });
    let synced = async { tokio::join!(claims.synced(), volumes.synced(), classes.synced()) };
    if context.shutdown.run_until_cancelled(synced).await.is_none() {
        return;
    }
    runtime::work(queue, CONCURRENCY, context.shutdown.clone(), |name| {
        let class = classes.get("", &name);
        let api = Api::<VolumeAttributesClass>::all(context.client.clone());
        let in_use = namers.lock().contains_key(&name);
        async move {
            let Some(class) = class else { return Ok(Next::Done) };
            let guard = guard(&*class, ATTRIBUTES_CLASS_PROTECTION, in_use);
            write(&api, &*class, ATTRIBUTES_CLASS_PROTECTION, guard).await
        }
    })
    .await;
}

/// The class that a claim wants, the one that its volume has, and the one that its volume is being changed to.
fn named_by_claim(claim: &PersistentVolumeClaim) -> BTreeSet<&str> {
    let status = claim.status.as_ref();
    let current = status.and_then(|status| status.current_volume_attributes_class_name.as_deref());
    let target = status.and_then(|status| status.modify_volume_status.as_ref());
    let target = target.and_then(|target| target.target_volume_attributes_class_name.as_deref());
    let named =
        [fit::attributes_class_of_claim(claim), current.unwrap_or_default(), target.unwrap_or_default()];
    named.into_iter().filter(|name| !name.is_empty()).collect()
}

fn named_by_volume(volume: &PersistentVolume) -> BTreeSet<&str> {
    [fit::attributes_class_of_volume(volume)].into_iter().filter(|name| !name.is_empty()).collect()
}

/// Counts what an object names now instead of what it named before, and queues the classes that nobody names any more.
fn recount<K>(
    namers: &Namers,
    queue: &Queue<String>,
    change: &Change<K>,
    named: impl Fn(&K) -> BTreeSet<&str>,
) {
    let (before, after) = match change {
        Change::Applied { old, new } => (old.as_deref().map(&named).unwrap_or_default(), named(new)),
        Change::Deleted(last) => (named(last), BTreeSet::new()),
    };
    let mut namers = namers.lock();
    for name in after.difference(&before) {
        *namers.entry((*name).to_owned()).or_default() += 1;
    }
    for name in before.difference(&after) {
        if let Some(count) = namers.get_mut(*name) {
            *count -= 1;
            if *count == 0 {
                namers.remove(*name);
                queue.add((*name).to_owned());
            }
        }
    }
}

async fn write<K>(api: &Api<K>, object: &K, finalizer: &str, guard: Guard) -> Result<Next, kube::Error>
where
    K: Resource + Clone + PartialEq + serde::Serialize + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let written = update_if_changed(api, object, |object| match guard {
        Guard::Keep => {}
        Guard::Protect => object.finalizers_mut().push(finalizer.to_owned()),
        Guard::Release => object.finalizers_mut().retain(|name| name != finalizer),
    });
    match written.await {
        Ok(_) => Ok(Next::Done),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(Next::Done),
        Err(kube::Error::Api(status)) if status.is_conflict() => Ok(Next::Overtaken),
        Err(error) => Err(error),
    }
}
