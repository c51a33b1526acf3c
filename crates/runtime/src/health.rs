//! `/healthz`, `/readyz` and `/metrics` over plain HTTP, for probes and scrapers on this machine.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::RwLock;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::Metrics;

/// Connections served at a time; others wait.
const CONNECTIONS: usize = 32;
/// How long a client may take to send its request.
const PATIENCE: Duration = Duration::from_secs(10);

type Check = Box<dyn Fn() -> Result<(), String> + Send + Sync>;

/// What must hold for the process to be ready, and what of it for the process to be healthy at all. The parts of the
/// process add to it as they start.
#[derive(Clone, Default)]
pub struct Checks(Arc<RwLock<Vec<Part>>>);

struct Part {
    name: &'static str,
    of: Of,
    check: Check,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    Readiness,
    Health,
}

impl Checks {
    /// Adds a check: it must answer at once, and say what is wrong.
    pub fn add(&self, name: &'static str, check: impl Fn() -> Result<(), String> + Send + Sync + 'static) {
        self.0.write().push(Part { name, of: Of::Readiness, check: Box::new(check) });
    }

    /// Adds a check without which the process is not healthy either; as [`Checks::add`].
    pub fn add_health(
        &self,
        name: &'static str,
        check: impl Fn() -> Result<(), String> + Send + Sync + 'static,
    ) {
        self.0.write().push(Part { name, of: Of::Health, check: Box::new(check) });
    }

    fn answer(&self, of: Of) -> Response<Full<Bytes>> {
        let checks = self.0.read();
        let asked = checks.iter().filter(|part| of == Of::Readiness || part.of == of);
        let failures: Vec<String> =
            asked.filter_map(|part| Some(format!("{}: {}", part.name, (part.check)().err()?))).collect();
        match failures.is_empty() {
            true => text(StatusCode::OK, "ok\n".to_owned()),
            false => text(StatusCode::SERVICE_UNAVAILABLE, failures.join("\n") + "\n"),
        }
    }
}

/// Serves the endpoints until `shutdown` is cancelled.
///
/// `/readyz` answers 200 when every check passes, else 503 with a line for each that does not; `/healthz` and `/livez`
/// the same for the checks of health alone. Errors are those of the listener.
pub async fn serve(
    listener: TcpListener,
    metrics: Metrics,
    checks: Checks,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return Ok(()) };
        let stream = match shutdown.run_until_cancelled(listener.accept()).await {
            None => return Ok(()),
            Some(Ok((stream, _))) => stream,
            // The client went away before it was accepted, or files ran out for a moment.
            Some(Err(error)) if is_transient(&error) => {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
            Some(Err(error)) => return Err(error),
        };
        let (metrics, checks, shutdown) = (metrics.clone(), checks.clone(), shutdown.clone());
        tokio::spawn(async move {
            let service = service_fn(|request| answer(request, &metrics, &checks));
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .serve_connection(TokioIo::new(stream), service);
            // A broken connection is the client's affair.
            let _ = shutdown.run_until_cancelled(connection).await;
            drop(slot);
        });
    }
}

fn is_transient(error: &io::Error) -> bool {
    const TOO_MANY_OPEN_FILES: [i32; 2] = [23, 24];
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset)
        || error.raw_os_error().is_some_and(|code| TOO_MANY_OPEN_FILES.contains(&code))
}

async fn answer<B>(
    request: Request<B>,
    metrics: &Metrics,
    checks: &Checks,
) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return Ok(text(StatusCode::METHOD_NOT_ALLOWED, "use GET\n".to_owned()));
    }
    Ok(match request.uri().path() {
        "/healthz" | "/livez" => checks.answer(Of::Health),
        "/readyz" => checks.answer(Of::Readiness),
        "/metrics" => {
            let metrics = metrics.clone();
            match tokio::task::spawn_blocking(move || metrics.encode()).await {
                Ok(page) => {
                    let mut response = text(StatusCode::OK, page);
                    response
                        .headers_mut()
                        .insert(header::CONTENT_TYPE, header::HeaderValue::from_static(Metrics::MEDIA_TYPE));
                    response
                }
                Err(_) => {
                    text(StatusCode::INTERNAL_SERVER_ERROR, "the metrics could not be read\n".to_owned())
                }
            }
        }
        _ => text(StatusCode::NOT_FOUND, "try /healthz, /readyz or /metrics\n".to_owned()),
    })
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain"));
    response
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use http_body_util::BodyExt;

    use super::*;

    async fn get(path: &str, checks: &Checks) -> (StatusCode, String) {
        let request = Request::get(path).body(()).expect("a request");
        let response = answer(request, &Metrics::new(), checks).await.expect("infallible");
        let status = response.status();
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        (status, String::from_utf8(body.to_vec()).expect("text"))
    }

    #[tokio::test]
    async fn readiness_follows_the_checks_and_health_does_not() {
        let (checks, ready) = (Checks::default(), Arc::new(AtomicBool::new(false)));
        checks.add("store", {
            let ready = ready.clone();
            move || if ready.load(Ordering::Relaxed) { Ok(()) } else { Err("still opening".to_owned()) }
        });
        assert_eq!(get("/healthz", &checks).await, (StatusCode::OK, "ok\n".to_owned()));
        assert_eq!(
            get("/readyz", &checks).await,
            (StatusCode::SERVICE_UNAVAILABLE, "store: still opening\n".to_owned())
        );
        ready.store(true, Ordering::Relaxed);
        assert_eq!(get("/readyz", &checks).await.0, StatusCode::OK);
        checks.add_health("disk", || Err("full".to_owned()));
        for path in ["/healthz", "/livez", "/readyz"] {
            assert_eq!(
                get(path, &checks).await,
                (StatusCode::SERVICE_UNAVAILABLE, "disk: full\n".to_owned())
            );
        }
        assert!(get("/metrics", &checks).await.1.ends_with("# EOF\n"));
        assert_eq!(get("/secret", &checks).await.0, StatusCode::NOT_FOUND);
    }

    #[tokio::test]
    async fn serving_ends_with_shutdown() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(serve(listener, Metrics::new(), Checks::default(), shutdown.clone()));
        shutdown.cancel();
        serving.await.expect("no panic").expect("no error");
    }
}
