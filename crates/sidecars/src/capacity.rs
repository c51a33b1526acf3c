//! CSIStorageCapacity: how much room a driver has on this node, for the scheduler.
//!
//! One object for each class of the driver and this node's topology segment. It is read from the driver when
//! something may have changed it, and written only when it differs from what the API has.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use csi::v1::controller_service_capability::rpc;
use csi::v1::volume_capability::access_mode::Mode;
use csi::v1::volume_capability::{AccessMode, AccessType, MountVolume};
use csi::v1::{GetCapacityRequest, Topology, VolumeCapability};
use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::{CSIStorageCapacity, StorageClass};
use k8s_openapi::apimachinery::pkg::api::resource;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, ResourceExt};
use parking_lot::Mutex;
use resources::{annotations, claim, class, labels, reference};
use runtime::{Change, Context, Next, Queue, Recorder, update_if_changed, work};
use sha2::{Digest, Sha256};
use tokio::sync::{Notify, watch};
use tonic::{Response, Status};
use values::{Quantity, Segments};

use crate::Driver;
use crate::driver::{ASK, within};
use crate::place::Place;
use crate::provision;

/// Changes within this time are published together.
const GATHER: Duration = Duration::from_millis(50);
/// How often a driver is asked that can't say when its capacity changes.
const POLL: Duration = Duration::from_secs(60);

/// Says that a driver's capacity may have changed. Raising it never waits, and many raises may be seen as one.
#[derive(Clone, Debug, Default)]
pub struct Signal(Arc<Notify>);

impl Signal {
    /// A signal that was not raised.
    pub fn new() -> Signal {
        Signal::default()
    }

    /// Says that something may have changed.
    pub fn raise(&self) {
        self.0.notify_one();
    }

    async fn raised(&self) {
        self.0.notified().await;
    }
}

/// What to publish, and where.
#[derive(Clone, Debug)]
pub struct Options {
    /// The node; its Node object becomes the owner of what is published, and must exist before anything is.
    pub node: String,
    /// The namespace of the objects, which means nothing to the scheduler. What was published in another one goes.
    pub namespace: String,
    /// Whether classes whose claims bind at once are published, too. No scheduler asks for those; provisioners on several
    /// nodes draw lots by them.
    pub immediate: bool,
}

/// Why capacity is not published.
#[derive(Debug, thiserror::Error)]
pub enum CapacityError {
    /// The API refused or could not be reached.
    #[error("could not {action}")]
    Api {
        /// What was to be done, and with what.
        action: String,
        /// The refusal.
        source: kube::Error,
    },
    /// The driver refused.
    #[error("GetCapacity for the StorageClass {class}: {}", crate::driver::wording(status))]
    Driver {
        /// The class.
        class: String,
        /// The answer.
        status: Box<Status>,
    },
}

impl CapacityError {
    /// Whether the driver will say the same again: it can make nothing of the class.
    fn is_final(&self) -> bool {
        matches!(self, CapacityError::Driver { status, .. } if csi::final_error(status.code()))
    }
}

/// What a driver has for a class, in bytes.
struct Capacity {
    free: i64,
    largest: Option<i64>,
    /// Why nothing can be made of the class, if the driver says so.
    why_none: Option<String>,
}

/// Publishes for one driver on one node until the context's shutdown.
///
/// Capacity is read again when `signal` is raised, when `changes` announces a new value, and when classes change. A
/// driver without `changes` is also asked once a minute.
pub async fn run(
    context: Context,
    driver: Driver,
    options: Options,
    signal: Signal,
    changes: Option<watch::Receiver<u64>>,
) {
    if !driver.can(rpc::Type::GetCapacity) {
        tracing::info!(driver = driver.name(), "the driver can't say its capacity: none is published");
        return context.shutdown.cancelled().await;
    }
    let queue: Queue<Everything> = Queue::new("capacity", &context.metrics);
    let publisher = Arc::new(Publisher {
        recorder: context.recorder(driver.name(), &options.node),
        refused: Mutex::default(),
        place: Place::new(&context, &driver, &options.node),
        mark: mark(&options.node),
        polls: changes.is_none(),
        context: context.clone(),
        driver,
        options,
    });
    publisher.subscribe(&queue);
    let informers = &context.informers;
    let synced = async {
        tokio::join!(
            informers.classes().synced(),
            informers.capacities().synced(),
            informers.claims().synced(),
            publisher.place.synced(),
        )
    };
    if context.shutdown.run_until_cancelled(synced).await.is_none() {
        return;
    }
    queue.add(Everything);
    tokio::join!(
        listen(&context, &queue, &signal, changes),
        work(queue.clone(), 1, context.shutdown.clone(), |Everything| publisher.publish()),
    );
}

