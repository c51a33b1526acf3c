//! One connection, from its handshake to its end.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::activity::{Activity, BusyBody};
use super::places::Place;
use crate::answer::{self, Answer};
use crate::body;
use crate::credentials::{Credentials, user_of_certificate};
use crate::error::ApiError;
use crate::server::ApiServer;
use crate::user::User;

/// How long a client may take for the TLS handshake, and for the headers of a request.
const HANDSHAKE: Duration = Duration::from_secs(10);
const HEADERS: Duration = Duration::from_secs(20);
/// How long a connection may be open with nothing asked; longer than Kubernetes' clients keep theirs (90 s), so that it
/// is they who close it.
const IDLE: Duration = Duration::from_secs(180);
/// How long an idle connection gets to end by itself once it was told to.
const FAREWELL: Duration = Duration::from_secs(5);
/// Largest headers, in bytes.
const HEADER_BYTES: u32 = 64 * 1024;
/// Concurrent requests on one HTTP/2 connection; Kubernetes' number.
const STREAMS: u32 = 250;
/// Requests that an HTTP/2 client may have cancelled before they were looked at; more end the connection.
const RESETS: usize = 20;
/// How often a silent HTTP/2 client is asked whether it is there, and how long it may take to say so.
const PING: Duration = Duration::from_secs(30);
const PONG: Duration = Duration::from_secs(20);

/// What all connections share.
pub(super) struct Front {
    pub(super) api: ApiServer,
    pub(super) credentials: Credentials,
    pub(super) ends: CancellationToken,
}

/// Serves the connection until its client leaves, a deadline passes, its place goes to another, or the server ends.
pub(super) async fn run(
    front: Arc<Front>,
    acceptor: TlsAcceptor,
    stream: TcpStream,
    peer: SocketAddr,
    place: Place,
) {
    let (ends, came) = (front.ends.clone(), Instant::now());
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, %error, "TCP_NODELAY was refused");
    }
    let handshake =
        tokio::time::timeout(HANDSHAKE.min(front.api.options().stranger_timeout), acceptor.accept(stream));
    let shaken = tokio::select! {
        shaken = handshake => shaken,
        () = ends.cancelled() => return,
        () = place.pushed_out() => {
            tracing::debug!(%peer, "a TLS handshake gave way to others");
            return;
        }
    };
    let stream = match shaken {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%peer, %error, "a TLS handshake failed");
            return;
        }
        Err(_) => {
            tracing::debug!(%peer, "a TLS handshake took too long");
            return;
        }
    };
    serve(front, stream, peer, Arc::new(place), came).await;
}

async fn serve(
    front: Arc<Front>,
    stream: TlsStream<TcpStream>,
    peer: SocketAddr,
    place: Arc<Place>,
    came: Instant,
) {
    let ends = front.ends.clone();
    let session = stream.get_ref().1;
    let by_certificate =
        session.peer_certificates().and_then(|chain| chain.first()).and_then(user_of_certificate);
    let is_http2 = session.alpn_protocol() == Some(b"h2");
    if by_certificate.is_some() {
        place.know();
    }
    let activity = Activity::new();
    let stranger_timeout = front.api.options().stranger_timeout;
    let client = Arc::new(Client { front, by_certificate, place: place.clone() });
    let service = service_fn({
        let activity = activity.clone();
        move |request: Request<Incoming>| {
            let (client, busy) = (client.clone(), activity.begin());
            async move {
                let answer: Response<BusyBody> =
                    client.answer(request).await.map(|body| BusyBody::new(body, busy));
                Ok::<_, Infallible>(answer)
            }
        }
    });
    let server = http_server(is_http2);
    let connection = server.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let mut ending = false;
    let stranger_until = came + stranger_timeout;
    let mut deadline = stranger_until;
    loop {
        tokio::select! {
            served = connection.as_mut() => {
                if let Err(error) = served {
                    tracing::debug!(%peer, %error, "a connection broke");
                }
                return;
            }
            () = ends.cancelled(), if !ending => {
                connection.as_mut().graceful_shutdown();
                ending = true;
                // The server waits for what is under way, and no longer than it says.
                deadline = Instant::now() + IDLE;
            }
            () = place.pushed_out() => {
                tracing::debug!(%peer, "a connection that showed no credential gave way to others");
                return;
            }
            () = tokio::time::sleep_until(deadline) => {
                let due = if place.is_known() { activity.idle_for(IDLE) } else { stranger_until };
                if due > Instant::now() {
                    deadline = due;
                } else if place.is_known() && !ending {
                    tracing::debug!(%peer, "an idle connection is closed");
                    connection.as_mut().graceful_shutdown();
                    ending = true;
                    deadline = Instant::now() + FAREWELL;
                } else {
                    tracing::debug!(%peer, known = place.is_known(), "a connection was idle for too long");
                    return;
                }
            }
        }
    }
}

/// HTTP/2 where client and server agreed on it in the handshake: to wait for the first bytes instead is to wait for
/// ever.
fn http_server(is_http2: bool) -> auto::Builder<TokioExecutor> {
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
        .max_pending_accept_reset_streams(RESETS)
        .max_local_error_reset_streams(RESETS)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PONG);
    if is_http2 { server.http2_only() } else { server.http1_only() }
}

/// Whoever is at the other end of a connection.
struct Client {
    front: Arc<Front>,
    by_certificate: Option<User>,
    place: Arc<Place>,
}

impl Client {
    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let user = self
            .by_certificate
            .clone()
            .or_else(|| bearer(&request).and_then(|token| self.front.credentials.user_of_token(token)));
        let refused = match user {
            None => ApiError::Unauthorized,
            Some(_) if !self.place.know() => ApiError::TooManyRequests(
                "too many connections are open, please close some or try again later".into(),
            ),
            Some(user) => return self.front.api.answer(&user, request, self.front.ends.clone()).await,
        };
        let (parts, mut incoming) = request.into_parts();
        body::drain(&parts.headers, &mut incoming).await;
        answer::refusal(&refused)
    }
}

fn bearer(request: &Request<Incoming>) -> Option<&str> {
    let (scheme, token) = request.headers().get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}
