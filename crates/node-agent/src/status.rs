//! A pod's status from what is there. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{
        Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
        ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodStatus,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};

use crate::{
    containers::attempt::{Attempt, AttemptState, Exit, ExitReason},
    plan::{self, Actual, Lifecycle, Verdict, Wanted, WantedContainer},
};

/// Why a container or volume of the pod could not be started or set up at the last try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// Reason of a container that this node has no runtime for.
pub(crate) const RUNTIME_MISSING: &str = "ContainerRuntimeMissing";

/// The name under which a volume's problem is kept: no container has it.
pub(crate) fn volume_problem(volume: &str) -> String {
    format!("volume {volume}")
}

/// All that a status is made from.
#[derive(Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) wanted: &'a Wanted,
    pub(crate) actual: &'a Actual,
    /// Problems by container name, or by [`volume_problem`].
    pub(crate) problems: &'a BTreeMap<String, Problem>,
    pub(crate) address: &'a str,
    pub(crate) has_runtime: bool,
    pub(crate) now: Timestamp,
}

/// The new status, made from the last one that is known: what is not ours in it stays.
pub(crate) fn derive(facts: &Facts<'_>, last: &PodStatus) -> PodStatus {
    let spec = facts.pod.spec.clone().unwrap_or_default();
    let init_done = initialized(facts);
    let init = statuses(facts, spec.init_containers.as_deref().unwrap_or_default(), &facts.wanted.init);
    let containers = statuses(facts, &spec.containers, &facts.wanted.containers);
    let ready = !containers.is_empty() && containers.iter().all(|container| container.ready);
    let started = facts.actual.attempts.values().next().is_some();
    let volumes = facts.wanted.volumes.iter().all(|name| facts.actual.ready.contains_key(name));
    let phase = match &facts.wanted.lifecycle {
        Lifecycle::Finished => {
            facts.pod.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default()
        }
        _ => phase(facts, &containers, init_done).to_owned(),
    };
    let over = matches!(phase.as_str(), "Succeeded" | "Failed");
    let mut status = last.clone();
    let set =
        |status: &mut PodStatus, kind: &str, holds: bool, reason: Option<&str>, message: Option<String>| {
            condition(status, facts.now, kind, holds, reason, message);
        };
    set(&mut status, "PodScheduled", true, None, None);
    set(&mut status, "PodReadyToStartContainers", (volumes || started) && !over, None, None);
    let (reason, message) = match init_done {
        true => (over.then_some("PodCompleted").filter(|_| phase == "Succeeded"), None),
        false => (Some("ContainersNotInitialized"), Some(unready("incomplete", &init))),
    };
    set(&mut status, "Initialized", init_done, reason, message);
    let (reason, message) = match (ready, phase.as_str()) {
        (true, _) => (None, None),
        (false, "Succeeded") => (Some("PodCompleted"), None),
        (false, "Failed") => (Some("PodFailed"), None),
        (false, _) => (Some("ContainersNotReady"), Some(unready("unready", &containers))),
    };
    set(&mut status, "ContainersReady", ready && !over, reason, message.clone());
    set(&mut status, "Ready", ready && !over, reason, message);
    damage(&mut status, facts);
    status.phase = Some(phase);
    status.observed_generation = facts.pod.metadata.generation;
    status.host_ip = Some(facts.address.to_owned());
    status.host_ips = Some(vec![HostIP { ip: facts.address.to_owned() }]);
    if started {
        status.pod_ip = Some(facts.address.to_owned());
        status.pod_ips = Some(vec![PodIP { ip: facts.address.to_owned() }]);
    }
    status.start_time.get_or_insert_with(|| Time(seconds(facts.now)));
    status.container_statuses = Some(containers);
    status.init_container_statuses = (!init.is_empty()).then_some(init);
    status
}

/// The conditions that the agent itself writes.
pub(crate) const OWN_CONDITIONS: [&str; 6] =
    ["PodScheduled", "PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready", DAMAGED];
/// The condition that tells of records of the pod that can't be read. It is there only after there was one.
const DAMAGED: &str = "orlop.dev/RecordsDamaged";
/// Bytes of its message.
const LONGEST_DAMAGE: usize = 512;

fn damage(status: &mut PodStatus, facts: &Facts<'_>) {
    let faults = &facts.actual.faults;
    let known = status.conditions.iter().flatten().any(|condition| condition.type_ == DAMAGED);
    if faults.is_empty() && !known {
        return;
    }
    let newer = faults.iter().any(|fault| fault.newer);
    let reason = match (faults.is_empty(), newer) {
        (true, _) => "Repaired",
        (false, true) => "NewerRecord",
        (false, false) => "DamagedRecord",
    };
    let messages: Vec<&str> = faults.iter().map(|fault| fault.message.as_str()).collect();
    let message = (!messages.is_empty()).then(|| bounded(&messages.join("; "), LONGEST_DAMAGE));
    condition(status, facts.now, DAMAGED, !faults.is_empty(), Some(reason), message);
}

