//! The services of the driver: what is not scripted is answered as it should be.

use std::collections::BTreeSet;
use std::sync::Arc;

use csi::v1::controller_server::Controller;
use csi::v1::controller_service_capability::{self, Rpc, rpc};
use csi::v1::group_controller_server::GroupController;
use csi::v1::identity_server::Identity;
use csi::v1::node_server::Node;
use csi::v1::plugin_capability::{self, Service, service};
use csi::v1::*;
use parking_lot::Mutex;
use tonic::{Request, Response, Status};

use super::super::{DRIVER, KEY, Steps};
use super::{Answer, Growth, Publishing, Shot, State};

#[derive(Clone)]
pub(super) struct Served {
    pub(super) state: Arc<Mutex<State>>,
    pub(super) steps: Steps,
}

impl Served {
    fn here(&self) -> Topology {
        Topology { segments: [(KEY.to_owned(), self.state.lock().node.clone())].into() }
    }

    fn make(&self, request: &CreateVolumeRequest, bytes: i64) -> Volume {
        let bytes = *self.state.lock().volumes.entry(request.name.clone()).or_insert(bytes);
        Volume {
            capacity_bytes: bytes,
            volume_id: format!("id-{}", request.name),
            accessible_topology: vec![self.here()],
            content_source: request.volume_content_source.clone(),
            ..Volume::default()
        }
    }

    fn create(&self, request: CreateVolumeRequest) -> Result<Response<CreateVolumeResponse>, Status> {
        let asked = request.capacity_range.map(|range| range.required_bytes).unwrap_or_default();
        self.state.lock().requests.push(request.clone());
        let answer = self.state.lock().create.pop_front();
        let volume = match answer.unwrap_or(Answer::Make(asked)) {
            Answer::Refuse(status) => return Err(status),
            Answer::MakeAndFail(status) => {
                self.make(&request, asked);
                return Err(status);
            }
            Answer::Make(bytes) => self.make(&request, bytes),
        };
        Ok(Response::new(CreateVolumeResponse { volume: Some(volume) }))
    }

    fn expand(
        &self,
        request: &ControllerExpandVolumeRequest,
    ) -> Result<Response<ControllerExpandVolumeResponse>, Status> {
        let mut state = self.state.lock();
        let asked = request.capacity_range.map(|range| range.required_bytes).unwrap_or_default();
        assert!(request.volume_capability.is_some());
        state.expanded.push(asked);
        let answer = state.expand.pop_front();
        if let Some(Growth::Refuse(status)) = answer {
            return Err(status);
        }
        let name = request.volume_id.strip_prefix("id-").unwrap().to_owned();
        let size = state.volumes.entry(name).or_default();
        *size = asked.max(*size);
        let capacity_bytes = *size;
        if let Some(Growth::GrowAndFail(status)) = answer {
            return Err(status);
        }
        let node_expansion_required = state.needs_node;
        Ok(Response::new(ControllerExpandVolumeResponse { capacity_bytes, node_expansion_required }))
    }

    fn modify(
        &self,
        request: ControllerModifyVolumeRequest,
    ) -> Result<Response<ControllerModifyVolumeResponse>, Status> {
        let mut state = self.state.lock();
        state.modified.push(request);
        match state.modify.pop_front() {
            Some(Growth::Refuse(status) | Growth::GrowAndFail(status)) => Err(status),
            None => Ok(Response::new(ControllerModifyVolumeResponse {})),
        }
    }

    /// Publishes, or takes back.
    fn publish(&self, call: &str, volume: String, node: String, there: bool) -> Result<(), Status> {
        let mut state = self.state.lock();
        state.publish_calls.push(format!("{call} {volume} {node}"));
        let answer = state.publishing.pop_front();
        if let Some(Publishing::Refuse(status)) = answer {
            return Err(status);
        }
        match there {
            true => state.published.insert((volume, node)),
            false => state.published.remove(&(volume, node)),
        };
        match answer {
            Some(Publishing::DoAndFail(status)) => Err(status),
            _ => Ok(()),
        }
    }

    fn shoot(&self, request: &CreateSnapshotRequest) -> Result<Response<CreateSnapshotResponse>, Status> {
        let mut state = self.state.lock();
        state.shot.push(request.clone());
        let answer = state.shots.pop_front();
        if let Some(Shot::Refuse(status)) = answer {
            return Err(status);
        }
        state.snapshots.insert(request.name.clone(), request.source_volume_id.clone());
        if let Some(Shot::MakeAndFail(status)) = answer {
            return Err(status);
        }
        let mut snapshot = snapshot(&request.name, &request.source_volume_id);
        snapshot.ready_to_use = answer.is_none();
        Ok(Response::new(CreateSnapshotResponse { snapshot: Some(snapshot) }))
    }

