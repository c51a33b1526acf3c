//! Waiting for a volume to be attached to this node.

use std::collections::BTreeMap;

use k8s_openapi::api::{core::v1::Node, storage::v1::VolumeAttachment};
use kube::{Api, ResourceExt};
use resources::{attachment, node};

use crate::{
    agent::Agent,
    objects::Kind,
    volumes::{VolumeError, claim::ClaimedVolume, csi::CsiError},
};

impl Agent {
    /// What the attacher was told about a volume that is attached to this node, and stays so while the pod uses it. One
    /// that is not attached yet is watched, and wakes the pod.
    pub(crate) async fn attached(
        &self,
        uid: &str,
        volume: &ClaimedVolume,
    ) -> Result<BTreeMap<String, String>, VolumeError> {
        let in_status = attachment::status_name(&volume.driver, &volume.handle);
        let listed = self.in_use.take(&in_status, (uid.to_owned(), volume.name.clone())).await;
        let listed = listed.ok_or_else(|| CsiError::NotReported(volume.name.clone()))?;
        let name = attachment::name(&volume.handle, &volume.driver, &self.facts.name);
        let object = Api::<VolumeAttachment>::all(self.client.clone()).get_opt(&name).await?;
        let seen = object.as_ref().and_then(|object| object.resource_version());
        let not_yet = |why| CsiError::NotAttached { volume: volume.name.clone(), why };
        let status = match object {
            Some(object)
                if object.metadata.deletion_timestamp.is_none() && attachment::is_attached(&object) =>
            {
                object.status.unwrap_or_default()
            }
            other => {
                self.objects.follow(Kind::Attachment, "", &name, uid, seen);
                return Err(not_yet(why(&volume.driver, &name, other.as_ref())).into());
            }
        };
        self.objects.unfollow(Kind::Attachment, "", &name, uid);
        let here = &self.facts.name;
        if !listed {
            let live = Api::<Node>::all(self.client.clone()).get(here).await?;
            if !node::volumes_attached(&live).any(|name| name == in_status) {
                self.objects.follow(Kind::Node, "", here, uid, live.resource_version());
                let why = format!("the attach-detach controller does not list it on the Node {here} yet");
                return Err(not_yet(why).into());
            }
        }
        self.objects.unfollow(Kind::Node, "", here, uid);
        Ok(status.attachment_metadata.unwrap_or_default())
    }
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