/// What all volumes of the class have in common: a file-system type, if it names one. A class that names it twice is
/// refused when a claim is looked at.
fn capabilities(class: &StorageClass) -> Vec<VolumeCapability> {
    let named =
        class.parameters.as_ref().and_then(|parameters| provision::fs_type(parameters).ok().flatten());
    let of_type = |fs_type| VolumeCapability {
        access_type: Some(AccessType::Mount(MountVolume { fs_type, ..MountVolume::default() })),
        access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter as i32 }),
    };
    named.map(of_type).into_iter().collect()
}

/// The one key: whatever happens, everything of this node is looked at, at most once in each moment.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Everything;

impl fmt::Display for Everything {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("everything")
    }
}

async fn listen(
    context: &Context,
    queue: &Queue<Everything>,
    signal: &Signal,
    changes: Option<watch::Receiver<u64>>,
) {
    let raised = async {
        loop {
            signal.raised().await;
            queue.add_after(Everything, GATHER);
        }
    };
    let changed = async {
        let Some(mut changes) = changes else { return };
        while changes.changed().await.is_ok() {
            queue.add_after(Everything, GATHER);
        }
    };
    context.shutdown.run_until_cancelled(async { tokio::join!(raised, changed) }).await;
}

struct Publisher {
    context: Context,
    driver: Driver,
    options: Options,
    place: Place,
    mark: String,
    polls: bool,
    recorder: Recorder,
    /// Classes that the driver can make nothing of, and what it says.
    refused: Mutex<BTreeMap<String, String>>,
}

impl Publisher {
    fn subscribe(self: &Arc<Self>, queue: &Queue<Everything>) {
        let this = self.clone();
        self.context.informers.claims().subscribe(move |change| {
            let Change::Applied { old: None, new } = change else { return };
            let why = this.refused.lock().get(claim::class(new)).cloned();
            if let Some(why) = why {
                this.tell_claim(new, &why);
            }
        });
        let (waker, driver) = (queue.clone(), self.driver.name().to_owned());
        self.context.informers.classes().subscribe(move |change| {
            let class = change.object();
            if class.provisioner == driver {
                waker.add_after(Everything, GATHER);
            }
        });
        let (waker, mark) = (queue.clone(), self.mark.clone());
        self.context.informers.capacities().subscribe(move |change| {
            if matches!(change, Change::Deleted(gone) if is_marked(gone, &mark)) {
                waker.add_after(Everything, GATHER);
            }
        });
        let (waker, node) = (queue.clone(), self.options.node.clone());
        self.context.informers.nodes().subscribe(move |change| {
            if matches!(change, Change::Applied { old: None, new } if new.metadata.name.as_ref() == Some(&node)) {
                waker.add_after(Everything, GATHER);
            }
        });
    }

    async fn publish(&self) -> Result<Next, CapacityError> {
        let informers = &self.context.informers;
        let next = if self.polls { Next::After(POLL) } else { Next::Done };
        // The node agent makes the Node object; its appearance brings us back.
        let Some(node) = informers.nodes().get("", &self.options.node) else { return Ok(next) };
        let (mut wanted, mut unanswered, mut failure) = (Vec::new(), BTreeSet::new(), None);
        for class in informers.classes().all() {
            let wanted_by_anyone = self.options.immediate || class::waits_for_consumer(&class);
            if class.provisioner == self.driver.name() && wanted_by_anyone {
                let answer = self.ask(&class).await;
                self.note_refusal(&class, &answer);
                match answer {
                    Ok(answer) => wanted.push(self.object(&node, &class, answer)),
                    Err(error @ CapacityError::Driver { .. }) if error.is_final() => {
                        // Nothing of it, and pods hear why.
                        let why_none = Some(csi::brief(&error.to_string()).to_owned());
                        let none = Capacity { free: 0, largest: Some(0), why_none };
                        wanted.push(self.object(&node, &class, none));
                        failure.get_or_insert(error);
                    }
                    // What is published of this class stays; the others don't wait for it.
                    Err(error) => {
                        unanswered.insert(class.name_any());
                        failure.get_or_insert(error);
                    }
                }
            }
        }
        let ours = informers.capacities().all().into_iter().filter(|one| {
            is_marked(one, &self.mark)
                && !unanswered.contains(&one.storage_class_name)
                && one.labels().get(labels::CAPACITY_DRIVER).map(String::as_str) == Some(self.driver.name())
        });
        self.write(differences(wanted, ours)).await?;
        failure.map_or(Ok(next), Err)
    }

