//! The GroupController service.

use crate::call::Answer;
use crate::flight::Key;
use crate::request::{CreateGroup, OneGroup, Refusal};
use crate::serve::Driver;
use crate::snapshots::time;
use crate::status::refused;
use csi::v1::group_controller_service_capability::{Rpc, Type, rpc};
use csi::v1::{self, group_controller_server};
use drives::GroupSnapshot;
use tonic::{Request, Status};

#[tonic::async_trait]
impl group_controller_server::GroupController for Driver {
    async fn group_controller_get_capabilities(
        &self,
        _: Request<v1::GroupControllerGetCapabilitiesRequest>,
    ) -> Answer<v1::GroupControllerGetCapabilitiesResponse> {
        let kind = rpc::Type::CreateDeleteGetVolumeGroupSnapshot;
        let capability =
            v1::GroupControllerServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: kind.into() })) };
        self.answer("GroupControllerGetCapabilities", "", async {
            Ok(v1::GroupControllerGetCapabilitiesResponse { capabilities: vec![capability] })
        })
        .await
    }

    async fn create_volume_group_snapshot(
        &self,
        request: Request<v1::CreateVolumeGroupSnapshotRequest>,
    ) -> Answer<v1::CreateVolumeGroupSnapshotResponse> {
        let mut request = request.into_inner();
        for id in &mut request.source_volume_ids {
            *id = self.identity(std::mem::take(id))?;
        }
        let name = request.name.clone();
        self.answer("CreateVolumeGroupSnapshot", &name, async {
            let CreateGroup { name, sources } = CreateGroup::check(request)?;
            let drives = self.drives.clone();
            let key = Key::GroupName(name.clone());
            let work = async move { drives.create_group(&sources, &name).await.map_err(refused) };
            let group = self.flights.run(key, work).await?;
            Ok(v1::CreateVolumeGroupSnapshotResponse { group_snapshot: Some(self.shown_group(&group)) })
        })
        .await
    }

    async fn delete_volume_group_snapshot(
        &self,
        request: Request<v1::DeleteVolumeGroupSnapshotRequest>,
    ) -> Answer<v1::DeleteVolumeGroupSnapshotResponse> {
        let request = request.into_inner();
        let id = request.group_snapshot_id.clone();
        self.answer("DeleteVolumeGroupSnapshot", &id, async {
            let asked = match OneGroup::check(&id, request.snapshot_ids) {
                Ok(asked) => asked,
                // What never existed is deleted.
                Err(Refusal::ForeignVolume(_) | Refusal::TooLong { .. }) => {
                    return Ok(v1::DeleteVolumeGroupSnapshotResponse {});
                }
                Err(refusal) => return Err(refusal.into()),
            };
            if let Some(group) = self.drives.group(&asked.id) {
                asked.agrees(group.snapshots.iter().map(|snapshot| &snapshot.id))?;
            }
            let (drives, id) = (self.drives.clone(), asked.id);
            let key = Key::Volume(id.clone());
            self.flights.run(key, async move { drives.delete_group(&id).await.map_err(refused) }).await?;
            Ok(v1::DeleteVolumeGroupSnapshotResponse {})
        })
        .await
    }

    async fn get_volume_group_snapshot(
        &self,
        request: Request<v1::GetVolumeGroupSnapshotRequest>,
    ) -> Answer<v1::GetVolumeGroupSnapshotResponse> {
        let request = request.into_inner();
        let id = request.group_snapshot_id.clone();
        self.answer("GetVolumeGroupSnapshot", &id, async {
            let asked = OneGroup::check(&id, request.snapshot_ids)?;
            let group = self.drives.group(&asked.id).ok_or_else(|| {
                Status::not_found(format!("group snapshot {id} does not exist on node {}", self.node.node_id))
            })?;
            asked.agrees(group.snapshots.iter().map(|snapshot| &snapshot.id))?;
            Ok(v1::GetVolumeGroupSnapshotResponse { group_snapshot: Some(self.shown_group(&group)) })
        })
        .await
    }
}

impl Driver {
    fn shown_group(&self, group: &GroupSnapshot) -> v1::VolumeGroupSnapshot {
        v1::VolumeGroupSnapshot {
            group_snapshot_id: group.id.to_string(),
            snapshots: group.snapshots.iter().map(|snapshot| self.shown_snapshot(snapshot)).collect(),
            creation_time: Some(time(group.created)),
            // It is announced when all copies are complete.
            ready_to_use: true,
        }
    }
}
