//! What is to be done next for a pod: a pure function of what is wanted and what is there.
//!
//! A plan is what can be done now, in any order or at once. After it was carried out, the pod is looked at and planned again; an
//! empty plan means that the pod is as it should be, or that something is awaited (an event, or the time `again`).
//! Every step may be repeated, so a crash anywhere is answered by looking and planning again.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use crate::{
    containers::attempt::{Attempt, AttemptState, Exit},
    records::RecordError,
};

/// A restart waits 10 s after the second failure in a row, doubling up to 5 min.
const FIRST_DELAY: SignedDuration = SignedDuration::from_secs(10);
const LONGEST_DELAY: SignedDuration = SignedDuration::from_mins(5);
/// A container that ran this long starts anew at the first delay.
const HEALTHY: SignedDuration = SignedDuration::from_mins(10);
/// How long a monitor that is about to start its container is left alone.
const STARTING: SignedDuration = SignedDuration::from_millis(50);
/// How long a killed container is given to disappear before it is killed again.
const KILL_AGAIN: SignedDuration = SignedDuration::from_secs(1);

/// What the API wants of a pod.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Lifecycle {
    /// To run.
    Run,
    /// To stop; `delete` when the API waits for us to confirm by deleting the object.
    Stop { grace: Option<SignedDuration>, delete: bool },
    /// Nothing more: its phase is final. Volumes are given back, logs stay.
    Finished,
}

/// When a container is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Restart {
    Always,
    OnFailure,
    Never,
}

impl Restart {
    pub(crate) fn wanted_after(self, exit: &Exit) -> bool {
        match self {
            Restart::Always => true,
            Restart::OnFailure => exit.code != 0,
            Restart::Never => false,
        }
    }
}

/// A container of the pod.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct WantedContainer {
    pub(crate) name: String,
    pub(crate) restart: Restart,
    /// An init container that runs beside the others.
    pub(crate) sidecar: bool,
    /// Whether this node can run it.
    pub(crate) runnable: bool,
    /// Its image; None where a change of it does not matter any more.
    pub(crate) image: Option<String>,
}

impl WantedContainer {
    /// Whether the attempt was started with another image than is wanted now.
    pub(crate) fn is_replaced(&self, attempt: &Attempt) -> bool {
        matches!((&self.image, &attempt.record.image), (Some(wanted), Some(had)) if wanted != had)
    }
}

/// All that is wanted of a pod.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Wanted {
    pub(crate) lifecycle: Lifecycle,
    /// Names of the volumes that containers use.
    pub(crate) volumes: Vec<String>,
    pub(crate) init: Vec<WantedContainer>,
    pub(crate) containers: Vec<WantedContainer>,
}

/// A volume directory of the pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct VolumeDirectory {
    pub(crate) plugin: String,
    pub(crate) name: String,
    /// It is a block volume.
    pub(crate) block: bool,
}

/// All that is there of a pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Actual {
    /// The pod has a directory on this node.
    pub(crate) directory: bool,
    /// Volumes that are set up, by the name that the pod gives them.
    pub(crate) ready: BTreeMap<String, Option<VolumeDirectory>>,
    /// Every volume directory, set up or half-way.
    pub(crate) present: Vec<VolumeDirectory>,
    /// Parts of volumes may be mounted.
    pub(crate) sub_paths: bool,
    /// Ready volumes whose content has changed in the API.
    pub(crate) stale: Vec<String>,
    /// Attempts per container, oldest first.
    pub(crate) attempts: BTreeMap<String, Vec<Attempt>>,
    /// Records that can't be read.
    pub(crate) faults: Vec<Fault>,
}

/// A record that can't be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) message: String,
    /// A later version wrote it: nothing is done to what it is about.
    pub(crate) newer: bool,
}

impl From<RecordError> for Fault {
    fn from(error: RecordError) -> Fault {
        Fault { message: error.to_string(), newer: error.is_newer() }
    }
}

impl Actual {
    pub(crate) fn latest(&self, container: &str) -> Option<&Attempt> {
        self.attempts.get(container).and_then(|attempts| attempts.last())
    }

    fn live(&self) -> impl Iterator<Item = &Attempt> {
        self.attempts.values().flatten().filter(|attempt| attempt.live())
    }
}