    /// Tells the claims of a class that the driver can make nothing of it: no node will be chosen for them, so they would
    /// hear it from nobody else.
    fn note_refusal(&self, class: &StorageClass, answer: &Result<Capacity, CapacityError>) {
        let why = match answer {
            Err(error) if error.is_final() => error.to_string(),
            Err(_) => return,
            Ok(_) => {
                self.refused.lock().remove(&class.name_any());
                return;
            }
        };
        if self.refused.lock().insert(class.name_any(), why.clone()).as_ref() == Some(&why) {
            return;
        }
        for claim in self.context.informers.claims().all() {
            if claim::class(&claim) == class.name_any() {
                self.tell_claim(&claim, &why);
            }
        }
    }

    /// By one of the nodes that the driver is on.
    fn tell_claim(&self, of: &PersistentVolumeClaim, why: &str) {
        let is_ours = self.place.is_drawn(of.metadata.uid.as_deref(), |_| true);
        if is_ours && claim::volume_name(of).is_empty() && of.metadata.deletion_timestamp.is_none() {
            let class = claim::class(of);
            let message = format!("failed to provision volume with StorageClass \"{class}\": {why}");
            self.recorder.warning(&reference(of), "ProvisioningFailed", message);
        }
    }

    async fn ask(&self, class: &StorageClass) -> Result<Capacity, CapacityError> {
        let topology = Topology { segments: self.place.segments.clone() };
        let request = GetCapacityRequest {
            volume_capabilities: capabilities(class),
            parameters: provision::for_driver(class.parameters.as_ref()),
            accessible_topology: (!topology.segments.is_empty()).then_some(topology),
        };
        // Its metadata is wanted, too.
        let whole = async { self.driver.controller().get_capacity(request).await.map(Response::new) };
        let answer = within(ASK, whole)
            .await
            .map_err(|status| CapacityError::Driver { class: class.name_any(), status: Box::new(status) })?;
        let why_none = csi::why_none(answer.metadata());
        let answer = answer.into_inner();
        Ok(Capacity { free: answer.available_capacity, largest: answer.maximum_volume_size, why_none })
    }

    fn object(&self, node: &Node, class: &StorageClass, capacity: Capacity) -> CSIStorageCapacity {
        let class = class.name_any();
        CSIStorageCapacity {
            metadata: ObjectMeta {
                name: Some(name(self.driver.name(), &class, &self.place.segments)),
                namespace: Some(self.options.namespace.clone()),
                labels: Some(BTreeMap::from([
                    (labels::CAPACITY_DRIVER.to_owned(), self.driver.name().to_owned()),
                    (labels::CAPACITY_MANAGED_BY.to_owned(), self.mark.clone()),
                ])),
                annotations: capacity.why_none.map(|why| [(annotations::NO_CAPACITY.to_owned(), why)].into()),
                owner_references: Some(vec![resources::owner(node)]),
                ..ObjectMeta::default()
            },
            storage_class_name: class,
            node_topology: Some(LabelSelector {
                match_labels: Some(self.place.segments.clone()),
                match_expressions: None,
            }),
            capacity: Some(bytes(capacity.free)),
            maximum_volume_size: capacity.largest.map(bytes),
        }
    }

    async fn write(&self, differences: Vec<Difference>) -> Result<(), CapacityError> {
        for difference in differences {
            let object = difference.object();
            let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
            let api: Api<CSIStorageCapacity> = Api::namespaced(self.context.client.clone(), &namespace);
            let result = match difference {
                Difference::Missing(wanted) => api.create(&PostParams::default(), &wanted).await.map(drop),
                Difference::Outdated { present, wanted } => {
                    let renewed =
                        update_if_changed(&api, &present, |object| *object = wanted_over(object, *wanted));
                    renewed.await.map(drop)
                }
                Difference::Stale(present) => {
                    api.delete(&present.name_any(), &DeleteParams::default()).await.map(drop)
                }
            };
            match result {
                Err(kube::Error::Api(status)) if status.is_not_found() => {}
                result => result.map_err(|source| CapacityError::Api {
                    action: format!("publish the CSIStorageCapacity {name}"),
                    source,
                })?,
            }
        }
        Ok(())
    }
}

/// A write that is needed.
#[derive(Debug)]
enum Difference {
    Missing(Box<CSIStorageCapacity>),
    Outdated { present: Arc<CSIStorageCapacity>, wanted: Box<CSIStorageCapacity> },
    Stale(Arc<CSIStorageCapacity>),
}

impl Difference {
    /// What it is about.
    fn object(&self) -> &CSIStorageCapacity {
        match self {
            Difference::Missing(one) => one,
            Difference::Outdated { present, .. } => present,
            Difference::Stale(one) => one,
        }
    }
}

