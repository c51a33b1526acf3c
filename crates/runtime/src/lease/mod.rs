//! Leader election: one of several processes acts, the others wait.
//!
//! The lease is a `coordination.k8s.io/v1` Lease, taken, renewed and released as client-go does. Three things are
//! stricter. A leader's time runs from before its last renewal was sent, not from when it was answered. A leader that
//! sees another holder stops at once. And what it writes goes through a [`Term`], which refuses when time is over: a
//! process that was stopped for a while never acts on what it believed before.

mod term;

use std::fmt;
use std::future::Future;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease as Object, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::PostParams;
use kube::core::ObjectMeta;
use kube::{Api, Client, Resource};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use term::{Term, TermOver};

use crate::Recorder;
use crate::queue::jitter;

/// Waiting processes try again after the retry period and up to this many times it more, as in client-go.
const JITTER: f64 = 1.2;

/// Which lease, and how long things may take.
#[derive(Clone, Debug)]
pub struct LeaseOptions {
    /// The lease's namespace.
    pub namespace: String,
    /// The lease's name. Processes that use the same one take turns.
    pub name: String,
    /// Who this process is: different for each.
    pub holder: String,
    /// How long the others wait after the last renewal before they take over, in whole seconds.
    pub duration: Duration,
    /// How long a leader acts without a renewal.
    pub renew_deadline: Duration,
    /// The pause between attempts to take or renew.
    pub retry_period: Duration,
}

impl LeaseOptions {
    /// A lease with the durations of Kubernetes' own components: 15 s, 10 s and 2 s.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>, holder: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
            holder: holder.into(),
            duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }

    fn check(&self) -> Result<(), LeaseError> {
        let (duration, deadline, retry) = (self.duration, self.renew_deadline, self.retry_period);
        let refuse = |why| Err(LeaseError::Durations { duration, deadline, retry, why });
        if duration.subsec_nanos() != 0 || duration.is_zero() {
            return refuse("the lease lasts whole seconds, at least one");
        }
        if duration <= deadline {
            return refuse("the lease must last longer than its holder may go without renewing it");
        }
        if retry.is_zero() || deadline <= retry.mul_f64(JITTER) {
            return refuse("a holder must have the time to try again: the deadline must exceed 1.2 pauses");
        }
        Ok(())
    }
}

/// Why a process does not lead, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// Durations that can't work.
    #[error("a lease of {duration:?}, renewed within {deadline:?}, tried every {retry:?}, can't be: {why}")]
    Durations {
        /// How long it lasts.
        duration: Duration,
        /// How long its holder may act without a renewal.
        deadline: Duration,
        /// The pause between attempts.
        retry: Duration,
        /// What is wrong.
        why: &'static str,
    },
    /// The API could not be reached, or refused, for too long.
    #[error(
        "lost the lease {lease}: it could not be renewed within {deadline:?}; all work is stopped, start again to wait \
         for the lease"
    )]
    Expired {
        /// Namespace and name.
        lease: String,
        /// How long that was tried.
        deadline: Duration,
    },
    /// Another process has it.
    #[error("lost the lease {lease} to {holder}; all work is stopped, start again to wait for the lease")]
    Taken {
        /// Namespace and name.
        lease: String,
        /// Who has it now.
        holder: String,
    },
}

/// Waits for the lease, then does `work` for as long as it is held, and returns what that came to; `work` ends after
/// `shutdown` is cancelled. `None`: the shutdown came first.
///
/// `work` must do all its writes through a client with the [`Term`]'s guard. When it ends, well or not, the lease is
/// released, so that a waiting process takes over at once.
///
/// # Errors
/// The lease was lost. `work` was dropped where it was, and the guard lets nothing through any more; the process
/// should end.
pub async fn lead<F: Future>(
    client: Client,
    options: LeaseOptions,
    shutdown: CancellationToken,
    work: impl FnOnce(Term) -> F,
) -> Result<Option<F::Output>, LeaseError> {
    options.check()?;
    let recorder = Recorder::new(client.clone(), "orlop", "");
    let mut lease = Lease::new(client, options);
    if shutdown.run_until_cancelled(lease.acquire()).await.is_none() {
        return Ok(None);
    }
    let term = lease.term.clone();
    if let Some(held) = &lease.held {
        let text = format!("{} became leader", lease.options.holder);
        recorder.normal(&held.object_ref(&()), "LeaderElection", text);
    }
    let ended = tokio::select! {
        biased;
        lost = lease.keep() => Err(lost),
        outcome = work(term.clone()) => Ok(Some(outcome)),
    };
    term.end();
    if ended.is_ok() {
        lease.release().await;
    }
    ended
}

/// What an attempt to take or renew came to.
#[derive(Debug, PartialEq)]
enum Attempt {
    Held,
    HeldBy(String),
}

struct Lease {
    api: Api<Object>,
    options: LeaseOptions,
    /// The object as this process wrote it last, while it is the holder.
    held: Option<Object>,
    /// What another holder wrote, and since when it has been so by this machine's clock. Clocks are not compared.
    observed: Option<(LeaseSpec, Instant)>,
    term: Term,
}

impl fmt::Display for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.options.namespace, self.options.name)
    }
}

impl Lease {
    fn new(client: Client, options: LeaseOptions) -> Lease {
        let api = Api::namespaced(client, &options.namespace);
        Lease { api, options, held: None, observed: None, term: Term::over_already() }
    }

