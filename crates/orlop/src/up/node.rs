//! One node: its driver, what the sidecars do for that driver, and its node agent.

use std::ffi::OsString;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use drives::Drives;
use runtime::Context;
use sidecars::capacity::{self, Signal};
use sidecars::register::{self, Drivers};
use sidecars::{Driver, announce, provision, resize, snapshot};
use tokio::sync::watch;

use super::mirror;
use super::tasks::Tasks;

/// Where CSIStorageCapacity objects are kept.
const CAPACITY_NAMESPACE: &str = "kube-system";

/// A node of this machine.
#[derive(Clone)]
pub(super) struct Node {
    pub(super) name: String,
    /// What its driver is called.
    pub(super) driver: driver::Name,
    /// The root of kubelet's directory layout.
    pub(super) root: PathBuf,
    pub(super) drives: Drives,
    /// Counts the calls of all nodes' drivers.
    pub(super) calls: driver::Calls,
    /// Host directories that its containers must not see.
    pub(super) hidden: Vec<PathBuf>,
    pub(super) registered: Drivers,
}

impl Node {
    fn socket(&self) -> PathBuf {
        self.root.join("plugins").join(self.driver.as_str()).join("csi.sock")
    }

    fn registry(&self) -> PathBuf {
        self.root.join(register::REGISTRY)
    }

    /// Serves the node's driver among `drivers`, which outlive the rest: tearing down calls them.
    pub(super) fn start_driver(&self, drivers: &mut Tasks) -> anyhow::Result<()> {
        let socket = self.socket();
        for directory in socket.parent().into_iter().chain([self.registry().as_path()]) {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
            made.with_context(|| format!("creating {}", directory.display()))?;
        }
        let node = self.clone();
        let shutdown = drivers.shutdown();
        drivers.spawn("driver", async move {
            let info = driver::NodeInfo {
                name: node.driver,
                node_id: node.name.clone(),
                segments: node.driver.segments(&node.name),
                max_volumes: None,
            };
            driver::serve(&socket, node.drives.clone(), info, node.calls.clone(), shutdown).await
        });
        Ok(())
    }

    /// Starts all else of the node.
    pub(super) fn start(&self, context: &Context, tasks: &mut Tasks) {
        let node = || (self.clone(), context.clone());
        tasks.spawn("plugin registration", {
            let (node, context) = node();
            async move { register::run(context, &node.name, &node.root, node.registered.clone()).await }
        });
        tasks.spawn("driver's announcement", {
            let (node, context) = node();
            async move {
                announce::run(&node.registry(), node.driver.as_str(), &node.socket(), context.shutdown).await
            }
        });
        tasks.spawn("provisioner", {
            let (node, context) = node();
            async move { Box::pin(node.provision(context)).await }
        });
        tasks.spawn(
            "mirror of the drives",
            mirror::run(context.clone(), self.name.clone(), self.drives.clone()),
        );
        tasks.spawn("node agent", {
            let (node, context) = node();
            async move {
                let program = std::env::current_exe().map_err(anyhow::Error::from)?;
                let monitor: Vec<OsString> = vec![program.into(), crate::MONITOR.into()];
                let mut options = node_agent::Options::new(&node.name, &node.root, monitor);
                options.hidden = node.hidden.clone();
                let drivers = Arc::new(Registered::follow(node.registered.clone()));
                anyhow::Ok(node_agent::run(context, options, drivers).await?)
            }
        });
    }

    /// Provisions for our own driver, lets its volumes grow, takes their snapshots, and publishes its capacity.
    async fn provision(self, context: Context) -> anyhow::Result<()> {
        let driver = Driver::connect(&self.socket()).await?;
        let signal = Signal::new();
        let changes = Some(self.drives.changed());
        let options = provision::Options { node: self.name.clone(), extra_metadata: true };
        let snapshots = snapshot::Options { node: self.name.clone(), extra_metadata: true };
        let published =
            capacity::Options { node: self.name.clone(), namespace: CAPACITY_NAMESPACE.to_owned() };
        tokio::join!(
            provision::run(context.clone(), driver.clone(), options, signal.clone()),
            resize::run(context.clone(), driver.clone(), &self.name, signal.clone()),
            snapshot::run(context.clone(), driver.clone(), snapshots, signal.clone()),
            capacity::run(context, driver, published, signal, changes),
        );
        Ok(())
    }

    /// Ends all containers and unmounts all volumes, through the driver, which must serve. Data stays.
    pub(super) async fn empty(&self) -> anyhow::Result<()> {
        Ok(node_agent::teardown(&self.name, &self.root, Arc::new(Own(self.driver, self.socket()))).await?)
    }

    /// Unmounts the drives and detaches loop devices; the driver must have stopped.
    pub(super) async fn give_back_drives(&self) -> anyhow::Result<()> {
        self.drives.close().await.with_context(|| format!("giving back the drives of node {}", self.name))
    }
}

/// The drivers that registered themselves, as the node agent asks for them.
struct Registered {
    drivers: Drivers,
    changes: watch::Sender<u64>,
}

impl Registered {
    fn follow(drivers: Drivers) -> Registered {
        let changes = watch::Sender::new(0);
        let (mut changed, tell) = (drivers.changed(), changes.clone());
        tokio::spawn(async move {
            while changed.changed().await.is_ok() {
                tell.send_modify(|count| *count += 1);
            }
        });
        Registered { drivers, changes }
    }
}

impl node_agent::Drivers for Registered {
    fn endpoint(&self, driver: &str) -> Option<PathBuf> {
        self.drivers.get(driver).map(|endpoint| endpoint.socket.clone())
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

/// Our own driver alone, for tearing down.
struct Own(driver::Name, PathBuf);

impl node_agent::Drivers for Own {
    fn endpoint(&self, driver: &str) -> Option<PathBuf> {
        (driver == self.0.as_str()).then(|| self.1.clone())
    }

    fn changed(&self) -> watch::Receiver<u64> {
        watch::Sender::new(0).subscribe()
    }
}