/// One idempotent change.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// Sets the volume of this name up, or brings its content up to date.
    SetUp(String),
    /// Starts a container, for the first time or again.
    Start { container: String, number: u32, crashes: u32 },
    /// Sends SIGTERM.
    Terminate { container: String, number: u32 },
    /// Sends SIGKILL.
    Kill { container: String, number: u32 },
    /// Removes what an ended container left in the kernel, and writes down the end of one that nobody saw.
    Release { container: String, number: u32 },
    /// Removes the directory and log of an old attempt.
    Discard { container: String, number: u32 },
    /// Unmounts the parts of volumes that containers had.
    CleanSubPaths,
    /// Unmounts and removes a volume.
    TearDown(VolumeDirectory),
    /// Removes what is left of the pod on this node.
    RemovePod,
    /// Confirms the deletion to the API.
    Delete,
}

/// What to do now, and when to look again at the latest.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Plan {
    pub(crate) steps: Vec<Step>,
    pub(crate) again: Option<Timestamp>,
}

impl Plan {
    fn again_at(&mut self, at: Timestamp) {
        self.again = Some(self.again.map_or(at, |other| other.min(at)));
    }
}

/// Decides.
pub(crate) fn plan(wanted: &Wanted, actual: &Actual, now: Timestamp) -> Plan {
    // Only the version that wrote it knows what there is to be kept or ended.
    if actual.faults.iter().any(|fault| fault.newer) {
        return Plan::default();
    }
    match &wanted.lifecycle {
        Lifecycle::Run => run(wanted, actual, now),
        Lifecycle::Finished => finish(actual, None, now),
        Lifecycle::Stop { grace, delete } => {
            let mut plan = finish(actual, *grace, now);
            if plan.steps.is_empty() && actual.live().next().is_none() {
                if actual.directory {
                    plan.steps.push(Step::RemovePod);
                } else if *delete {
                    plan.steps.push(Step::Delete);
                }
            }
            plan
        }
    }
}

/// Containers end first, then volumes go.
fn finish(actual: &Actual, grace: Option<SignedDuration>, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    stop(actual.live(), grace, now, &mut plan);
    if actual.live().next().is_some() {
        return plan;
    }
    release(actual, &mut plan);
    if plan.steps.is_empty() {
        give_back(actual, &mut plan);
    }
    plan
}

/// Parts of volumes first, then the volumes.
fn give_back(actual: &Actual, plan: &mut Plan) {
    if actual.sub_paths {
        plan.steps.push(Step::CleanSubPaths);
    } else {
        plan.steps.extend(actual.present.iter().cloned().map(Step::TearDown));
    }
}

fn stop<'a>(
    live: impl Iterator<Item = &'a Attempt>,
    grace: Option<SignedDuration>,
    now: Timestamp,
    plan: &mut Plan,
) {
    for attempt in live {
        let AttemptState::Running { stopping, started, .. } = &attempt.state else { continue };
        let (container, number) = (attempt.record.container.clone(), attempt.record.number);
        let grace = grace.unwrap_or(SignedDuration::from_secs(attempt.record.grace));
        match stopping {
            // Its monitor is starting it right now: a signal would go nowhere.
            None if started.is_none() => plan.again_at(now + STARTING),
            None => plan.steps.push(Step::Terminate { container, number }),
            Some(since) if *since + grace <= now => {
                plan.steps.push(Step::Kill { container, number });
                plan.again_at(now + KILL_AGAIN);
            }
            Some(since) => plan.again_at(*since + grace),
        }
    }
}

/// Cleans up behind attempts that have ended, and forgets all but the last two of a container.
fn release(actual: &Actual, plan: &mut Plan) {
    for attempts in actual.attempts.values() {
        let keep = attempts.len().saturating_sub(2);
        for (index, attempt) in attempts.iter().enumerate() {
            let (container, number) = (attempt.record.container.clone(), attempt.record.number);
            if attempt.state == AttemptState::Lost || attempt.unreleased {
                plan.steps.push(Step::Release { container, number });
            } else if index < keep {
                plan.steps.push(Step::Discard { container, number });
            }
        }
    }
}

fn run(wanted: &Wanted, actual: &Actual, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let missing = wanted.volumes.iter().filter(|name| !actual.ready.contains_key(*name));
    plan.steps.extend(missing.cloned().map(Step::SetUp));
    let complete = plan.steps.is_empty();
    plan.steps.extend(actual.stale.iter().cloned().map(Step::SetUp));
    release(actual, &mut plan);
    if !complete {
        return plan;
    }
    match containers(wanted, actual, now, &mut plan) {
        Verdict::Going => {
            let containers = wanted.containers.iter();
            let replaced = containers.filter_map(|container| {
                let attempt = actual.latest(&container.name)?;
                (attempt.live() && container.is_replaced(attempt)).then_some(attempt)
            });
            stop(replaced, None, now, &mut plan);
        }
        Verdict::Over => {
            let sidecars = wanted.init.iter().filter(|container| container.sidecar);
            let live = sidecars
                .filter_map(|container| actual.latest(&container.name))
                .filter(|attempt| attempt.live());
            stop(live, None, now, &mut plan);
            if plan.steps.is_empty() && actual.live().next().is_none() {
                give_back(actual, &mut plan);
            }
        }
    }
    plan
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Going,
    /// No container runs or will be started again.
    Over,
}

