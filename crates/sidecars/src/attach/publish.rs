//! Attaching and detaching, one step at a time. Each step can be repeated; a crash between any two leaves an attachment
//! that says what is to be done next.

use std::collections::BTreeMap;

use csi::v1::ControllerUnpublishVolumeRequest;
use csi::v1::controller_service_capability::rpc;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::PersistentVolume;
use k8s_openapi::api::storage::v1::{VolumeAttachment, VolumeError};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use resources::annotations;
use runtime::{Next, edit, explain, update_if_changed, update_status_if_changed};

use super::plan::{self, Ability};
use super::{AttachError, Attacher, api, node_id};
use crate::driver::{CHANGE, within};
use crate::secret;

impl Attacher {
    /// Has the driver attach the volume, and says so; or says why not.
    pub(super) async fn publish(
        &self,
        object: &VolumeAttachment,
        volume: Option<&PersistentVolume>,
    ) -> Result<Next, AttachError> {
        let mut object = object.clone();
        match self.try_publish(&mut object, volume).await {
            Ok(Some(context)) => self.attached(&object, context).await,
            Ok(None) => Ok(Next::Overtaken),
            Err(error) => {
                self.settle(&object, |live| {
                    note(&error, &mut live.status.get_or_insert_default().attach_error);
                })
                .await?;
                Err(error)
            }
        }
    }

    /// None: somebody else changed an object meanwhile, and nothing was done.
    async fn try_publish(
        &self,
        object: &mut VolumeAttachment,
        volume: Option<&PersistentVolume>,
    ) -> Result<Option<BTreeMap<String, String>>, AttachError> {
        // All that can fail comes before anything is written.
        plan::is_staying(volume)?;
        let target = plan::target(object, volume, self.driver.name())?;
        let node_id = self.node_id(object)?;
        let secrets =
            secret::read(&self.context.client, target.csi.controller_publish_secret_ref.as_ref()).await?;
        let ability = Ability {
            read_only: self.driver.can(rpc::Type::PublishReadonly),
            single_node_multi_writer: self.driver.can(rpc::Type::SingleNodeMultiWriter),
        };
        let request = plan::publish(&target, &node_id, ability, secrets)?;
        if let Some(volume) = volume
            && !self.keep_volume(volume).await?
        {
            return Ok(None);
        }
        let recorded = update_if_changed(&self.api, object, |object| {
            if !object.finalizers().contains(&self.finalizer) {
                object.finalizers_mut().push(self.finalizer.clone());
            }
            object.annotations_mut().insert(annotations::ATTACHMENT_NODE_ID.to_owned(), node_id);
        });
        match recorded.await {
            Ok(recorded) => *object = recorded.unwrap_or_else(|| object.clone()),
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_not_found() => {
                return Ok(None);
            }
            Err(error) => {
                return Err(api(format!(
                    "record on the VolumeAttachment {} what is done",
                    object.name_any()
                ))(error));
            }
        }
        let answer = within(CHANGE, self.driver.controller().controller_publish_volume(request)).await;
        let answer = answer.map_err(|status| AttachError::Driver { status: Box::new(status) })?;
        Ok(Some(answer.publish_context))
    }

