//! A CSI driver that keeps its volumes in memory and answers as it is told.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;

use csi::v1::controller_server::{Controller, ControllerServer};
use csi::v1::controller_service_capability::{self, Rpc, rpc};
use csi::v1::group_controller_server::{GroupController, GroupControllerServer};
use csi::v1::identity_server::{Identity, IdentityServer};
use csi::v1::node_server::{Node, NodeServer};
use csi::v1::plugin_capability::{self, Service, service};
use csi::v1::*;
use parking_lot::Mutex;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status};

use super::{DRIVER, KEY, Steps};

/// How a CreateVolume is answered; as it should be, if nothing is scripted.
pub enum Answer {
    /// With an error, and nothing made.
    Refuse(Status),
    /// With an error, although the volume is made.
    MakeAndFail(Status),
    /// With a volume of this size.
    Make(i64),
}

/// How a ControllerExpandVolume or ControllerModifyVolume is answered; as it should be, if nothing is scripted.
pub enum Growth {
    /// With an error, and nothing grown.
    Refuse(Status),
    /// With an error, although the volume has grown, or changed.
    GrowAndFail(Status),
}

/// How a ControllerPublishVolume or ControllerUnpublishVolume is answered; as it should be, if nothing is scripted.
pub enum Publishing {
    /// With an error, and nothing done.
    Refuse(Status),
    /// With an error, although it is done.
    DoAndFail(Status),
}

/// How a CreateSnapshot is answered; with a ready snapshot, if nothing is scripted.
pub enum Shot {
    /// With an error, and nothing made.
    Refuse(Status),
    /// With an error, although the snapshot is made.
    MakeAndFail(Status),
    /// With a snapshot that is not ready yet.
    Unready,
}

/// Cloning gives another handle on the same driver.
#[derive(Clone)]
pub struct FakeDriver {
    state: Arc<Mutex<State>>,
}

struct State {
    node: String,
    max_volumes: i64,
    volumes: BTreeMap<String, i64>,
    create: VecDeque<Answer>,
    delete: VecDeque<Status>,
    requests: Vec<CreateVolumeRequest>,
    expand: VecDeque<Growth>,
    expanded: Vec<i64>,
    modify: VecDeque<Growth>,
    modified: Vec<ControllerModifyVolumeRequest>,
    needs_node: bool,
    node_only: bool,
    capacity: i64,
    asked: usize,
    attaches: bool,
    publishing: VecDeque<Publishing>,
    /// Volume and node ids.
    published: BTreeSet<(String, String)>,
    publish_calls: Vec<String>,
    listed: usize,
    /// Sources of snapshots by their names.
    snapshots: BTreeMap<String, String>,
    shots: VecDeque<Shot>,
    shot: Vec<CreateSnapshotRequest>,
}

impl FakeDriver {
    pub fn new(node: &str) -> FakeDriver {
        let state = State {
            node: node.to_owned(),
            max_volumes: 7,
            volumes: BTreeMap::new(),
            create: VecDeque::new(),
            delete: VecDeque::new(),
            requests: Vec::new(),
            expand: VecDeque::new(),
            expanded: Vec::new(),
            modify: VecDeque::new(),
            modified: Vec::new(),
            needs_node: false,
            node_only: false,
            capacity: 100 << 30,
            asked: 0,
            attaches: true,
            publishing: VecDeque::new(),
            published: BTreeSet::new(),
            publish_calls: Vec::new(),
            listed: 0,
            snapshots: BTreeMap::new(),
            shots: VecDeque::new(),
            shot: Vec::new(),
        };
        FakeDriver { state: Arc::new(Mutex::new(state)) }
    }

    pub fn answer_create(&self, answers: impl IntoIterator<Item = Answer>) {
        self.state.lock().create.extend(answers);
    }

    pub fn answer_delete(&self, refusals: impl IntoIterator<Item = Status>) {
        self.state.lock().delete.extend(refusals);
    }

