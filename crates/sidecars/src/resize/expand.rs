//! Letting the volume of a claim grow, one step at a time. Each step can be repeated; a crash between any two leaves
//! the claim's status saying what was attempted, and the attempt is repeated.

use std::error::Error;

use csi::v1::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use csi::v1::{CapacityRange, ControllerExpandVolumeRequest, VolumeCapability};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::api::resource;
use kube::{Api, ResourceExt};
use resources::{annotations, expansion, reference, volume};
use runtime::{Key, Next, edit, update_status_if_changed};
use tokio::time::Instant;
use tonic::{Code, Status};
use values::Quantity;

use super::size::{Ability, PAUSE, Plan, plan};
use super::{ResizeError, Resizer};
use crate::driver::{CHANGE, within};
use crate::provision::request;
use crate::settle::settle;

/// What an attempt that failed means for the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// The volume may have grown or may yet: the same size must be tried until it is known.
    Open,
    /// Nothing has grown; another size may be tried.
    Ended,
    /// Nothing has grown, and this size can't be had.
    Infeasible,
    /// Nothing has grown, and nothing will while the volume is in use.
    InUse,
}

/// Sorts the answers of ControllerExpandVolume. An error without an answer leaves everything open.
///
/// RESOURCE_EXHAUSTED is taken for the end of an attempt, as CreateVolume's is: it is how a driver says that there is
/// no room. Upstream takes it for open, and never lets a claim go that was grown beyond what there is.
fn failure(status: &Status) -> Failure {
    match status.code() {
        _ if status.source().is_some() => Failure::Open,
        Code::InvalidArgument | Code::OutOfRange | Code::NotFound => Failure::Infeasible,
        Code::FailedPrecondition => Failure::InUse,
        Code::ResourceExhausted => Failure::Ended,
        code if csi::final_error(code) => Failure::Ended,
        _ => Failure::Open,
    }
}

/// A volume that has grown.
struct Grown {
    size: Quantity,
    /// The node has something left to do.
    needs_node: bool,
}

impl Resizer {
    pub(super) async fn reconcile(&self, key: Key) -> Result<Next, ResizeError> {
        let Some(claim) = self.share.claims.get(&key.namespace, &key.name) else {
            self.remembered.lock().remove(&key);
            return Ok(Next::Done);
        };
        let Some(volume) = self.share.volume_of(&claim) else { return Ok(Next::Done) };
        let remembered = self.remembered.lock().get(&key).cloned().unwrap_or_default();
        let used = remembered.offline_only && self.is_used(&key);
        match plan(&claim, &volume, self.ability, &remembered, used, Instant::now()) {
            Plan::Nothing => {
                self.remembered.lock().remove(&key);
                Ok(Next::Done)
            }
            _ if !self.share.is_ours(&key, &volume) => Ok(Next::Done),
            Plan::Wait(size, wait) => {
                let mut remembered = self.remembered.lock();
                let pause = &mut remembered.entry(key).or_default().pause;
                pause.get_or_insert_with(|| (size, Instant::now() + wait));
                Ok(Next::After(wait))
            }
            Plan::InUse => {
                let message = format!(
                    "Unable to expand {key} because CSI driver {} only supports offline expansion and volume is currently in-use",
                    self.driver.name()
                );
                self.recorder.warning(&reference(&*claim), "VolumeResizeFailed", message);
                Ok(Next::Done)
            }
            Plan::ForgetOldSize => {
                let name = volume.name_any();
                let forget = |live: &mut PersistentVolume| {
                    if live.metadata.uid == volume.metadata.uid
                        && live.annotations().contains_key(annotations::PRE_RESIZE_CAPACITY)
                    {
                        live.annotations_mut().remove(annotations::PRE_RESIZE_CAPACITY);
                    }
                };
                match edit(&self.volumes_api(), &name, forget).await {
                    Err(kube::Error::Api(status)) if status.is_not_found() => Ok(Next::Done),
                    Err(error) => {
                        Err(api(format!("clear the old size of the PersistentVolume {name}"))(error))
                    }
                    Ok(_) => Ok(Next::Done),
                }
            }
            Plan::Expand(size) => Box::pin(self.expand(&key, &claim, &volume, size)).await,
        }
    }