    fn group(&self, name: &str, sources: &[String]) -> VolumeGroupSnapshot {
        let mut state = self.state.lock();
        let snapshots = sources.iter().map(|source| {
            let name = format!("{name}-{source}");
            state.snapshots.insert(name.clone(), source.clone());
            Snapshot { group_snapshot_id: format!("id-{name}"), ..snapshot(&name, source) }
        });
        VolumeGroupSnapshot {
            group_snapshot_id: format!("id-{name}"),
            snapshots: snapshots.collect(),
            creation_time: Some(csi::Timestamp { seconds: 1_700_000_000, nanos: 0 }),
            ready_to_use: true,
        }
    }

    fn delete(&self, request: &DeleteVolumeRequest) -> Result<Response<DeleteVolumeResponse>, Status> {
        let mut state = self.state.lock();
        if let Some(refusal) = state.delete.pop_front() {
            return Err(refusal);
        }
        state.volumes.remove(request.volume_id.strip_prefix("id-").unwrap());
        Ok(Response::new(DeleteVolumeResponse {}))
    }
}

#[tonic::async_trait]
impl Identity for Served {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Ok(Response::new(GetPluginInfoResponse { name: DRIVER.to_owned(), ..Default::default() }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        let types = [
            service::Type::ControllerService,
            service::Type::VolumeAccessibilityConstraints,
            service::Type::GroupControllerService,
        ];
        let capabilities = types.map(|kind| PluginCapability {
            r#type: Some(plugin_capability::Type::Service(Service { r#type: kind as i32 })),
        });
        Ok(Response::new(GetPluginCapabilitiesResponse { capabilities: capabilities.into() }))
    }
}

#[tonic::async_trait]
impl Controller for Served {
    async fn controller_get_capabilities(
        &self,
        _: Request<ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<ControllerGetCapabilitiesResponse>, Status> {
        let mut types = vec![
            rpc::Type::CreateDeleteVolume,
            rpc::Type::GetCapacity,
            rpc::Type::CreateDeleteSnapshot,
            rpc::Type::ListSnapshots,
            rpc::Type::CloneVolume,
            rpc::Type::ModifyVolume,
        ];
        if !self.state.lock().node_only {
            types.push(rpc::Type::ExpandVolume);
        }
        if self.state.lock().attaches {
            types.extend([
                rpc::Type::PublishUnpublishVolume,
                rpc::Type::PublishReadonly,
                rpc::Type::ListVolumes,
                rpc::Type::ListVolumesPublishedNodes,
            ]);
        }
        let capabilities = types.into_iter().map(|kind| ControllerServiceCapability {
            r#type: Some(controller_service_capability::Type::Rpc(Rpc { r#type: kind as i32 })),
        });
        Ok(Response::new(ControllerGetCapabilitiesResponse { capabilities: capabilities.collect() }))
    }

    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        self.steps.step(async { self.create(request.into_inner()) }).await
    }

    async fn controller_expand_volume(
        &self,
        request: Request<ControllerExpandVolumeRequest>,
    ) -> Result<Response<ControllerExpandVolumeResponse>, Status> {
        self.steps.step(async { self.expand(&request.into_inner()) }).await
    }

    async fn controller_modify_volume(
        &self,
        request: Request<ControllerModifyVolumeRequest>,
    ) -> Result<Response<ControllerModifyVolumeResponse>, Status> {
        self.steps.step(async { self.modify(request.into_inner()) }).await
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        self.steps.step(async { self.delete(&request.into_inner()) }).await
    }

    async fn controller_publish_volume(
        &self,
        request: Request<ControllerPublishVolumeRequest>,
    ) -> Result<Response<ControllerPublishVolumeResponse>, Status> {
        let request = request.into_inner();
        assert!(request.volume_capability.is_some());
        let call = if request.readonly { "publish read-only" } else { "publish" };
        let publish_context = [("device".to_owned(), format!("dev-{}", request.volume_id))].into();
        self.steps.step(async { self.publish(call, request.volume_id, request.node_id, true) }).await?;
        Ok(Response::new(ControllerPublishVolumeResponse { publish_context }))
    }

