//! The agent of a node from start to stop.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::{PersistentVolume, Pod};
use kube::Api;
use linux::{Files, Host, Kernel};
use resources::attachment;
use runtime::{Context, Informer, Queue, WatchConfig, work};
use tokio::sync::watch;

use crate::{
    agent::Agent,
    containers::oci,
    in_use::InUse,
    layout::Layout,
    leftovers, node,
    stats::{Stats, Watched},
    volumes::{csi::Csi, flex, stages},
};

/// Pods that are worked on at once. A driver that hangs holds one of these for each of its pods.
const CONCURRENCY: usize = 64;
/// kubelet's.
const ATTACH_PATIENCE: Duration = Duration::from_secs(123);
/// Volumes that grow at once.
const GROWTHS: usize = 4;

/// How a node agent is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name of the Node object.
    pub node_name: String,
    /// Labels of the Node object, beyond those that every node has.
    pub labels: std::collections::BTreeMap<String, String>,
    /// The node's address, which is its pods' address too.
    pub address: String,
    /// The node's root directory (kubelet: /var/lib/kubelet); made if absent, private to root.
    pub root: PathBuf,
    /// The OCI runtime; None takes the first of runc, crun and youki that is installed.
    pub runtime: Option<PathBuf>,
    /// Program and arguments that run [`container_monitor`](crate::container_monitor); an attempt's directory is
    /// appended.
    pub monitor: Vec<OsString>,
    /// Where FlexVolume drivers are (kubelet: `--volume-plugin-dir`).
    pub volume_plugins: PathBuf,
    /// Host directories that containers do not see, beside the node's root: the store, keys.
    pub hidden: Vec<PathBuf>,
    /// Bytes after which a container's log is rotated.
    pub log_size: u64,
    /// Log files kept per container.
    pub log_files: usize,
    /// How long a volume may wait for being attached before its pod is told.
    pub attach_patience: Duration,
    /// Where to tell how full volumes are.
    pub stats: Stats,
}

impl Options {
    /// The usual options of a node.
    pub fn new(node_name: impl Into<String>, root: impl Into<PathBuf>, monitor: Vec<OsString>) -> Options {
        Options {
            node_name: node_name.into(),
            labels: std::collections::BTreeMap::new(),
            address: "127.0.0.1".into(),
            root: root.into(),
            runtime: None,
            monitor,
            volume_plugins: flex::DIRECTORY.into(),
            hidden: Vec::new(),
            log_size: 10 << 20,
            log_files: 5,
            attach_patience: ATTACH_PATIENCE,
            stats: Stats::default(),
        }
    }
}

/// The CSI drivers that are registered on the node.
pub trait Drivers: Send + Sync + 'static {
    /// The socket of a driver.
    fn endpoint(&self, driver: &str) -> Option<PathBuf>;
    /// Changes whenever a driver comes or goes.
    fn changed(&self) -> watch::Receiver<u64>;
}

/// Why an agent can't work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The root directory can't be used.
    #[error("cannot use the node root {}: {}; it must be a directory on a local file system, and this must run as root", path.display(), linux::in_words(source))]
    Root {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel's boot id can't be read.
    #[error("cannot read /proc/sys/kernel/random/boot_id: {}; is /proc mounted?", linux::in_words(.0))]
    BootId(io::Error),
    /// The Node object can't be written.
    #[error("cannot register node {node}: {}", runtime::explain(source))]
    Node {
        /// The node.
        node: String,
        /// Why.
        source: kube::Error,
    },
}

