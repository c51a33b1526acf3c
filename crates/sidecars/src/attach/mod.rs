//! What external-attacher does: volumes made available to nodes by the driver's controller service.
//!
//! An attachment is this node's when it is for this node; one for a node without the driver goes to a node that can
//! reach the volume, all of which draw the same one. Decisions are pure ([`plan`]); the steps between the API and the
//! driver are in [`publish`]. Before ControllerPublishVolume a finalizer on the attachment and on the volume and the
//! node's id on the attachment are written: that is all that a later ControllerUnpublishVolume needs, whoever makes it,
//! and even if the node's objects are gone by then.

mod plan;
mod publish;
mod verify;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use csi::v1::controller_service_capability::rpc;
use k8s_openapi::api::core::v1::PersistentVolume;
use k8s_openapi::api::storage::v1::{CSINode, VolumeAttachment};
use kube::{Api, ResourceExt};
use parking_lot::Mutex;
use resources::{attachment, finalizers};
use runtime::{Backoff, Change, Context, Informer, Next, Queue, work};
use tonic::Status;

use self::plan::Plan;
pub use self::plan::UnfitVolume;
use crate::place::Place;
use crate::{Driver, SecretError};

/// Attachments worked on at a time.
const CONCURRENCY: usize = 10;
/// Failing attachments are tried again after one second up to five minutes.
const BACKOFF: Backoff = Backoff { first: Duration::from_secs(1), cap: Duration::from_secs(300) };

/// Why a volume is not attached, or still is.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The API refused or could not be reached.
    #[error("could not {action}")]
    Api {
        /// What was to be done, and with what.
        action: String,
        /// The refusal.
        source: kube::Error,
    },
    /// The volume's object.
    #[error(transparent)]
    Volume(#[from] UnfitVolume),
    /// The driver does not know the node, or the node has not said what the driver calls it.
    #[error("the CSINode {node} does not name the driver {driver}; start the driver on that node")]
    NoNodeId {
        /// The node.
        node: String,
        /// The driver.
        driver: String,
    },
    /// The secret that the volume names.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The driver refused, or did not answer.
    #[error("{}", crate::driver::wording(status))]
    Driver {
        /// The answer.
        status: Box<Status>,
    },
}

/// What is looked at at once.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Attachment(String),
    /// A PersistentVolume that is being deleted.
    Volume(String),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Attachment(name) => write!(f, "attachment {name}"),
            Key::Volume(name) => write!(f, "volume {name}"),
        }
    }
}

/// Attaches for one driver until the context's shutdown, from the node on which the driver serves.
pub async fn run(context: Context, driver: Driver, node: &str) {
    let publishes = driver.can(rpc::Type::PublishUnpublishVolume);
    let verifies =
        driver.can(rpc::Type::ListVolumes) && driver.can(rpc::Type::ListVolumesPublishedNodes) && publishes;
    let queue = Queue::<Key>::with_backoff("attach", &context.metrics, BACKOFF);
    let attacher = Arc::new(Attacher {
        context: context.clone(),
        place: Place::new(&context, &driver, node),
        finalizer: finalizers::attacher(driver.name()),
        driver,
        publishes,
        api: Api::all(context.client.clone()),
        volumes_api: Api::all(context.client.clone()),
        attachments: context.informers.attachments(),
        volumes: context.informers.volumes(),
        csi_nodes: context.informers.csi_nodes(),
        by_volume: Mutex::default(),
        doubted: Mutex::default(),
    });
    attacher.subscribe(&queue);
    let synced = async {
        tokio::join!(attacher.attachments.synced(), attacher.volumes.synced(), attacher.place.synced(),)
    };
    if context.shutdown.run_until_cancelled(synced).await.is_none() {
        return;
    }
    let verify = async {
        if verifies {
            let _ = context.shutdown.run_until_cancelled(attacher.verify(&queue)).await;
        }
    };
    let reconcile = async |key| match key {
        Key::Attachment(name) => attacher.reconcile(&name).await,
        Key::Volume(name) => attacher.let_go(&name).await,
    };
    tokio::join!(work(queue.clone(), CONCURRENCY, context.shutdown.clone(), reconcile), verify);
}

struct Attacher {
    context: Context,
    driver: Driver,
    place: Place,
    finalizer: String,
    /// The driver attaches; for one that does not, an attachment is a formality.
    publishes: bool,
    api: Api<VolumeAttachment>,
    volumes_api: Api<PersistentVolume>,
    attachments: Informer<VolumeAttachment>,
    volumes: Informer<PersistentVolume>,
    csi_nodes: Informer<CSINode>,
    /// Attachments by PersistentVolume.
    by_volume: Mutex<HashMap<String, BTreeSet<String>>>,
    /// Attachments that the driver does not list as such.
    doubted: Mutex<HashSet<String>>,
}