fn differences(
    wanted: Vec<CSIStorageCapacity>,
    present: impl Iterator<Item = Arc<CSIStorageCapacity>>,
) -> Vec<Difference> {
    let key = |one: &CSIStorageCapacity| (one.namespace(), one.name_any());
    let mut present: BTreeMap<_, _> = present.map(|one| (key(&one), one)).collect();
    let mut differences = Vec::new();
    for wanted in wanted {
        match present.remove(&key(&wanted)) {
            None => differences.push(Difference::Missing(Box::new(wanted))),
            Some(found) if wanted_over(&found, wanted.clone()) != *found => {
                differences.push(Difference::Outdated { present: found, wanted: Box::new(wanted) });
            }
            Some(_) => {}
        }
    }
    differences.extend(present.into_values().map(Difference::Stale));
    differences
}

/// An object as it is to be, with what the API server keeps in it.
fn wanted_over(present: &CSIStorageCapacity, wanted: CSIStorageCapacity) -> CSIStorageCapacity {
    let mut metadata = present.metadata.clone();
    metadata.labels.get_or_insert_default().extend(wanted.metadata.labels.unwrap_or_default());
    metadata.owner_references = wanted.metadata.owner_references;
    let mut others = metadata.annotations.unwrap_or_default();
    others.remove(annotations::NO_CAPACITY);
    others.extend(wanted.metadata.annotations.unwrap_or_default());
    metadata.annotations = Some(others).filter(|all| !all.is_empty());
    CSIStorageCapacity { metadata, ..wanted }
}

/// A name that stands for driver, class and segment, so that a restart finds its objects, and never makes two.
fn name(driver: &str, class: &str, segments: &Segments) -> String {
    let mut hash = Sha256::new().chain_update(driver).chain_update([0]).chain_update(class);
    for (key, value) in segments {
        hash = hash.chain_update([0]).chain_update(key).chain_update([0]).chain_update(value);
    }
    format!("csisc-{}", hex(&hash.finalize()[..10]))
}

/// The label value by which this node's objects are found again. Labels hold 63 bytes, node names up to 253.
fn mark(node: &str) -> String {
    let plain = format!("external-provisioner-{node}");
    if plain.len() <= 63 {
        plain
    } else {
        format!("external-provisioner-{}", hex(&Sha256::digest(node)[..16]))
    }
}

fn is_marked(capacity: &CSIStorageCapacity, mark: &str) -> bool {
    capacity.labels().get(labels::CAPACITY_MANAGED_BY).is_some_and(|value| value == mark)
}

fn bytes(count: i64) -> resource::Quantity {
    resource::Quantity(Quantity::from_bytes(u64::try_from(count).unwrap_or(0)).to_string())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(name: &str, capacity: &str) -> CSIStorageCapacity {
        CSIStorageCapacity {
            metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
            capacity: Some(resource::Quantity(capacity.to_owned())),
            ..CSIStorageCapacity::default()
        }
    }

    #[test]
    fn only_differences_are_written() {
        let mut same = object("same", "1Gi");
        same.metadata.resource_version = Some("7".to_owned());
        same.metadata.labels = Some([("kept".to_owned(), "yes".to_owned())].into());
        let present = [same, object("less", "2Gi"), object("gone", "1Gi")].map(Arc::new);
        let wanted = vec![object("same", "1Gi"), object("less", "1Gi"), object("new", "3Gi")];
        let found: Vec<_> = differences(wanted, present.into_iter())
            .iter()
            .map(|difference| {
                let kind = match difference {
                    Difference::Missing(_) => "missing",
                    Difference::Outdated { .. } => "outdated",
                    Difference::Stale(_) => "stale",
                };
                format!("{kind} {}", difference.object().name_any())
            })
            .collect();
        assert_eq!(found, ["outdated less", "missing new", "stale gone"]);
    }

    #[test]
    fn names_depend_on_driver_class_and_segment() {
        let segments = |node: &str| Segments::from([("node".to_owned(), node.to_owned())]);
        let names = [
            name("orlop.dev", "fast", &segments("n1")),
            name("orlop.dev", "fast", &segments("n2")),
            name("orlop.dev", "slow", &segments("n1")),
            name("other", "fast", &segments("n1")),
        ];
        assert_eq!(names.iter().collect::<std::collections::BTreeSet<_>>().len(), 4);
        assert_eq!(names[0], name("orlop.dev", "fast", &segments("n1")));
        assert!(mark(&"n".repeat(253)).len() <= 63);
    }
}
