//! Deleting a volume whose claim is gone.

use csi::v1::DeleteVolumeRequest;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, SecretReference};
use kube::api::{DeleteParams, Preconditions};
use kube::{Api, ResourceExt};
use resources::{annotations, claim, finalizers, reference};
use runtime::{Change, Key, Next, edit, explain, update_if_changed};
use tonic::Code;

use super::create::api;
use super::release::{Plan, plan};
use super::{ProvisionError, Provisioner};
use crate::driver::{CHANGE, within};

impl Provisioner {
    pub(super) async fn reconcile_volume(&self, key: Key) -> Result<Next, ProvisionError> {
        let Some(volume) = self.volumes.get("", &key.name) else { return Ok(Next::Done) };
        if !self.place.has(&volume) {
            return Ok(Next::Done);
        }
        let claim = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()?.uid.as_deref());
        tracing::Span::current().record("claim", claim);
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        match plan(&volume, self.driver.name()) {
            Plan::Nothing => {}
            Plan::AddFinalizer => {
                let kept = update_if_changed(&volumes, &volume, |volume| {
                    volume.finalizers_mut().push(finalizers::PROVISIONER.to_owned());
                });
                tolerate_change(kept.await).map_err(api(format!("keep the PersistentVolume {key}")))?;
            }
            Plan::DropFinalizer => {
                let dropped = update_if_changed(&volumes, &volume, drop_finalizer);
                tolerate_change(dropped.await).map_err(api(format!("release the PersistentVolume {key}")))?;
            }
            // By one node: one that was late would delete what has been made under the same name since.
            Plan::Delete if !self.left_to_others.is_ours(&self.place, &key, &volume) => {}
            Plan::Delete => {
                // The one decision that can't be taken back is taken on live objects.
                let live = volumes
                    .get_opt(&key.name)
                    .await
                    .map_err(api(format!("read the PersistentVolume {key}")))?;
                let Some(live) = live.filter(|live| plan(live, self.driver.name()) == Plan::Delete) else {
                    return Ok(Next::Done);
                };
                if let Err(error) = self.delete(&volumes, &live).await {
                    self.recorder.warning(&reference(&live), "VolumeFailedDelete", explain(&error));
                    return Err(error);
                }
            }
        }
        Ok(Next::Done)
    }

    /// Deletes the storage, then lets the object go. The order makes a crash in between harmless: DeleteVolume of a
    /// volume that is gone succeeds.
    async fn delete(
        &self,
        volumes: &Api<PersistentVolume>,
        live: &PersistentVolume,
    ) -> Result<(), ProvisionError> {
        let name = live.name_any();
        if let Some(attachment) = self.attachment(&name) {
            return Err(ProvisionError::Attached(attachment));
        }
        self.confirm_claim_gone(live).await?;
        let sharer = self.sharer(volumes, live).await?;
        if let Some(other) = &sharer {
            let message = format!(
                "what is stored is left, and the PersistentVolume goes alone: the PersistentVolume {other} names the \
                 same volume"
            );
            self.recorder.warning(&reference(live), "VolumeShared", message);
        } else if let Some(csi) = live.spec.as_ref().and_then(|spec| spec.csi.as_ref())
            && !csi.volume_handle.is_empty()
        {
            let secret = deletion_secret(live);
            let secrets = self.secret_or_none(secret.as_ref()).await?;
            self.delete_volume(DeleteVolumeRequest { volume_id: csi.volume_handle.clone(), secrets }).await?;
        }
        let action = || format!("delete the PersistentVolume {name}");
        let released = edit(volumes, &name, |volume: &mut PersistentVolume| {
            if volume.metadata.uid == live.metadata.uid {
                drop_finalizer(volume);
            }
        });
        let deleting = match released.await {
            Err(kube::Error::Api(status)) if status.is_not_found() => return Ok(()),
            result => result.map_err(api(action()))?.metadata.deletion_timestamp.is_some(),
        };
        if deleting {
            return Ok(());
        }
        let only_this = Preconditions { uid: live.metadata.uid.clone(), resource_version: None };
        match volumes.delete(&name, &DeleteParams::default().preconditions(only_this)).await {
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            result => result.map(drop).map_err(api(action())),
        }
    }

    /// Keeps account of which volumes name what.
    pub(super) fn note_handle(&self, change: &Change<PersistentVolume>) {
        let volume = change.object();
        let Some(handle) = handle(volume, self.driver.name()) else { return };
        let mut handles = self.handles.lock();
        match change {
            Change::Applied { .. } => {
                _ = handles.entry(handle.to_owned()).or_default().insert(volume.name_any())
            }
            Change::Deleted(_) => {
                if let Some(names) = handles.get_mut(handle) {
                    names.remove(&volume.name_any());
                    if names.is_empty() {
                        handles.remove(handle);
                    }
                }
            }
        }
    }

    /// Another PersistentVolume of the same storage that is not about to go as well: of several that are, each deletes it.
    async fn sharer(
        &self,
        volumes: &Api<PersistentVolume>,
        of: &PersistentVolume,
    ) -> Result<Option<String>, ProvisionError> {
        let Some(shared) = handle(of, self.driver.name()) else { return Ok(None) };
        let others = self.handles.lock().get(shared).cloned().unwrap_or_default();
        for name in others.into_iter().filter(|name| *name != of.name_any()) {
            let live =
                volumes.get_opt(&name).await.map_err(api(format!("read the PersistentVolume {name}")))?;
            let Some(live) = live.filter(|live| handle(live, self.driver.name()) == Some(shared)) else {
                continue;
            };
            let is_kept = live.finalizers().iter().any(|name| name == finalizers::PROVISIONER);
            let goes = live.metadata.deletion_timestamp.is_some() && !is_kept
                || plan(&live, self.driver.name()) == Plan::Delete
                    && self.attachment(&name).is_none()
                    && self.confirm_claim_gone(&live).await.is_ok();
            if !goes {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    /// What says that a volume is attached.
    fn attachment(&self, volume: &str) -> Option<String> {
        let attachments = self.context.informers.attachments().all();
        let attached =
            attachments.iter().find(|one| one.spec.source.persistent_volume_name.as_deref() == Some(volume));
        attached.map(|attachment| attachment.name_any())
    }

    async fn confirm_claim_gone(&self, volume: &PersistentVolume) -> Result<(), ProvisionError> {
        let claim_ref = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
        let Some((namespace, name)) = claim_ref.and_then(|one| one.namespace.clone().zip(one.name.clone()))
        else {
            return Ok(());
        };
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &namespace);
        let key = Key { namespace, name };
        let live = claims.get_opt(&key.name).await.map_err(api(format!("read the claim {key}")))?;
        let going = volume.metadata.deletion_timestamp.is_some();
        match live {
            // A claim that took another volume needs this one no more, and none takes one that is being deleted.
            Some(live) if resources::volume::is_bound_to(volume, &live) => match claim::volume_name(&live) {
                "" if going => Ok(()),
                name if name.is_empty() || name == volume.name_any() => Err(ProvisionError::ClaimExists(key)),
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// Asks the driver to delete a volume. One that is gone counts as deleted.
    pub(super) async fn delete_volume(&self, request: DeleteVolumeRequest) -> Result<(), ProvisionError> {
        let handle = request.volume_id.clone();
        match within(CHANGE, self.driver.controller().delete_volume(request)).await {
            Err(status) if status.code() != Code::NotFound => {
                Err(ProvisionError::Delete { handle, status: Box::new(status) })
            }
            _ => {
                self.signal.raise();
                Ok(())
            }
        }
    }
}

fn handle<'a>(volume: &'a PersistentVolume, driver: &str) -> Option<&'a str> {
    let csi = volume.spec.as_ref()?.csi.as_ref()?;
    (csi.driver == driver).then_some(csi.volume_handle.as_str())
}

fn drop_finalizer(volume: &mut PersistentVolume) {
    volume.finalizers_mut().retain(|name| name != finalizers::PROVISIONER);
}

fn deletion_secret(volume: &PersistentVolume) -> Option<SecretReference> {
    let annotation = |key: &str| volume.annotations().get(key).filter(|value| !value.is_empty()).cloned();
    let name = annotation(annotations::DELETION_SECRET_NAME)?;
    let namespace = annotation(annotations::DELETION_SECRET_NAMESPACE)?;
    Some(SecretReference { name: Some(name), namespace: Some(namespace) })
}

/// A volume that changed or went away meanwhile comes back by that change.
fn tolerate_change<T>(result: Result<Option<T>, kube::Error>) -> Result<(), kube::Error> {
    match result {
        Err(kube::Error::Api(status)) if status.is_conflict() || status.is_not_found() => Ok(()),
        result => result.map(drop),
    }
}
