//! Deadlines of API requests, whatever carries them: a socket, or a function call into the embedded server.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http::{Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use kube::Client;
use kube::client::Body;
use tokio::time::{Instant, timeout_at};
use tower::BoxError;

use crate::informer::Feed;

/// How long a request and its answer may take. A Kubernetes API server gives up after as long.
const REQUEST: Duration = Duration::from_secs(60);
/// How long a watch may be silent before it is begun again. Servers send a bookmark each minute.
const SILENCE: Duration = Duration::from_secs(150);

/// No answer came in time.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("no answer from the API server within {} s", .0.as_secs())]
struct NoAnswer(Duration);

/// The client, with a deadline on every request. What streams (watches, logs) must begin in time; a watch that is silent
/// for too long ends, as if the server had ended it.
pub fn with_deadlines(client: &Client) -> Client {
    limited(client, None)
}

/// [`with_deadlines`] for what feeds an informer: its feed hears of whatever arrives.
pub(crate) fn limited(client: &Client, feed: Option<Arc<Feed>>) -> Client {
    let inner = client.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let (client, feed) = (inner.clone(), feed.clone());
        async move { send(&client, feed, request).await }
    });
    Client::new(service, client.default_namespace())
}

async fn send(
    client: &Client,
    feed: Option<Arc<Feed>>,
    request: Request<Body>,
) -> Result<Response<Limited>, BoxError> {
    let (watches, follows) = (asks(&request, "watch="), asks(&request, "follow="));
    if let Some(feed) = feed.as_ref().filter(|_| watches) {
        feed.pace().await;
    }
    let end = Instant::now() + REQUEST;
    let answer = timeout_at(end, client.send(request)).await.map_err(|_| NoAnswer(REQUEST))??;
    let (parts, body) = answer.into_parts();
    let feed = feed.filter(|_| parts.status.is_success());
    if let Some(feed) = &feed {
        feed.heard(watches);
    }
    let limit = match (watches, follows) {
        (true, _) => Limit::Silence(feed),
        (_, true) => Limit::None,
        _ => Limit::End(end),
    };
    Ok(Response::from_parts(parts, body_within(body, limit)))
}

fn asks(request: &Request<Body>, parameter: &str) -> bool {
    let query = request.uri().query().unwrap_or_default();
    query.split('&').any(|pair| pair.strip_prefix(parameter).is_some_and(|value| value != "false"))
}

/// How long the parts of an answer may take.
enum Limit {
    None,
    End(Instant),
    /// Each so long; who hears of them.
    Silence(Option<Arc<Feed>>),
}

type Limited = StreamBody<stream::BoxStream<'static, Result<Frame<Bytes>, BoxError>>>;

fn body_within(body: Body, limit: Limit) -> Limited {
    let frames = stream::unfold(Some((body, limit)), |state| async {
        let (mut body, limit) = state?;
        let frame = match &limit {
            Limit::None => body.frame().await,
            Limit::End(end) => match timeout_at(*end, body.frame()).await {
                Ok(frame) => frame,
                Err(_) => return Some((Err(NoAnswer(REQUEST).into()), None)),
            },
            Limit::Silence(feed) => {
                let frame = timeout_at(Instant::now() + SILENCE, body.frame()).await.ok()?;
                if let (Some(feed), Some(Ok(_))) = (feed, &frame) {
                    feed.heard(true);
                }
                frame
            }
        };
        match frame? {
            Ok(frame) => Some((Ok(frame), Some((body, limit)))),
            Err(error) => Some((Err(error.into()), None)),
        }
    });
    StreamBody::new(Box::pin(frames))
}
