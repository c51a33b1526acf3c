//! One operation at a time per volume, many across volumes.

use drives::VolumeId;
use parking_lot::Mutex;
use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tracing::Instrument;

/// What an operation has to itself: a volume or snapshot, or the name of one that may not exist yet. (That a volume is deleted under
/// its name's repeated creation is refused by the drives.)
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    Name(String),
    SnapshotName(String),
    GroupName(String),
    Volume(VolumeId),
}

/// The operations under way. Cloning gives another handle.
#[derive(Clone, Debug, Default)]
pub(crate) struct Flights {
    under_way: Arc<Mutex<HashSet<Key>>>,
    tasks: TaskTracker,
}

/// The operation's own entry, gone when the operation is over, however it ends.
struct Flight {
    under_way: Arc<Mutex<HashSet<Key>>>,
    key: Key,
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.under_way.lock().remove(&self.key);
    }
}

impl Flights {
    /// Runs `work` alone on `key`, and to its end even if the caller hangs up: only then may the next call begin.
    ///
    /// # Errors
    /// `ABORTED` at once when another operation has the key; else what `work` says.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        key: Key,
        work: impl Future<Output = Result<T, Status>> + Send + 'static,
    ) -> Result<T, Status> {
        let flight = self.begin(key)?;
        let task = async move {
            let _flight = flight;
            work.await
        };
        self.tasks.spawn(task.in_current_span()).await.unwrap_or_else(|error| {
            Err(Status::internal(format!("the operation broke off: {error}; try again")))
        })
    }

    /// Waits, at most for `patience`, until nothing is under way.
    pub(crate) async fn landed(&self, patience: Duration) {
        self.tasks.close();
        if tokio::time::timeout(patience, self.tasks.wait()).await.is_err() {
            tracing::warn!(operations = self.tasks.len(), "stopped with operations under way");
        }
    }

    fn begin(&self, key: Key) -> Result<Flight, Status> {
        if self.under_way.lock().insert(key.clone()) {
            return Ok(Flight { under_way: self.under_way.clone(), key });
        }
        let what = match &key {
            Key::Name(name) => format!("volume of the name {name}"),
            Key::SnapshotName(name) => format!("snapshot of the name {name}"),
            Key::GroupName(name) => format!("group snapshot of the name {name}"),
            Key::Volume(id) => id.to_string(),
        };
        Err(Status::aborted(format!("another operation on {what} is under way; try again when it is over")))
    }
}

#[cfg(test)]
mod tests {
    use super::{Flights, Key};
    use std::time::Duration;
    use tokio::sync::oneshot;
    use tonic::{Code, Status};

    fn key(name: &str) -> Key {
        Key::Name(name.into())
    }

    #[tokio::test]
    async fn a_second_operation_on_the_volume_is_sent_away_until_the_first_is_over() {
        let flights = Flights::default();
        let (finish, finished) = oneshot::channel::<()>();
        let first = tokio::spawn({
            let flights = flights.clone();
            async move {
                let work = async { finished.await.map_err(|_| Status::internal("dropped")) };
                flights.run(key("a"), work).await
            }
        });
        while flights.under_way.lock().is_empty() {
            tokio::task::yield_now().await;
        }

        let second = flights.run(key("a"), async { Ok(()) }).await;
        assert_eq!(second.expect_err("busy").code(), Code::Aborted);
        assert!(flights.run(key("b"), async { Ok(()) }).await.is_ok(), "another volume isn't held up");

        // The caller hangs up; the work goes on, and keeps the volume.
        first.abort();
        assert!(first.await.expect_err("aborted").is_cancelled());
        assert_eq!(flights.run(key("a"), async { Ok(()) }).await.expect_err("busy").code(), Code::Aborted);

        finish.send(()).expect("the work still waits for this");
        flights.landed(Duration::from_secs(5)).await;
        assert!(flights.under_way.lock().is_empty());
        assert!(flights.run(key("a"), async { Ok(()) }).await.is_ok());
    }

    #[tokio::test]
    async fn failure_and_panic_free_the_volume() {
        let flights = Flights::default();
        let failed: Result<(), Status> =
            flights.run(key("a"), async { Err(Status::not_found("gone")) }).await;
        assert_eq!(failed.expect_err("failed").code(), Code::NotFound);
        let broken: Result<(), Status> = flights.run(key("a"), async { panic!("a bug") }).await;
        assert_eq!(broken.expect_err("panicked").code(), Code::Internal);
        assert!(flights.run(key("a"), async { Ok(()) }).await.is_ok());
    }
}
