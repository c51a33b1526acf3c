//! `orlop up`: everything embedded, on one machine.

mod data;
mod drives;
mod logs;
mod mirror;
mod node;
mod objects;
mod ready;
mod tasks;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use api_server::{ApiServer, Credentials};
use clap::Args;
use runtime::health::Checks;
use runtime::{Context, Metrics};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use data::{Asked, DataDir, Layout};
use logs::Logs;
use node::Node;
use sidecars::register::Drivers;
use tasks::Tasks;

/// How long the parts have to finish what they are doing after a signal.
const STOPPING: Duration = Duration::from_secs(60);

/// Arguments of `orlop up`.
#[derive(Args)]
pub(crate) struct Up {
    /// Everything that must survive a restart; created with access for root alone.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/orlop")]
    data_dir: PathBuf,
    /// How many nodes to run, each with its own drives and directories [default: as many as last time, or 1].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=32))]
    nodes: Option<u8>,
    /// A block device to use as a drive; formatted only if it carries nothing. Dealt to the nodes in turn.
    #[arg(long = "drive", value_name = "DEVICE")]
    drives: Vec<PathBuf>,
    /// A block device to use as a drive even if it carries a file system, WHICH IS LOST. Never one in use.
    #[arg(long = "overwrite-drive", value_name = "DEVICE")]
    overwrite: Vec<PathBuf>,
    /// A drive in a sparse file of this size below the data directory, for trials. Dealt to the nodes in turn;
    /// a node without any drive gets one of 10Gi.
    #[arg(long = "loop-drive", value_name = "SIZE", value_parser = size)]
    loop_drives: Vec<u64>,
    /// Loopback address of the API; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:6443")]
    listen: SocketAddr,
    /// Where to write the kubeconfig [default: DIR/kubeconfig].
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Serve /healthz, /readyz and /metrics over plain HTTP on this loopback address.
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
}

