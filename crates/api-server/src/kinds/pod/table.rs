//! Pods: the one word that tells how a pod is doing.

use std::collections::HashSet;

use jiff::Timestamp;
use serde_json::Value;

use super::super::fields::{items, text};
use crate::table::age;
use crate::table::column::{AGE, Column, NAME, column, wide};

pub(super) const COLUMNS: &[Column] = &[
    NAME,
    column("Ready", "string", "Containers that are ready, of all."),
    column("Status", "string", "State of the pod and its containers in one word."),
    column("Restarts", "string", "Restarts of all containers, and when the last one was."),
    AGE,
    wide("IP", "Address of the pod."),
    wide("Node", "Node that the pod runs on."),
    wide("Nominated Node", "Node that is being freed for the pod."),
    wide("Readiness Gates", "Readiness conditions that hold, of all."),
];

pub(super) fn cells(pod: &Value, now: Timestamp) -> Vec<Value> {
    let summary = Summary::of(pod);
    let restarts = match summary.last_restart {
        Some(last) if summary.restarts > 0 => {
            format!("{} ({} ago)", summary.restarts, age::since(&last.into(), now))
        }
        _ => summary.restarts.to_string(),
    };
    let or_none = |value: &Value| match text(value) {
        "" => Value::from("<none>"),
        value => value.into(),
    };
    vec![
        pod["metadata"]["name"].clone(),
        format!("{}/{}", summary.ready, summary.containers).into(),
        summary.status.into(),
        restarts.into(),
        age::of(pod, now),
        or_none(&pod["status"]["podIPs"][0]["ip"]),
        or_none(&pod["spec"]["nodeName"]),
        or_none(&pod["status"]["nominatedNodeName"]),
        readiness_gates(pod).into(),
    ]
}

/// What the containers of a pod add up to.
struct Summary<'a> {
    status: String,
    ready: usize,
    containers: usize,
    restarts: i64,
    last_restart: Option<&'a str>,
}

impl<'a> Summary<'a> {
    fn of(pod: &'a Value) -> Summary<'a> {
        let (spec, status) = (&pod["spec"], &pod["status"]);
        let sidecars: HashSet<&str> = items(&spec["initContainers"])
            .iter()
            .filter(|container| container["restartPolicy"] == "Always")
            .map(|container| text(&container["name"]))
            .collect();
        let mut summary = Summary {
            status: phase_or_reason(pod),
            ready: 0,
            containers: items(&spec["containers"]).len() + sidecars.len(),
            restarts: 0,
            last_restart: None,
        };
        let initializing = summary.add_init_containers(pod, &sidecars);
        if !initializing || condition(status, "Initialized") {
            // Restarts of init containers matter only while they run, except for those that keep running.
            (summary.restarts, summary.last_restart) = (0, None);
            for container in items(&status["initContainerStatuses"]) {
                if sidecars.contains(text(&container["name"])) {
                    summary.add_restarts(container);
                }
            }
            summary.add_containers(status);
        }
        let phase = text(&status["phase"]);
        if !pod["metadata"]["deletionTimestamp"].is_null() {
            if status["reason"] == "NodeLost" {
                summary.status = "Unknown".to_owned();
            } else if phase != "Succeeded" && phase != "Failed" {
                summary.status = "Terminating".to_owned();
            }
        }
        summary
    }

    /// Adds the init containers up to the first that has not finished; returns whether there is one.
    fn add_init_containers(&mut self, pod: &'a Value, sidecars: &HashSet<&str>) -> bool {
        let total = items(&pod["spec"]["initContainers"]).len();
        for (index, container) in items(&pod["status"]["initContainerStatuses"]).iter().enumerate() {
            self.add_restarts(container);
            let (terminated, waiting) =
                (&container["state"]["terminated"], text(&container["state"]["waiting"]["reason"]));
            if !terminated.is_null() && terminated["exitCode"].as_i64().unwrap_or(0) == 0 {
                continue;
            }
            if sidecars.contains(text(&container["name"])) && container["started"] == true {
                self.ready += usize::from(container["ready"] == true);
                continue;
            }
            self.status = if !terminated.is_null() {
                format!("Init:{}", termination(terminated))
            } else if !waiting.is_empty() && waiting != "PodInitializing" {
                format!("Init:{waiting}")
            } else {
                format!("Init:{index}/{total}")
            };
            return true;
        }
        false
    }

    fn add_containers(&mut self, status: &'a Value) {
        let (mut running, mut failure) = (false, None);
        for container in items(&status["containerStatuses"]).iter().rev() {
            self.add_restarts(container);
            let (state, waiting) = (&container["state"], text(&container["state"]["waiting"]["reason"]));
            if !waiting.is_empty() {
                self.status = waiting.to_owned();
            } else if !state["terminated"].is_null() {
                self.status = termination(&state["terminated"]);
                if state["terminated"]["exitCode"].as_i64().unwrap_or(0) != 0 {
                    failure = Some(self.status.clone());
                }
            } else if container["ready"] == true && !state["running"].is_null() {
                running = true;
                self.ready += 1;
            }
        }
        // One finished container does not make a finished pod.
        if self.status == "Completed" {
            if running && condition(status, "Ready") {
                self.status = "Running".to_owned();
            } else if let Some(failure) = failure {
                self.status = failure;
            } else if running {
                self.status = "NotReady".to_owned();
            }
        }
    }

    fn add_restarts(&mut self, container: &'a Value) {
        self.restarts += container["restartCount"].as_i64().unwrap_or(0);
        // RFC 3339 times in UTC sort as text.
        self.last_restart =
            self.last_restart.max(container["lastState"]["terminated"]["finishedAt"].as_str());
    }
}

fn phase_or_reason(pod: &Value) -> String {
    let status = &pod["status"];
    let gated = items(&status["conditions"])
        .iter()
        .any(|condition| condition["type"] == "PodScheduled" && condition["reason"] == "SchedulingGated");
    match text(&status["reason"]) {
        _ if gated => "SchedulingGated",
        "" => text(&status["phase"]),
        reason => reason,
    }
    .to_owned()
}

fn termination(terminated: &Value) -> String {
    let number = |field: &str| terminated[field].as_i64().unwrap_or(0);
    match text(&terminated["reason"]) {
        "" if number("signal") != 0 => format!("Signal:{}", number("signal")),
        "" => format!("ExitCode:{}", number("exitCode")),
        reason => reason.to_owned(),
    }
}

fn condition(status: &Value, kind: &str) -> bool {
    items(&status["conditions"])
        .iter()
        .any(|condition| condition["type"] == kind && condition["status"] == "True")
}

fn readiness_gates(pod: &Value) -> String {
    match items(&pod["spec"]["readinessGates"]) {
        [] => "<none>".to_owned(),
        gates => {
            let holding =
                gates.iter().filter(|gate| condition(&pod["status"], text(&gate["conditionType"]))).count();
            format!("{holding}/{}", gates.len())
        }
    }
}
