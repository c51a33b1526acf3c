//! What lies between processes and the API server: delays, losses, and an ear on every write.

use std::collections::HashMap;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use api_server::{AnswerBody, ApiServer, InProcess};
use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use kube::Client;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tower::{BoxError, Service};

use crate::{Dice, Ledger};

type Answer = Response<UnsyncBoxBody<Bytes, BoxError>>;

/// Lines of the trace that are kept.
const TRACE: usize = 4000;

/// What becomes of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// It is refused, as if the object had changed.
    Conflict,
    /// It is not made, and the client is told so.
    Refused,
    /// It is made, and the connection breaks before the answer.
    AnswerLost,
}

impl Fault {
    /// All of them.
    pub const ALL: [Fault; 3] = [Fault::Conflict, Fault::Refused, Fault::AnswerLost];
}

/// How often, in a thousand, what goes wrong. No request of the user goes wrong.
#[derive(Clone, Copy, Debug, Default)]
pub struct Conditions {
    /// Requests answered with an error without effect.
    pub refused: u64,
    /// Writes answered with a conflict that is none.
    pub conflict: u64,
    /// Writes whose answer is lost.
    pub answer_lost: u64,
    /// Requests and pieces of watches that are late by seconds.
    pub stalled: u64,
    /// Pieces of watches after which the watch breaks off.
    pub broken: u64,
}

impl Conditions {
    /// Everything works, and takes its milliseconds.
    pub const CALM: Conditions =
        Conditions { refused: 0, conflict: 0, answer_lost: 0, stalled: 0, broken: 0 };
    /// As bad as it gets on a normal day.
    pub const ROUGH: Conditions =
        Conditions { refused: 40, conflict: 30, answer_lost: 40, stalled: 60, broken: 30 };
    /// Hardly anything works.
    pub const STORM: Conditions =
        Conditions { refused: 200, conflict: 100, answer_lost: 200, stalled: 200, broken: 150 };
}

/// The network of a world. Clones are handles on the same one.
#[derive(Clone)]
pub struct Network {
    shared: Arc<Shared>,
}

struct Shared {
    seed: u64,
    api: ApiServer,
    start: Instant,
    /// One request at a time.
    turn: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

struct State {
    conditions: Conditions,
    ledger: Ledger,
    /// How often each process asked for the same.
    asked: HashMap<(&'static str, String), u64>,
    trace: Vec<String>,
    requests: usize,
    writes: usize,
    events: usize,
    /// The write that fails, by number, whatever the conditions.
    fault: Option<(usize, Fault)>,
}

impl Network {
    /// A calm network before this API server.
    pub fn new(seed: u64, api: ApiServer) -> Network {
        let state = State {
            conditions: Conditions::CALM,
            ledger: Ledger::default(),
            asked: HashMap::new(),
            trace: Vec::new(),
            requests: 0,
            writes: 0,
            events: 0,
            fault: None,
        };
        let (start, turn) = (Instant::now(), tokio::sync::Mutex::new(()));
        Network { shared: Arc::new(Shared { seed, api, start, turn, state: Mutex::new(state) }) }
    }

    /// A client for the user: nothing is delayed, nothing fails.
    pub fn user(&self) -> Client {
        self.client("user", CancellationToken::new())
    }

    /// A client for a process, which gets no answer and makes no further request once it is `dead`.
    pub fn client(&self, process: &'static str, dead: CancellationToken) -> Client {
        let inner = self.shared.api.in_process(process);
        Client::new(Line { network: self.clone(), process, dead, inner }, "default")
    }

    /// What everything follows from.
    pub(crate) fn seed(&self) -> u64 {
        self.shared.seed
    }

    /// From now on it is like this.
    pub fn set(&self, conditions: Conditions) {
        self.shared.state.lock().conditions = conditions;
    }

    /// The n-th write of any process fails, counted from 0.
    pub fn fail(&self, number: usize, fault: Fault) {
        self.shared.state.lock().fault = Some((number, fault));
    }

    /// Reads of processes, watches aside.
    pub fn reads(&self) -> usize {
        let state = self.shared.state.lock();
        state.requests - state.writes - state.events
    }

    /// Writes that processes asked for, events aside.
    pub fn writes(&self) -> usize {
        self.shared.state.lock().writes
    }