/// At most so many bytes of a text, the end marked where it was cut.
pub(crate) fn bounded(text: &str, bytes: usize) -> String {
    if text.len() <= bytes {
        return text.to_owned();
    }
    let end = (0..=bytes.saturating_sub(3)).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}…", &text[..end])
}

fn initialized(facts: &Facts<'_>) -> bool {
    let begun = facts.wanted.containers.iter().any(|of| facts.actual.latest(&of.name).is_some());
    begun
        || facts.wanted.init.iter().all(|of| {
            match facts.actual.latest(&of.name).map(|attempt| &attempt.state) {
                Some(AttemptState::Exited(exit)) => !of.sidecar && exit.code == 0,
                Some(AttemptState::Running { started, .. }) => of.sidecar && started.is_some(),
                _ => false,
            }
        })
}

/// kubelet's phase of a pod.
fn phase(facts: &Facts<'_>, containers: &[ContainerStatus], init_done: bool) -> &'static str {
    let over = plan::verdict(facts.wanted, facts.actual) == Verdict::Over;
    let exits =
        || facts.wanted.containers.iter().map(|of| facts.actual.latest(&of.name).and_then(Attempt::exit));
    let all_good = exits().all(|exit| exit.is_some_and(|exit| exit.code == 0));
    let stopped = exits().all(|exit| exit.is_some()) && !containers.is_empty();
    let stopping = matches!(facts.wanted.lifecycle, Lifecycle::Stop { .. });
    if over || (stopping && stopped) {
        return if all_good { "Succeeded" } else { "Failed" };
    }
    // A container that is waiting for its first start keeps the pod pending.
    let unborn = containers.iter().any(|container| {
        let state = container.state.as_ref();
        let fresh = container.last_state.as_ref().is_none_or(|last| last.terminated.is_none());
        state.is_none_or(|state| state.waiting.is_some()) && fresh
    });
    if !init_done || unborn { "Pending" } else { "Running" }
}

fn statuses(facts: &Facts<'_>, containers: &[Container], wanted: &[WantedContainer]) -> Vec<ContainerStatus> {
    containers.iter().zip(wanted).map(|(container, wanted)| status(facts, container, wanted)).collect()
}

fn status(facts: &Facts<'_>, container: &Container, wanted: &WantedContainer) -> ContainerStatus {
    let attempts = facts.actual.attempts.get(&container.name).map(Vec::as_slice).unwrap_or_default();
    let latest = attempts.last();
    let before = attempts.len().checked_sub(2).and_then(|index| attempts.get(index));
    let mut last_state = before.and_then(terminated);
    let state = match latest.map(|attempt| (attempt, &attempt.state)) {
        Some((_, AttemptState::Running { started: Some(started), .. })) => ContainerState {
            running: Some(ContainerStateRunning { started_at: Some(Time(seconds(started.at))) }),
            ..ContainerState::default()
        },
        Some((attempt, AttemptState::Exited(exit))) => {
            let at = plan::restart_at(attempt.record.crashes, exit);
            let restarts = facts.wanted.lifecycle == Lifecycle::Run
                && wanted.restart.wanted_after(exit)
                && plan::verdict(facts.wanted, facts.actual) == Verdict::Going;
            if restarts && at > facts.now {
                last_state = terminated(attempt);
                let delay = at.duration_since(exit.finished).as_secs();
                waiting(
                    "CrashLoopBackOff",
                    Some(format!(
                        "back-off {delay}s restarting failed container={} pod={}",
                        container.name,
                        pod_id(facts.pod)
                    )),
                )
            } else {
                terminated(attempt).unwrap_or_default()
            }
        }
        Some((attempt, AttemptState::Lost)) => terminated(attempt).unwrap_or_default(),
        _ => not_started(facts, container, wanted),
    };
    let running = state.running.is_some();
    let done = state.terminated.as_ref().is_some_and(|end| end.exit_code == 0);
    let is_init = facts.wanted.init.iter().any(|of| of.name == container.name) && !wanted.sidecar;
    ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        image_id: String::new(),
        container_id: latest
            .filter(|_| state.waiting.is_none() || last_state.is_some())
            .map(|attempt| format!("orlop://{}", attempt.record.id())),
        ready: if is_init { done } else { running },
        started: Some(running),
        restart_count: latest.map_or(0, |attempt| i32::try_from(attempt.record.number).unwrap_or(i32::MAX)),
        state: Some(state),
        last_state: Some(last_state.unwrap_or_default()),
        ..ContainerStatus::default()
    }
}

