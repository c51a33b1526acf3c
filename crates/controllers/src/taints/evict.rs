//! Deletes pods that don't tolerate a `NoExecute` taint of their node, or have tolerated it long enough.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, Preconditions};
use kube::{Api, ResourceExt};
use parking_lot::Mutex;
use resources::{reference, taints};
use runtime::{Change, Context, Key, Next, Queue, Recorder};
use tokio::time::Instant;

use super::{Stay, stay};

/// Pods that are evicted side by side.
const CONCURRENCY: usize = 16;
/// kube-controller-manager's words, which people look for.
const REASON: &str = "TaintManagerEviction";

/// Why a pod could not be evicted.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("pod {0} could not be told that it is evicted: {1}")]
    Condition(Key, kube::Error),
    #[error("pod {0} could not be deleted: {1}")]
    Delete(Key, kube::Error),
}

/// Pods by node, and since when those with limited patience are beside a taint.
#[derive(Default)]
struct Known {
    on_node: HashMap<String, BTreeSet<Key>>,
    since: HashMap<Key, Instant>,
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|node| !node.is_empty())
}

/// Evicts pods until the context is shut down.
pub async fn run(context: Context) {
    let queue = Queue::<Key>::new("taint-eviction", &context.metrics);
    let known = Arc::<Mutex<Known>>::default();
    let (pods, nodes) = (context.informers.pods(), context.informers.nodes());
    pods.subscribe({
        let (queue, known) = (queue.clone(), known.clone());
        move |change| pod_changed(change, &mut known.lock(), &queue)
    });
    nodes.subscribe({
        let (queue, known) = (queue.clone(), known.clone());
        move |change| {
            let Change::Applied { old, new } = change else { return };
            if old.as_ref().map_or(&[][..], |old| taints::of(old)) != taints::of(new) {
                let known = known.lock();
                known
                    .on_node
                    .get(&new.name_any())
                    .into_iter()
                    .flatten()
                    .for_each(|pod| queue.add(pod.clone()));
            }
        }
    });
    let synced = async { tokio::join!(pods.synced(), nodes.synced()) };
    if context.shutdown.run_until_cancelled(synced).await.is_none() {
        return;
    }
    let recorder = context.recorder("taint-eviction-controller", "");
    runtime::work(queue, CONCURRENCY, context.shutdown.clone(), |key| {
        let pod = pods.get(&key.namespace, &key.name).filter(|pod| pod.metadata.deletion_timestamp.is_none());
        let node = pod.as_deref().and_then(node_of).and_then(|node| nodes.get("", node));
        let (api, recorder, known) =
            (Api::namespaced(context.client.clone(), &key.namespace), &recorder, &known);
        async move {
            let (Some(pod), Some(node)) = (pod, node) else { return Ok(Next::Done) };
            let due = due(&key, &pod, &node, &mut known.lock(), recorder);
            if let Some(next) = due {
                return Ok(next);
            }
            evict(&api, &key, &pod, recorder).await
        }
    })
    .await;
}

fn pod_changed(change: &Change<Pod>, known: &mut Known, queue: &Queue<Key>) {
    let key = Key::of(&**change.object());
    match change {
        Change::Applied { old, new } => {
            let Some(node) = node_of(new) else { return };
            known.on_node.entry(node.to_owned()).or_default().insert(key.clone());
            let same = |old: &Arc<Pod>| {
                node_of(old) == Some(node) && taints::tolerations(old) == taints::tolerations(new)
            };
            if !old.as_ref().is_some_and(same) {
                queue.add(key);
            }
        }
        Change::Deleted(pod) => {
            known.since.remove(&key);
            if let Some(node) = node_of(pod)
                && let Some(pods) = known.on_node.get_mut(node)
            {
                pods.remove(&key);
                if pods.is_empty() {
                    known.on_node.remove(node);
                }
            }
        }
    }
}

/// `None`: the pod must go now.
fn due(key: &Key, pod: &Pod, node: &Node, known: &mut Known, recorder: &Recorder) -> Option<Next> {
    let Stay::For(patience) = stay(taints::of(node), taints::tolerations(pod)) else {
        if known.since.remove(key).is_some() {
            recorder.normal(&reference(pod), REASON, format!("Cancelling deletion of Pod {key}"));
        }
        return Some(Next::Done);
    };
    let since = *known.since.entry(key.clone()).or_insert_with(Instant::now);
    let left = patience.saturating_sub(since.elapsed());
    (!left.is_zero()).then_some(Next::After(left))
}

async fn evict(api: &Api<Pod>, key: &Key, pod: &Pod, recorder: &Recorder) -> Result<Next, Failure> {
    let told = runtime::update_status_if_changed(api, pod, |pod| {
        let message = "Taint manager: deleting due to NoExecute taint";
        resources::pod::target_of_disruption(pod, "DeletionByTaintManager", message, Time(clock::now()));
    });
    match told.await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.is_not_found() => return Ok(Next::Done),
        Err(kube::Error::Api(status)) if status.is_conflict() => return Ok(Next::Overtaken),
        Err(error) => return Err(Failure::Condition(key.clone(), error)),
    }
    let preconditions = Preconditions { uid: pod.uid(), resource_version: None };
    match api.delete(&key.name, &DeleteParams::default().preconditions(preconditions)).await {
        Ok(_) => {
            recorder.normal(&reference(pod), REASON, format!("Marking for deletion Pod {key}"));
            Ok(Next::Done)
        }
        Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(Next::Done),
        Err(error) => Err(Failure::Delete(key.clone(), error)),
    }
}
