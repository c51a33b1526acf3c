use kube::Client;
use tokio_util::sync::CancellationToken;

use crate::{Informers, Metrics, Recorder};

/// What a controller is given to work with; the same for all controllers of a process.
#[derive(Clone)]
pub struct Context {
    /// The Kubernetes API: a cluster's over HTTPS, or the embedded one by function call.
    pub client: Client,
    /// What is known of the API's objects.
    pub informers: Informers,
    /// Where to count.
    pub metrics: Metrics,
    /// Cancelled when the process stops.
    pub shutdown: CancellationToken,
}

impl Context {
    /// A context with no informer running yet.
    pub fn new(client: Client, metrics: Metrics, shutdown: CancellationToken) -> Context {
        let informers = Informers::new(client.clone(), metrics.clone(), shutdown.clone());
        Context { client, informers, metrics, shutdown }
    }

    /// A recorder of events whose drops are counted in this context's metrics.
    pub fn recorder(&self, component: impl Into<String>, host: &str) -> Recorder {
        Recorder::counted(self.client.clone(), component, host, self.metrics.events_dropped())
    }
}