/// Parses a size the way Kubernetes writes quantities.
fn size(text: &str) -> Result<u64, String> {
    let quantity: values::Quantity =
        text.parse().map_err(|error| format!("{error}; write for example 10Gi"))?;
    match quantity.ceil_bytes() {
        Some(bytes) if bytes > 0 => Ok(bytes),
        _ => Err("a size is more than 0 bytes, for example 10Gi".to_owned()),
    }
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
    let data = DataDir::open(&arguments.data_dir)?;
    let listener = listen(arguments.listen, "--listen").await?;
    let health = match arguments.health {
        Some(address) => Some(listen(address, "--health").await?),
        None => None,
    };
    let asked = Asked {
        nodes: arguments.nodes.map(usize::from),
        devices: arguments.drives.iter().chain(&arguments.overwrite).cloned().collect(),
        loop_drives: arguments.loop_drives.clone(),
    };
    let layout = data.layout()?.with(&asked, data.path())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;

    // Three lives, each within the one before: the drivers (tearing down calls them), everything else.
    let (drivers, shutdown) = (CancellationToken::new(), CancellationToken::new());
    let mut driving = Tasks::new(drivers.clone());
    let mut tasks = Tasks::new(shutdown.clone());
    let store = object_store::Store::open(&data.store(), object_store::Options::default())?;
    let api = ApiServer::start(store.clone(), api_server::Options::default()).await?;
    let address = listener.local_addr()?;
    let credentials =
        Credentials::open(&data.credentials(), &[address.ip().to_string(), "localhost".to_owned()])?;
    let kubeconfig = arguments.kubeconfig.clone().unwrap_or_else(|| data.path().join("kubeconfig"));

    let client = kube::Client::new(api.in_process("system:orlop"), "default");
    let context = Context::new(client, Metrics::new(), shutdown.clone());
    objects::ensure(&context.client).await?;
    let nodes = nodes(&data, &layout, &arguments.overwrite).await?;
    data.remember(&layout)?;

    api.serve_logs(Arc::new(Logs::of(&nodes)));
    {
        let (api, credentials, shutdown) = (api.clone(), credentials.clone(), shutdown.clone());
        tasks.spawn("API listener", async move { api.serve(listener, credentials, shutdown).await });
    }
    {
        let context = context.clone();
        tasks.spawn("controllers", async move {
            anyhow::Ok(controllers::run(context, &controllers::Controller::ALL).await)
        });
    }
    {
        let context = context.clone();
        tasks.spawn("scheduler", async move { anyhow::Ok(scheduler::run(context).await) });
    }
    for node in &nodes {
        node.start_driver(&drivers, &mut driving)?;
        node.start(&context, &mut tasks);
    }
    let checks = Checks::default();
    if let Some(listener) = health {
        tasks.spawn(
            "health endpoints",
            runtime::health::serve(listener, context.metrics.clone(), checks.clone(), shutdown.clone()),
        );
    }

    let names: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
    let started = tokio::select! {
        ready = ready::wait(&context, &names) => ready,
        failure = tasks.failure() => Err(failure),
        failure = driving.failure() => Err(failure),
        _ = interrupt.recv() => Ok(false),
        _ = terminate.recv() => Ok(false),
    };
    let outcome = match started {
        Ok(true) => {
            credentials.write_kubeconfig(&kubeconfig, &format!("https://{address}"))?;
            checks.add("started", || Ok(()));
            println!("orlop is ready: kubeconfig={} api=https://{address}", kubeconfig.display());
            tokio::select! {
                failure = tasks.failure() => Err(failure),
                failure = driving.failure() => Err(failure),
                _ = interrupt.recv() => Ok(()),
                _ = terminate.recv() => Ok(()),
            }
        }
        Ok(false) => Ok(()),
        Err(error) => Err(error),
    };
    match &outcome {
        Ok(()) => tracing::info!("stopping"),
        Err(error) => tracing::error!("stopping, because {error:#}"),
    }
    shutdown.cancel();
    tasks.finish(STOPPING).await;
    store.close().await;
    if arguments.ephemeral {
        for node in &nodes {
            node.empty().await?;
        }
    }
    drivers.cancel();
    driving.finish(STOPPING).await;
    if arguments.ephemeral {
        for node in &nodes {
            node.give_back_drives().await?;
        }
        data.remove()?;
        match std::fs::remove_file(&kubeconfig) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    outcome
}

/// The nodes of a layout with their drives open.
async fn nodes(data: &DataDir, layout: &Layout, overwrite: &[PathBuf]) -> anyhow::Result<Vec<Node>> {
    let mut nodes: Vec<Node> = Vec::new();
    for (at, sources) in layout.nodes.iter().enumerate() {
        let name = format!("orlop-{at}");
        let root = data.node(&name);
        match drives::open(&name, root.join("drives"), sources, overwrite).await {
            Ok(drives) => {
                nodes.push(Node { name, root, drives, hidden: data.private(), registered: Drivers::new() });
            }
            Err(refusal) => {
                for node in &nodes {
                    drives::give_back(&node.drives).await;
                }
                return Err(refusal);
            }
        }
    }
    Ok(nodes)
}

/// Ends the containers of an Orlop that is not running, and unmounts its volumes and drives.
pub(crate) async fn down(arguments: Down) -> anyhow::Result<()> {
    ensure!(
        arguments.data_dir.join("layout.json").exists(),
        "{} is not a data directory of Orlop; name it with --data-dir",
        arguments.data_dir.display()
    );
    let data = DataDir::open(&arguments.data_dir)?;
    let nodes = nodes(&data, &data.layout()?, &[]).await?;
    let drivers = CancellationToken::new();
    let mut driving = Tasks::new(drivers.clone());
    for node in &nodes {
        node.start_driver(&drivers, &mut driving)?;
    }
    for node in &nodes {
        node.empty().await?;
    }
    driving.finish(STOPPING).await;
    for node in &nodes {
        node.give_back_drives().await?;
    }
    Ok(())
}

async fn listen(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("can't listen on {address}; name another port with {flag}, or port 0 for a free one")
    })
}
