//! What the API wants of a pod. Pure.

use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{Container, Pod};

use crate::{
    containers::bundle::is_host_image,
    plan::{Lifecycle, Restart, Wanted, WantedContainer},
    volumes,
};

/// Reads a pod; None is a pod that the API does not know (any more).
pub(crate) fn of(pod: Option<&Pod>, has_runtime: bool) -> Wanted {
    let Some(pod) = pod else {
        let lifecycle = Lifecycle::Stop { grace: None, delete: false };
        return Wanted { lifecycle, volumes: vec![], init: vec![], containers: vec![] };
    };
    let spec = pod.spec.clone().unwrap_or_default();
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let lifecycle = if pod.metadata.deletion_timestamp.is_some() {
        let seconds = pod.metadata.deletion_grace_period_seconds.unwrap_or(0).max(0);
        Lifecycle::Stop { grace: Some(SignedDuration::from_secs(seconds)), delete: true }
    } else if matches!(phase, Some("Succeeded" | "Failed")) {
        Lifecycle::Finished
    } else {
        Lifecycle::Run
    };
    let restart = restart(spec.restart_policy.as_deref());
    let container = |container: &Container, init: bool| {
        let sidecar = init && container.restart_policy.as_deref() == Some("Always");
        // A finished init container is done, whatever the pod's policy.
        let restart = match restart {
            Restart::Always if init && !sidecar => Restart::OnFailure,
            _ if sidecar => Restart::Always,
            other => other,
        };
        WantedContainer {
            name: container.name.clone(),
            restart,
            sidecar,
            runnable: has_runtime && is_host_image(container),
            image: container.image.clone().filter(|_| !init),
        }
    };
    Wanted {
        lifecycle,
        volumes: volumes::used(pod).into_iter().map(|volume| volume.name.clone()).collect(),
        init: spec.init_containers.iter().flatten().map(|of| container(of, true)).collect(),
        containers: spec.containers.iter().map(|of| container(of, false)).collect(),
    }
}

fn restart(policy: Option<&str>) -> Restart {
    match policy {
        Some("Never") => Restart::Never,
        Some("OnFailure") => Restart::OnFailure,
        _ => Restart::Always,
    }
}