    /// Makes sure that the volume's object outlives its attachments. False: it changed meanwhile.
    async fn keep_volume(&self, volume: &PersistentVolume) -> Result<bool, AttachError> {
        let kept = update_if_changed(&self.volumes_api, volume, |volume| {
            if !volume.finalizers().contains(&self.finalizer) {
                volume.finalizers_mut().push(self.finalizer.clone());
            }
        });
        match kept.await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_not_found() => Ok(false),
            Err(error) => Err(api(format!("keep the PersistentVolume {}", volume.name_any()))(error)),
        }
    }

    /// Writes that the volume is attached, and what the driver says of it.
    pub(super) async fn attached(
        &self,
        object: &VolumeAttachment,
        context: BTreeMap<String, String>,
    ) -> Result<Next, AttachError> {
        self.settle(object, |live| {
            let status = live.status.get_or_insert_default();
            status.attached = true;
            status.attachment_metadata = Some(context.clone()).filter(|context| !context.is_empty());
            status.attach_error = None;
        })
        .await?;
        self.doubted.lock().remove(&object.name_any());
        Ok(Next::Done)
    }

    /// Has the driver detach the volume, and lets the attachment go; or says why not.
    pub(super) async fn unpublish(
        &self,
        object: &VolumeAttachment,
        volume: Option<&PersistentVolume>,
    ) -> Result<Next, AttachError> {
        match self.try_unpublish(object, volume).await {
            Ok(()) => self.release(object).await,
            Err(error) => {
                self.settle(object, |live| {
                    note(&error, &mut live.status.get_or_insert_default().detach_error);
                })
                .await?;
                Err(error)
            }
        }
    }

    async fn try_unpublish(
        &self,
        object: &VolumeAttachment,
        volume: Option<&PersistentVolume>,
    ) -> Result<(), AttachError> {
        let target = plan::target(object, volume, self.driver.name())?;
        // What the driver was told is what it must be told now, whatever the node is called today.
        let recorded = object.annotations().get(annotations::ATTACHMENT_NODE_ID).cloned();
        let node_id = recorded.map_or_else(|| self.node_id(object), Ok)?;
        let secrets =
            secret::read_or_none(&self.context.client, target.csi.controller_publish_secret_ref.as_ref())
                .await?;
        let request = ControllerUnpublishVolumeRequest {
            volume_id: target.csi.volume_handle.clone(),
            node_id,
            secrets,
        };
        let answer = within(CHANGE, self.driver.controller().controller_unpublish_volume(request)).await;
        answer.map(drop).map_err(|status| AttachError::Driver { status: Box::new(status) })
    }

    /// Takes the finalizer off. Only then is the status written, if anything is left: with the finalizer it would say
    /// that the outcome of an attempt to attach is not known.
    pub(super) async fn release(&self, object: &VolumeAttachment) -> Result<Next, AttachError> {
        let name = object.name_any();
        let released = edit(&self.api, &name, |live: &mut VolumeAttachment| {
            if live.metadata.uid == object.metadata.uid && live.finalizers().contains(&self.finalizer) {
                live.finalizers_mut().retain(|one| *one != self.finalizer);
            }
        });
        let live = match released.await {
            Ok(live) => live,
            Err(kube::Error::Api(status)) if status.is_not_found() => return Ok(Next::Done),
            Err(error) => return Err(api(format!("release the VolumeAttachment {name}"))(error)),
        };
        if live.metadata.uid == object.metadata.uid && !live.finalizers().is_empty() {
            self.settle(&live, |live| {
                let status = live.status.get_or_insert_default();
                status.attached = false;
                status.attachment_metadata = None;
                status.detach_error = None;
            })
            .await?;
        }
        Ok(Next::Done)
    }

    /// Lets a volume go that is being deleted, after its last attachment.
    pub(super) async fn let_go(&self, name: &str) -> Result<Next, AttachError> {
        let Some(volume) = self.volumes.get("", name) else { return Ok(Next::Done) };
        let attachments = self.by_volume.lock().get(name).map_or(0, |names| names.len());
        if !plan::can_let_go(&volume, self.driver.name(), &self.finalizer, attachments)
            || !self.wins(volume.metadata.uid.as_deref(), Some(&volume))
        {
            return Ok(Next::Done);
        }
        let released = update_if_changed(&self.volumes_api, &volume, |volume| {
            volume.finalizers_mut().retain(|one| *one != self.finalizer);
        });
        match released.await {
            Ok(_) => Ok(Next::Done),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(Next::Done),
            Err(kube::Error::Api(status)) if status.is_conflict() => Ok(Next::Overtaken),
            Err(error) => Err(api(format!("release the PersistentVolume {name}"))(error)),
        }
    }

    /// What the driver calls the attachment's node.
    fn node_id(&self, object: &VolumeAttachment) -> Result<String, AttachError> {
        let node = &object.spec.node_name;
        let known = self.csi_nodes.get("", node);
        let id = known.as_ref().and_then(|known| node_id(known, self.driver.name()));
        id.map(str::to_owned).ok_or_else(|| AttachError::NoNodeId {
            node: node.clone(),
            driver: self.driver.name().to_owned(),
        })
    }

    /// Changes the status, first as it was seen last, then, if somebody else wrote it, as it is.
    async fn settle(
        &self,
        object: &VolumeAttachment,
        change: impl Fn(&mut VolumeAttachment),
    ) -> Result<(), AttachError> {
        let name = object.name_any();
        let action = || format!("write the status of the VolumeAttachment {name}");
        let mut seen = object.clone();
        for attempt in 1.. {
            match update_status_if_changed(&self.api, &seen, &change).await {
                Ok(_) => return Ok(()),
                Err(kube::Error::Api(status)) if status.is_not_found() => return Ok(()),
                Err(kube::Error::Api(status)) if status.is_conflict() && attempt < 4 => {}
                Err(error) => return Err(api(action())(error)),
            }
            match self.api.get_opt(&name).await.map_err(api(action()))? {
                Some(live) if live.metadata.uid == object.metadata.uid => seen = live,
                _ => return Ok(()),
            }
        }
        Ok(())
    }
}

/// Notes a failure in an attachment's status; the code is the driver's. Of one that goes on, its first time stays: to
/// write every try down would wake whoever watches, for nothing.
fn note(error: &AttachError, noted: &mut Option<VolumeError>) {
    let message = Some(explain(error));
    let error_code = match error {
        AttachError::Driver { status } => Some(status.code() as i32),
        _ => None,
    };
    if noted.as_ref().is_some_and(|noted| noted.message == message && noted.error_code == error_code) {
        return;
    }
    let now = clock::now();
    let time = Some(Time(Timestamp::from_second(now.as_second()).unwrap_or(now)));
    *noted = Some(VolumeError { time, message, error_code });
}
