//! Waiting for a volume to be attached to this node.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::{
    core::v1::{Node, Pod, PodStatus},
    storage::v1::{CSIDriver, VolumeAttachment},
};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use resources::{attachment, node};
use serde_json::json;

use crate::{
    agent::{Agent, Memory, reference},
    objects::Kind,
    plan::Step,
    status::{self, Problem},
    steps::StepError,
    volumes::{VolumeError, claim::ClaimedVolume, csi::CsiError},
};

impl Agent {
    /// What the attacher was told about a volume that is attached to this node, and stays so while the pod uses it. One
    /// that is not attached yet is watched, and wakes the pod.
    pub(crate) async fn attached(
        &self,
        uid: &str,
        volume: &ClaimedVolume,
        driver: Option<&CSIDriver>,
    ) -> Result<BTreeMap<String, String>, VolumeError> {
        let in_status = attachment::status_name(&volume.driver, &volume.handle);
        let listed = self.in_use.take(&in_status, (uid.to_owned(), volume.name.clone())).await;
        let listed = listed.ok_or_else(|| CsiError::NotReported(volume.name.clone()))?;
        let name = attachment::name(&volume.handle, &volume.driver, &self.facts.name);
        let object = Api::<VolumeAttachment>::all(self.client.clone()).get_opt(&name).await?;
        let seen = object.as_ref().and_then(|object| object.resource_version());
        let not_yet = |why, no_room| CsiError::NotAttached { volume: volume.name.clone(), why, no_room };
        let status = match object {
            Some(object)
                if object.metadata.deletion_timestamp.is_none() && attachment::is_attached(&object) =>
            {
                object.status.unwrap_or_default()
            }
            other => {
                self.objects.follow(Kind::Attachment, "", &name, uid, seen);
                let limited = driver.is_some_and(|driver| {
                    driver.spec.node_allocatable_update_period_seconds.is_some_and(|period| period > 0)
                });
                let no_room = limited && other.as_ref().and_then(attachment::out_of_room).is_some();
                return Err(not_yet(why(&volume.driver, &name, other.as_ref()), no_room).into());
            }
        };
        self.objects.unfollow(Kind::Attachment, "", &name, uid);
        let here = &self.facts.name;
        if !listed {
            let live = Api::<Node>::all(self.client.clone()).get(here).await?;
            if !node::volumes_attached(&live).any(|name| name == in_status) {
                self.objects.follow(Kind::Node, "", here, uid, live.resource_version());
                let why = format!("the attach-detach controller does not list it on the Node {here} yet");
                return Err(not_yet(why, false).into());
            }
        }
        self.objects.unfollow(Kind::Node, "", here, uid);
        Ok(status.attachment_metadata.unwrap_or_default())
    }

    /// Notes what a volume waits for, and tells the pod every two minutes, as kubelet does.
    pub(crate) fn wait(&self, pod: &Pod, memory: &mut Memory, step: &Step, error: &StepError) -> Waiting {
        let Step::SetUp(volume) = step else { return Waiting::Until(clock::now()) };
        let problem =
            Problem { reason: error.waiting_reason(), message: status::bounded(&error.to_string(), 1024) };
        memory.problems.insert(status::volume_problem(volume), problem);
        let now = clock::now();
        let since = memory.waiting.entry(volume.clone()).or_insert(now);
        if *since + self.options.attach_patience > now {
            return Waiting::Until(*since + self.options.attach_patience);
        }
        *since = now;
        let volumes = format!("unmounted volumes=[{volume}], unattached volumes=[{volume}]: {error}");
        if error.is_without_room() {
            return Waiting::InVain(format!(
                "Node has reached its volume attachment limit, rejecting pod. {volumes}"
            ));
        }
        let message = format!("Unable to attach or mount volumes: {volumes}");
        self.recorder.warning(&reference(pod), "FailedMount", message);
        Waiting::Until(now + self.options.attach_patience)
    }

    /// Ends a pod that this node has no room for, so that whoever made it makes another one, for another node.
    pub(crate) async fn reject(
        &self,
        pod: &Pod,
        memory: &mut Memory,
        message: String,
    ) -> Result<(), kube::Error> {
        const REASON: &str = "VolumeAttachmentLimitExceeded";
        self.recorder.warning(&reference(pod), REASON, message.clone());
        self.fail(pod, memory, REASON, format!("Pod was rejected: {message}")).await
    }

    /// Ends a pod for good. Its containers are stopped, and its volumes given back, when that is read back.
    pub(crate) async fn fail(
        &self,
        pod: &Pod,
        memory: &mut Memory,
        reason: &str,
        message: String,
    ) -> Result<(), kube::Error> {
        let last = memory.status.take().or_else(|| pod.status.clone()).unwrap_or_default();
        let status = PodStatus {
            phase: Some("Failed".to_owned()),
            reason: Some(reason.to_owned()),
            message: Some(message),
            ..last
        };
        let api = Api::<Pod>::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": status});
        match api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await {
            // It is gone; the watch will say so.
            Err(kube::Error::Api(error)) if error.is_not_found() || error.is_conflict() => {}
            outcome => _ = outcome?,
        }
        memory.status = Some(status);
        memory.rejected = true;
        Ok(())
    }
}

/// What comes of waiting for a volume.
pub(crate) enum Waiting {
    /// The pod is told at this time.
    Until(Timestamp),
    /// There is no room on this node; what the pod is told.
    InVain(String),
}

/// What a volume waits for.
fn why(driver: &str, name: &str, object: Option<&VolumeAttachment>) -> String {
    let Some(object) = object else {
        return format!(
            "waiting for the attach-detach controller to create the VolumeAttachment {name}; driver {driver} needs \
             attaching (CSIDriver.spec.attachRequired)"
        );
    };
    if object.metadata.deletion_timestamp.is_some() {
        return format!("waiting for the VolumeAttachment {name}, which is being deleted, to be made anew");
    }
    let error = object.status.as_ref().and_then(|status| status.attach_error.as_ref());
    match error.and_then(|error| error.message.as_deref()) {
        Some(message) => format!("driver {driver} failed to attach it, and is asked again: {message}"),
        None => format!("waiting for the attacher of driver {driver} to attach it (VolumeAttachment {name})"),
    }
}
