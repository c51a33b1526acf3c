//! What external-provisioner does, node-locally: volumes for claims of this node, and their end.
//!
//! A claim is this node's when the scheduler selected the node for it, or when its class binds at once and the node
//! wins the draw ([`owner`]). A volume is this node's when its node affinity admits the node. Decisions are pure
//! ([`claim`], [`request`], [`volume`], [`release`]); the steps between the API and the driver are in [`create`] and
//! [`delete`]. Nothing is remembered in memory that a restart would need: see [`intent`].

mod claim;
mod create;
mod delete;
mod intent;
mod origin;
pub(crate) mod owner;
mod parameters;
mod release;
pub(crate) mod request;
mod source;
mod volume;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use csi::v1::controller_service_capability::rpc;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, SecretReference};
use k8s_openapi::api::storage::v1::{StorageClass, VolumeAttributesClass};
use kube::Client;
use parking_lot::Mutex;
use resources::source::Source;
use runtime::{Backoff, Change, Context, Informer, Key, Queue, Recorder, work};
use tonic::Status;

use self::origin::Unfinished;
pub use self::parameters::ParameterError;
pub(crate) use self::parameters::{for_driver, fs_type};
pub use self::request::RequestError;
pub use self::source::SourceError;
pub use self::volume::UnfitVolume;
use crate::Driver;
use crate::capacity::Signal;
use crate::place::{Lost, Place};
use crate::secret::{self, SecretError};

/// Claims worked on at a time, and volumes being deleted at a time.
const CONCURRENCY: usize = 32;
/// Failing claims and volumes are tried again after half a second up to five minutes.
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(500), cap: Duration::from_secs(300) };

/// How to provision on a node.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The node, as in `volume.kubernetes.io/selected-node`.
    pub node: String,
    /// Whether the driver is told the names of claim and volume, as `csi.storage.k8s.io/pvc/name` and so on. Only for
    /// drivers that accept parameters they don't know.
    pub extra_metadata: bool,
}

/// Why a claim has no volume yet, or a volume is still there.
#[derive(Debug, thiserror::Error)]
pub enum ProvisionError {
    /// The API refused or could not be reached.
    #[error("could not {action}")]
    Api {
        /// What was to be done, and with what.
        action: String,
        /// The refusal.
        source: kube::Error,
    },
    /// The claim or its class asks for something that can't be had.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The claim can't be filled from its data source.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The driver refused, or did not answer.
    #[error("CreateVolume {volume}: {}", crate::driver::wording(status))]
    Create {
        /// The volume's name.
        volume: String,
        /// The answer.
        status: Box<Status>,
    },
    /// The driver made something else.
    #[error(transparent)]
    Unfit(#[from] UnfitVolume),
    /// The driver refused, or did not answer.
    #[error("DeleteVolume {handle}: {}", crate::driver::wording(status))]
    Delete {
        /// The volume's id.
        handle: String,
        /// The answer.
        status: Box<Status>,
    },
    /// A PersistentVolume of the name exists that is somebody else's.
    #[error("the PersistentVolume {0} exists and belongs to another claim; delete or rename it")]
    NameTaken(String),
    /// An intent is recorded, and the class is gone.
    #[error(
        "a volume may exist for the claim, but its StorageClass {0:?} is gone; create the class again, or remove the \
         finalizer {finalizer} from the claim and look for the volume by hand",
        finalizer = resources::finalizers::PROVISIONING
    )]
    ClassGone(String),
    /// A volume is attached.
    #[error("the volume is still attached by {0}; it is deleted when that is gone")]
    Attached(String),
    /// The driver was asked for a volume, refused without the secret that it was asked with, and nobody wants it any more.
    #[error(
        "the secret for provisioning is gone, and without it the driver does not say whether it made {volume}: {}; look \
         for that volume by hand",
        crate::driver::wording(status)
    )]
    Unknown {
        /// The volume's name.
        volume: String,
        /// The answer.
        status: Box<Status>,
    },
    /// The binder says that the claim is gone, but it is not.
    #[error("the volume is Released, but its claim {0} exists; it is kept")]
    ClaimExists(Key),
    /// A secret that the class names.
    #[error(transparent)]
    Secret(#[from] SecretError),
}