/// Init containers one after the other, then all others at once.
fn containers(wanted: &Wanted, actual: &Actual, now: Timestamp, plan: &mut Plan) -> Verdict {
    let begun = wanted.containers.iter().any(|container| actual.latest(&container.name).is_some());
    let over = verdict(wanted, actual) == Verdict::Over;
    if over {
        return Verdict::Over;
    }
    for container in &wanted.init {
        if begun && !container.sidecar {
            continue;
        }
        match actual.latest(&container.name).map(|attempt| &attempt.state) {
            Some(AttemptState::Exited(exit)) if exit.code == 0 && !container.sidecar => continue,
            Some(AttemptState::Running { started: Some(_), .. }) if container.sidecar => continue,
            _ => start(container, actual, now, plan),
        }
        if !begun {
            return Verdict::Going;
        }
    }
    for container in &wanted.containers {
        start(container, actual, now, plan);
    }
    Verdict::Going
}

/// Whether a pod that is wanted has come to its end.
pub(crate) fn verdict(wanted: &Wanted, actual: &Actual) -> Verdict {
    let ended = |container: &WantedContainer| {
        let Some(attempt) = actual.latest(&container.name) else { return false };
        let over = attempt.exit().is_some_and(|exit| !container.restart.wanted_after(exit));
        over && !container.is_replaced(attempt)
    };
    let init_failed = wanted.init.iter().any(|container| {
        let exit = actual.latest(&container.name).and_then(Attempt::exit);
        exit.is_some_and(|exit| !container.sidecar && exit.code != 0) && container.restart == Restart::Never
    });
    let all_ended = !wanted.containers.is_empty() && wanted.containers.iter().all(ended);
    if init_failed || all_ended { Verdict::Over } else { Verdict::Going }
}

fn start(container: &WantedContainer, actual: &Actual, now: Timestamp, plan: &mut Plan) {
    if !container.runnable {
        return;
    }
    let name = container.name.clone();
    let Some(attempt) = actual.latest(&container.name) else {
        plan.steps.push(Step::Start { container: name, number: 0, crashes: 0 });
        return;
    };
    match &attempt.state {
        AttemptState::Prepared => plan.steps.push(Step::Start {
            container: name,
            number: attempt.record.number,
            crashes: attempt.record.crashes,
        }),
        // Its monitor is starting it: there is no event for that after a restart of the agent.
        AttemptState::Running { started: None, .. } => plan.again_at(now + STARTING),
        // It was ended for its new image: that is no failure.
        AttemptState::Exited(_)
            if container.is_replaced(attempt) && !attempt.unreleased && !attempt.live() =>
        {
            plan.steps.push(Step::Start {
                container: name,
                number: attempt.record.number + 1,
                crashes: attempt.record.crashes,
            });
        }
        AttemptState::Exited(exit)
            if container.restart.wanted_after(exit) && !attempt.unreleased && !attempt.live() =>
        {
            let at = restart_at(attempt.record.crashes, exit);
            if at <= now {
                plan.steps.push(Step::Start {
                    container: name,
                    number: attempt.record.number + 1,
                    crashes: crashes_after(attempt.record.crashes, exit),
                });
            } else {
                plan.again_at(at);
            }
        }
        _ => {}
    }
}

/// When a container that ended may be started again, after `crashes` quick ends before this one.
pub(crate) fn restart_at(crashes: u32, exit: &Exit) -> Timestamp {
    let delay = match crashes_after(crashes, exit) {
        0 | 1 => SignedDuration::ZERO,
        more => FIRST_DELAY.saturating_mul(1 << (more - 2).min(10)).min(LONGEST_DELAY),
    };
    exit.finished + delay
}

fn crashes_after(crashes: u32, exit: &Exit) -> u32 {
    let ran = exit.started.map_or(SignedDuration::ZERO, |started| exit.finished.duration_since(started));
    if ran >= HEALTHY { 1 } else { crashes.saturating_add(1) }
}

#[cfg(test)]
mod tests;
