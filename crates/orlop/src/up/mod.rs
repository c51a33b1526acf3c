//! `orlop up`: everything embedded, on one machine.

mod agents;
mod drivers;
mod mirror;
mod node;
mod objects;
mod owner;
mod ready;
mod store;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, ensure};
use api_server::{ApiServer, Credentials};
use clap::Args;
use runtime::health::Checks;
use runtime::{Context, Metrics, Parts};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use agents::Agents;
use drivers::Beside;
use node::Node;
use object_store::Store;
use owner::Owner;
use sidecars::register::Drivers;

use crate::STOPPING;
use crate::signals::Signals;
use crate::storage::{self, DataDir, Layout, Making, Storage};

/// Arguments of `orlop up`.
#[derive(Args)]
pub(crate) struct Up {
    #[command(flatten)]
    storage: Storage,
    /// How many nodes to run, each with its own drives (a loop drive of 10Gi if none is named) and directories
    /// [default: as many as last time, or 1].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=32))]
    nodes: Option<u8>,
    /// A CSI driver that runs beside Orlop, by its socket, and the node that it serves [default: orlop-0]. Drivers that
    /// register themselves on a node's plugins_registry need not be named.
    #[arg(long = "csi-driver", value_name = "[NODE=]unix:///PATH", value_parser = Beside::parse)]
    csi_drivers: Vec<Beside>,
    /// Where the programs of FlexVolume drivers are, as vendor~driver/driver.
    #[arg(long, value_name = "DIR", default_value = node_agent::FLEX_VOLUMES)]
    volume_plugin_dir: PathBuf,
    /// Publish free storage (CSIStorageCapacity) for classes with volumeBindingMode Immediate, too.
    #[arg(long)]
    capacity_for_immediate_binding: bool,
    /// Loopback address of the API; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:6443")]
    listen: SocketAddr,
    /// Where to write the kubeconfig [default: DIR/kubeconfig].
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Give the kubeconfig to a user who is not root. Name a file that this user can reach with --kubeconfig.
    #[arg(long, value_name = "USER[:GROUP]", requires = "kubeconfig")]
    kubeconfig_owner: Option<Owner>,
    /// Where the store of objects is missing or damaged, set it aside and begin with an empty one. Volumes and their data
    /// stay on the drives.
    #[arg(long)]
    new_store: bool,
    /// Serve /healthz, /livez, /readyz and /metrics over plain HTTP on this loopback address.
    #[arg(long, value_name = "ADDRESS:PORT")]
    health: Option<SocketAddr>,
    /// When stopped, end all containers, unmount all volumes and remove the data directory.
    #[arg(long)]
    ephemeral: bool,
}

/// Arguments of `orlop down`.
#[derive(Args)]
pub(crate) struct Down {
    /// The data directory of the Orlop that was stopped.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/orlop")]
    data_dir: PathBuf,
    /// A CSI driver that ran beside it, as `orlop up` was told: it unmounts its volumes itself.
    #[arg(long = "csi-driver", value_name = "[NODE=]unix:///PATH", value_parser = Beside::parse)]
    csi_drivers: Vec<Beside>,
}

/// Runs until SIGINT or SIGTERM. Volumes stay mounted and containers keep running, unless `--ephemeral`.
pub(crate) async fn up(arguments: Up) -> anyhow::Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "orlop up mounts drives and runs containers, which needs root; run it with sudo"
    );
    for address in std::iter::once(arguments.listen).chain(arguments.health) {
        ensure!(
            address.ip().is_loopback(),
            "{address} is not a loopback address; Orlop listens on loopback only"
        );
    }
    let data = DataDir::open(&arguments.storage.data_dir)?;
    let listener = listen(arguments.listen, "--listen").await?;
    let health = match arguments.health {
        Some(address) => Some(listen(address, "--health").await?),
        None => None,
    };
    let asked = arguments.storage.asked(arguments.nodes.map(usize::from));
    let known = data.layout()?;
    let layout = known.with(&asked, data.path())?;
    let signals = Signals::listen()?;

    let store = store::open(&data.store(), known.nodes.is_empty(), arguments.new_store)?;
    let storage = &arguments.storage;
    let kubeconfig = arguments.kubeconfig.clone().unwrap_or_else(|| data.path().join("kubeconfig"));
    let mut nodes =
        nodes(&data, &layout, storage.making(), storage.max_volumes, &arguments.csi_drivers).await?;
    data.remember(&layout)?;
    // Whoever can read it is the administrator; in the data directory it is hidden already.
    let hidden = std::path::absolute(&kubeconfig)?;
    let hidden = std::fs::canonicalize(&hidden).unwrap_or(hidden);
    for node in &mut nodes {
        node.hidden.push(hidden.clone());
        node.volume_plugins.clone_from(&arguments.volume_plugin_dir);
        node.immediate = arguments.capacity_for_immediate_binding;
    }
    let mut process = Process::start(&data, store, nodes, listener, health).await?;
    let outcome = process.serve(signals, &kubeconfig, arguments.kubeconfig_owner).await;
    match &outcome {
        Ok(()) => tracing::info!("stopping"),
        Err(error) => tracing::error!(error = runtime::explain(error.as_ref()), "stopping"),
    }
    let pods = process.nodes.iter().map(Node::pods).sum();
    process.stop(arguments.ephemeral).await?;
    if !arguments.ephemeral {
        eprintln!("{}", left(pods, data.path()));
    } else {
        data.remove()?;
        match std::fs::remove_file(&kubeconfig) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    outcome
}