    async fn controller_unpublish_volume(
        &self,
        request: Request<ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<ControllerUnpublishVolumeResponse>, Status> {
        let request = request.into_inner();
        self.steps
            .step(async { self.publish("unpublish", request.volume_id, request.node_id, false) })
            .await?;
        Ok(Response::new(ControllerUnpublishVolumeResponse {}))
    }

    async fn list_volumes(
        &self,
        request: Request<ListVolumesRequest>,
    ) -> Result<Response<ListVolumesResponse>, Status> {
        // One volume per page.
        let at: usize = request.into_inner().starting_token.parse().unwrap_or_default();
        let mut state = self.state.lock();
        let published = state.published.clone();
        let ids: BTreeSet<&String> = published.iter().map(|(volume, _)| volume).collect();
        let entries = ids.iter().skip(at).take(1).map(|id| {
            let nodes = published.iter().filter(|(volume, _)| volume == *id).map(|(_, node)| node.clone());
            list_volumes_response::Entry {
                volume: Some(Volume { volume_id: id.to_string(), ..Volume::default() }),
                status: Some(list_volumes_response::VolumeStatus {
                    published_node_ids: nodes.collect(),
                    ..Default::default()
                }),
            }
        });
        let is_last = at + 1 >= ids.len();
        state.listed += usize::from(is_last);
        let next_token = if !is_last { (at + 1).to_string() } else { String::new() };
        Ok(Response::new(ListVolumesResponse { entries: entries.collect(), next_token }))
    }

    async fn create_snapshot(
        &self,
        request: Request<CreateSnapshotRequest>,
    ) -> Result<Response<CreateSnapshotResponse>, Status> {
        self.steps.step(async { self.shoot(&request.into_inner()) }).await
    }

    async fn delete_snapshot(
        &self,
        request: Request<DeleteSnapshotRequest>,
    ) -> Result<Response<DeleteSnapshotResponse>, Status> {
        self.steps
            .step(async {
                let id = request.into_inner().snapshot_id;
                self.state.lock().snapshots.remove(id.strip_prefix("id-").unwrap());
                Ok(Response::new(DeleteSnapshotResponse {}))
            })
            .await
    }

    async fn list_snapshots(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<ListSnapshotsResponse>, Status> {
        let id = request.into_inner().snapshot_id;
        let state = self.state.lock();
        let found = id.strip_prefix("id-").and_then(|name| Some(snapshot(name, state.snapshots.get(name)?)));
        let entry = |snapshot| list_snapshots_response::Entry { snapshot: Some(snapshot) };
        let entries = found.into_iter().map(entry).collect();
        Ok(Response::new(ListSnapshotsResponse { entries, next_token: String::new() }))
    }

    async fn get_capacity(
        &self,
        request: Request<GetCapacityRequest>,
    ) -> Result<Response<GetCapacityResponse>, Status> {
        let request = request.into_inner();
        assert_eq!(request.accessible_topology, Some(self.here()));
        let mut state = self.state.lock();
        state.asked += 1;
        if request.parameters.contains_key("unknown") {
            return Err(Status::invalid_argument("parameter unknown is unknown"));
        }
        Ok(Response::new(GetCapacityResponse {
            available_capacity: state.capacity,
            maximum_volume_size: Some(state.capacity / 2),
            minimum_volume_size: None,
        }))
    }
}

#[tonic::async_trait]
impl GroupController for Served {
    async fn group_controller_get_capabilities(
        &self,
        _: Request<GroupControllerGetCapabilitiesRequest>,
    ) -> Result<Response<GroupControllerGetCapabilitiesResponse>, Status> {
        use group_controller_service_capability::{Rpc, Type, rpc::Type::CreateDeleteGetVolumeGroupSnapshot};
        let rpc = Rpc { r#type: CreateDeleteGetVolumeGroupSnapshot as i32 };
        let capabilities = vec![GroupControllerServiceCapability { r#type: Some(Type::Rpc(rpc)) }];
        Ok(Response::new(GroupControllerGetCapabilitiesResponse { capabilities }))
    }

    async fn create_volume_group_snapshot(
        &self,
        request: Request<CreateVolumeGroupSnapshotRequest>,
    ) -> Result<Response<CreateVolumeGroupSnapshotResponse>, Status> {
        let request = request.into_inner();
        let answer = async {
            let group_snapshot = Some(self.group(&request.name, &request.source_volume_ids));
            Ok(Response::new(CreateVolumeGroupSnapshotResponse { group_snapshot }))
        };
        self.steps.step(answer).await
    }

    async fn delete_volume_group_snapshot(
        &self,
        request: Request<DeleteVolumeGroupSnapshotRequest>,
    ) -> Result<Response<DeleteVolumeGroupSnapshotResponse>, Status> {
        let request = request.into_inner();
        let answer = async {
            let mut state = self.state.lock();
            for id in &request.snapshot_ids {
                state.snapshots.remove(id.strip_prefix("id-").unwrap());
            }
            Ok(Response::new(DeleteVolumeGroupSnapshotResponse {}))
        };
        self.steps.step(answer).await
    }
}

fn snapshot(name: &str, source: &str) -> Snapshot {
    Snapshot {
        snapshot_id: format!("id-{name}"),
        source_volume_id: source.to_owned(),
        size_bytes: 1 << 20,
        creation_time: Some(csi::Timestamp { seconds: 1_700_000_000, nanos: 0 }),
        ready_to_use: true,
        ..Snapshot::default()
    }
}

#[tonic::async_trait]
impl Node for Served {
    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        use node_service_capability::{Rpc, Type, rpc};
        let expands = self.state.lock().node_only;
        let rpc = Rpc { r#type: rpc::Type::ExpandVolume as i32 };
        let capability = NodeServiceCapability { r#type: Some(Type::Rpc(rpc)) };
        let capabilities = expands.then_some(capability).into_iter().collect();
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(
        &self,
        _: Request<NodeGetInfoRequest>,
    ) -> Result<Response<NodeGetInfoResponse>, Status> {
        let (node_id, max_volumes_per_node) = {
            let state = self.state.lock();
            (format!("id-of-{}", state.node), state.max_volumes)
        };
        let accessible_topology = Some(self.here());
        Ok(Response::new(NodeGetInfoResponse { node_id, max_volumes_per_node, accessible_topology }))
    }
}
