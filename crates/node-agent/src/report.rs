//! Telling the API how a pod is: its status on difference, and the events that belong to it.

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;

use crate::{
    agent::{Agent, Memory, reference},
    plan::{Actual, Lifecycle, Wanted},
    status::{Facts, RUNTIME_MISSING, derive, missing_runtime, pod_id, volumes_of},
};

impl Agent {
    /// Writes the pod's status if it is not what was written last.
    pub(crate) async fn report(
        &self,
        pod: &Pod,
        wanted: &Wanted,
        actual: &Actual,
        memory: &mut Memory,
    ) -> Result<(), kube::Error> {
        // Nothing of it is left: what there was to say has been said before.
        if !actual.directory && !matches!(wanted.lifecycle, Lifecycle::Run) {
            return Ok(());
        }
        let last = last_known(memory.status.as_ref(), pod.status.as_ref());
        let facts = Facts {
            pod,
            wanted,
            actual,
            problems: &memory.problems,
            address: &self.facts.address,
            has_runtime: self.oci.is_some(),
            now: clock::now(),
        };
        let status = derive(&facts, &last);
        self.tell(pod, wanted, actual, &status, memory);
        if status == last {
            return Ok(());
        }
        let api = Api::<Pod>::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": status});
        match api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(_) => {
                memory.status = Some(status);
                Ok(())
            }
            // It is gone; the watch will say so.
            Err(kube::Error::Api(error)) if error.is_not_found() || error.is_conflict() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Tells of records that can't be read, each once.
    pub(crate) fn tell_faults(&self, uid: &str, pod: Option<&Pod>, actual: &Actual, memory: &mut Memory) {
        for fault in &actual.faults {
            if !memory.told.insert(format!("fault {}", fault.message)) {
                continue;
            }
            tracing::warn!(uid, fault = fault.message, "a record of a pod can't be used");
            let Some(pod) = pod else { continue };
            let (reason, next) = match fault.newer {
                true => ("NewerRecord", "nothing is done to the pod on this node"),
                false => ("DamagedRecord", "what it was about is found without it, where that is possible"),
            };
            self.recorder.warning(&reference(pod), reason, format!("{}; {next}", fault.message));
        }
    }

    /// Events that follow from a state, each told once.
    fn tell(&self, pod: &Pod, wanted: &Wanted, actual: &Actual, status: &PodStatus, memory: &mut Memory) {
        let reference = reference(pod);
        if memory.told.insert("unserved".into()) {
            let spec = serde_json::to_value(&pod.spec).unwrap_or_default();
            for said in values::unserved::of("spec", &spec) {
                self.recorder.warning(&reference, "NotServed", said);
            }
        }
        let volumes = volumes_of(wanted, actual);
        let spec = pod.spec.clone().unwrap_or_default();
        for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
            let of = wanted.init.iter().chain(&wanted.containers).find(|of| of.name == container.name);
            let missing = of.is_some_and(|of| !of.runnable) && volumes.is_some();
            if missing && memory.told.insert(format!("runtime {}", container.name)) {
                let message = missing_runtime(container, self.oci.is_some(), volumes);
                self.recorder.warning(&reference, RUNTIME_MISSING, message);
            }
            let probes = [&container.readiness_probe, &container.liveness_probe, &container.startup_probe];
            let unserved = container.lifecycle.is_some() || probes.iter().any(|probe| probe.is_some());
            if unserved && memory.told.insert("probes".into()) {
                let message = "probes and lifecycle hooks are not served yet: a container counts as ready while it runs";
                self.recorder.warning(&reference, "ProbesIgnored", message);
            }
        }
        for container in status.container_statuses.iter().flatten() {
            let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref());
            let backing_off =
                waiting.and_then(|waiting| waiting.reason.as_deref()) == Some("CrashLoopBackOff");
            if backing_off
                && memory.told.insert(format!("backoff {} {}", container.name, container.restart_count))
            {
                let message =
                    format!("Back-off restarting failed container {} in pod {}", container.name, pod_id(pod));
                self.recorder.warning(&reference, "BackOff", message);
            }
        }
    }
}

/// What was written last, which the watch may not have shown yet, with the conditions that others have added since.
fn last_known(written: Option<&PodStatus>, seen: Option<&PodStatus>) -> PodStatus {
    let Some(written) = written else { return seen.cloned().unwrap_or_default() };
    let mut last = written.clone();
    let conditions = last.conditions.get_or_insert_default();
    for condition in seen.and_then(|seen| seen.conditions.as_ref()).into_iter().flatten() {
        if !conditions.iter().any(|known| known.type_ == condition.type_) {
            conditions.push(condition.clone());
        }
    }
    last
}
