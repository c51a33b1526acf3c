//! Volumes that are made for one pod and go with it. The orchestrator gives such a volume its identity, which is its name
//! here; the drives know it by that, so both calls find it again after any crash.

use crate::flight::Key;
use crate::node::hand_over;
use crate::request::{Ephemeral, Refusal, Unpublish};
use crate::serve::Driver;
use crate::status::{refused, refused_unmount};
use csi::v1;
use drives::{DeleteError, Drives, Volume};
use std::path::Path;
use tonic::Status;

impl Driver {
    /// Makes the volume, if there is none, and shows it to its pod.
    pub(crate) async fn publish_ephemeral(
        &self,
        request: &v1::NodePublishVolumeRequest,
    ) -> Result<v1::NodePublishVolumeResponse, Status> {
        let Ephemeral { wanted, target, access, read_only } = Ephemeral::check(request)?;
        let drives = self.drives.clone();
        let key = Key::Name(wanted.name.clone());
        let work = async move {
            let volume = drives.create(wanted).await.map_err(refused)?;
            if !volume.ephemeral {
                return Err(Status::already_exists(format!(
                    "volume {} has that name and is not ephemeral; choose another name",
                    volume.id
                )));
            }
            let flags = if read_only { access.flags.read_only() } else { access.flags };
            drives.stage(&volume.id, &target, flags).await.map_err(refused)?;
            hand_over(&drives, &volume.id, &target, &access, read_only).await
        };
        self.flights.run(key, work).await?;
        Ok(v1::NodePublishVolumeResponse {})
    }

    /// The ephemeral volume of this handle, which is a name and not an identity.
    pub(crate) fn ephemeral(&self, handle: &str) -> Option<Volume> {
        let is_name = !handle.is_empty() && !handle.contains('/');
        let named = is_name.then(|| self.drives.named(handle)).flatten();
        named.filter(|volume| volume.ephemeral)
    }

    /// Takes the volume from its pod and deletes it.
    pub(crate) async fn unpublish_ephemeral(
        &self,
        volume: Volume,
        request: &v1::NodeUnpublishVolumeRequest,
    ) -> Result<v1::NodeUnpublishVolumeResponse, Status> {
        let request = v1::NodeUnpublishVolumeRequest { volume_id: volume.id.to_string(), ..request.clone() };
        let Unpublish { volume: id, target } = Unpublish::check(&request)?;
        let id = id?;
        let drives = self.drives.clone();
        let work = async move {
            drives.unpublish(&id, &target).await.map_err(refused_unmount)?;
            drives.delete(&id).await.map_err(refused)
        };
        self.flights.run(Key::Name(volume.name), work).await?;
        Ok(v1::NodeUnpublishVolumeResponse {})
    }
}

/// Takes away what never was a volume of ours, or was ephemeral and went: no more than what bears our mark is left of it.
/// What is mounted there may be a volume of a drive that is not in the machine now.
pub(crate) async fn gone_already(drives: &Drives, at: &Path, refusal: Refusal) -> Result<(), Status> {
    match drives.unpublish_gone(at).await.map_err(refused_unmount)? {
        true => Ok(()),
        false => Err(refusal.into()),
    }
}

/// Removes ephemeral volumes that no pod has. Before the first call nobody can be about to use one; whoever asks for it
/// again gets a new one.
pub(crate) async fn sweep(drives: &Drives) {
    for volume in drives.volumes().into_iter().filter(|volume| volume.ephemeral) {
        match drives.delete(&volume.id).await {
            Ok(()) => tracing::info!(volume = volume.name, "an ephemeral volume that no pod has is removed"),
            Err(DeleteError::InUse { .. }) => {}
            Err(error) => {
                tracing::warn!(volume = volume.name, %error, "an ephemeral volume that no pod has stays")
            }
        }
    }
}
