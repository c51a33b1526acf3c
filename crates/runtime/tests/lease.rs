//! Leader election in paused time, against a server that holds one lease and can be cut off.

#![allow(clippy::unwrap_used, reason = "a test says by its panic what went wrong")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::client::{Body, ClientBuilder};
use kube::{Api, Client};
use parking_lot::Mutex;
use runtime::{LeaseError, LeaseOptions, Parts, Term, lead};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tower::{BoxError, Service};

/// How the network of one process is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Network {
    Fine,
    /// Requests get no answer.
    Silent,
    /// Writes are made, and their answers lost.
    AnswersLost,
}

#[derive(Clone, Default)]
struct Server {
    lease: Arc<Mutex<Option<Value>>>,
    writes: Arc<AtomicUsize>,
}

impl Server {
    fn spec(&self) -> LeaseSpec {
        let lease: Lease = serde_json::from_value(self.lease.lock().clone().unwrap()).unwrap();
        lease.spec.unwrap()
    }

    fn holder(&self) -> String {
        self.spec().holder_identity.unwrap_or_default()
    }

    fn steal(&self, holder: &str) {
        let mut lease = self.lease.lock();
        let lease = lease.as_mut().unwrap();
        lease["spec"]["holderIdentity"] = holder.into();
        let version = lease["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap();
        lease["metadata"]["resourceVersion"] = (version + 1).to_string().into();
    }

    fn answer(&self, method: &Method, path: &str, body: &[u8]) -> (u16, Value) {
        if !path.contains("/leases") {
            if method != Method::GET && !path.contains("/events") {
                self.writes.fetch_add(1, Ordering::SeqCst);
            }
            return (200, json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}}));
        }
        let refuse = |code: u16, reason: &str| {
            (
                code,
                json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": reason}),
            )
        };
        let mut lease = self.lease.lock();
        let sent: Value = serde_json::from_slice(body).unwrap_or_default();
        let version = |lease: &Value| lease["metadata"]["resourceVersion"].as_str().unwrap_or("0").to_owned();
        match (method, lease.as_ref()) {
            (&Method::GET, None) | (&Method::PUT, None) => return refuse(404, "NotFound"),
            (&Method::GET, Some(now)) => return (200, now.clone()),
            (&Method::POST, Some(_)) => return refuse(409, "AlreadyExists"),
            (&Method::PUT, Some(now)) if version(now) != version(&sent) => return refuse(409, "Conflict"),
            _ => {}
        }
        let next = lease.as_ref().map_or(1, |now| version(now).parse::<u64>().unwrap() + 1);
        let mut written = sent;
        written["metadata"]["resourceVersion"] = next.to_string().into();
        *lease = Some(written.clone());
        (200, written)
    }

    fn service(
        &self,
        network: &Arc<Mutex<Network>>,
    ) -> impl Service<Request<Body>, Response = Response<Full<Bytes>>, Error = BoxError, Future: Send>
    + Send
    + Clone
    + use<> {
        let (server, network) = (self.clone(), network.clone());
        tower::service_fn(move |request: Request<Body>| {
            let (server, network) = (server.clone(), network.clone());
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                let how = *network.lock();
                if how == Network::Silent {
                    std::future::pending::<()>().await;
                }
                let (code, value) = server.answer(&parts.method, parts.uri.path(), &body);
                if how == Network::AnswersLost && parts.method != Method::GET {
                    return Err(BoxError::from("connection reset"));
                }
                Ok(Response::builder().status(code).body(Full::new(Bytes::from(value.to_string()))).unwrap())
            }
        })
    }
}

/// A process that leads as soon as it can, and counts while it does.
struct Process {
    network: Arc<Mutex<Network>>,
    shutdown: CancellationToken,
    leading: Arc<Mutex<Option<Client>>>,
    ended: JoinHandle<Result<Option<()>, LeaseError>>,
}

impl Process {
    fn start(server: &Server, name: &str) -> Process {
        let network = Arc::new(Mutex::new(Network::Fine));
        let shutdown = CancellationToken::new();
        let leading = Arc::new(Mutex::new(None));
        let client = Client::new(server.service(&network), "default");
        let guarded = {
            let (server, network, leading, shutdown) =
                (server.clone(), network.clone(), leading.clone(), shutdown.clone());
            move |term: Term| async move {
                let builder = ClientBuilder::new(server.service(&network), "default").with_layer(&term);
                *leading.lock() = Some(builder.build());
                shutdown.cancelled().await;
            }
        };
        let options = LeaseOptions::new("kube-system", "binder", name);
        let ended = tokio::spawn(lead(client, options, shutdown.clone(), guarded));
        Process { network, shutdown, leading, ended }
    }

