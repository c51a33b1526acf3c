//! Making a volume be as a VolumeAttributesClass says, one step at a time. Each step can be repeated; a crash between any
//! two leaves the claim's status saying what was attempted, and the attempt is repeated.

use std::error::Error;

use csi::v1::ControllerModifyVolumeRequest;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, SecretReference};
use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use kube::{Api, ResourceExt};
use resources::{annotations, modification, reference};
use runtime::{Key, Next, edit, update_status_if_changed};
use tokio::time::Instant;
use tonic::{Code, Status};

use super::plan::{PAUSE, Plan, plan};
use super::{Modifier, ModifyError};
use crate::driver::{CHANGE, within};
use crate::settle::settle;

/// What an attempt that failed means for the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// The volume may have changed or may yet: the same class must be tried until it is known.
    Open,
    /// Nothing has changed; another class may be tried.
    Ended,
    /// Nothing has changed, and the volume can't be like that.
    Infeasible,
}

/// Sorts the answers of ControllerModifyVolume as upstream does. An error without an answer leaves everything open.
fn failure(status: &Status) -> Failure {
    match status.code() {
        _ if status.source().is_some() => Failure::Open,
        Code::InvalidArgument => Failure::Infeasible,
        code if csi::final_error(code) => Failure::Ended,
        _ => Failure::Open,
    }
}

impl Modifier {
    pub(super) async fn reconcile(&self, key: Key) -> Result<Next, ModifyError> {
        let Some(claim) = self.share.claims.get(&key.namespace, &key.name) else {
            self.remembered.lock().remove(&key);
            return Ok(Next::Done);
        };
        let Some(volume) = self.share.volume_of(&claim) else { return Ok(Next::Done) };
        let remembered = self.remembered.lock().get(&key).cloned().unwrap_or_default();
        match plan(&claim, &remembered, Instant::now()) {
            Plan::Nothing => {
                self.remembered.lock().remove(&key);
                Ok(Next::Done)
            }
            _ if !self.share.is_ours(&key, &volume) => Ok(Next::Done),
            Plan::Wait(wait) => Ok(Next::After(wait)),
            Plan::Cancel => {
                self.settle(&key, claim.as_ref().clone(), modification::cancel).await?;
                self.remembered.lock().remove(&key);
                Ok(Next::Done)
            }
            Plan::Modify(target) => match self.classes.get("", target) {
                None => self.await_class(&key, &claim, target).await,
                Some(class) => Box::pin(self.modify(&key, &claim, &volume, &class)).await,
            },
        }
    }

    /// The class is missing: that is told, and its creation brings the claim back.
    async fn await_class(
        &self,
        key: &Key,
        claim: &PersistentVolumeClaim,
        name: &str,
    ) -> Result<Next, ModifyError> {
        let why = format!("VAC {name} does not exist.");
        self.recorder.warning(&reference(claim), "VolumeModifyFailed", why.clone());
        // One that is in progress stays so: the driver may be at it.
        if modification::under_way(claim).is_none_or(|(stage, _)| stage != modification::Stage::InProgress) {
            self.settle(key, claim.clone(), |live| modification::wait(live, name, &why)).await?;
        }
        Ok(Next::Done)
    }

