use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;

use super::sockets::Identity;

/// The drivers that are registered on a node, for the node agent to call.
#[derive(Clone, Debug, Default)]
pub struct Drivers(Arc<watch::Sender<BTreeMap<String, Arc<Endpoint>>>>);

/// A registered driver.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// The driver's name.
    pub name: String,
    /// Where it serves CSI.
    pub socket: PathBuf,
    /// The highest CSI version that both sides speak.
    pub version: String,
    /// What the driver calls this node.
    pub node_id: String,
    /// The socket that announced it.
    pub(super) registration: PathBuf,
    pub(super) identity: Identity,
}

impl Drivers {
    /// No driver yet.
    pub fn new() -> Drivers {
        Drivers::default()
    }

    /// A driver by its name.
    pub fn get(&self, name: &str) -> Option<Arc<Endpoint>> {
        self.0.borrow().get(name).cloned()
    }

    /// The names of all drivers.
    pub fn names(&self) -> Vec<String> {
        self.0.borrow().keys().cloned().collect()
    }

    /// Announces every change; the value is all drivers by name.
    pub fn changed(&self) -> watch::Receiver<BTreeMap<String, Arc<Endpoint>>> {
        self.0.subscribe()
    }

    pub(super) fn insert(&self, endpoint: Endpoint) {
        self.0.send_modify(|drivers| {
            drivers.insert(endpoint.name.clone(), Arc::new(endpoint));
        });
    }

    pub(super) fn remove(&self, name: &str) {
        self.0.send_if_modified(|drivers| drivers.remove(name).is_some());
    }
}
