//! CSI drivers beside Orlop's own: what registers on a node gets all that sidecars would do for it.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use runtime::Context;
use sidecars::register::{Drivers, Endpoint};
use sidecars::{Driver, announce};
use tokio_util::sync::CancellationToken;

use super::node::Node;
use crate::driver::endpoint;

/// Pauses before a driver that does not answer is connected to again; connecting waits for it as well.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A driver that somebody runs beside Orlop, and the node that it serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Beside {
    node: Option<String>,
    socket: PathBuf,
}

impl Beside {
    /// Reads `[NODE=]unix:///PATH`.
    pub(super) fn parse(text: &str) -> Result<Beside, String> {
        let (node, socket) = match text.split_once('=') {
            Some((node, socket)) if !node.contains('/') => (Some(node.to_owned()), socket),
            _ => (None, text),
        };
        Ok(Beside { node, socket: endpoint(socket)? })
    }

    /// Enters drivers at their nodes; without a name it is the first. A driver may start later, so its socket need not be
    /// there yet.
    pub(super) fn deal(all: &[Beside], nodes: &mut [Node]) -> anyhow::Result<()> {
        for one in all {
            one.check()?;
            let named = |node: &&mut Node| one.node.as_ref().is_none_or(|name| node.name == *name);
            let node = nodes.iter_mut().find(named);
            ensure!(
                node.is_some(),
                "there is no node {} for the driver on {}; nodes are orlop-0, orlop-1 and so on, as many as --nodes says",
                one.node.as_deref().unwrap_or_default(),
                one.socket.display()
            );
            node.into_iter().for_each(|node| node.beside.push(one.socket.clone()));
        }
        Ok(())
    }
    /// Refuses what is there and is no socket.
    fn check(&self) -> anyhow::Result<()> {
        let path = self.socket.display();
        match std::fs::metadata(&self.socket) {
            Ok(found) if found.file_type().is_socket() => Ok(()),
            Ok(found) => anyhow::bail!(
                "--csi-driver {path} is a {}, not a unix socket; name the socket that the driver listens on",
                if found.is_dir() { "directory" } else { "file" }
            ),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => {
                Err(error).with_context(|| format!("--csi-driver {path} can't be a driver's socket"))
            }
        }
    }
}

/// Serves every driver but the node's own that registers on a node, for as long as it is registered, until the context's
/// shutdown.
pub(super) async fn serve_registered(
    context: Context,
    node: String,
    own: &str,
    registered: Drivers,
    immediate: bool,
) -> Result<(), Infallible> {
    let mut changed = registered.changed();
    let mut served: HashMap<String, (Arc<Endpoint>, CancellationToken)> = HashMap::new();
    loop {
        let now = changed.borrow_and_update().clone();
        // One that registered again may be another version of it.
        served.retain(|name, (endpoint, stop)| {
            let stays = now.get(name).is_some_and(|now| Arc::ptr_eq(now, endpoint));
            if !stays {
                stop.cancel();
            }
            stays
        });
        for (name, endpoint) in now {
            if name == own || served.contains_key(&name) {
                continue;
            }
            tracing::info!(node, driver = name, "serving a driver beside Orlop's own");
            let stop = context.shutdown.child_token();
            let context = context.until(stop.clone());
            let (node, socket) = (node.clone(), endpoint.socket.clone());
            let part = format!("sidecars of {name} on node {node}");
            context.parts.clone().spawn(part, async move {
                let shutdown = context.shutdown.clone();
                if let Some(driver) = shutdown.run_until_cancelled(connect(&socket)).await {
                    let options = sidecars::Options { immediate, ..sidecars::Options::new(node) };
                    Box::pin(sidecars::serve(context, driver, options)).await;
                }
            });
            served.insert(name, (endpoint, stop));
        }
        tokio::select! {
            () = context.shutdown.cancelled() => break,
            outcome = changed.changed() => if outcome.is_err() { break },
        }
    }
    Ok(())
}

/// Announces a driver on a node as soon as it answers, as node-driver-registrar does, until `shutdown`.
pub(super) async fn announce(
    node: Node,
    socket: PathBuf,
    shutdown: CancellationToken,
) -> Result<(), announce::AnnounceError> {
    let Some(driver) = shutdown.run_until_cancelled(connect(&socket)).await else { return Ok(()) };
    if driver.name() == node.driver.as_str() {
        tracing::error!(
            driver = driver.name(),
            socket = %socket.display(),
            "a driver beside Orlop's own has the same name, and is not used; give it another one"
        );
        shutdown.cancelled().await;
        return Ok(());
    }
    announce::run(&node.registry(), driver.name(), &socket, shutdown).await
}

/// Connects, however long the driver takes to come.
async fn connect(socket: &Path) -> Driver {
    let mut pause = FIRST_PAUSE;
    loop {
        match Driver::connect(socket).await {
            Ok(driver) => return driver,
            Err(error) => {
                let error = runtime::explain(&error);
                tracing::warn!(error, seconds = pause.as_secs(), "a driver can't be used yet, trying again");
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Where the drivers of a node can be reached now: our own, those that registered, and those that are run beside it.
pub(super) async fn reachable(node: &Node) -> BTreeMap<String, PathBuf> {
    let names = node.registered.names();
    let registered = names.iter().filter_map(|name| node.registered.get(name));
    let mut all: BTreeMap<_, _> =
        registered.map(|endpoint| (endpoint.name.clone(), endpoint.socket.clone())).collect();
    for socket in &node.beside {
        match Driver::connect(socket).await {
            Ok(driver) => _ = all.insert(driver.name().to_owned(), socket.clone()),
            Err(error) => {
                tracing::warn!(error = runtime::explain(&error), "its volumes are unmounted without it");
            }
        }
    }
    all.insert(node.driver.as_str().to_owned(), node.socket());
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_is_named_by_its_socket_and_node() {
        let beside = |node: Option<&str>, socket: &str| {
            Ok(Beside { node: node.map(str::to_owned), socket: socket.into() })
        };
        assert_eq!(Beside::parse("unix:///run/csi.sock"), beside(None, "/run/csi.sock"));
        assert_eq!(Beside::parse("/run/a=b.sock"), beside(None, "/run/a=b.sock"));
        assert_eq!(Beside::parse("orlop-1=unix:///run/csi.sock"), beside(Some("orlop-1"), "/run/csi.sock"));
        for wrong in ["", "orlop-1", "orlop-1=csi.sock", "tcp://127.0.0.1:1"] {
            assert!(Beside::parse(wrong).is_err_and(|why| why.contains("unix:///PATH")), "{wrong}");
        }
    }
}