    pub fn answer_expand(&self, answers: impl IntoIterator<Item = Growth>) {
        self.state.lock().expand.extend(answers);
    }

    /// Sizes that were asked for by expansions.
    pub fn expanded(&self) -> Vec<i64> {
        self.state.lock().expanded.clone()
    }

    pub fn answer_modify(&self, answers: impl IntoIterator<Item = Growth>) {
        self.state.lock().modify.extend(answers);
    }

    /// What ControllerModifyVolume was asked.
    pub fn modified(&self) -> Vec<ControllerModifyVolumeRequest> {
        self.state.lock().modified.clone()
    }

    /// After the controller, the node has something to do as well.
    pub fn need_node(&self) {
        self.state.lock().needs_node = true;
    }

    /// Only the node service can expand; to be said before the driver is served.
    pub fn only_node_expands(&self) {
        self.state.lock().node_only = true;
    }

    /// Nothing has to be attached; to be said before the driver is served.
    pub fn attaches_nothing(&self) {
        self.state.lock().attaches = false;
    }

    pub fn answer_publishing(&self, answers: impl IntoIterator<Item = Publishing>) {
        self.state.lock().publishing.extend(answers);
    }

    /// Volume and node ids of what is published.
    pub fn published(&self) -> BTreeSet<(String, String)> {
        self.state.lock().published.clone()
    }

    /// Takes a volume from its node behind everybody's back.
    pub fn lose_publications(&self) {
        self.state.lock().published.clear();
    }

    /// How often the last page of volumes was read.
    pub fn listed(&self) -> usize {
        self.state.lock().listed
    }

    /// Calls that publish and unpublish, as `publish VOLUME NODE`.
    pub fn publish_calls(&self) -> Vec<String> {
        self.state.lock().publish_calls.clone()
    }

    /// Sizes by name.
    pub fn volumes(&self) -> BTreeMap<String, i64> {
        self.state.lock().volumes.clone()
    }

    pub fn requests(&self) -> Vec<CreateVolumeRequest> {
        self.state.lock().requests.clone()
    }

    pub fn answer_snapshot(&self, answers: impl IntoIterator<Item = Shot>) {
        self.state.lock().shots.extend(answers);
    }

    /// Names of snapshots.
    pub fn snapshots(&self) -> Vec<String> {
        self.state.lock().snapshots.keys().cloned().collect()
    }

    /// A snapshot that was made by other means.
    pub fn add_snapshot(&self, name: &str, source: &str) {
        self.state.lock().snapshots.insert(name.to_owned(), source.to_owned());
    }

    /// How many volumes a node takes from now on.
    pub fn set_max_volumes(&self, count: i64) {
        self.state.lock().max_volumes = count;
    }

    /// What CreateSnapshot was asked.
    pub fn shot(&self) -> Vec<CreateSnapshotRequest> {
        self.state.lock().shot.clone()
    }

    pub fn set_capacity(&self, bytes: i64) {
        self.state.lock().capacity = bytes;
    }

    /// How often the capacity was asked for.
    pub fn asked(&self) -> usize {
        self.state.lock().asked
    }

    /// Serves until the guard is dropped. CreateVolume and DeleteVolume are steps.
    pub fn serve(&self, socket: &Path, steps: &Steps) -> DropGuard {
        let _ = std::fs::remove_file(socket);
        let incoming = csi::listen(socket).unwrap();
        let shutdown = CancellationToken::new();
        let served = Served { state: self.state.clone(), steps: steps.clone() };
        let server = tonic::transport::Server::builder()
            .add_service(IdentityServer::new(served.clone()))
            .add_service(ControllerServer::new(served.clone()))
            .add_service(GroupControllerServer::new(served.clone()))
            .add_service(NodeServer::new(served))
            .serve_with_incoming(incoming);
        let until = shutdown.clone();
        tokio::spawn(async move { until.run_until_cancelled(server).await });
        shutdown.drop_guard()
    }
}

#[derive(Clone)]
struct Served {
    state: Arc<Mutex<State>>,
    steps: Steps,
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
