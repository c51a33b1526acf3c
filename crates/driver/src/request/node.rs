//! Requests to the Node service.

use super::{Access, Refusal, Sizes, any_path, mount_point, present, text, volume};
use csi::v1;
use drives::VolumeId;
use std::path::PathBuf;

pub(crate) struct Stage {
    pub(crate) volume: VolumeId,
    pub(crate) staging: PathBuf,
    pub(crate) access: Access,
}

impl Stage {
    pub(crate) fn check(request: &v1::NodeStageVolumeRequest) -> Result<Self, Refusal> {
        text("volume_id", &request.volume_id)?;
        let staging = mount_point("staging_target_path", &request.staging_target_path)?;
        let access = Access::check(request.volume_capability.as_ref())?;
        Ok(Self { volume: volume(&request.volume_id)?, staging, access })
    }
}

pub(crate) struct Unstage {
    /// Or why no volume of ours ever had that identity.
    pub(crate) volume: Result<VolumeId, Refusal>,
    pub(crate) staging: PathBuf,
}

impl Unstage {
    pub(crate) fn check(request: &v1::NodeUnstageVolumeRequest) -> Result<Self, Refusal> {
        present("volume_id", &request.volume_id)?;
        let staging = mount_point("staging_target_path", &request.staging_target_path)?;
        Ok(Self { volume: volume(&request.volume_id), staging })
    }
}

pub(crate) struct Publish {
    pub(crate) volume: VolumeId,
    pub(crate) staging: PathBuf,
    pub(crate) target: PathBuf,
    pub(crate) access: Access,
    /// Asked for by the field or by the access mode.
    pub(crate) read_only: bool,
}

impl Publish {
    pub(crate) fn check(request: &v1::NodePublishVolumeRequest) -> Result<Self, Refusal> {
        text("volume_id", &request.volume_id)?;
        let target = mount_point("target_path", &request.target_path)?;
        let access = Access::check(request.volume_capability.as_ref())?;
        if request.staging_target_path.is_empty() {
            return Err(Refusal::NoStagingPath);
        }
        let staging = mount_point("staging_target_path", &request.staging_target_path)?;
        let read_only = request.readonly || access.read_only;
        Ok(Self { volume: volume(&request.volume_id)?, staging, target, access, read_only })
    }
}

pub(crate) struct Unpublish {
    /// Or why no volume of ours ever had that identity.
    pub(crate) volume: Result<VolumeId, Refusal>,
    pub(crate) target: PathBuf,
}

impl Unpublish {
    pub(crate) fn check(request: &v1::NodeUnpublishVolumeRequest) -> Result<Self, Refusal> {
        present("volume_id", &request.volume_id)?;
        let target = mount_point("target_path", &request.target_path)?;
        Ok(Self { volume: volume(&request.volume_id), target })
    }
}

pub(crate) struct Stats {
    pub(crate) volume: VolumeId,
    pub(crate) path: PathBuf,
}

impl Stats {
    pub(crate) fn check(request: &v1::NodeGetVolumeStatsRequest) -> Result<Self, Refusal> {
        text("volume_id", &request.volume_id)?;
        let path = any_path("volume_path", &request.volume_path)?;
        Ok(Self { volume: volume(&request.volume_id)?, path })
    }
}

pub(crate) struct ExpandOnNode {
    pub(crate) volume: VolumeId,
    pub(crate) path: PathBuf,
    pub(crate) sizes: Sizes,
}

impl ExpandOnNode {
    pub(crate) fn check(request: &v1::NodeExpandVolumeRequest) -> Result<Self, Refusal> {
        text("volume_id", &request.volume_id)?;
        let path = any_path("volume_path", &request.volume_path)?;
        let sizes = Sizes::check(request.capacity_range)?;
        if request.volume_capability.is_some() {
            Access::check(request.volume_capability.as_ref())?;
        }
        Ok(Self { volume: volume(&request.volume_id)?, path, sizes })
    }
}
