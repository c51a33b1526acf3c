//! What external-resizer does for VolumeAttributesClasses, node-locally: volumes that change with their claims.
//!
//! As with sizes ([`crate::resize`]), a volume is this node's when its node affinity admits the node; of several such
//! nodes with the driver, all draw the same one. Decisions are pure ([`plan`]), how far a change is stands in the
//! claim's status ([`resources::modification`]), and the steps between the API and the driver are in [`apply`].

mod apply;
mod plan;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use csi::v1::controller_service_capability::rpc;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use kube::Client;
use parking_lot::Mutex;
use resources::{claim, fit, modification};
use runtime::{Backoff, Change, Context, Informer, Key, Queue, Recorder, work};
use tonic::Status;

use self::plan::Remembered;
use crate::place::Share;
use crate::{Driver, SecretError};

/// Claims worked on at a time.
const CONCURRENCY: usize = 10;
/// Failing changes are tried again after one second up to five minutes.
const BACKOFF: Backoff = Backoff { first: Duration::from_secs(1), cap: Duration::from_secs(300) };

/// Why a volume is not yet as its claim's VolumeAttributesClass says.
#[derive(Debug, thiserror::Error)]
pub enum ModifyError {
    /// The API refused or could not be reached.
    #[error("could not {action}")]
    Api {
        /// What was to be done, and with what.
        action: String,
        /// The refusal.
        source: kube::Error,
    },
    /// The driver refused, or did not answer.
    #[error("modify volume \"{volume}\" failed: {}", crate::driver::wording(status))]
    Modify {
        /// The PersistentVolume.
        volume: String,
        /// The answer.
        status: Box<Status>,
    },
    /// The class is for another driver.
    #[error(
        "the VolumeAttributesClass {class} is for the driver {driver}; name one for this volume's driver"
    )]
    Foreign {
        /// The class.
        class: String,
        /// Its driver.
        driver: String,
    },
    /// The secret that the volume names.
    #[error(transparent)]
    Secret(#[from] SecretError),
}

/// Changes volumes of one driver on one node, as their claims' VolumeAttributesClasses say, until the context's shutdown.
pub async fn run(context: Context, driver: Driver, node: &str) {
    if !driver.can(rpc::Type::ModifyVolume) {
        tracing::info!(driver = driver.name(), "the driver's volumes do not change: nothing to modify");
        return context.shutdown.cancelled().await;
    }
    let modifier = Arc::new(Modifier::new(&context, driver, node));
    let queue: Queue<Key> = Queue::with_backoff("modify", &context.metrics, BACKOFF);
    modifier.subscribe(&queue);
    let synced = async { tokio::join!(modifier.share.synced(), modifier.classes.synced(),) };
    if context.shutdown.run_until_cancelled(synced).await.is_none() {
        return;
    }
    // What was seen before everything it depends on was there.
    modifier.share.claims.all().iter().for_each(|claim| modifier.queue_if_changing(&queue, claim));
    work(queue, CONCURRENCY, context.shutdown.clone(), |key| modifier.reconcile(key)).await;
}

struct Modifier {
    client: Client,
    driver: Driver,
    share: Arc<Share>,
    recorder: Recorder,
    classes: Informer<VolumeAttributesClass>,
    /// Of claims whose change failed.
    remembered: Mutex<HashMap<Key, Remembered>>,
}

impl Modifier {
    fn new(context: &Context, driver: Driver, node: &str) -> Modifier {
        Modifier {
            client: context.client.clone(),
            share: Arc::new(Share::new(context, &driver, node)),
            recorder: context.recorder(format!("external-resizer {}", driver.name()), node),
            driver,
            classes: context.informers.of(),
            remembered: Mutex::default(),
        }
    }

    fn subscribe(self: &Arc<Self>, queue: &Queue<Key>) {
        let (this, claims) = (self.clone(), queue.clone());
        self.share.claims.subscribe(move |change| match change {
            Change::Applied { old, new } => {
                // What is written of a change under way decides nothing, or every retry would come at once.
                let decides = |claim: &PersistentVolumeClaim| {
                    let wanted = fit::attributes_class_of_claim(claim).to_owned();
                    (wanted, modification::current(claim).to_owned(), claim::phase(claim).to_owned())
                };
                if old.as_ref().is_none_or(|old| decides(old) != decides(new)) {
                    this.queue_if_changing(&claims, new);
                }
            }
            Change::Deleted(claim) => {
                this.remembered.lock().remove(&Key::of(claim.as_ref()));
            }
        });
        let (this, claims) = (self.clone(), queue.clone());
        self.share.on_volume(move |claim| this.queue_if_changing(&claims, claim));
        self.share.draw_again(queue);
        // A class may be what claims wait for.
        let (this, claims) = (self.clone(), queue.clone());
        self.classes.subscribe(move |change| {
            let Change::Applied { old: None, new: class } = change else { return };
            let name = class.metadata.name.as_deref().unwrap_or_default();
            let awaits = |claim: &Arc<PersistentVolumeClaim>| {
                fit::attributes_class_of_claim(claim) == name
                    || modification::under_way(claim).is_some_and(|(_, target)| target == name)
            };
            let all = this.share.claims.all();
            all.iter().filter(|claim| awaits(claim)).for_each(|claim| this.queue_if_changing(&claims, claim));
        });
    }

    /// Queues a claim that asks for another class than it has, or whose change is under way; with many nodes in a process,
    /// every change of a claim is seen by all of them.
    fn queue_if_changing(&self, queue: &Queue<Key>, claim: &PersistentVolumeClaim) {
        let wanted = fit::attributes_class_of_claim(claim);
        let asks = !wanted.is_empty() && wanted != modification::current(claim);
        let changing = asks || modification::under_way(claim).is_some();
        if changing && claim::phase(claim) == "Bound" && self.share.volume_of(claim).is_some() {
            queue.add(Key::of(claim));
        }
    }
}
