//! Connecting to a driver's socket.

use hyper_util::rt::TokioIo;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::transport::{Channel, Endpoint};

/// How long [`connect`] waits for a driver to answer.
pub const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// Nobody answered on a driver's socket in time.
#[derive(Debug, thiserror::Error)]
#[error(
    "no answer on the socket {}, waited {waited:?} ({source}); check that the driver is running and serves this path",
    path.display()
)]
pub struct ConnectError {
    /// The socket.
    pub path: PathBuf,
    /// How long an answer was waited for.
    pub waited: Duration,
    /// The last failure.
    pub source: io::Error,
}

/// How long whoever calls a driver waits for an answer: longer than a driver of ours takes to give one.
pub const CALL_DEADLINE: Duration = Duration::from_mins(2);

/// Connects to the driver that listens on `path`, waiting up to [`CONNECT_DEADLINE`] for it to appear.
///
/// The channel is cheap to clone, serves any number of calls at once, and connects again by itself when the driver was
/// restarted. Calls carry no deadline of their own: set one with each request.
pub async fn connect(path: impl AsRef<Path>) -> Result<Channel, ConnectError> {
    connect_within(path, CONNECT_DEADLINE).await
}

/// As [`connect`], with the caller's own patience.
pub async fn connect_within(path: impl AsRef<Path>, patience: Duration) -> Result<Channel, ConnectError> {
    let path = path.as_ref().to_owned();
    await_listener(&path, patience).await.map_err(|source| ConnectError {
        path: path.clone(),
        waited: patience,
        source,
    })?;
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // The address is never looked up; it is what HTTP/2 shows as the authority.
    Ok(Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector))
}

/// Waits until the socket accepts a connection. The file may appear before its listener is ready, and may be a dead
/// process's left-over that a new one replaces: only connecting tells.
async fn await_listener(path: &Path, patience: Duration) -> io::Result<()> {
    let deadline = Instant::now() + patience;
    let mut pause = FIRST_PAUSE;
    loop {
        let error = match timeout_at(deadline, UnixStream::connect(path)).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => error,
            Err(_) => io::ErrorKind::TimedOut.into(),
        };
        let awaited = matches!(
            error.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::WouldBlock
        );
        if !awaited || Instant::now() + pause > deadline {
            return Err(error);
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
