//! The TLS listener: every request needs a client certificate of our authority, or the token.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::answer::{self, Answer};
use crate::credentials::{Credentials, user_of_certificate};
use crate::error::ApiError;
use crate::server::{ApiServer, User};

/// Connections that are open at the same time; more wait to be accepted.
const MAX_CONNECTIONS: usize = 4096;
/// How long a client may take for the TLS handshake, and for the headers of a request.
const HANDSHAKE: Duration = Duration::from_secs(10);
const HEADERS: Duration = Duration::from_secs(20);
/// Largest headers, in bytes.
const HEADER_BYTES: u32 = 64 * 1024;
/// Concurrent requests on one HTTP/2 connection; Kubernetes' number.
const STREAMS: u32 = 250;
/// How long requests in flight may go on after the server was told to stop.
const DRAIN: Duration = Duration::from_secs(5);

impl ApiServer {
    /// Serves HTTP/1.1 and HTTP/2 over TLS until `shutdown`; then watches end, other requests are finished, and the
    /// call returns. Requests without a credential are answered with `401 Unauthorized`, whatever they ask for.
    pub async fn serve(
        &self,
        listener: TcpListener,
        credentials: Credentials,
        shutdown: CancellationToken,
    ) -> io::Result<()> {
        let acceptor = TlsAcceptor::from(credentials.tls());
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let connections = TaskTracker::new();
        let front = Arc::new(Front { api: self.clone(), credentials, ends: shutdown.clone() });
        loop {
            let Some(Ok(place)) = shutdown.run_until_cancelled(places.clone().acquire_owned()).await else {
                break;
            };
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let connection = connection(front.clone(), acceptor.clone(), stream, peer);
                    connections.spawn(async move {
                        connection.await;
                        drop(place);
                    });
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

struct Front {
    api: ApiServer,
    credentials: Credentials,
    ends: CancellationToken,
}

async fn connection(front: Arc<Front>, acceptor: TlsAcceptor, stream: TcpStream, peer: SocketAddr) {
    let ends = front.ends.clone();
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, %error, "TCP_NODELAY was refused");
    }
    let handshake = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream));
    let stream = match ends.run_until_cancelled(handshake).await {
        Some(Ok(Ok(stream))) => stream,
        Some(Ok(Err(error))) => {
            tracing::debug!(%peer, %error, "a TLS handshake failed");
            return;
        }
        Some(Err(_)) => {
            tracing::debug!(%peer, "a TLS handshake took too long");
            return;
        }
        None => return,
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let by_certificate = certificate.and_then(user_of_certificate).map(Arc::new);
    let service = service_fn(move |request: Request<Incoming>| {
        let (front, user) = (front.clone(), by_certificate.clone());
        async move { Ok::<_, Infallible>(front.answer(user, request).await) }
    });
    let mut server = auto::Builder::new(TokioExecutor::new());
    server
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .max_buf_size(HEADER_BYTES as usize)
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(HEADER_BYTES)
        .max_concurrent_streams(STREAMS)
        .keep_alive_interval(Duration::from_secs(30));
    let connection = server.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = ends.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%peer, %error, "a connection broke");
    }
}

impl Front {
    async fn answer(&self, by_certificate: Option<Arc<User>>, request: Request<Incoming>) -> Answer {
        let user = match by_certificate {
            Some(user) => user,
            None => match bearer(&request).and_then(|token| self.credentials.user_of_token(token)) {
                Some(user) => Arc::new(user),
                None => return answer::refusal(&ApiError::Unauthorized),
            },
        };
        self.api.answer(&user, request, self.ends.clone()).await
    }
}

fn bearer(request: &Request<Incoming>) -> Option<&str> {
    let (scheme, token) = request.headers().get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}