/// Provisions for one driver on one node until the context's shutdown.
///
/// `signal` is raised after every volume made or deleted.
pub async fn run(context: Context, driver: Driver, options: Options, signal: Signal) {
    if !driver.can(rpc::Type::CreateDeleteVolume) {
        tracing::info!(driver = driver.name(), "the driver makes no volumes: nothing to provision");
        return context.shutdown.cancelled().await;
    }
    let provisioner = Arc::new(Provisioner::new(&context, driver, options, signal));
    let claims: Queue<Key> = Queue::with_backoff("provision", &context.metrics, BACKOFF);
    let volumes: Queue<Key> = Queue::with_backoff("delete-volume", &context.metrics, BACKOFF);
    let sources: Queue<Source> = Queue::with_backoff("release-sources", &context.metrics, BACKOFF);
    provisioner.follow_sources(&context, &claims, &sources);
    provisioner.subscribe(&context, &claims, &volumes);
    let informers = &context.informers;
    let synced = async {
        tokio::join!(
            provisioner.claims.synced(),
            provisioner.volumes.synced(),
            provisioner.classes.synced(),
            provisioner.attributes_classes.synced(),
            provisioner.place.synced(),
            informers.capacities().synced(),
            informers.attachments().synced(),
        )
    };
    if context.shutdown.run_until_cancelled(synced).await.is_none() {
        return;
    }
    tokio::join!(
        work(claims, CONCURRENCY, context.shutdown.clone(), |key| provisioner.reconcile_claim(key)),
        work(volumes, CONCURRENCY, context.shutdown.clone(), |key| provisioner.reconcile_volume(key)),
        work(sources, CONCURRENCY, context.shutdown.clone(), |source| provisioner.release_source(source)),
    );
}

struct Provisioner {
    client: Client,
    driver: Driver,
    options: Options,
    place: Place,
    recorder: Recorder,
    signal: Signal,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
    attributes_classes: Informer<VolumeAttributesClass>,
    context: Context,
    /// Claims that bind at once and that another node won: drawn for again when capacities change.
    lost: Mutex<HashSet<Key>>,
    /// Volumes that another node deletes.
    left_to_others: Lost,
    /// Names of the driver's volumes by their handles: by hand, one storage can be given several.
    handles: Mutex<HashMap<String, BTreeSet<String>>>,
    unfinished: Unfinished,
}

impl Provisioner {
    fn new(context: &Context, driver: Driver, options: Options, signal: Signal) -> Provisioner {
        Provisioner {
            client: context.client.clone(),
            place: Place::new(context, &driver, &options.node),
            recorder: context.recorder(driver.name(), &options.node),
            driver,
            options,
            signal,
            claims: context.informers.claims(),
            volumes: context.informers.volumes(),
            classes: context.informers.classes(),
            attributes_classes: context.informers.of(),
            context: context.clone(),
            lost: Mutex::default(),
            left_to_others: Lost::default(),
            handles: Mutex::default(),
            unfinished: Unfinished::default(),
        }
    }

