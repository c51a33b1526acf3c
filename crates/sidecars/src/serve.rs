//! All that is done for a driver on a node, as one composition: roles choose the jobs, and nothing else.

use csi::v1::controller_service_capability::rpc::Type;
use futures::future::{BoxFuture, join_all};
use runtime::Context;
use tokio::sync::watch;

use crate::capacity::{self, Signal};
use crate::{Driver, attach, modify, provision, resize, snapshot};

/// What Kubernetes has a sidecar of its own for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// Volumes are made for claims and deleted, as by external-provisioner.
    Provision,
    /// Volumes are attached and detached, as by external-attacher.
    Attach,
    /// Volumes grow, as by external-resizer.
    Resize,
    /// Volumes change to another VolumeAttributesClass, as by external-resizer.
    Modify,
    /// Snapshots and groups of them are taken and deleted, as by external-snapshotter's sidecar.
    Snapshot,
    /// Free storage is published, as by external-provisioner with `--enable-capacity`.
    Capacity,
}

impl Job {
    /// All of them.
    pub const ALL: [Job; 6] =
        [Job::Provision, Job::Attach, Job::Resize, Job::Modify, Job::Snapshot, Job::Capacity];

    /// The name by which it is chosen.
    pub fn name(self) -> &'static str {
        match self {
            Job::Provision => "provision",
            Job::Attach => "attach",
            Job::Resize => "resize",
            Job::Modify => "modify",
            Job::Snapshot => "snapshot",
            Job::Capacity => "capacity",
        }
    }

    /// Whether a driver can be asked for it at all.
    pub fn is_for(self, driver: &Driver) -> bool {
        match self {
            Job::Provision => driver.can(Type::CreateDeleteVolume),
            // A driver that needs none is answered for.
            Job::Attach => true,
            Job::Resize => driver.can(Type::ExpandVolume) || driver.expands_on_node(),
            Job::Modify => driver.can(Type::ModifyVolume),
            Job::Snapshot => driver.can(Type::CreateDeleteSnapshot),
            Job::Capacity => driver.can(Type::GetCapacity),
        }
    }
}

/// How a driver is served.
#[derive(Clone, Debug)]
pub struct Options {
    /// The node whose claims, volumes and snapshots are its.
    pub node: String,
    /// What is done.
    pub jobs: Vec<Job>,
    /// Whether the driver is told the names of claims, volumes and snapshots.
    pub extra_metadata: bool,
    /// Changes when the driver's capacity does; a driver without is asked now and then.
    pub changes: Option<watch::Receiver<u64>>,
    /// The namespace of CSIStorageCapacity objects.
    pub capacity_namespace: String,
    /// Whether capacity is published for classes whose claims bind at once, too.
    pub immediate: bool,
}

impl Options {
    /// All jobs, as upstream's sidecars do them unless they are told otherwise.
    pub fn new(node: impl Into<String>) -> Options {
        Options {
            node: node.into(),
            jobs: Job::ALL.to_vec(),
            extra_metadata: false,
            changes: None,
            capacity_namespace: "default".to_owned(),
            immediate: false,
        }
    }
}

/// Does the chosen jobs for a driver on a node, until the context's shutdown.
pub async fn serve(context: Context, driver: Driver, options: Options) {
    let signal = Signal::new();
    let Options { node, jobs, extra_metadata, changes, capacity_namespace, immediate } = options;
    let work = jobs.into_iter().map(|job| -> BoxFuture<'_, ()> {
        let (context, driver, signal, node) = (context.clone(), driver.clone(), signal.clone(), node.clone());
        match job {
            Job::Provision => {
                Box::pin(provision::run(context, driver, provision::Options { node, extra_metadata }, signal))
            }
            Job::Attach => Box::pin(async move { attach::run(context, driver, &node).await }),
            Job::Resize => Box::pin(async move { resize::run(context, driver, &node, signal).await }),
            Job::Modify => Box::pin(async move { modify::run(context, driver, &node).await }),
            Job::Snapshot => {
                Box::pin(snapshot::run(context, driver, snapshot::Options { node, extra_metadata }, signal))
            }
            Job::Capacity => {
                let options = capacity::Options { node, namespace: capacity_namespace.clone(), immediate };
                Box::pin(capacity::run(context, driver, options, signal, changes.clone()))
            }
        }
    });
    join_all(work).await;
}
