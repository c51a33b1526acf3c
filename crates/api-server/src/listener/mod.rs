//! The TLS listener: every request needs a client certificate of our authority, or the token.

mod activity;
mod connection;
mod places;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::credentials::Credentials;
use crate::server::ApiServer;
use connection::Front;
use places::Places;

/// Connections of clients with a credential that are open at the same time.
const MOST_KNOWN: usize = 4096;
/// Connections without one: each has [`crate::Options::stranger_timeout`] to show it, and the oldest goes when another comes.
const MOST_STRANGERS: usize = 512;
/// How long requests in flight may go on after the server was told to stop.
const DRAIN: Duration = Duration::from_secs(5);

impl ApiServer {
    /// Serves HTTP/1.1 and HTTP/2 over TLS until `shutdown`; then watches end, other requests are finished, and the
    /// call returns. Requests without a credential are answered with `401 Unauthorized`, whatever they ask for, and
    /// connections that show none are closed after seconds.
    pub async fn serve(
        &self,
        listener: TcpListener,
        credentials: Credentials,
        shutdown: CancellationToken,
    ) -> io::Result<()> {
        let acceptor = TlsAcceptor::from(credentials.tls());
        let places = Places::new(MOST_KNOWN, MOST_STRANGERS);
        let connections = TaskTracker::new();
        let front = Arc::new(Front { api: self.clone(), credentials, ends: shutdown.clone() });
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let place = places.enter(peer.ip());
                    connections.spawn(connection::run(front.clone(), acceptor.clone(), stream, peer, place));
                }
                Err(error) => {
                    // Out of descriptors, or a client that left already. Neither is a reason to stop, nor to spin.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        connections.close();
        if tokio::time::timeout(DRAIN, connections.wait()).await.is_err() {
            tracing::warn!(left = connections.len(), "connections were still busy when the server stopped");
        }
        Ok(())
    }
}