impl Attacher {
    fn subscribe(self: &Arc<Self>, queue: &Queue<Key>) {
        let (this, wake) = (self.clone(), queue.clone());
        self.attachments.subscribe(move |change| {
            let object = change.object();
            let (name, volume) = (object.name_any(), attachment::volume(object).map(str::to_owned));
            if let Some(volume) = volume {
                let mut by_volume = this.by_volume.lock();
                let names = by_volume.entry(volume.clone()).or_default();
                match change {
                    Change::Applied { .. } => _ = names.insert(name.clone()),
                    Change::Deleted(_) => _ = names.remove(&name),
                }
                if names.is_empty() {
                    by_volume.remove(&volume);
                    wake.add(Key::Volume(volume));
                }
            }
            let Change::Applied { old, new } = change else { return };
            // What the attacher itself writes decides nothing, or every retry would come at once.
            let decides = |one: &VolumeAttachment| {
                (one.metadata.deletion_timestamp.is_some(), attachment::is_attached(one))
            };
            if new.spec.attacher == this.driver.name()
                && old.as_ref().is_none_or(|old| decides(old) != decides(new))
            {
                wake.add(Key::Attachment(name));
            }
        });
        // A volume may be seen after its attachment.
        let (this, wake) = (self.clone(), queue.clone());
        self.volumes.subscribe(move |change| {
            let Change::Applied { old, new } = change else { return };
            if old.is_none() {
                let waiting = this.by_volume.lock().get(&new.name_any()).cloned().unwrap_or_default();
                waiting.into_iter().for_each(|name| wake.add(Key::Attachment(name)));
            }
            if new.metadata.deletion_timestamp.is_some() {
                wake.add(Key::Volume(new.name_any()));
            }
        });
        // So may the node's id, and who takes care of what depends on where the driver is.
        let (this, wake) = (self.clone(), queue.clone());
        self.place.on_change(move || {
            let unsettled = this.attachments.all().into_iter().filter(|one| this.plan(one) != Plan::Nothing);
            unsettled.for_each(|one| wake.add(Key::Attachment(one.name_any())));
            let going =
                this.volumes.all().into_iter().filter(|one| one.metadata.deletion_timestamp.is_some());
            going.for_each(|one| wake.add(Key::Volume(one.name_any())));
        });
    }

    fn plan(&self, object: &VolumeAttachment) -> Plan {
        let doubted = self.doubted.lock().contains(&object.name_any());
        plan::plan(object, self.driver.name(), &self.finalizer, self.publishes, doubted)
    }

    /// Whether this node takes care of an attachment.
    fn is_ours(&self, object: &VolumeAttachment, volume: Option<&PersistentVolume>) -> bool {
        let node = object.spec.node_name.as_str();
        let here = self.place.node.as_str();
        let has_driver = |name: &str| {
            self.csi_nodes.get("", name).is_some_and(|node| node_id(&node, self.driver.name()).is_some())
        };
        node == here || (!has_driver(node) && self.wins(object.metadata.uid.as_deref(), volume))
    }

    /// Whether this node is drawn, of all nodes with the driver, and of those that can reach the volume if any can.
    fn wins(&self, uid: Option<&str>, volume: Option<&PersistentVolume>) -> bool {
        let here = self.place.node.as_str();
        let others = self.place.others();
        let all = || others.iter().map(String::as_str).chain([here]);
        let reach = all().filter(|node| volume.is_none_or(|volume| self.place.admits(volume, node)));
        self.place.draw(uid, reach).or_else(|| self.place.draw(uid, all())) == Some(here)
    }

    async fn reconcile(&self, name: &str) -> Result<Next, AttachError> {
        let Some(object) = self.attachments.get("", name) else {
            self.doubted.lock().remove(name);
            return Ok(Next::Done);
        };
        let volume = attachment::volume(&object).and_then(|name| self.volumes.get("", name));
        let plan = self.plan(&object);
        if plan == Plan::Nothing || !self.is_ours(&object, volume.as_deref()) {
            return Ok(Next::Done);
        }
        match plan {
            Plan::Nothing => Ok(Next::Done),
            Plan::Confirm => self.attached(&object, Default::default()).await,
            Plan::Publish => Box::pin(self.publish(&object, volume.as_deref())).await,
            Plan::Unpublish => Box::pin(self.unpublish(&object, volume.as_deref())).await,
            Plan::Release => self.release(&object).await,
        }
    }
}

/// What the driver calls a node.
fn node_id<'a>(node: &'a CSINode, driver: &str) -> Option<&'a str> {
    let driver = node.spec.drivers.iter().find(|one| one.name == driver)?;
    Some(driver.node_id.as_str()).filter(|id| !id.is_empty())
}

fn api(action: String) -> impl FnOnce(kube::Error) -> AttachError {
    move |source| AttachError::Api { action, source }
}