    async fn modify(
        &self,
        key: &Key,
        seen: &PersistentVolumeClaim,
        volume: &PersistentVolume,
        class: &VolumeAttributesClass,
    ) -> Result<Next, ModifyError> {
        let name = class.name_any();
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &key.namespace);
        let begun = update_status_if_changed(&claims, seen, |claim| modification::begin(claim, &name)).await;
        let claim = match begun {
            Ok(None) => seen.clone(),
            Ok(Some(claim)) => {
                let message = format!("external resizer is modifying volume {} with vac {name}", key.name);
                self.recorder.normal(&reference(&claim), "VolumeModify", message);
                claim
            }
            // What is known of the claim is not the latest: decide again by that.
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_not_found() => {
                return Ok(Next::Overtaken);
            }
            Err(error) => {
                return Err(api(format!("record on the claim {key} that its volume changes"))(error));
            }
        };
        match self.call(volume, class).await {
            Ok(()) => {
                Box::pin(self.publish(key, claim, volume, &name)).await?;
                self.remembered.lock().remove(key);
                Ok(Next::Done)
            }
            Err(error) => self.give_up(key, claim, &name, error).await,
        }
    }

    async fn call(
        &self,
        volume: &PersistentVolume,
        class: &VolumeAttributesClass,
    ) -> Result<(), ModifyError> {
        if class.driver_name != self.driver.name() {
            return Err(ModifyError::Foreign { class: class.name_any(), driver: class.driver_name.clone() });
        }
        let mark = |key: &str| volume.annotations().get(key).cloned();
        let secret = SecretReference {
            name: mark(annotations::MODIFY_SECRET_NAME),
            namespace: mark(annotations::MODIFY_SECRET_NAMESPACE),
        };
        let csi = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref());
        let request = ControllerModifyVolumeRequest {
            volume_id: csi.map(|csi| csi.volume_handle.clone()).unwrap_or_default(),
            secrets: crate::secret::read(&self.client, Some(&secret)).await?,
            mutable_parameters: class.parameters.clone().unwrap_or_default(),
        };
        let answer = within(CHANGE, self.driver.controller().controller_modify_volume(request)).await;
        answer
            .map(drop)
            .map_err(|status| ModifyError::Modify { volume: volume.name_any(), status: Box::new(status) })
    }

    /// Writes first to the volume, then to the claim what the volume is like.
    async fn publish(
        &self,
        key: &Key,
        claim: PersistentVolumeClaim,
        volume: &PersistentVolume,
        class: &str,
    ) -> Result<(), ModifyError> {
        let name = volume.name_any();
        let change = |live: &mut PersistentVolume| {
            if live.metadata.uid == volume.metadata.uid {
                live.spec.get_or_insert_default().volume_attributes_class_name = Some(class.to_owned());
            }
        };
        edit(&Api::all(self.client.clone()), &name, change)
            .await
            .map_err(api(format!("write the VolumeAttributesClass of the PersistentVolume {name}")))?;
        let told = reference(&claim);
        self.settle(key, claim, |live| modification::finish(live, class)).await?;
        let message = format!("external resizer modified volume {} with vac {class} successfully", key.name);
        self.recorder.normal(&told, "VolumeModifySuccessful", message);
        Ok(())
    }

    /// After an attempt that failed: tells why, and remembers what that means for the next one.
    async fn give_up(
        &self,
        key: &Key,
        claim: PersistentVolumeClaim,
        class: &str,
        error: ModifyError,
    ) -> Result<Next, ModifyError> {
        let message = runtime::explain(&error);
        self.recorder.warning(&reference(&claim), "VolumeModifyFailed", message.clone());
        let failure = match &error {
            ModifyError::Modify { status, .. } => failure(status),
            // Nothing was called.
            ModifyError::Foreign { .. } => Failure::Infeasible,
            _ => Failure::Ended,
        };
        let infeasible = failure == Failure::Infeasible;
        {
            let mut all = self.remembered.lock();
            let remembered = all.entry(key.clone()).or_default();
            remembered.ended = failure != Failure::Open;
            remembered.pause = infeasible.then(|| (class.to_owned(), Instant::now() + PAUSE));
        }
        self.settle(key, claim, |live| modification::fail(live, class, &message, infeasible)).await?;
        if infeasible { Ok(Next::After(PAUSE)) } else { Err(error) }
    }

    async fn settle(
        &self,
        key: &Key,
        claim: PersistentVolumeClaim,
        change: impl Fn(&mut PersistentVolumeClaim),
    ) -> Result<(), ModifyError> {
        let settled = settle(&self.client, key, claim, change).await;
        settled.map_err(api(format!("write the status of the claim {key}")))
    }
}

fn api(action: String) -> impl FnOnce(kube::Error) -> ModifyError {
    move |source| ModifyError::Api { action, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_answer_means_for_the_next_attempt() {
        for code in (1..=16).map(Code::from) {
            let expected = match code {
                Code::Cancelled | Code::DeadlineExceeded | Code::Unavailable | Code::Aborted => Failure::Open,
                Code::ResourceExhausted if !csi::final_error(code) => Failure::Open,
                Code::InvalidArgument => Failure::Infeasible,
                _ => Failure::Ended,
            };
            assert_eq!(failure(&Status::new(code, "")), expected, "{code}");
        }
        let broken = Status::from_error(Box::new(std::io::Error::other("connection lost")));
        assert_eq!(failure(&broken), Failure::Open);
    }
}
