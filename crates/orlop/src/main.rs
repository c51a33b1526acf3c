//! The binary: one subcommand per role. Wiring only.

mod client;
mod cluster;
mod controllers;
mod driver;
mod sidecar;
mod signals;
mod storage;
mod up;
mod volumes;

use std::backtrace::BacktraceStatus;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tracing_subscriber::EnvFilter;

/// The hidden subcommand that watches over one container; it outlives `orlop up`.
const MONITOR: &str = "container-monitor";

/// How long the parts of a role have to finish what they are doing after a signal.
const STOPPING: Duration = Duration::from_secs(60);

/// What `orlop --help` says first, beside the line above.
const FIRST_STEPS: &str = "\
First steps, as root:

  orlop up --data-dir DIR --loop-drive 10Gi
      runs until Ctrl-C, and says where its kubeconfig is
  kubectl --kubeconfig DIR/kubeconfig apply -f examples/quickstart.yaml
  orlop down --data-dir DIR
      ends what a stopped `orlop up` left running and mounted";

/// Kubernetes storage from a claim to a mounted directory.
///
/// `orlop up` gives this machine the storage half of Kubernetes, with no cluster: an API for kubectl, claims that are bound,
/// provisioned, snapshotted and grown, pods that are placed where their volumes fit and get them mounted, on drives of
/// this machine or by any CSI driver.
///
/// For other orchestrators, `orlop driver` turns drives into volumes; for clusters, `orlop controllers` runs single
/// controllers, and `orlop sidecar` all sidecars' jobs beside a driver. Orlop is no network, and it runs no images by itself.
#[derive(Parser)]
#[command(version, about, long_about, after_help = FIRST_STEPS)]
struct Arguments {
    #[command(subcommand)]
    role: Role,
    #[command(flatten)]
    log: Log,
}

#[derive(Args)]
struct Log {
    /// How to write the log to standard error; $RUST_LOG filters it.
    #[arg(long, value_enum, default_value = "text", global = true)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Subcommand)]
enum Role {
    /// Run everything on this machine: API, controllers, scheduler, driver and node agents.
    Up(up::Up),
    /// After `up` was stopped: end its containers and unmount its volumes and drives. Data stays.
    Down(up::Down),
    /// Serve the CSI driver alone on a unix socket, with no Kubernetes anywhere.
    Driver(driver::Driver),
    /// Run controllers alone, against any Kubernetes API, one process at a time.
    Controllers(controllers::Controllers),
    /// Do for somebody else's CSI driver on its node what Kubernetes has six sidecars for, against any Kubernetes API.
    Sidecar(sidecar::Sidecar),
    /// Print the volumes that lie on the drives, or PersistentVolumes for them when those were lost.
    Volumes(volumes::Volumes),
    /// Create or change the objects of a manifest.
    Apply(client::Apply),
    /// Print objects as the server renders them.
    Get(client::Get),
    /// Delete objects and wait until they are gone.
    Delete(client::Delete),
    #[command(name = MONITOR, hide = true)]
    ContainerMonitor { directory: PathBuf },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // The monitor stays small and single-threaded: there is one for every container.
    if let Role::ContainerMonitor { directory } = &arguments.role {
        return node_agent::container_monitor(directory);
    }
    start_log(arguments.log.log_format);
    log_panics();
    match run(arguments.role) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", runtime::explain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn run(role: Role) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let outcome = runtime.block_on(play(role));
    // A copy under way, or a call that a dying drive holds, keeps nobody waiting: drives tell at the next start how
    // far it came.
    runtime.shutdown_background();
    outcome
}

async fn play(role: Role) -> anyhow::Result<()> {
    match role {
        Role::Up(arguments) => up::up(arguments).await,
        Role::Down(arguments) => up::down(arguments).await,
        Role::Driver(arguments) => driver::driver(arguments).await,
        Role::Controllers(arguments) => controllers::controllers(arguments).await,
        Role::Sidecar(arguments) => sidecar::sidecar(arguments).await,
        Role::Volumes(arguments) => volumes::volumes(arguments).await,
        Role::Apply(arguments) => client::apply(arguments).await,
        Role::Get(arguments) => client::get(arguments).await,
        Role::Delete(arguments) => client::delete(arguments).await,
        Role::ContainerMonitor { .. } => Ok(()),
    }
}

/// A panic is told in the log, in its format, wherever it was and whatever becomes of it.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let thread = std::thread::current();
        let backtrace = std::backtrace::Backtrace::capture();
        tracing::error!(
            place,
            thread = thread.name(),
            message = panic.payload_as_str().unwrap_or("no message"),
            backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string()),
            "a panic"
        );
    }));
}

fn start_log(format: LogFormat) {
    // What its watches meet is told by our informers, once.
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,kube_runtime=error"));
    let log = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        // Told on standard error, too, which would end the task in a panic when nobody reads that any more.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_env_filter(filter);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
}