    async fn acquire(&mut self) {
        let (mut known, mut failure) = (None, None);
        tracing::info!(lease = %self, holder = self.options.holder, "waiting for the lease");
        loop {
            // A connection that was dropped silently never answers; the next attempt makes another.
            match tokio::time::timeout(self.options.renew_deadline, self.attempt()).await {
                Ok(Ok(Attempt::Held)) => {
                    tracing::info!(lease = %self, "holding the lease");
                    return;
                }
                Ok(Ok(Attempt::HeldBy(holder))) => {
                    failure = None;
                    if known.as_ref() != Some(&holder) {
                        tracing::info!(lease = %self, holder, "another process holds the lease");
                        known = Some(holder);
                    }
                }
                Ok(Err(error)) => self.say(&mut failure, crate::explain(&error)),
                Err(_) => {
                    let seconds = self.options.renew_deadline.as_secs_f64();
                    self.say(&mut failure, format!("no answer within {seconds} s"));
                }
            }
            tokio::time::sleep(self.options.retry_period.mul_f64(1.0 + JITTER * jitter())).await;
        }
    }

    /// Logs why the lease can't be taken, once for as long as it is the same.
    fn say(&self, last: &mut Option<String>, error: String) {
        if last.as_ref() != Some(&error) {
            tracing::warn!(lease = %self, error, "can't take the lease, trying again");
            *last = Some(error);
        }
    }

    /// Renews until that fails for too long.
    async fn keep(&mut self) -> LeaseError {
        loop {
            let until = self.term.until();
            tokio::time::sleep_until(until.min(Instant::now() + self.options.retry_period)).await;
            match tokio::time::timeout_at(until, self.attempt()).await {
                _ if self.term.is_over() => {
                    let lease = self.to_string();
                    return LeaseError::Expired { lease, deadline: self.options.renew_deadline };
                }
                Ok(Ok(Attempt::HeldBy(holder))) => {
                    return LeaseError::Taken { lease: self.to_string(), holder };
                }
                Ok(Ok(Attempt::Held)) | Err(_) => {}
                Ok(Err(error)) => {
                    tracing::warn!(lease = %self, error = crate::explain(&error), "can't renew the lease, trying again");
                }
            }
        }
    }

    /// Takes or renews the lease, if it is this process's, free, or left alone for longer than it lasts.
    async fn attempt(&mut self) -> Result<Attempt, kube::Error> {
        let begun = Instant::now();
        if let Some(mut renewed) = self.held.clone() {
            renewed.spec.get_or_insert_default().renew_time = Some(now());
            match self.api.replace(&self.options.name, &PostParams::default(), &renewed).await {
                Ok(written) => return Ok(self.has(written, begun)),
                // Somebody else wrote, or an own write's answer was lost.
                Err(kube::Error::Api(status)) if status.is_conflict() || status.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        let Some(mut found) = self.api.get_opt(&self.options.name).await? else {
            let spec = self.spec(None);
            let metadata = ObjectMeta { name: Some(self.options.name.clone()), ..ObjectMeta::default() };
            let new = Object { metadata, spec: Some(spec) };
            let written = self.api.create(&PostParams::default(), &new).await?;
            return Ok(self.has(written, begun));
        };
        let seen = found.spec.clone().unwrap_or_default();
        if self.observed.as_ref().is_none_or(|(known, _)| *known != seen) {
            self.observed = Some((seen.clone(), Instant::now()));
        }
        let since = self.observed.as_ref().map_or(begun, |(_, since)| *since);
        let lasts =
            Duration::from_secs(seen.lease_duration_seconds.unwrap_or_default().max(0).unsigned_abs().into());
        let holder = seen.holder_identity.clone().filter(|holder| !holder.is_empty());
        if let Some(holder) = holder.filter(|holder| *holder != self.options.holder)
            && (self.held.is_some() || since + lasts > Instant::now())
        {
            return Ok(Attempt::HeldBy(holder));
        }
        found.spec = Some(self.spec(Some(&seen)));
        match self.api.replace(&self.options.name, &PostParams::default(), &found).await {
            Ok(written) => Ok(self.has(written, begun)),
            Err(error) => Err(error),
        }
    }

    fn has(&mut self, written: Object, begun: Instant) -> Attempt {
        self.term.extend(begun, self.options.renew_deadline);
        self.held = Some(written);
        Attempt::Held
    }

    /// What to write in place of `before`.
    fn spec(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let mine = before.filter(|spec| spec.holder_identity.as_ref() == Some(&self.options.holder));
        let transitions = before.map_or(0, |spec| spec.lease_transitions.unwrap_or_default());
        LeaseSpec {
            holder_identity: Some(self.options.holder.clone()),
            lease_duration_seconds: Some(self.options.duration.as_secs().try_into().unwrap_or(i32::MAX)),
            acquire_time: mine.and_then(|spec| spec.acquire_time.clone()).or_else(|| Some(now())),
            renew_time: Some(now()),
            lease_transitions: Some(transitions + i32::from(before.is_some() && mine.is_none())),
            ..before.cloned().unwrap_or_default()
        }
    }

    /// Gives the lease back. If that fails, others wait until it runs out.
    async fn release(&mut self) {
        let Some(mut free) = self.held.take() else { return };
        let spec = free.spec.get_or_insert_default();
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        (spec.renew_time, spec.acquire_time) = (Some(now()), Some(now()));
        let write = async { self.api.replace(&self.options.name, &PostParams::default(), &free).await };
        match tokio::time::timeout(self.options.renew_deadline, write).await {
            Ok(Ok(_)) => tracing::info!(lease = %self, "released the lease"),
            Ok(Err(error)) => {
                tracing::warn!(lease = %self, error = crate::explain(&error), "the lease was not released");
            }
            Err(_) => tracing::warn!(lease = %self, "the lease was not released in time"),
        }
    }
}

fn now() -> MicroTime {
    MicroTime(clock::now())
}
