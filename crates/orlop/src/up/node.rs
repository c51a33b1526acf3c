//! One node: its driver, what the sidecars do for that driver, and its node agent.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use drives::Drives;
use runtime::{Context, Parts};
use sidecars::register::{self, Drivers};
use sidecars::{Driver, announce};
use tokio::sync::watch;

use super::{drivers, mirror};

/// A node of this machine.
#[derive(Clone)]
pub(super) struct Node {
    pub(super) name: String,
    /// What its driver is called.
    pub(super) driver: driver::Name,
    /// The root of kubelet's directory layout.
    pub(super) root: PathBuf,
    pub(super) drives: Drives,
    /// The most volumes that its pods may use at once, if there is a limit.
    pub(super) max_volumes: Option<u32>,
    /// Whether capacity is published for classes whose claims bind at once, too: as asked, and for our own driver where
    /// there are other nodes, which draw lots by it.
    pub(super) immediate: bool,
    pub(super) draws: bool,
    /// Counts the calls of all nodes' drivers.
    pub(super) calls: driver::Calls,
    /// How full its pods' volumes are.
    pub(super) stats: node_agent::Stats,
    /// Host directories that its containers must not see.
    pub(super) hidden: Vec<PathBuf>,
    /// Where FlexVolume drivers are.
    pub(super) volume_plugins: PathBuf,
    pub(super) registered: Drivers,
    /// The sockets of drivers that are run beside Orlop for this node.
    pub(super) beside: Vec<PathBuf>,
}

impl Node {
    pub(super) fn socket(&self) -> PathBuf {
        self.root.join("plugins").join(self.driver.as_str()).join("csi.sock")
    }

    /// How many pods have something on the node: containers that run, or volumes that are mounted.
    pub(super) fn pods(&self) -> usize {
        std::fs::read_dir(node_agent::Layout::new(&self.root).pods()).map_or(0, Iterator::count)
    }

    pub(super) fn registry(&self) -> PathBuf {
        self.root.join(register::REGISTRY)
    }

    /// Serves the node's driver among `drivers`, which outlive the rest: tearing down calls them.
    pub(super) fn start_driver(&self, drivers: &Parts) -> anyhow::Result<()> {
        let socket = self.socket();
        for directory in socket.parent().into_iter().chain([self.registry().as_path()]) {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
            made.with_context(|| format!("creating {}", directory.display()))?;
        }
        let below = vec![self.root.clone()];
        self.drives.confine(drives::Confines { below, never: vec![self.root.join("drives")] });
        let node = self.clone();
        let shutdown = drivers.shutdown();
        drivers.spawn(format!("driver of node {}", self.name), async move {
            let info = driver::NodeInfo {
                name: node.driver,
                node_id: node.name.clone(),
                segments: node.driver.segments(&node.name),
                max_volumes: node.max_volumes,
            };
            driver::serve(&socket, node.drives.clone(), info, node.calls.clone(), shutdown).await
        });
        Ok(())
    }

    /// Starts all else of the node.
    pub(super) fn start(&self, context: &Context) {
        let parts = &context.parts;
        let node = || (self.clone(), context.clone());
        let called = |part: &str| format!("{part} of node {}", self.name);
        parts.spawn(called("plugin registration"), {
            let (node, context) = node();
            async move { register::run(context, &node.name, &node.root, node.registered.clone()).await }
        });
        parts.spawn(called("driver's announcement"), {
            let (node, context) = node();
            async move {
                announce::run(&node.registry(), node.driver.as_str(), &node.socket(), context.shutdown).await
            }
        });
        parts.spawn(called("driver's sidecars"), {
            let (node, context) = node();
            async move {
                let driver = Driver::connect(&node.socket()).await?;
                // It knows the names of claims when it is told them, and says when its capacity changes.
                let options = sidecars::Options {
                    extra_metadata: true,
                    changes: Some(node.drives.changed()),
                    immediate: node.draws || node.immediate,
                    ..sidecars::Options::new(&node.name)
                };
                Box::pin(sidecars::serve(context, driver, options)).await;
                Ok::<_, sidecars::DriverError>(())
            }
        });
        parts.spawn(called("other drivers' sidecars"), {
            let (node, context) = node();
            let own = node.driver.as_str();
            async move {
                drivers::serve_registered(context, node.name, own, node.registered, node.immediate).await
            }
        });
        for socket in &self.beside {
            let announced = drivers::announce(self.clone(), socket.clone(), context.shutdown.clone());
            parts.spawn(called("announcement of another driver"), announced);
        }
        parts.spawn(
            called("mirror of the drives"),
            mirror::run(context.clone(), self.name.clone(), self.drives.clone()),
        );
        parts.spawn(called("node agent"), {
            let (node, context) = node();
            async move {
                let program = std::env::current_exe().map_err(anyhow::Error::from)?;
                let monitor: Vec<OsString> = vec![program.into(), crate::MONITOR.into()];
                let mut options = node_agent::Options::new(&node.name, &node.root, monitor);
                options.hidden = node.hidden.clone();
                options.volume_plugins = node.volume_plugins.clone();
                options.stats = node.stats.clone();
                let drivers = Arc::new(Registered::follow(node.registered.clone()));
                anyhow::Ok(node_agent::run(context, options, drivers).await?)
            }
        });
    }

    /// Ends all containers and unmounts all volumes, through the drivers. Our own must serve; without another, its
    /// volumes are unmounted only. Data stays.
    pub(super) async fn empty(&self) -> anyhow::Result<()> {
        let drivers = Reachable(drivers::reachable(self).await);
        Ok(node_agent::teardown(&self.name, &self.root, Arc::new(drivers)).await?)
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

/// Drivers that answer, for tearing down.
struct Reachable(BTreeMap<String, PathBuf>);

impl node_agent::Drivers for Reachable {
    fn endpoint(&self, driver: &str) -> Option<PathBuf> {
        self.0.get(driver).cloned()
    }

    fn changed(&self) -> watch::Receiver<u64> {
        watch::Sender::new(0).subscribe()
    }
}
