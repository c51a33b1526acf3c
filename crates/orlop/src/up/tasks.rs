//! The long-running parts of the process: the first that ends before it is asked to stops them all.

use std::convert::Infallible;
use std::fmt::Display;
use std::future::Future;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Named tasks that run until `shutdown`.
pub(super) struct Tasks {
    running: JoinSet<(&'static str, Result<(), String>)>,
    names: Vec<&'static str>,
    shutdown: CancellationToken,
}

impl Tasks {
    pub(super) fn new(shutdown: CancellationToken) -> Tasks {
        Tasks { running: JoinSet::new(), names: Vec::new(), shutdown }
    }

    /// What tells the parts to end.
    pub(super) fn shutdown(&self) -> CancellationToken {
        self.shutdown.clone()
    }

    /// Starts a part.
    pub(super) fn spawn<E: Display>(
        &mut self,
        name: &'static str,
        part: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        self.names.push(name);
        self.running.spawn(async move { (name, part.await.map_err(|error| error.to_string())) });
    }

    /// Starts a part that can't fail.
    pub(super) fn spawn_infallible(
        &mut self,
        name: &'static str,
        part: impl Future<Output = ()> + Send + 'static,
    ) {
        self.spawn(name, async move {
            part.await;
            Ok::<(), Infallible>(())
        });
    }

    /// Waits for a part that ends though nobody asked it to, and says why it did.
    pub(super) async fn failure(&mut self) -> anyhow::Error {
        match self.running.join_next().await {
            Some(Ok((name, Ok(())))) => anyhow::anyhow!("the {name} stopped unexpectedly; the log says more"),
            Some(Ok((name, Err(error)))) => anyhow::anyhow!("the {name} failed: {error}"),
            Some(Err(error)) => anyhow::anyhow!("a part of Orlop broke off: {error}; the log says more"),
            None => std::future::pending().await,
        }
    }

    /// Waits for all parts to end after `shutdown` was cancelled; those that don't in time are dropped, which
    /// loses nothing (what matters is on disk).
    pub(super) async fn finish(mut self, patience: Duration) {
        self.shutdown.cancel();
        let all = async {
            while let Some(ended) = self.running.join_next().await {
                let Ok((name, outcome)) = ended else { continue };
                if let Some(at) = self.names.iter().position(|running| *running == name) {
                    self.names.swap_remove(at);
                }
                if let Err(error) = outcome {
                    tracing::warn!(part = name, error, "ended with an error");
                }
            }
        };
        if tokio::time::timeout(patience, all).await.is_err() {
            tracing::warn!(parts = ?self.names, seconds = patience.as_secs(), "not stopped in time, cut off");
        }
    }
}
