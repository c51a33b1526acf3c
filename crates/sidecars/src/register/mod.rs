//! The node's side of plugin registration: finds the sockets on which drivers announce themselves, and makes the
//! drivers known, to the node agent by [`Drivers`] and to the cluster by CSINode and Node.
//!
//! A registration follows from the existence of its socket file in `<node root>/plugins_registry`: the sockets are
//! the desired state, [`Registrar::registered`] the actual one, and one reconciliation per socket brings them
//! together. Unlike kubelet, which refuses a second socket for a driver until the first is gone, a newer socket takes
//! over at once, so that a driver can be updated without a gap; and the removal of the older socket then changes
//! nothing.

mod drivers;
mod node;
mod refresh;
mod sockets;
mod version;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use csi::registration::registration_client::RegistrationClient;
use csi::registration::{InfoRequest, PluginInfo, RegistrationStatus};
use csi::v1::node_client::NodeClient;
use csi::v1::{NodeGetInfoRequest, NodeGetInfoResponse};
use kube::{Client, ResourceExt};
use parking_lot::Mutex;
use runtime::{Backoff, Change, Context, Next, Queue, work};
use tokio::sync::watch;
use tonic::Status;
use tonic::transport::Channel;

pub use self::drivers::{Drivers, Endpoint};
pub use self::node::NodeError;
use self::sockets::{Identity, Sockets};
pub use self::version::VersionError;
use crate::driver::{within, wording};

/// The plugin type that is served here. Device and DRA plugins are others' business.
pub const PLUGIN_TYPE: &str = "CSIPlugin";
/// The directory of registration sockets under the node root.
pub const REGISTRY: &str = "plugins_registry";

const CONCURRENCY: usize = 4;
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(500), cap: Duration::from_secs(122) };
/// Patience with a socket that appeared but is not served yet; a stale one costs as much, once per retry.
const DIAL: Duration = Duration::from_secs(1);
const GET_INFO: Duration = Duration::from_secs(1);
const NOTIFY: Duration = Duration::from_secs(5);
const NODE_GET_INFO: Duration = Duration::from_secs(120);

/// Why drivers can't be looked for at all.
#[derive(Debug, thiserror::Error)]
#[error("can't watch the directory {}: {source}; check that it can be read and created", directory.display())]
pub struct WatchError {
    directory: PathBuf,
    source: io::Error,
}

/// Why a driver is not registered.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// Nobody serves its socket.
    #[error(transparent)]
    Connect(#[from] csi::ConnectError),
    /// It did not answer as a plugin must.
    #[error("{call} on {}: {}", socket.display(), wording(status))]
    Call {
        /// The call.
        call: &'static str,
        /// The socket.
        socket: PathBuf,
        /// The answer.
        status: Box<Status>,
    },
    /// It is no CSI driver.
    #[error("a plugin of type {0:?} is not supported here; only {PLUGIN_TYPE} is")]
    Type(String),
    /// It speaks no version that we do.
    #[error(transparent)]
    Version(#[from] VersionError),
    /// The node can't be told.
    #[error(transparent)]
    Node(#[from] NodeError),
}

/// Registers drivers of a node until the context's shutdown. Registrations outlive it: only a socket's removal ends one.
pub async fn run(context: Context, node: &str, root: &Path, drivers: Drivers) -> Result<(), WatchError> {
    let directory = root.join(REGISTRY);
    let failed = |source| WatchError { directory: directory.clone(), source };
    let mut sockets = Sockets::open(&directory).map_err(failed)?;
    let queue: Queue<Socket> = Queue::with_backoff("register", &context.metrics, BACKOFF);
    let registrar = Registrar {
        client: context.client.clone(),
        node: node.to_owned(),
        drivers,
        found: Mutex::default(),
        registered: Mutex::default(),
        commit: tokio::sync::Mutex::default(),
        queue: queue.clone(),
    };
    let watching = async {
        loop {
            match sockets.scan().await {
                Ok(found) => registrar.find(found),
                Err(error) => return error,
            }
            if let Err(error) = sockets.changed().await {
                return error;
            }
        }
    };
    let working = async {
        tokio::select! {
            biased;
            () = present(&context, node) => {}
            () = context.shutdown.cancelled() => return,
        }
        tokio::select! {
            biased;
            () = work(queue, CONCURRENCY, context.shutdown.clone(), |Socket(path)| registrar.reconcile(path)) => {}
            () = registrar.refresh(&context) => {}
        }
    };
    tokio::select! {
        biased;
        error = watching => Err(failed(error)),
        () = working => Ok(()),
    }
}

/// Ends when the Node is there, which its node agent makes: drivers are entered into it.
async fn present(context: &Context, node: &str) {
    let (name, (found, mut there)) = (node.to_owned(), watch::channel(false));
    context.informers.nodes().subscribe(move |change| {
        if matches!(change, Change::Applied { new, .. } if new.name_any() == name) {
            found.send_replace(true);
        }
    });
    let _ = there.wait_for(|there| *there).await;
}

/// A socket's path.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Socket(PathBuf);

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.display())
    }
}

struct Registrar {
    client: Client,
    node: String,
    drivers: Drivers,
    /// Sockets that exist.
    found: Mutex<BTreeMap<PathBuf, Identity>>,
    /// What was made of them.
    registered: Mutex<BTreeMap<PathBuf, Registration>>,
    /// Held while a driver's registration changes, so that two sockets of one driver take turns.
    commit: tokio::sync::Mutex<()>,
    queue: Queue<Socket>,
}