    /// Writes of events that processes asked for.
    pub fn events(&self) -> usize {
        self.shared.state.lock().events
    }

    /// Looks at the ledger, or changes it.
    pub fn ledger<T>(&self, look: impl FnOnce(&mut Ledger) -> T) -> T {
        look(&mut self.shared.state.lock().ledger)
    }

    /// Notes what happens.
    pub fn note(&self, text: impl std::fmt::Display) {
        let at = self.shared.start.elapsed().as_secs_f64();
        let trace = &mut self.shared.state.lock().trace;
        if trace.len() < TRACE {
            trace.push(format!("{at:9.3} {text}"));
        }
    }

    /// What happened.
    pub fn trace(&self) -> Vec<String> {
        self.shared.state.lock().trace.clone()
    }

    /// The chance of the n-th request of its kind.
    fn dice(&self, process: &'static str, what: String) -> Dice {
        let mut state = self.shared.state.lock();
        let nth = state.asked.entry((process, what.clone())).and_modify(|nth| *nth += 1).or_insert(0);
        Dice::about(self.shared.seed, (process, what, *nth))
    }
}

/// One process's connection.
#[derive(Clone)]
struct Line {
    network: Network,
    process: &'static str,
    dead: CancellationToken,
    inner: InProcess,
}

impl Service<Request<Body>> for Line {
    type Response = Answer;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Answer, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let line = self.clone();
        Box::pin(async move {
            let kind = Kind::of(&request);
            match line.process {
                "user" => line.reach(request, kind).await,
                _ => line.carry(request, kind).await,
            }
        })
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Read,
    Watch,
    Write,
    Event,
}

impl Kind {
    fn of(request: &Request<Body>) -> Kind {
        let uri = request.uri();
        match *request.method() {
            Method::GET if uri.query().is_some_and(|query| query.contains("watch=")) => Kind::Watch,
            Method::GET => Kind::Read,
            _ if uri.path().contains("/events") => Kind::Event,
            _ => Kind::Write,
        }
    }
}

impl Line {
    /// Carries a request through the weather.
    async fn carry(self, request: Request<Body>, kind: Kind) -> Result<Answer, BoxError> {
        let what = format!("{} {}", request.method(), request.uri().path());
        // Events have names of their own, by the clock.
        let mut dice = match kind {
            Kind::Event => Dice::new(0),
            _ => self.network.dice(self.process, what.clone()),
        };
        let (conditions, fault) = {
            let mut state = self.network.shared.state.lock();
            let number = state.writes;
            match kind {
                Kind::Watch => {}
                Kind::Read => state.requests += 1,
                Kind::Write => (state.requests, state.writes) = (state.requests + 1, state.writes + 1),
                Kind::Event => (state.requests, state.events) = (state.requests + 1, state.events + 1),
            }
            let fault =
                state.fault.filter(|(at, _)| kind == Kind::Write && *at == number).map(|(_, fault)| fault);
            (if kind == Kind::Event { Conditions::CALM } else { state.conditions }, fault)
        };
        let slow = |dice: &mut Dice| if dice.in_a_thousand(conditions.stalled) { 8000 } else { 40 };
        let (before, after) = (slow(&mut dice), slow(&mut dice));
        let (before, after) = (dice.up_to(before), dice.up_to(after));
        let outlives_its_sender = dice.in_a_thousand(500);
        let fault = fault.or_else(|| {
            let writes = kind == Kind::Write;
            if dice.in_a_thousand(conditions.refused) {
                Some(Fault::Refused)
            } else if writes && dice.in_a_thousand(conditions.conflict) {
                Some(Fault::Conflict)
            } else {
                (writes && dice.in_a_thousand(conditions.answer_lost)).then_some(Fault::AnswerLost)
            }
        });
        sleep(before).await;
        if self.dead.is_cancelled() && !outlives_its_sender {
            return std::future::pending().await;
        }
        let answer = match fault {
            Some(Fault::Refused) => Ok(refusal(500, "InternalError")),
            Some(Fault::Conflict) => Ok(refusal(409, "Conflict")),
            Some(Fault::AnswerLost) => {
                self.clone().reach(request, kind).await?;
                Err("connection reset by peer".into())
            }
            None => self.clone().reach(request, kind).await,
        };
        if kind != Kind::Event && kind != Kind::Watch {
            let code = answer.as_ref().map_or(0, |answer: &Answer| answer.status().as_u16());
            let fault = fault.map(|fault| format!(" {fault:?}")).unwrap_or_default();
            self.network.note(format_args!("{}: {what} {code}{fault}", self.process));
        }
        sleep(after).await;
        if self.dead.is_cancelled() {
            return std::future::pending().await;
        }
        answer
    }