/// What a stop leaves, and what to do about it.
fn left(pods: usize, data: &Path) -> String {
    let data = data.display();
    let running = match pods {
        0 => "no pod was running; drives stay mounted".to_owned(),
        1 => "1 pod keeps running, with its volumes mounted".to_owned(),
        pods => format!("{pods} pods keep running, with their volumes mounted"),
    };
    format!(
        "orlop has stopped: {running}.\nGo on with `orlop up --data-dir {data}`, or end and unmount everything with \
         `orlop down --data-dir {data}` (data stays)."
    )
}

/// All that runs. The drivers outlive the rest, because tearing down calls them.
struct Process {
    context: Context,
    store: Store,
    nodes: Vec<Node>,
    credentials: Credentials,
    address: SocketAddr,
    ready: Arc<AtomicBool>,
    drivers: Parts,
}

impl Process {
    async fn start(
        data: &DataDir,
        store: Store,
        nodes: Vec<Node>,
        listener: TcpListener,
        health: Option<TcpListener>,
    ) -> anyhow::Result<Process> {
        let address = listener.local_addr()?;
        let api = ApiServer::start(store.clone(), api_server::Options::default()).await?;
        let hosts = [address.ip().to_string(), "localhost".to_owned()];
        let credentials = Credentials::open(&data.credentials(), &hosts)?;
        let shutdown = CancellationToken::new();
        let client = kube::Client::new(api.in_process("system:orlop"), "default");
        let context = Context::new(client, Metrics::new(), shutdown.clone());
        let driver = nodes.first().map(|node| node.driver).unwrap_or_default();
        if let Some(node) = nodes.first() {
            context.metrics.register(driver::Calls::NAME, driver::Calls::HELP, node.calls.metric());
        }
        objects::ensure(&api, &context.client, driver).await?;

        let parts = context.parts.clone();
        let drivers = Parts::new(CancellationToken::new());
        api.serve_nodes(Arc::new(Agents::of(&nodes, context.metrics.clone())));
        let stats = nodes.iter().map(|node| node.stats.clone()).collect();
        context.metrics.register_collector(node_agent::VolumeMetrics(stats));
        parts.spawn("API listener", {
            let (credentials, shutdown) = (credentials.clone(), shutdown.clone());
            async move { api.serve(listener, credentials, shutdown).await }
        });
        controllers::start(&context, &controllers::Controller::ALL);
        parts.spawn("scheduler", scheduler::run(context.clone()));
        for node in &nodes {
            node.start_driver(&drivers)?;
            node.start(&context);
        }
        let ready = Arc::new(AtomicBool::new(false));
        if let Some(listener) = health {
            let (checks, ready, store) = (Checks::default(), ready.clone(), store.clone());
            checks.add_health("store", move || store.health().map_err(|failure| failure.to_string()));
            checks.add("start", move || match ready.load(Ordering::Relaxed) {
                true => Ok(()),
                false => Err("not everything answers yet".to_owned()),
            });
            checks.add("informers", {
                let context = context.clone();
                move || context.check_news()
            });
            let metrics = context.metrics.clone();
            parts.spawn("health endpoints", runtime::health::serve(listener, metrics, checks, shutdown));
        }
        Ok(Process { context, store, nodes, credentials, address, ready, drivers })
    }