/// A socket that was dealt with. The driver is reached through the newest socket that names it.
#[derive(Clone)]
struct Registration {
    identity: Identity,
    driver: String,
}

impl Registrar {
    fn find(&self, found: BTreeMap<PathBuf, Identity>) {
        let before = std::mem::replace(&mut *self.found.lock(), found.clone());
        let appeared = found.iter().filter(|(path, identity)| before.get(*path) != Some(identity));
        let vanished = before.keys().filter(|path| !found.contains_key(*path));
        appeared.map(|(path, _)| path).chain(vanished).for_each(|path| self.queue.add(Socket(path.clone())));
    }

    async fn reconcile(&self, path: PathBuf) -> Result<Next, RegisterError> {
        let wanted = self.found.lock().get(&path).copied();
        let actual = self.registered.lock().get(&path).cloned();
        match (wanted, actual) {
            (Some(wanted), Some(actual)) if wanted == actual.identity => {}
            // A socket that was made anew is registered over the old registration: the driver never goes missing.
            (Some(wanted), actual) => {
                let driver = Box::pin(self.register(&path, wanted)).await?;
                if let Some(actual) = actual.filter(|actual| actual.driver != driver) {
                    self.unregister(&path, &actual.driver).await?;
                }
            }
            (None, Some(actual)) => {
                self.unregister(&path, &actual.driver).await?;
                self.registered.lock().remove(&path);
            }
            (None, None) => {}
        }
        Ok(Next::Done)
    }

    /// Registers what announces itself on a socket, and returns the driver's name.
    async fn register(&self, socket: &Path, identity: Identity) -> Result<String, RegisterError> {
        let channel = csi::connect_within(socket, DIAL).await?;
        let mut plugin = RegistrationClient::new(channel);
        let info = within(GET_INFO, plugin.get_info(InfoRequest {})).await;
        let info = info.map_err(|status| failed("GetInfo", socket, status))?;
        let registered = self.admit(socket, identity, &info).await;
        let status = RegistrationStatus {
            plugin_registered: registered.is_ok(),
            error: registered.as_ref().err().map(ToString::to_string).unwrap_or_default(),
        };
        let told = within(NOTIFY, plugin.notify_registration_status(status)).await;
        registered?;
        told.map_err(|status| failed("NotifyRegistrationStatus", socket, status))?;
        let registration = Registration { identity, driver: info.name.clone() };
        self.registered.lock().insert(socket.to_owned(), registration);
        Ok(info.name)
    }

    async fn admit(&self, socket: &Path, identity: Identity, info: &PluginInfo) -> Result<(), RegisterError> {
        if info.r#type != PLUGIN_TYPE {
            return Err(RegisterError::Type(info.r#type.clone()));
        }
        let version = version::choose(&info.supported_versions)?;
        let endpoint = if info.endpoint.is_empty() { socket } else { Path::new(&info.endpoint) };
        let channel = csi::connect_within(endpoint, DIAL).await?;
        let facts = self.ask(endpoint, channel).await?;
        let _turn = self.commit.lock().await;
        let newer = self.drivers.get(&info.name).filter(|known| known.registration != socket);
        if newer.is_some_and(|known| {
            known.identity > identity && self.found.lock().contains_key(&known.registration)
        }) {
            tracing::info!(driver = info.name, socket = %socket.display(), "a newer socket serves the driver");
            return Ok(());
        }
        node::announce(&self.client, &self.node, &info.name, &facts).await?;
        self.drivers.insert(Endpoint {
            name: info.name.clone(),
            socket: endpoint.to_owned(),
            version,
            node_id: facts.node_id,
            registration: socket.to_owned(),
            identity,
        });
        tracing::info!(driver = info.name, endpoint = %endpoint.display(), "driver registered");
        Ok(())
    }

    async fn ask(&self, endpoint: &Path, channel: Channel) -> Result<NodeGetInfoResponse, RegisterError> {
        let mut node = NodeClient::new(channel);
        let facts = within(NODE_GET_INFO, node.node_get_info(NodeGetInfoRequest {})).await;
        facts.map_err(|status| failed("NodeGetInfo", endpoint, status))
    }

    async fn unregister(&self, socket: &Path, driver: &str) -> Result<(), RegisterError> {
        let _turn = self.commit.lock().await;
        if self.drivers.get(driver).is_some_and(|known| known.registration == socket) {
            // An older socket that stood back serves the driver again.
            let others: Vec<PathBuf> = {
                let mut registered = self.registered.lock();
                let same = |(path, one): (&PathBuf, &Registration)| {
                    (one.driver == driver && path != socket).then(|| path.clone())
                };
                let others = registered.iter().filter_map(same).collect::<Vec<_>>();
                others.iter().for_each(|path| {
                    registered.remove(path);
                });
                others
            };
            if others.is_empty() {
                node::forget(&self.client, &self.node, driver).await?;
            }
            self.drivers.remove(driver);
            others.into_iter().for_each(|path| self.queue.add(Socket(path)));
            tracing::info!(driver, socket = %socket.display(), "driver unregistered");
        }
        Ok(())
    }
}

fn failed(call: &'static str, socket: &Path, status: Status) -> RegisterError {
    RegisterError::Call { call, socket: socket.to_owned(), status: Box::new(status) }
}
