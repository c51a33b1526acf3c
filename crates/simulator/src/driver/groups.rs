//! Snapshots of several volumes at one moment. They are taken where all of the volumes are.

use csi::v1::group_controller_server::GroupController;
use csi::v1::group_controller_service_capability::{Rpc, Type, rpc};
use csi::v1::*;
use tonic::{Request, Response, Status};

use super::{Driver, snapshot};
use crate::Ledger;
use crate::storage::Held;

#[tonic::async_trait]
impl GroupController for Driver {
    async fn group_controller_get_capabilities(
        &self,
        _: Request<GroupControllerGetCapabilitiesRequest>,
    ) -> Result<Response<GroupControllerGetCapabilitiesResponse>, Status> {
        let rpc = Rpc { r#type: rpc::Type::CreateDeleteGetVolumeGroupSnapshot as i32 };
        let capabilities = vec![GroupControllerServiceCapability { r#type: Some(Type::Rpc(rpc)) }];
        Ok(Response::new(GroupControllerGetCapabilitiesResponse { capabilities }))
    }

    async fn create_volume_group_snapshot(
        &self,
        request: Request<CreateVolumeGroupSnapshotRequest>,
    ) -> Result<Response<CreateVolumeGroupSnapshotResponse>, Status> {
        let request = request.into_inner();
        let (id, node, volumes) = (request.name.clone(), self.node, request.source_volume_ids);
        let take = move |held: &mut Held, ledger: &mut Ledger| {
            held.take_group(&id, &volumes, node, ledger)?;
            Ok(CreateVolumeGroupSnapshotResponse { group_snapshot: group(held, &id) })
        };
        self.storage.operate(&request.name, take).await.map(Response::new)
    }

    async fn delete_volume_group_snapshot(
        &self,
        request: Request<DeleteVolumeGroupSnapshotRequest>,
    ) -> Result<Response<DeleteVolumeGroupSnapshotResponse>, Status> {
        let request = request.into_inner();
        let (id, snapshots) = (request.group_snapshot_id.clone(), request.snapshot_ids);
        let forget = move |held: &mut Held, ledger: &mut Ledger| held.forget_group(&id, &snapshots, ledger);
        self.storage.operate(&request.group_snapshot_id, forget).await?;
        Ok(Response::new(DeleteVolumeGroupSnapshotResponse {}))
    }

    async fn get_volume_group_snapshot(
        &self,
        request: Request<GetVolumeGroupSnapshotRequest>,
    ) -> Result<Response<GetVolumeGroupSnapshotResponse>, Status> {
        let id = request.into_inner().group_snapshot_id;
        match self.storage.hold(|held| group(held, &id)) {
            None => Err(Status::not_found("there is no such group")),
            group_snapshot => Ok(Response::new(GetVolumeGroupSnapshotResponse { group_snapshot })),
        }
    }
}

fn group(held: &Held, id: &str) -> Option<VolumeGroupSnapshot> {
    let snapshots = held.groups.get(id)?.iter().filter_map(|member| {
        let source = held.snapshots.get(member)?;
        Some(Snapshot { group_snapshot_id: id.to_owned(), ..snapshot(member, source) })
    });
    let snapshots: Vec<_> = snapshots.collect();
    let creation_time = snapshots.first().and_then(|snapshot| snapshot.creation_time);
    Some(VolumeGroupSnapshot {
        group_snapshot_id: id.to_owned(),
        snapshots,
        creation_time,
        ready_to_use: true,
    })
}