fn not_started(facts: &Facts<'_>, container: &Container, wanted: &WantedContainer) -> ContainerState {
    // Init containers have this reason too: `kubectl get` then shows how many of them are done.
    let reason = if facts.wanted.init.is_empty() { "ContainerCreating" } else { "PodInitializing" };
    let volumes = facts.wanted.volumes.iter();
    if let Some(problem) = volumes.filter_map(|name| facts.problems.get(&volume_problem(name))).next() {
        // kubelet says only that the container is being created; the cause helps more.
        return waiting(reason, Some(problem.message.clone()));
    }
    if !wanted.runnable {
        let volumes = volumes_of(facts.wanted, facts.actual);
        return waiting(RUNTIME_MISSING, Some(missing_runtime(container, facts.has_runtime, volumes)));
    }
    match facts.problems.get(&container.name) {
        Some(problem) => waiting(problem.reason, Some(problem.message.clone())),
        None => waiting(reason, None),
    }
}

/// How far the pod's volumes are, as far as there is something to say: None while they are not all mounted.
pub(crate) fn volumes_of(wanted: &Wanted, actual: &Actual) -> Option<&'static str> {
    match wanted.volumes.iter().all(|name| actual.ready.contains_key(name)) {
        true if wanted.volumes.is_empty() => Some(""),
        true => Some("; the pod's volumes are mounted"),
        false => None,
    }
}

/// What is missing to run a container, and what to do.
pub(crate) fn missing_runtime(container: &Container, has_runtime: bool, volumes: Option<&str>) -> String {
    let image = container.image.as_deref().unwrap_or_default();
    let volumes = volumes.unwrap_or("; the pod's volumes are not mounted yet");
    if has_runtime {
        format!(
            "image \"{image}\" needs a container runtime and this node has none{volumes}. \
             Use image \"host\" to run the command on the host's own root file system"
        )
    } else {
        format!("no OCI runtime found on this node{volumes}. Install runc")
    }
}

fn waiting(reason: &str, message: Option<String>) -> ContainerState {
    ContainerState {
        waiting: Some(ContainerStateWaiting { reason: Some(reason.to_owned()), message }),
        ..ContainerState::default()
    }
}

fn terminated(attempt: &Attempt) -> Option<ContainerState> {
    let unknown;
    let exit = match &attempt.state {
        AttemptState::Exited(exit) => exit,
        AttemptState::Lost => {
            unknown = Exit::unknown(Timestamp::UNIX_EPOCH);
            &unknown
        }
        _ => return None,
    };
    let reason = match exit.reason {
        ExitReason::Completed => "Completed",
        ExitReason::Error => "Error",
        ExitReason::OOMKilled => "OOMKilled",
        ExitReason::StartError => "StartError",
        ExitReason::ContainerStatusUnknown => "ContainerStatusUnknown",
    };
    Some(ContainerState {
        terminated: Some(ContainerStateTerminated {
            container_id: Some(format!("orlop://{}", attempt.record.id())),
            exit_code: exit.code,
            signal: exit.signal,
            reason: Some(reason.to_owned()),
            message: exit.message.clone(),
            started_at: Some(Time(seconds(exit.started.unwrap_or(Timestamp::UNIX_EPOCH)))),
            finished_at: Some(Time(seconds(exit.finished))),
        }),
        ..ContainerState::default()
    })
}

fn unready(what: &str, containers: &[ContainerStatus]) -> String {
    let names: Vec<&str> = containers
        .iter()
        .filter(|container| !container.ready)
        .map(|container| container.name.as_str())
        .collect();
    let status = if what == "unready" { "unready" } else { "incomplete" };
    format!("containers with {status} status: [{}]", names.join(" "))
}

fn condition(
    status: &mut PodStatus,
    now: Timestamp,
    kind: &str,
    holds: bool,
    reason: Option<&str>,
    message: Option<String>,
) {
    let value = if holds { "True" } else { "False" };
    let conditions = status.conditions.get_or_insert_default();
    let old = conditions.iter_mut().find(|condition| condition.type_ == kind);
    let since =
        old.as_ref().filter(|old| old.status == value).and_then(|old| old.last_transition_time.clone());
    let new = PodCondition {
        type_: kind.to_owned(),
        status: value.to_owned(),
        reason: reason.map(str::to_owned),
        message,
        last_transition_time: Some(since.unwrap_or_else(|| Time(seconds(now)))),
        ..PodCondition::default()
    };
    match old {
        // The scheduler's own condition stays as it wrote it.
        Some(old) if kind == "PodScheduled" && old.status == value => {}
        Some(old) => *old = new,
        None => conditions.push(new),
    }
}

/// `name_namespace(uid)`, as kubelet names pods in messages.
pub(crate) fn pod_id(pod: &Pod) -> String {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let metadata = &pod.metadata;
    format!("{}_{}({})", text(&metadata.name), text(&metadata.namespace), text(&metadata.uid))
}

/// The API's times have no fractions: with them, every status would differ from the one read back.
fn seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}