    async fn leads(&self) -> Client {
        loop {
            if let Some(client) = self.leading.lock().clone() {
                return client;
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    fn is_leading(&self) -> bool {
        self.leading.lock().is_some()
    }
}

async fn write(client: &Client) -> Result<ConfigMap, kube::Error> {
    Api::<ConfigMap>::namespaced(client.clone(), "default")
        .create(&Default::default(), &ConfigMap::default())
        .await
}

#[tokio::test(start_paused = true)]
async fn one_leads_until_it_stops_and_another_takes_over_at_once() {
    let server = Server::default();
    let first = Process::start(&server, "first");
    first.leads().await;
    let second = Process::start(&server, "second");
    sleep(Duration::from_secs(3600)).await;
    assert!(!second.is_leading());
    let spec = server.spec();
    assert_eq!((spec.holder_identity.as_deref(), spec.lease_duration_seconds), (Some("first"), Some(15)));
    assert_eq!(spec.lease_transitions, Some(0));

    first.shutdown.cancel();
    first.ended.await.unwrap().unwrap();
    assert_eq!(server.holder(), "");
    assert_eq!(server.spec().lease_duration_seconds, Some(1));
    // Between 1 and 2.2 pauses.
    timeout(Duration::from_millis(4500), second.leads()).await.unwrap();
    assert_eq!(server.spec().lease_transitions, Some(1));
    assert_eq!(server.spec().lease_duration_seconds, Some(15));
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_cut_off_stops_before_another_takes_over_and_never_writes_again() {
    let server = Server::default();
    let first = Process::start(&server, "first");
    let client = first.leads().await;
    write(&client).await.unwrap();
    let second = Process::start(&server, "second");
    sleep(Duration::from_secs(7)).await;

    let cut = Instant::now();
    *first.network.lock() = Network::Silent;
    let under_way = tokio::spawn({
        let client = client.clone();
        async move { write(&client).await }
    });
    let lost = first.ended.await.unwrap().unwrap_err();
    assert!(matches!(lost, LeaseError::Expired { .. }), "{lost}");
    assert!(cut.elapsed() <= Duration::from_secs(10), "{:?}", cut.elapsed());
    assert!(!second.is_leading(), "two would lead");
    let given_up = under_way.await.unwrap().unwrap_err();
    assert!(runtime::explain(&given_up).contains("no longer holds its lease"), "{given_up}");

    // The network is back, and with it everything that the old leader still wants to do.
    *first.network.lock() = Network::Fine;
    let refused = write(&client).await.unwrap_err();
    assert!(runtime::explain(&refused).contains("no longer holds its lease"), "{refused}");
    Api::<ConfigMap>::namespaced(client, "default").get("x").await.expect("reading harms nobody");
    assert_eq!(server.writes.load(Ordering::SeqCst), 1);
    let client = timeout(Duration::from_secs(25), second.leads()).await.unwrap();
    write(&client).await.unwrap();
    assert_eq!(server.spec().lease_transitions, Some(1));
}

#[tokio::test(start_paused = true)]
async fn one_that_waits_takes_over_even_if_its_connection_was_dropped_silently() {
    let server = Server::default();
    let first = Process::start(&server, "first");
    first.leads().await;
    let second = Process::start(&server, "second");
    sleep(Duration::from_secs(60)).await;

    // A request is under way on a connection that nobody has any more.
    *second.network.lock() = Network::Silent;
    sleep(Duration::from_secs(5)).await;
    *second.network.lock() = Network::Fine;
    // The leader is gone without a word.
    first.ended.abort();
    timeout(Duration::from_secs(30), second.leads()).await.unwrap();
    assert_eq!(server.holder(), "second");
}

async fn breaks_off() {
    panic!("out of range");
}

#[tokio::test(start_paused = true)]
async fn work_that_breaks_off_gives_the_lease_up() {
    let server = Server::default();
    let network = Arc::new(Mutex::new(Network::Fine));
    let client = Client::new(server.service(&network), "default");
    let options = LeaseOptions::new("kube-system", "binder", "first");
    let parts = Parts::new(CancellationToken::new());
    let ended = lead(client, options, parts.shutdown(), |_| {
        parts.spawn("binder", breaks_off());
        parts.ended()
    });
    let why = ended.await.unwrap().unwrap().unwrap_err().to_string();
    assert!(why.contains("the binder broke off") && why.contains("out of range"), "{why}");
    assert_eq!(server.holder(), "");
}

#[tokio::test(start_paused = true)]
async fn lost_answers_cost_no_leadership_and_another_holder_ends_it() {
    let server = Server::default();
    let first = Process::start(&server, "first");
    first.leads().await;
    for _ in 0..20 {
        *first.network.lock() = Network::AnswersLost;
        sleep(Duration::from_secs(4)).await;
        *first.network.lock() = Network::Fine;
        sleep(Duration::from_secs(4)).await;
    }
    assert!(!first.ended.is_finished());
    assert_eq!(server.spec().lease_transitions, Some(0));

    server.steal("thief");
    let lost = timeout(Duration::from_secs(3), first.ended).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(&lost, LeaseError::Taken { holder, .. } if holder == "thief"), "{lost}");
}

#[tokio::test(start_paused = true)]
async fn durations_that_can_not_work_are_refused() {
    let refused = async |change: fn(&mut LeaseOptions)| {
        let mut options = LeaseOptions::new("default", "x", "me");
        change(&mut options);
        let client = Client::new(Server::default().service(&Arc::new(Mutex::new(Network::Fine))), "default");
        lead(client, options, CancellationToken::new(), |_| async {}).await.unwrap_err().to_string()
    };
    let long = refused(|options| options.renew_deadline = options.duration).await;
    assert!(long.contains("must last longer"), "{long}");
    let rare = refused(|options| options.retry_period = Duration::from_secs(9)).await;
    assert!(rare.contains("1.2 pauses"), "{rare}");
    let odd = refused(|options| options.duration = Duration::from_millis(12_500)).await;
    assert!(odd.contains("whole seconds"), "{odd}");
}
