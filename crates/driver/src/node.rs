//! The Node service.

use crate::call::Answer;
use crate::controller::{condition, signed};
use crate::ephemeral::gone_already;
use crate::flight::Key;
use crate::request::{Access, Ephemeral, ExpandOnNode, Publish, Stage, Stats, Unpublish, Unstage};
use crate::serve::Driver;
use crate::status::{refused, refused_unmount};
use csi::v1::node_service_capability::{Rpc, Type, rpc};
use csi::v1::volume_usage::Unit;
use csi::v1::{self, node_server};
use drives::{AccessType, Drives, StatsError, VolumeId};
use std::path::{Path, PathBuf};
use tonic::{Request, Status};

const ABILITIES: [rpc::Type; 6] = [
    rpc::Type::StageUnstageVolume,
    rpc::Type::GetVolumeStats,
    rpc::Type::ExpandVolume,
    rpc::Type::SingleNodeMultiWriter,
    rpc::Type::VolumeCondition,
    rpc::Type::VolumeMountGroup,
];

#[tonic::async_trait]
impl node_server::Node for Driver {
    async fn node_stage_volume(
        &self,
        request: Request<v1::NodeStageVolumeRequest>,
    ) -> Answer<v1::NodeStageVolumeResponse> {
        let mut request = request.into_inner();
        request.volume_id = self.identity(request.volume_id)?;
        self.answer("NodeStageVolume", &request.volume_id, async {
            let Stage { volume, staging, access } = Stage::check(&request)?;
            self.fits(&volume, &access)?;
            let drives = self.drives.clone();
            let key = Key::Volume(volume.clone());
            let work = async move {
                match access.kind {
                    AccessType::Mount => drives.stage(&volume, &staging, access.flags).await,
                    AccessType::Block => drives.stage_block(&volume).await,
                }
                .map_err(refused)?;
                hand_over(&drives, &volume, &staging, &access, access.read_only).await
            };
            self.flights.run(key, work).await?;
            Ok(v1::NodeStageVolumeResponse {})
        })
        .await
    }

    async fn node_unstage_volume(
        &self,
        request: Request<v1::NodeUnstageVolumeRequest>,
    ) -> Answer<v1::NodeUnstageVolumeResponse> {
        let mut request = request.into_inner();
        request.volume_id = self.identity(request.volume_id)?;
        self.answer("NodeUnstageVolume", &request.volume_id, async {
            let Unstage { volume, staging } = Unstage::check(&request)?;
            let drives = self.drives.clone();
            let volume = match volume {
                Ok(volume) => volume,
                Err(refusal) => {
                    gone_already(&drives, &staging, refusal).await?;
                    return Ok(v1::NodeUnstageVolumeResponse {});
                }
            };
            let key = Key::Volume(volume.clone());
            let work = async move { drives.unstage(&volume, &staging).await.map_err(refused_unmount) };
            self.flights.run(key, work).await?;
            Ok(v1::NodeUnstageVolumeResponse {})
        })
        .await
    }

    async fn node_publish_volume(
        &self,
        request: Request<v1::NodePublishVolumeRequest>,
    ) -> Answer<v1::NodePublishVolumeResponse> {
        let mut request = request.into_inner();
        if Ephemeral::is_meant(&request) {
            let publish = self.publish_ephemeral(&request);
            return self.answer("NodePublishVolume", &request.volume_id, publish).await;
        }
        request.volume_id = self.identity(request.volume_id)?;
        self.answer("NodePublishVolume", &request.volume_id, async {
            let Publish { volume, staging, target, access, read_only } = Publish::check(&request)?;
            self.fits(&volume, &access)?;
            let (drives, throttles) = (self.drives.clone(), self.throttles.clone());
            let key = Key::Volume(volume.clone());
            let work = async move {
                if access.exclusive {
                    alone(&drives, &volume, [&staging, &target]).await?;
                }
                hand_over(&drives, &volume, &staging, &access, read_only).await?;
                match access.kind {
                    AccessType::Mount => {
                        drives.publish(&volume, &staging, &target, read_only, access.flags).await
                    }
                    AccessType::Block => drives.publish_block(&volume, &staging, &target, read_only).await,
                }
                .map_err(refused)?;
                throttles.apply(&drives, volume.drive(), &target).await
            };
            self.flights.run(key, work).await?;
            Ok(v1::NodePublishVolumeResponse {})
        })
        .await
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<v1::NodeUnpublishVolumeRequest>,
    ) -> Answer<v1::NodeUnpublishVolumeResponse> {
        let mut request = request.into_inner();
        if let Some(volume) = self.ephemeral(&request.volume_id) {
            let unpublish = self.unpublish_ephemeral(volume, &request);
            return self.answer("NodeUnpublishVolume", &request.volume_id, unpublish).await;
        }
        request.volume_id = self.identity(request.volume_id)?;
        self.answer("NodeUnpublishVolume", &request.volume_id, async {
            let Unpublish { volume, target } = Unpublish::check(&request)?;
            let drives = self.drives.clone();
            let volume = match volume {
                Ok(volume) => volume,
                Err(refusal) => {
                    gone_already(&drives, &target, refusal).await?;
                    return Ok(v1::NodeUnpublishVolumeResponse {});
                }
            };
            let key = Key::Volume(volume.clone());
            let work = async move { drives.unpublish(&volume, &target).await.map_err(refused_unmount) };
            self.flights.run(key, work).await?;
            Ok(v1::NodeUnpublishVolumeResponse {})
        })
        .await
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<v1::NodeGetVolumeStatsRequest>,
    ) -> Answer<v1::NodeGetVolumeStatsResponse> {
        let mut request = request.into_inner();
        request.volume_id = match self.ephemeral(&request.volume_id) {
            Some(volume) => volume.id.to_string(),
            None => self.identity(request.volume_id)?,
        };
        self.answer("NodeGetVolumeStats", &request.volume_id, async {
            let Stats { volume, path } = Stats::check(&request)?;
            let stats = match self.drives.stats(&volume, &path).await {
                // Nothing can be counted, and whoever asks has to hear why.
                Err(StatsError::NoDrive { drive, reason }) => {
                    let message = format!("drive {drive} failed: {reason}");
                    let condition = v1::VolumeCondition { abnormal: true, message };
                    return Ok(v1::NodeGetVolumeStatsResponse {
                        volume_condition: Some(condition),
                        ..Default::default()
                    });
                }
                stats => stats.map_err(refused)?,
            };
            let volume_condition = self.drives.volume(&volume).as_ref().map(condition);
            let usage = |unit: Unit, total, used, available| v1::VolumeUsage {
                available: signed(available),
                total: signed(total),
                used: signed(used),
                unit: unit.into(),
            };
            // What of a device is in use, only its user knows.
            let bytes = usage(Unit::Bytes, stats.size, stats.used, stats.available);
            let inodes =
                stats.inodes.map(|inodes| usage(Unit::Inodes, inodes.total, inodes.used, inodes.free));
            let usage = std::iter::once(bytes).chain(inodes).collect();
            Ok(v1::NodeGetVolumeStatsResponse { usage, volume_condition })
        })
        .await
    }