/// Runs the agent of a node until `context.shutdown` is cancelled. Containers and mounts stay as they are then; see
/// [`teardown`](crate::teardown) for removing them.
///
/// # Errors
/// When it can't begin: the root directory is not usable, or the Node object can't be written.
pub async fn run(context: Context, mut options: Options, drivers: Arc<dyn Drivers>) -> Result<(), Error> {
    let root_error = |path: &Path, source| Error::Root { path: path.to_path_buf(), source };
    let made = make_root(&options.root).map_err(|source| root_error(&options.root, source))?;
    options.root = made;
    let boot_id = boot_id().map_err(Error::BootId)?;
    let host: Arc<dyn Host> = Arc::new(Kernel);
    let layout = Layout::new(&options.root);
    leftovers::sweep(&*host, &layout).map_err(|error| root_error(&options.root, io::Error::other(error)))?;
    let csi = Csi::open(host.clone(), layout, drivers.clone(), options.node_name.clone(), boot_id.clone())
        .map_err(|source| root_error(&options.root, source))?;
    let csi = Arc::new(csi);
    let mut attached = stages::attached(&csi.layout).map_err(|source| root_error(&options.root, source))?;
    // What a record does not tell is taken for being in use: nothing is detached that may be mounted.
    for (uid, name) in csi.stages.unread() {
        let volume = Api::<PersistentVolume>::all(context.client.clone()).get_opt(&name).await;
        if let Some(csi) = volume.ok().flatten().and_then(|volume| volume.spec?.csi) {
            let volume = attachment::status_name(&csi.driver, &csi.volume_handle);
            attached.entry(volume).or_default().insert((uid, name));
        }
    }
    let in_use = Arc::new(InUse::new(&context.client, &options.node_name, attached));
    let oci = oci::find(options.runtime.as_deref());
    if oci.is_none() {
        tracing::warn!(
            node = options.node_name,
            "no OCI runtime found: containers will not run; install runc"
        );
    }
    let storage =
        host.space(&options.root).map_err(|error| root_error(&options.root, io::Error::other(error)))?;
    let recorder = context.recorder("kubelet", &options.node_name);
    let queue = Queue::new("pods", &context.metrics);
    let growing = Queue::new("grow", &context.metrics);
    let agent = Arc::new(Agent::new(
        options.clone(),
        host,
        context.client.clone(),
        recorder,
        queue.clone(),
        growing.clone(),
        csi.clone(),
        in_use.clone(),
        boot_id,
        oci,
    ));

    let registration = node::Registration::new(&context.client, &options, in_use.clone(), storage.size);
    Box::pin(registration.register())
        .await
        .map_err(|source| Error::Node { node: options.node_name.clone(), source })?;

    let selector = WatchConfig::default().fields(&format!("spec.nodeName={}", options.node_name));
    let pods: Informer<Pod> = context.informers.select(selector);
    pods.subscribe({
        let agent = agent.clone();
        move |change| agent.notice(change)
    });
    // Nothing is started, stopped or unmounted before it is known what is wanted.
    tokio::select! {
        () = pods.synced() => {}
        () = context.shutdown.cancelled() => return Ok(()),
    }
    if let Err(error) = agent.remove_strays() {
        tracing::warn!(%error, "cannot remove what pods that are gone have left");
    }
    agent.wake_all().map_err(|error| root_error(&options.root, io::Error::other(error)))?;
    let claims = context.informers.claims();
    claims.subscribe({
        let agent = agent.clone();
        move |change| agent.notice_claim(change)
    });
    let watched = Arc::new(Watched {
        node: options.node_name.clone(),
        started: clock::now(),
        csi,
        pods,
        recorder: agent.recorder.clone(),
    });
    options.stats.of(&watched);
    let reconcile = |uid| agent.reconcile(uid);
    let grow = |claim| agent.grow(claim);
    tokio::join!(
        work(queue, CONCURRENCY, context.shutdown.clone(), reconcile),
        work(growing, GROWTHS, context.shutdown.clone(), grow),
        registration.keep(&context.shutdown),
        options.stats.keep(&context.shutdown),
        in_use.report(&context.shutdown),
        follow(&agent, drivers.changed(), &context.shutdown),
    );
    Ok(())
}

/// A driver that comes is what pods may be waiting for.
async fn follow(
    agent: &Agent,
    mut drivers: watch::Receiver<u64>,
    shutdown: &tokio_util::sync::CancellationToken,
) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = drivers.changed() => {
                if changed.is_err() {
                    return;
                }
                agent.csi.drivers_changed();
                if let Err(error) = agent.wake_all() {
                    tracing::warn!(%error, "cannot list the pods' directories");
                }
            }
        }
    }
}

fn make_root(root: &Path) -> io::Result<PathBuf> {
    let absolute = std::path::absolute(root)?;
    Kernel.make_directory(&absolute, 0o700).map_err(io::Error::other)?;
    let canonical = fs::canonicalize(&absolute)?;
    for name in ["pods", "plugins", "plugins_registry", "logs", "runtime"] {
        Kernel.make_directory(&canonical.join(name), 0o750).map_err(io::Error::other)?;
    }
    Ok(canonical)
}

pub(crate) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}