    /// Fills the queues with what may concern this node, and nothing else: with many nodes in a process, every
    /// change of a claim is seen by all of them.
    fn subscribe(self: &Arc<Self>, context: &Context, claims: &Queue<Key>, volumes: &Queue<Key>) {
        let this = self.clone();
        self.volumes.subscribe(move |change| this.note_handle(change));
        let (this, queue) = (self.clone(), claims.clone());
        self.claims.subscribe(move |change| {
            if this.concerns(change) {
                queue.add(Key::of(change.object().as_ref()));
            }
        });
        // A claim may be seen before its class.
        let (this, queue) = (self.clone(), claims.clone());
        self.classes.subscribe(move |change| {
            let Change::Applied { old: None, new: class } = change else { return };
            if class.provisioner == this.driver.name() {
                let name = class.metadata.name.as_deref().unwrap_or_default();
                let of_class =
                    this.claims.all().into_iter().filter(|claim| resources::claim::class(claim) == name);
                of_class.for_each(|claim| queue.add(Key::of(claim.as_ref())));
            }
        });
        let (this, queue) = (self.clone(), claims.clone());
        self.attributes_classes.subscribe(move |change| {
            let Change::Applied { old: None, new: class } = change else { return };
            let name = class.metadata.name.as_deref().unwrap_or_default();
            let waiting = |claim: &Arc<PersistentVolumeClaim>| {
                resources::fit::attributes_class_of_claim(claim) == name
                    && resources::claim::volume_name(claim).is_empty()
            };
            this.claims
                .all()
                .iter()
                .filter(|claim| waiting(claim))
                .for_each(|claim| queue.add(Key::of(claim.as_ref())));
        });
        let draw_again = {
            let (this, queue) = (self.clone(), claims.clone());
            move || this.lost.lock().drain().for_each(|key| queue.add(key))
        };
        context.informers.capacities().subscribe({
            let draw_again = draw_again.clone();
            move |_| draw_again()
        });
        let (this, queue) = (self.clone(), volumes.clone());
        self.place.on_change(move || {
            draw_again();
            this.left_to_others.queue(&queue);
        });
        // A volume of an interrupted claim may be seen after the claim.
        let (this, claims, queue) = (self.clone(), claims.clone(), volumes.clone());
        self.volumes.subscribe(move |change| {
            let volume = change.object();
            if resources::volume::provisioned_by(volume) != Some(this.driver.name())
                || !this.place.has(volume)
            {
                return;
            }
            match change {
                Change::Applied { .. } => queue.add(Key::of(volume.as_ref())),
                Change::Deleted(_) => {
                    this.left_to_others.forget(&Key::of(volume.as_ref()));
                    let claim = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
                    if let Some((namespace, name)) =
                        claim.and_then(|one| one.namespace.clone().zip(one.name.clone()))
                    {
                        claims.add(Key { namespace, name });
                    }
                }
            }
        });
        let (this, queue) = (self.clone(), volumes.clone());
        context.informers.attachments().subscribe(move |change| {
            let Change::Deleted(attachment) = change else { return };
            if let Some(name) = &attachment.spec.source.persistent_volume_name
                && this.volumes.get("", name).is_some_and(|volume| this.place.has(&volume))
            {
                queue.add(Key { namespace: String::new(), name: name.clone() });
            }
        });
    }

    /// Whether a change of a claim may change the plan for it. Its own intent does not, or every retry would come at
    /// once instead of after its backoff.
    fn concerns(&self, change: &Change<PersistentVolumeClaim>) -> bool {
        let Change::Applied { old, new } = change else { return false };
        let mine = intent::is_held_by(new, self.holder())
            || match resources::claim::selected_node(new) {
                Some(node) => node == self.options.node,
                None => true,
            } && resources::claim::provisioner(new) == Some(self.driver.name())
                && resources::claim::volume_name(new).is_empty();
        let decides = |claim: &PersistentVolumeClaim| {
            (
                claim.metadata.deletion_timestamp.is_some(),
                resources::claim::provisioner(claim).map(str::to_owned),
                resources::claim::selected_node(claim).map(str::to_owned),
                resources::claim::volume_name(claim).to_owned(),
                resources::claim::phase(claim).to_owned(),
            )
        };
        mine && old.as_ref().is_none_or(|old| decides(old) != decides(new))
    }

    fn holder(&self) -> intent::Holder<'_> {
        intent::Holder { driver: self.driver.name(), node: &self.options.node }
    }

    async fn secret(
        &self,
        reference: Option<&SecretReference>,
    ) -> Result<BTreeMap<String, String>, ProvisionError> {
        Ok(secret::read(&self.client, reference).await?)
    }

    /// As [`secret`](Self::secret), for deleting.
    async fn secret_or_none(
        &self,
        reference: Option<&SecretReference>,
    ) -> Result<BTreeMap<String, String>, ProvisionError> {
        Ok(secret::read_or_none(&self.client, reference).await?)
    }
}
