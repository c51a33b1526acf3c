//! `orlop sidecar`: what Kubernetes' sidecars do for somebody else's driver, beside it on its node.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use clap::Args;
use clap::builder::PossibleValuesParser;
use runtime::health::Checks;
use runtime::{Context, Metrics};
use sidecars::{Driver, Job, Options};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::cluster;
use crate::driver::endpoint;
use crate::signals::Signals;

/// Arguments of `orlop sidecar`.
#[derive(Args)]
pub(crate) struct Sidecar {
    /// Where the driver serves CSI.
    #[arg(long, value_name = "unix:///PATH", env = "CSI_ADDRESS", value_parser = endpoint)]
    csi_address: PathBuf,
    /// The node that the driver runs on, by its name in the cluster.
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    node_name: String,
    /// The API to work with [default: inside a pod, the pod's cluster].
    #[arg(long, env = "KUBECONFIG", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Do these only, separated by commas [default: all that the driver can].
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', value_parser = names())]
    jobs: Vec<String>,
    /// Tell the driver the names of claims, volumes and snapshots.
    #[arg(long)]
    extra_create_metadata: bool,
    /// The namespace of the CSIStorageCapacity objects.
    #[arg(long, value_name = "NAMESPACE", env = "NAMESPACE", default_value = "default")]
    capacity_namespace: String,
    /// Publish free storage (CSIStorageCapacity) for classes with volumeBindingMode Immediate, too.
    #[arg(long)]
    capacity_for_immediate_binding: bool,
    /// Serve /healthz, /readyz and /metrics over plain HTTP on this address.
    #[arg(long, value_name = "ADDRESS:PORT")]
    health: Option<SocketAddr>,
}

fn names() -> PossibleValuesParser {
    PossibleValuesParser::new(Job::ALL.iter().map(|job| job.name()))
}

/// Serves the driver until SIGINT or SIGTERM, or until a part of this process ends by itself.
pub(crate) async fn sidecar(arguments: Sidecar) -> anyhow::Result<()> {
    let mut signals = Signals::listen()?;
    let client = cluster::client(arguments.kubeconfig.as_deref()).await?;
    let context = Context::new(client, Metrics::new(), CancellationToken::new());
    if let Some(address) = arguments.health {
        let listener = TcpListener::bind(address).await.with_context(|| {
            format!("can't listen on {address}; name another port with --health, or port 0 for a free one")
        })?;
        tracing::info!(address = %listener.local_addr()?, "serving health endpoints");
        let checks = Checks::default();
        checks.add("informers", {
            let context = context.clone();
            move || context.check_news()
        });
        let (metrics, shutdown) = (context.metrics.clone(), context.shutdown.clone());
        context.parts.spawn("health endpoints", runtime::health::serve(listener, metrics, checks, shutdown));
    }
    let connected = tokio::select! {
        driver = Driver::connect(&arguments.csi_address) => driver,
        () = signals.recv() => return Ok(()),
    };
    let driver = connected.context("name the driver's socket with --csi-address")?;
    let jobs = chosen(&arguments.jobs, &driver)?;
    let named: Vec<_> = jobs.iter().map(|job| job.name()).collect();
    tracing::info!(
        driver = driver.name(),
        node = arguments.node_name,
        jobs = named.join(","),
        "serving the driver"
    );
    let options = Options {
        jobs,
        extra_metadata: arguments.extra_create_metadata,
        capacity_namespace: arguments.capacity_namespace,
        immediate: arguments.capacity_for_immediate_binding,
        ..Options::new(arguments.node_name)
    };
    context.parts.spawn("sidecars", sidecars::serve(context.clone(), driver, options));
    let outcome = tokio::select! {
        ended = context.parts.failure() => Err(ended.into()),
        () = signals.recv() => Ok(()),
    };
    tracing::info!("stopping");
    context.parts.finish(crate::STOPPING).await;
    outcome
}

/// The jobs that are asked for; without a word about it, those that the driver can be asked for. Each one that is not
/// done is told in the log.
///
/// # Errors
/// The driver can't do what is asked for by name.
fn chosen(asked: &[String], driver: &Driver) -> anyhow::Result<Vec<Job>> {
    let (can, cannot): (Vec<_>, Vec<_>) = Job::ALL.into_iter().partition(|job| job.is_for(driver));
    let named = |job: &Job| asked.iter().any(|name| name == job.name());
    for job in cannot {
        ensure!(
            !named(&job),
            "the driver {} does not offer what the job {} needs; leave it out of --jobs",
            driver.name(),
            job.name()
        );
        tracing::info!(driver = driver.name(), job = job.name(), "not done: the driver does not offer it");
    }
    Ok(can.into_iter().filter(|job| asked.is_empty() || named(job)).collect())
}