    /// Needed by no volume of ours, as the controller's call does it all; for orchestrators that make both calls.
    async fn node_expand_volume(
        &self,
        request: Request<v1::NodeExpandVolumeRequest>,
    ) -> Answer<v1::NodeExpandVolumeResponse> {
        let mut request = request.into_inner();
        request.volume_id = self.identity(request.volume_id)?;
        self.answer("NodeExpandVolume", &request.volume_id, async {
            let ExpandOnNode { volume, path, sizes } = ExpandOnNode::check(&request)?;
            self.drives.stats(&volume, &path).await.map_err(refused)?;
            let size = self.expand(volume, sizes).await?;
            Ok(v1::NodeExpandVolumeResponse { capacity_bytes: signed(size) })
        })
        .await
    }

    async fn node_get_capabilities(
        &self,
        _: Request<v1::NodeGetCapabilitiesRequest>,
    ) -> Answer<v1::NodeGetCapabilitiesResponse> {
        let capabilities = ABILITIES
            .map(|kind| v1::NodeServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: kind.into() })) })
            .into();
        self.answer("NodeGetCapabilities", "", async { Ok(v1::NodeGetCapabilitiesResponse { capabilities }) })
            .await
    }

    async fn node_get_info(&self, _: Request<v1::NodeGetInfoRequest>) -> Answer<v1::NodeGetInfoResponse> {
        let info = v1::NodeGetInfoResponse {
            node_id: self.node.node_id.clone(),
            max_volumes_per_node: self.node.max_volumes.map_or(0, i64::from),
            accessible_topology: Some(v1::Topology { segments: self.node.segments.clone() }),
        };
        self.answer("NodeGetInfo", "", async { Ok(info) }).await
    }
}

impl Driver {
    /// Whether the volume is there and has the file system that is asked for.
    fn fits(&self, id: &VolumeId, access: &Access) -> Result<(), Status> {
        let volume = self.volume(id)?;
        match access.filesystem {
            Some(asked) if asked != volume.filesystem() => Err(Status::invalid_argument(format!(
                "volume {id} has the file system {}, not {asked}; leave the type out",
                volume.filesystem()
            ))),
            _ => Ok(()),
        }
    }
}

/// Gives the volume that is mounted there to those whom it is asked for: the containers of SELinux's label, and the group.
pub(crate) async fn hand_over(
    drives: &Drives,
    volume: &VolumeId,
    at: &Path,
    access: &Access,
    read_only: bool,
) -> Result<(), Status> {
    if let Some(label) = &access.label {
        drives.relabel(volume, label).await.map_err(refused)?;
    }
    match access.group.filter(|_| !read_only) {
        Some(group) => drives.give(volume, at, group).await.map_err(refused),
        None => Ok(()),
    }
}

/// Refuses a second place to a volume for one.
async fn alone(drives: &Drives, volume: &VolumeId, places: [&PathBuf; 2]) -> Result<(), Status> {
    match drives.elsewhere(volume, places.map(PathBuf::clone).into()).await.map_err(refused)? {
        None => Ok(()),
        Some(other) => Err(Status::failed_precondition(format!(
            "volume {volume} is published at {} and its access mode (SINGLE_NODE_SINGLE_WRITER) allows one place; \
             unpublish it there first",
            other.display()
        ))),
    }
}