    /// Says when everything answers, and returns at a signal, or with the first part that fails.
    async fn serve(
        &mut self,
        mut signals: Signals,
        kubeconfig: &Path,
        owner: Option<Owner>,
    ) -> anyhow::Result<()> {
        let driver = self.nodes.first().map(|node| node.driver).unwrap_or_default();
        let names: Vec<&str> = self.nodes.iter().map(|node| node.name.as_str()).collect();
        tokio::select! {
            ready = ready::wait(&self.context, driver, &names) => ready?,
            ended = self.context.parts.failure() => return Err(ended.into()),
            ended = self.drivers.failure() => return Err(ended.into()),
            () = signals.recv() => return Ok(()),
        }
        let address = self.address;
        let owner = owner.map(|owner| (owner.user, owner.group));
        self.credentials.write_kubeconfig(kubeconfig, &format!("https://{address}"), owner)?;
        self.ready.store(true, Ordering::Relaxed);
        println!("orlop is ready: kubeconfig={} api=https://{address}", kubeconfig.display());
        tokio::select! {
            ended = self.context.parts.failure() => Err(ended.into()),
            ended = self.drivers.failure() => Err(ended.into()),
            () = signals.recv() => Ok(()),
        }
    }

    /// Ends everything; with `empty` also containers, mounts and drives.
    async fn stop(self, empty: bool) -> anyhow::Result<()> {
        self.context.parts.finish(STOPPING).await;
        self.store.close().await;
        if empty {
            return give_up(&self.nodes, self.drivers).await;
        }
        self.drivers.finish(STOPPING).await;
        Ok(())
    }
}

/// Ends the containers of nodes, unmounts their volumes through their running drivers, and gives the drives back.
async fn give_up(nodes: &[Node], drivers: Parts) -> anyhow::Result<()> {
    for node in nodes {
        node.empty().await?;
    }
    drivers.finish(STOPPING).await;
    for node in nodes {
        node.give_back_drives().await?;
    }
    Ok(())
}

/// The nodes of a layout with their drives open.
async fn nodes(
    data: &DataDir,
    layout: &Layout,
    making: Making<'_>,
    max_volumes: Option<u32>,
    beside: &[Beside],
) -> anyhow::Result<Vec<Node>> {
    let calls = driver::Calls::default();
    let mut nodes: Vec<Node> = Vec::new();
    for (at, sources) in layout.nodes.iter().enumerate() {
        let name = storage::node_name(at);
        let root = data.node(&name);
        match storage::open(&name, root.join("drives"), sources, making).await {
            Ok(drives) => {
                nodes.push(Node {
                    name,
                    driver: layout.driver,
                    root,
                    drives,
                    max_volumes,
                    immediate: false,
                    draws: layout.nodes.len() > 1,
                    calls: calls.clone(),
                    stats: node_agent::Stats::default(),
                    hidden: data.private(),
                    volume_plugins: node_agent::FLEX_VOLUMES.into(),
                    registered: Drivers::new(),
                    beside: Vec::new(),
                });
            }
            Err(refusal) => return refuse(&nodes, refusal).await,
        }
    }
    let checked = storage::check_backend(making.backend, nodes.iter().map(|node| &node.drives));
    match checked.and_then(|()| Beside::deal(beside, &mut nodes)) {
        Ok(()) => Ok(nodes),
        Err(refusal) => refuse(&nodes, refusal).await,
    }
}

async fn refuse<T>(nodes: &[Node], refusal: anyhow::Error) -> anyhow::Result<T> {
    for node in nodes {
        storage::give_back(&node.drives).await;
    }
    Err(refusal)
}

/// Ends the containers of an Orlop that is not running, and unmounts its volumes and drives.
pub(crate) async fn down(arguments: Down) -> anyhow::Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "orlop down ends containers and unmounts drives, which needs root; run it with sudo"
    );
    ensure!(
        arguments.data_dir.join("layout.json").exists(),
        "{} is not a data directory of Orlop; name it with --data-dir",
        arguments.data_dir.display()
    );
    let data = DataDir::open(&arguments.data_dir)?;
    let nodes = nodes(&data, &data.layout()?, Making::default(), None, &arguments.csi_drivers).await?;
    let drivers = Parts::new(CancellationToken::new());
    for node in &nodes {
        node.start_driver(&drivers)?;
    }
    give_up(&nodes, drivers).await
}

async fn listen(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("can't listen on {address}; name another port with {flag}, or port 0 for a free one")
    })
}
