use kube::Client;
use tokio_util::sync::CancellationToken;

use crate::deadline::with_deadlines;
use crate::{Informers, Metrics, Parts, Recorder};

/// What a controller is given to work with; the same for all controllers of a process.
#[derive(Clone)]
pub struct Context {
    /// The Kubernetes API: a cluster's over HTTPS, or the embedded one by function call. Every request has a deadline.
    pub client: Client,
    /// What is known of the API's objects.
    pub informers: Informers,
    /// Where to count.
    pub metrics: Metrics,
    /// What runs in the background: whatever of it ends before it is asked to is noticed here.
    pub parts: Parts,
    /// Cancelled when the process stops.
    pub shutdown: CancellationToken,
}

impl Context {
    /// A context with no informer running yet.
    pub fn new(client: Client, metrics: Metrics, shutdown: CancellationToken) -> Context {
        Context::with(client, metrics, Parts::new(shutdown))
    }

    /// A context whose background work is among these parts, and ends with them.
    pub fn with(client: Client, metrics: Metrics, parts: Parts) -> Context {
        let shutdown = parts.shutdown();
        let informers = Informers::new(client.clone(), metrics.clone(), parts.clone());
        let client = with_deadlines(&client);
        Context { client, informers, metrics, parts, shutdown }
    }

    /// Whether what the process watches is known well enough to act on it: every kind was listed, no watch has been broken
    /// for long, or silent. For `/readyz`.
    ///
    /// # Errors
    /// The kinds of which there is no news, and why.
    pub fn check_news(&self) -> Result<(), String> {
        self.metrics.feeds().check()
    }

    /// A context for what ends before the process does, when `stop` is cancelled. It has watches of its own, which end
    /// then.
    pub fn until(&self, stop: CancellationToken) -> Context {
        Context::with(self.client.clone(), self.metrics.clone(), self.parts.until(stop))
    }

    /// A recorder of events whose drops are counted in this context's metrics.
    pub fn recorder(&self, component: impl Into<String>, host: &str) -> Recorder {
        let dropped = self.metrics.events_dropped();
        Recorder::among(&self.parts, self.client.clone(), component, host, dropped)
    }
}