    async fn expand(
        &self,
        key: &Key,
        seen: &PersistentVolumeClaim,
        volume: &PersistentVolume,
        size: Quantity,
    ) -> Result<Next, ResizeError> {
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &key.namespace);
        let begun = update_status_if_changed(&claims, seen, |claim| expansion::begin(claim, &size)).await;
        let claim = match begun {
            Ok(None) => seen.clone(),
            Ok(Some(claim)) => {
                let message = format!("External resizer is resizing volume {}", volume.name_any());
                self.recorder.normal(&reference(&claim), "Resizing", message);
                claim
            }
            // What is known of the claim is not the latest: decide again by that.
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_not_found() => {
                return Ok(Next::Overtaken);
            }
            Err(error) => {
                return Err(api(format!("record on the claim {key} that its volume grows"))(error));
            }
        };
        let grown = match self.ability {
            Ability::Node => Ok(Grown { size: size.clone(), needs_node: true }),
            Ability::Controller => self.call(volume, &size).await,
        };
        match grown {
            Ok(grown) => {
                self.remembered.lock().remove(key);
                Box::pin(self.publish(key, claim, volume, &grown)).await?;
                self.signal.raise();
                Ok(Next::Done)
            }
            Err(error) => self.give_up(key, claim, size, error).await,
        }
    }

    async fn call(&self, volume: &PersistentVolume, size: &Quantity) -> Result<Grown, ResizeError> {
        let name = volume.name_any();
        let Some(bytes) = size.ceil() else { return Err(ResizeError::Size(size.to_string())) };
        let spec = volume.spec.clone().unwrap_or_default();
        let csi = spec.csi.unwrap_or_default();
        let single_node_multi_writer =
            self.driver.can(csi::v1::controller_service_capability::rpc::Type::SingleNodeMultiWriter);
        let mode = request::access_mode(volume::access_modes(volume), single_node_multi_writer)?;
        let access_type = if volume::volume_mode(volume) == "Block" {
            AccessType::Block(BlockVolume {})
        } else {
            AccessType::Mount(MountVolume {
                fs_type: csi.fs_type.unwrap_or_default(),
                mount_flags: spec.mount_options.unwrap_or_default(),
                volume_mount_group: String::new(),
            })
        };
        let request = ControllerExpandVolumeRequest {
            volume_id: csi.volume_handle,
            capacity_range: Some(CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
            secrets: crate::secret::read(&self.client, csi.controller_expand_secret_ref.as_ref()).await?,
            volume_capability: Some(VolumeCapability {
                access_mode: Some(AccessMode { mode: mode as i32 }),
                access_type: Some(access_type),
            }),
        };
        let answer = within(CHANGE, self.driver.controller().controller_expand_volume(request)).await;
        let answer = answer.map_err(|status| ResizeError::Expand {
            volume: name,
            resizer: self.driver.name().to_owned(),
            status: Box::new(status),
        })?;
        // A driver that says nothing, or less than it was asked for, has made what was asked for.
        let made = u64::try_from(answer.capacity_bytes).unwrap_or_default();
        let size = if answer.capacity_bytes > bytes { Quantity::from_bytes(made) } else { size.clone() };
        Ok(Grown { size, needs_node: answer.node_expansion_required })
    }

    /// Writes first to the volume, then to the claim that it has grown.
    async fn publish(
        &self,
        key: &Key,
        claim: PersistentVolumeClaim,
        volume: &PersistentVolume,
        grown: &Grown,
    ) -> Result<(), ResizeError> {
        let name = volume.name_any();
        let before = expansion::capacity(&claim).cloned();
        let change = |live: &mut PersistentVolume| {
            if live.metadata.uid != volume.metadata.uid {
                return;
            }
            let now = volume::capacity(live).and_then(|size| size.0.parse::<Quantity>().ok());
            if now.is_none_or(|now| now < grown.size) {
                let capacity = live.spec.get_or_insert_default().capacity.get_or_insert_default();
                capacity.insert("storage".to_owned(), resource::Quantity(grown.size.to_string()));
            }
            let is_marked = live.annotations().contains_key(annotations::PRE_RESIZE_CAPACITY);
            if let Some(before) = before.as_ref().filter(|_| grown.needs_node && !is_marked) {
                let key = annotations::PRE_RESIZE_CAPACITY.to_owned();
                live.annotations_mut().insert(key, before.0.clone());
            }
        };
        edit(&self.volumes_api(), &name, change)
            .await
            .map_err(api(format!("write the new size of the PersistentVolume {name}")))?;
        let (reason, message) = match grown.needs_node {
            true => ("FileSystemResizeRequired", "Require file system resize of volume on node"),
            false => ("VolumeResizeSuccessful", "Resize volume succeeded"),
        };
        let told = reference(&claim);
        self.settle(key, claim, |live| {
            let mark = annotations::NODE_EXPANSION_NOT_REQUIRED;
            if grown.needs_node {
                expansion::hand_to_node(live);
                live.annotations_mut().remove(mark);
            } else {
                expansion::finish(live, &grown.size);
                live.annotations_mut().insert(mark.to_owned(), "true".to_owned());
            }
        })
        .await?;
        self.recorder.normal(&told, reason, message);
        Ok(())
    }

    /// After an attempt that failed: tells why, and remembers what that means for the next one.
    async fn give_up(
        &self,
        key: &Key,
        claim: PersistentVolumeClaim,
        size: Quantity,
        error: ResizeError,
    ) -> Result<Next, ResizeError> {
        let message = runtime::explain(&error);
        self.recorder.warning(&reference(&claim), "VolumeResizeFailed", message.clone());
        let failure = match &error {
            ResizeError::Expand { status, .. } => failure(status),
            // Nothing was called.
            ResizeError::Size(_) | ResizeError::Request(_) => Failure::Infeasible,
            _ => Failure::Ended,
        };
        {
            let mut all = self.remembered.lock();
            let remembered = all.entry(key.clone()).or_default();
            remembered.ended = failure != Failure::Open;
            remembered.offline_only |= failure == Failure::InUse;
            remembered.pause = (failure == Failure::Infeasible).then(|| (size, Instant::now() + PAUSE));
        }
        if failure != Failure::Open {
            let infeasible = failure == Failure::Infeasible;
            self.settle(key, claim, |live| expansion::fail(live, &message, infeasible)).await?;
        }
        if failure == Failure::Infeasible { Ok(Next::After(PAUSE)) } else { Err(error) }
    }

    async fn settle(
        &self,
        key: &Key,
        claim: PersistentVolumeClaim,
        change: impl Fn(&mut PersistentVolumeClaim),
    ) -> Result<(), ResizeError> {
        let settled = settle(&self.client, key, claim, change).await;
        settled.map_err(api(format!("write the status of the claim {key}")))
    }

    fn volumes_api(&self) -> Api<PersistentVolume> {
        Api::all(self.client.clone())
    }
}

fn api(action: String) -> impl FnOnce(kube::Error) -> ResizeError {
    move |source| ResizeError::Api { action, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_answer_means_for_the_next_attempt() {
        for code in (1..=16).map(Code::from) {
            let expected = match code {
                Code::Cancelled | Code::DeadlineExceeded | Code::Unavailable | Code::Aborted => Failure::Open,
                Code::InvalidArgument | Code::OutOfRange | Code::NotFound => Failure::Infeasible,
                Code::FailedPrecondition => Failure::InUse,
                _ => Failure::Ended,
            };
            assert_eq!(failure(&Status::new(code, "")), expected, "{code}");
        }
        let broken = Status::from_error(Box::new(std::io::Error::other("connection lost")));
        assert_eq!(failure(&broken), Failure::Open);
    }
}
