//! `orlop controllers`: controllers alone, against any Kubernetes API.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use clap::builder::PossibleValuesParser;
use controllers::Controller;
use kube::Client;
use kube::client::ClientBuilder;
use runtime::health::Checks;
use runtime::{Context, LeaseOptions, Metrics, PartEnded, Parts, Term, lead};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::cluster;
use crate::signals::Signals;

/// What is not among the controllers, and runs when it is named only: a cluster has a scheduler.
const SCHEDULER: &str = "scheduler";

/// Arguments of `orlop controllers`.
#[derive(Args)]
pub(crate) struct Controllers {
    /// The API to work with [default: inside a pod, the pod's cluster].
    #[arg(long, env = "KUBECONFIG", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Run these only, separated by commas [default: all but the scheduler].
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', value_parser = names())]
    only: Vec<String>,
    /// The lease under which one process acts and others wait. Processes that run different controllers need
    /// different leases.
    #[arg(long, value_name = "NAMESPACE/NAME", default_value = "kube-system/orlop-controllers", value_parser = lease_name)]
    lease: (String, String),
    /// How long others wait after the last renewal before they take over.
    #[arg(long, value_name = "SECONDS", default_value = "15", value_parser = seconds)]
    lease_duration: Duration,
    /// How long the holder acts without a renewal.
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    lease_renew_deadline: Duration,
    /// The pause between attempts to take or renew the lease.
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = seconds)]
    lease_retry_period: Duration,
    /// Serve /healthz, /readyz (ready while holding the lease) and /metrics over plain HTTP on this address.
    #[arg(long, value_name = "ADDRESS:PORT")]
    health: Option<SocketAddr>,
}

fn names() -> PossibleValuesParser {
    let names = Controller::ALL.iter().map(|controller| controller.name());
    PossibleValuesParser::new(names.chain([SCHEDULER]))
}

fn lease_name(text: &str) -> Result<(String, String), String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok((namespace.to_owned(), name.to_owned()))
        }
        _ => Err("write NAMESPACE/NAME, such as kube-system/orlop-controllers".to_owned()),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.ok_or_else(|| "write a number of seconds, such as 15 or 0.5".to_owned())
}

/// Waits for the lease, runs the controllers, and ends at SIGINT or SIGTERM, or with an error when the lease is lost or
/// anything of the process ends by itself; then the lease is given up first.
pub(crate) async fn controllers(arguments: Controllers) -> anyhow::Result<()> {
    let chosen = Chosen::of(&arguments.only);
    let config = cluster::config(arguments.kubeconfig.as_deref()).await?;
    let parts = Parts::new(CancellationToken::new());
    let shutdown = parts.shutdown();
    let mut signals = Signals::listen()?;
    let (namespace, name) = arguments.lease;
    let options = LeaseOptions {
        duration: arguments.lease_duration,
        renew_deadline: arguments.lease_renew_deadline,
        retry_period: arguments.lease_retry_period,
        ..LeaseOptions::new(namespace, name, holder())
    };
    let (metrics, checks, held) = (Metrics::new(), Checks::default(), Arc::new(OnceLock::new()));
    if let Some(address) = arguments.health {
        let listener = TcpListener::bind(address).await.with_context(|| {
            format!("can't listen on {address}; name another port with --health, or port 0 for a free one")
        })?;
        tracing::info!(address = %listener.local_addr()?, "serving health endpoints");
        let term = held.clone();
        checks.add("lease", move || match term.get().map(Term::is_over) {
            None => Err("waiting for it".to_owned()),
            Some(false) => Ok(()),
            Some(true) => Err("lost".to_owned()),
        });
        let serving = runtime::health::serve(listener, metrics.clone(), checks.clone(), shutdown.clone());
        parts.spawn("health endpoints", serving);
    }
    let stop = shutdown.clone();
    parts.spawn("signal handler", async move {
        signals.recv().await;
        tracing::info!("stopping");
        stop.cancel();
    });

    let client = Client::try_from(config.clone())?;
    let guarded = ClientBuilder::try_from(config)?;
    let led = lead(client, options, shutdown, |term| {
        let context = Context::with(guarded.with_layer(&term).build(), metrics, parts.clone());
        held.get_or_init(|| term);
        checks.add("informers", {
            let context = context.clone();
            move || context.check_news()
        });
        tracing::info!(controllers = chosen.to_string(), "working");
        chosen.run(context)
    });
    let waiting = async {
        let ended = parts.failure().await;
        // What leads ends by itself at that, and gives the lease up.
        match held.get() {
            None => ended,
            Some(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        led = led => led?.transpose().map(drop)?,
        ended = waiting => bail!(ended),
    }
    Ok(())
}

/// Which controllers run.
struct Chosen {
    controllers: Vec<Controller>,
    scheduler: bool,
}

impl Chosen {
    fn of(only: &[String]) -> Chosen {
        let named = |name: &str| only.iter().any(|one| one == name);
        let controllers = Controller::ALL.into_iter();
        Chosen {
            controllers: controllers.filter(|one| only.is_empty() || named(one.name())).collect(),
            scheduler: named(SCHEDULER),
        }
    }

    async fn run(self, context: Context) -> Result<(), PartEnded> {
        controllers::start(&context, &self.controllers);
        if self.scheduler {
            context.parts.spawn("scheduler", scheduler::run(context.clone()));
        }
        context.parts.ended().await
    }
}

impl std::fmt::Display for Chosen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = self.controllers.iter().map(|controller| controller.name());
        let scheduler = self.scheduler.then_some(SCHEDULER);
        f.write_str(&names.chain(scheduler).collect::<Vec<_>>().join(","))
    }
}

/// A name of this process that no other has, and that says where it runs.
fn holder() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{host}_{}", uuid::Uuid::new_v4())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_controllers_run_but_the_scheduler_unless_they_are_named() {
        let chosen =
            |only: &[&str]| Chosen::of(&only.iter().map(|&name| name.to_owned()).collect::<Vec<_>>());
        let all = chosen(&[]);
        assert_eq!(all.controllers, Controller::ALL);
        assert!(!all.scheduler);
        assert_eq!(chosen(&["scheduler", "bind"]).to_string(), "bind,scheduler");
        assert_eq!(chosen(&["scheduler"]).to_string(), "scheduler");
    }

    #[test]
    fn leases_and_seconds_are_written_as_told() {
        assert_eq!(lease_name("a/b"), Ok(("a".to_owned(), "b".to_owned())));
        for wrong in ["", "b", "/b", "a/", "a/b/c"] {
            assert!(lease_name(wrong).is_err(), "{wrong}");
        }
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for wrong in ["", "-1", "x", "1e99", "NaN"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