    /// The API server itself; the ledger hears of writes before anybody else.
    async fn reach(mut self, request: Request<Body>, kind: Kind) -> Result<Answer, BoxError> {
        let network = self.network.clone();
        let _turn = network.shared.turn.lock().await;
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        // Metadata and whole objects are watched side by side.
        let shape =
            request.headers().get(http::header::ACCEPT).map(|shape| format!("{shape:?}")).unwrap_or_default();
        let answer = self.inner.call(request).await?;
        if kind == Kind::Watch && answer.status().is_success() {
            return Ok(answer.map(|body| self.trickle(body, format!("watch {path} {shape}"))));
        }
        let (parts, body) = answer.into_parts();
        let body = body.collect().await?.to_bytes();
        if kind == Kind::Write && parts.status.is_success() {
            self.record(&method, &path, &body).await?;
        }
        Ok(Response::from_parts(parts, whole(body)))
    }

    /// Tells the ledger what the written object is now.
    async fn record(&mut self, method: &Method, path: &str, body: &Bytes) -> Result<(), BoxError> {
        let mut segments: Vec<&str> = path.trim_matches('/').split('/').collect();
        let is_known = |segment: &&str| {
            let known = [
                "persistentvolumes",
                "persistentvolumeclaims",
                "pods",
                "volumesnapshotcontents",
                "volumegroupsnapshots",
                "volumegroupsnapshotcontents",
            ];
            known.contains(segment)
        };
        let Some(at) = segments.iter().position(is_known) else { return Ok(()) };
        segments.truncate(at + 2);
        let made: Value = serde_json::from_slice(body)?;
        match (segments.len() > at + 1, method) {
            (true, _) => {}
            (false, &Method::POST) => segments.push(made["metadata"]["name"].as_str().unwrap_or_default()),
            (false, _) => return Ok(()),
        }
        let path = format!("/{}", segments.join("/"));
        let request = Request::get(&path).body(Body::empty())?;
        let answer = self.inner.call(request).await?;
        let object = match answer.status() {
            StatusCode::NOT_FOUND => None,
            _ => Some(serde_json::from_slice(&answer.into_body().collect().await?.to_bytes())?),
        };
        let (kind, name) = (segments[at], segments[at + 1]);
        let wrong = self.network.ledger(|ledger| ledger.enter(self.process, kind, name, object));
        for wrong in wrong {
            self.network.note(format_args!("WRONG: {wrong}"));
        }
        Ok(())
    }

    /// A watch whose pieces are late, or the last.
    fn trickle(self, body: AnswerBody, what: String) -> UnsyncBoxBody<Bytes, BoxError> {
        let pieces = futures::stream::unfold((self, body, what), |(line, mut body, what)| async move {
            let piece = body.frame().await?.ok()?;
            if line.process != "user" {
                let conditions = line.network.shared.state.lock().conditions;
                let mut dice = line.network.dice(line.process, what.clone());
                let late = if dice.in_a_thousand(conditions.stalled) { 20_000 } else { 30 };
                sleep(dice.up_to(late)).await;
                if line.dead.is_cancelled() {
                    return std::future::pending().await;
                }
                if dice.in_a_thousand(conditions.broken) {
                    return None;
                }
            }
            Some((Ok(piece), (line, body, what)))
        });
        StreamBody::new(pieces).boxed_unsync()
    }
}

fn whole(body: Bytes) -> UnsyncBoxBody<Bytes, BoxError> {
    Full::new(body).map_err(|never| match never {}).boxed_unsync()
}

fn refusal(code: u16, reason: &str) -> Answer {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason,
        "message": "as the weather is"});
    let mut answer = Response::new(whole(Bytes::from(status.to_string())));
    *answer.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    answer
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    answer
}

/// How long anything may be late: what waits longer than this waits in vain.
pub(crate) const LATEST: Duration = Duration::from_secs(20);
