//! What external-resizer does, node-locally: volumes that grow with their claims.
//!
//! A volume is this node's when its node affinity admits the node; of several such nodes with the driver, all draw the
//! same one. Decisions are pure ([`size`]), how far an expansion is stands in the claim's status
//! ([`resources::expansion`]), and the steps between the API and the driver are in [`expand`]. Growth that needs the node ends with the node agent.

mod expand;
mod size;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use csi::v1::controller_service_capability::rpc;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::Client;
use parking_lot::Mutex;
use resources::{claim, expansion};
use runtime::{Backoff, Change, Context, Informer, Key, Queue, Recorder, work};
use tonic::Status;

use self::size::{Ability, Remembered};
use crate::capacity::Signal;
use crate::place::Share;
use crate::provision::RequestError;
use crate::{Driver, SecretError};

/// Claims worked on at a time.
const CONCURRENCY: usize = 10;
/// Failing expansions are tried again after one second up to five minutes.
const BACKOFF: Backoff = Backoff { first: Duration::from_secs(1), cap: Duration::from_secs(300) };

/// Why a volume has not grown yet.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// The API refused or could not be reached.
    #[error("could not {action}")]
    Api {
        /// What was to be done, and with what.
        action: String,
        /// The refusal.
        source: kube::Error,
    },
    /// The driver refused, or did not answer.
    #[error("resize volume \"{volume}\" by resizer \"{resizer}\" failed: {}", crate::driver::wording(status))]
    Expand {
        /// The PersistentVolume.
        volume: String,
        /// The driver.
        resizer: String,
        /// The answer.
        status: Box<Status>,
    },
    /// A size that CSI has no number for.
    #[error("a size of {0} is too large; lower spec.resources.requests.storage")]
    Size(String),
    /// The volume's access modes.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The secret that the volume names.
    #[error(transparent)]
    Secret(#[from] SecretError),
}

/// Lets volumes of one driver on one node grow until the context's shutdown.
///
/// `signal` is raised after every volume that has grown.
pub async fn run(context: Context, driver: Driver, node: &str, signal: Signal) {
    let ability = match (driver.can(rpc::Type::ExpandVolume), driver.expands_on_node()) {
        (true, _) => Ability::Controller,
        (false, true) => Ability::Node,
        (false, false) => {
            tracing::info!(driver = driver.name(), "the driver's volumes do not grow: nothing to resize");
            return context.shutdown.cancelled().await;
        }
    };
    let resizer = Arc::new(Resizer::new(&context, driver, ability, node, signal));
    let queue: Queue<Key> = Queue::with_backoff("resize", &context.metrics, BACKOFF);
    resizer.subscribe(&queue);
    let synced = async { tokio::join!(resizer.share.synced(), resizer.pods.synced(),) };
    if context.shutdown.run_until_cancelled(synced).await.is_none() {
        return;
    }
    // What was seen before everything it depends on was there.
    resizer.share.claims.all().iter().for_each(|claim| queue_if_growing(&resizer, &queue, claim));
    work(queue, CONCURRENCY, context.shutdown.clone(), |key| resizer.reconcile(key)).await;
}

struct Resizer {
    client: Client,
    driver: Driver,
    ability: Ability,
    share: Arc<Share>,
    recorder: Recorder,
    signal: Signal,
    pods: Informer<Pod>,
    /// Of claims whose expansion failed.
    remembered: Mutex<HashMap<Key, Remembered>>,
}

impl Resizer {
    fn new(context: &Context, driver: Driver, ability: Ability, node: &str, signal: Signal) -> Resizer {
        Resizer {
            client: context.client.clone(),
            share: Arc::new(Share::new(context, &driver, node)),
            recorder: context.recorder(format!("external-resizer {}", driver.name()), node),
            driver,
            ability,
            signal,
            pods: context.informers.pods(),
            remembered: Mutex::default(),
        }
    }

    fn subscribe(self: &Arc<Self>, queue: &Queue<Key>) {
        let (this, claims) = (self.clone(), queue.clone());
        self.share.claims.subscribe(move |change| match change {
            Change::Applied { old, new } => {
                // The stages that the resizer itself writes decide nothing, or every retry would come at once.
                let decides = |claim: &PersistentVolumeClaim| {
                    (
                        claim::requested(claim).cloned(),
                        expansion::capacity(claim).cloned(),
                        claim::phase(claim).to_owned(),
                        expansion::stage(claim) == Some(expansion::Stage::NodeInfeasible),
                    )
                };
                if old.as_ref().is_none_or(|old| decides(old) != decides(new)) {
                    queue_if_growing(&this, &claims, new);
                }
            }
            Change::Deleted(claim) => {
                this.remembered.lock().remove(&Key::of(claim.as_ref()));
            }
        });
        let (this, claims) = (self.clone(), queue.clone());
        self.share.on_volume(move |claim| queue_if_growing(&this, &claims, claim));
        self.share.draw_again(queue);
        // A pod that ends may be what an offline expansion waits for.
        let (this, claims) = (self.clone(), queue.clone());
        self.pods.subscribe(move |change| {
            let remembered = this.remembered.lock();
            if remembered.is_empty() {
                return;
            }
            for key in claims_of(change.object()) {
                if remembered.get(&key).is_some_and(|one| one.offline_only) && !this.is_used(&key) {
                    claims.add(key);
                }
            }
        });
    }

    /// Whether a pod that has not ended uses the claim.
    fn is_used(&self, key: &Key) -> bool {
        self.pods.in_namespace(&key.namespace).iter().any(|pod| {
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            !matches!(phase, Some("Succeeded" | "Failed")) && claims_of(pod).any(|claim| claim == *key)
        })
    }
}

/// Queues a claim that asks for another size than it has, or whose expansion may have ended; with many nodes in a
/// process, every change of a claim is seen by all of them.
fn queue_if_growing(resizer: &Resizer, queue: &Queue<Key>, claim: &PersistentVolumeClaim) {
    let asks = claim::requested(claim) != expansion::capacity(claim);
    let was_tried = claim.status.as_ref().is_some_and(|status| status.allocated_resources.is_some());
    if claim::phase(claim) == "Bound" && (asks || was_tried) && resizer.share.volume_of(claim).is_some() {
        queue.add(Key::of(claim));
    }
}

/// The claims that a pod uses.
fn claims_of(pod: &Pod) -> impl Iterator<Item = Key> {
    let pod_name = pod.metadata.name.as_deref().unwrap_or_default();
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    volumes.iter().filter_map(move |volume| {
        let name = match (&volume.persistent_volume_claim, &volume.ephemeral) {
            (Some(source), _) => source.claim_name.clone(),
            (None, Some(_)) => format!("{pod_name}-{}", volume.name),
            (None, None) => return None,
        };
        Some(Key { namespace: pod.metadata.namespace.clone().unwrap_or_default(), name })
    })
}
