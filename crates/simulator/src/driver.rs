//! The storage's CSI driver, as every node has one. Volumes of classes with the parameter `place: here` can be used on
//! the node that made them only, all others everywhere.

mod groups;

use std::convert::Infallible;
use std::io;

use csi::v1::controller_server::{Controller, ControllerServer};
use csi::v1::controller_service_capability::{self, Rpc, rpc};
use csi::v1::group_controller_server::GroupControllerServer;
use csi::v1::identity_server::{Identity, IdentityServer};
use csi::v1::node_server::{Node, NodeServer};
use csi::v1::plugin_capability::{self, Service, VolumeExpansion, service, volume_expansion};
use csi::v1::volume_capability::access_mode::Mode;
use csi::v1::volume_content_source::Type;
use csi::v1::*;
use futures::StreamExt;
use futures::stream;
use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};

use crate::Ledger;
use crate::storage::{DRIVER, Held, ODD, Storage, Volume as Kept};

/// The topology segment of a node.
const SEGMENT: &str = "kubernetes.io/hostname";

/// A connection to the driver on a node.
pub(crate) fn connect(storage: Storage, node: &'static str) -> Channel {
    let driver = Driver { storage, node };
    let connector = tower::service_fn(move |_| {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let server = Server::builder()
            .add_service(IdentityServer::new(driver.clone()))
            .add_service(ControllerServer::new(driver.clone()))
            .add_service(GroupControllerServer::new(driver.clone()))
            .add_service(NodeServer::new(driver.clone()))
            .serve_with_incoming(stream::iter([Ok::<_, io::Error>(theirs)]).chain(stream::pending()));
        tokio::spawn(server);
        std::future::ready(Ok::<_, Infallible>(TokioIo::new(ours)))
    });
    Endpoint::from_static("http://driver").connect_with_connector_lazy(connector)
}

#[derive(Clone)]
struct Driver {
    storage: Storage,
    node: &'static str,
}

impl Driver {
    fn segment(node: &str) -> Topology {
        Topology { segments: [(SEGMENT.to_owned(), node.to_owned())].into() }
    }
}

fn is_lone(capability: Option<VolumeCapability>) -> bool {
    let mode = capability.and_then(|capability| capability.access_mode).map(|access| access.mode());
    !matches!(mode, Some(Mode::MultiNodeReaderOnly | Mode::MultiNodeMultiWriter))
}

#[tonic::async_trait]
impl Identity for Driver {
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
        let services = types.map(|kind| plugin_capability::Type::Service(Service { r#type: kind as i32 }));
        let growth = VolumeExpansion { r#type: volume_expansion::Type::Online as i32 };
        let growth = plugin_capability::Type::VolumeExpansion(growth);
        let capabilities =
            services.into_iter().chain([growth]).map(|kind| PluginCapability { r#type: Some(kind) });
        Ok(Response::new(GetPluginCapabilitiesResponse { capabilities: capabilities.collect() }))
    }
}

#[tonic::async_trait]
impl Node for Driver {
    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        Ok(Response::new(NodeGetCapabilitiesResponse::default()))
    }

    async fn node_get_info(
        &self,
        _: Request<NodeGetInfoRequest>,
    ) -> Result<Response<NodeGetInfoResponse>, Status> {
        let accessible_topology = Some(Driver::segment(self.node));
        let node_id = self.node.to_owned();
        Ok(Response::new(NodeGetInfoResponse { node_id, accessible_topology, ..Default::default() }))
    }
}

#[tonic::async_trait]
impl Controller for Driver {
    async fn controller_get_capabilities(
        &self,
        _: Request<ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<ControllerGetCapabilitiesResponse>, Status> {
        let types = [
            rpc::Type::CreateDeleteVolume,
            rpc::Type::PublishUnpublishVolume,
            rpc::Type::CreateDeleteSnapshot,
            rpc::Type::ListSnapshots,
            rpc::Type::CloneVolume,
            rpc::Type::ExpandVolume,
            rpc::Type::ModifyVolume,
        ];
        let capabilities = types.map(|kind| ControllerServiceCapability {
            r#type: Some(controller_service_capability::Type::Rpc(Rpc { r#type: kind as i32 })),
        });
        Ok(Response::new(ControllerGetCapabilitiesResponse { capabilities: capabilities.into() }))
    }

    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        let request = request.into_inner();
        let here = request.parameters.get("place").is_some_and(|place| place == "here");
        let node = here.then(|| self.node.to_owned());
        let bytes = request.capacity_range.map(|range| range.required_bytes).unwrap_or_default();
        let tier = request.mutable_parameters.get("tier").cloned().unwrap_or_default();
        let (id, source) = (request.name.clone(), request.volume_content_source);
        let create = move |held: &mut Held, ledger: &mut Ledger| {
            if tier == ODD {
                return Err(Status::invalid_argument("no volume can be so"));
            }
            let is_there = match source.as_ref().and_then(|source| source.r#type.as_ref()) {
                Some(Type::Snapshot(snapshot)) => held.snapshots.contains_key(&snapshot.snapshot_id),
                Some(Type::Volume(volume)) => held.volumes.contains_key(&volume.volume_id),
                None => true,
            };
            if !is_there && !held.volumes.contains_key(&id) {
                return Err(Status::not_found("there is no such source"));
            }
            if !held.volumes.contains_key(&id) {
                ledger.nobody_fills(&id);
                ledger.tiers.insert(id.clone(), tier);
            }
            let made = held.volumes.entry(id.clone());
            let made = made.or_insert_with(|| Kept { bytes, node, by_hand: false }).clone();
            let volume = Volume {
                capacity_bytes: made.bytes,
                volume_id: id,
                accessible_topology: made.node.iter().map(|node| Driver::segment(node)).collect(),
                content_source: source,
                ..Volume::default()
            };
            Ok(CreateVolumeResponse { volume: Some(volume) })
        };
        self.storage.operate(&request.name, create).await.map(Response::new)
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        let id = request.into_inner().volume_id;
        let about = id.clone();
        let node = self.node;
        let delete = move |held: &mut Held, ledger: &mut Ledger| {
            held.asked_at(node, &id, ledger);
            held.delete(&id, ledger)
        };
        self.storage.operate(&about, delete).await?;
        Ok(Response::new(DeleteVolumeResponse {}))
    }

    async fn controller_expand_volume(
        &self,
        request: Request<ControllerExpandVolumeRequest>,
    ) -> Result<Response<ControllerExpandVolumeResponse>, Status> {
        let request = request.into_inner();
        let bytes = request.capacity_range.map(|range| range.required_bytes).unwrap_or_default();
        let (id, about) = (request.volume_id.clone(), format!("{} of {bytes} bytes", request.volume_id));
        let node = self.node;
        let grow = move |held: &mut Held, ledger: &mut Ledger| {
            held.asked_at(node, &id, ledger);
            let volume =
                held.volumes.get_mut(&id).ok_or_else(|| Status::not_found("there is no such volume"))?;
            volume.bytes = volume.bytes.max(bytes);
            Ok(ControllerExpandVolumeResponse {
                capacity_bytes: volume.bytes,
                node_expansion_required: false,
            })
        };
        self.storage.operate(&about, grow).await.map(Response::new)
    }

    async fn controller_modify_volume(
        &self,
        request: Request<ControllerModifyVolumeRequest>,
    ) -> Result<Response<ControllerModifyVolumeResponse>, Status> {
        let request = request.into_inner();
        let tier = request.mutable_parameters.get("tier").cloned().unwrap_or_default();
        let (id, about) = (request.volume_id.clone(), format!("{} of {tier}", request.volume_id));
        let node = self.node;
        let modify = move |held: &mut Held, ledger: &mut Ledger| {
            held.asked_at(node, &id, ledger);
            held.modify(&id, &tier, ledger)
        };
        self.storage.operate(&about, modify).await?;
        Ok(Response::new(ControllerModifyVolumeResponse {}))
    }

    async fn controller_publish_volume(
        &self,
        request: Request<ControllerPublishVolumeRequest>,
    ) -> Result<Response<ControllerPublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let (id, node, lone) = (request.volume_id, request.node_id, is_lone(request.volume_capability));
        let about = id.clone();
        self.storage.operate(&about, move |held, ledger| held.attach(&id, &node, lone, ledger)).await?;
        Ok(Response::new(ControllerPublishVolumeResponse::default()))
    }

    async fn controller_unpublish_volume(
        &self,
        request: Request<ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<ControllerUnpublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let (id, node) = (request.volume_id, request.node_id);
        let about = id.clone();
        let detach = move |held: &mut Held, ledger: &mut Ledger| {
            held.detach(&id, &node, ledger);
            Ok(())
        };
        self.storage.operate(&about, detach).await?;
        Ok(Response::new(ControllerUnpublishVolumeResponse {}))
    }

    async fn create_snapshot(
        &self,
        request: Request<CreateSnapshotRequest>,
    ) -> Result<Response<CreateSnapshotResponse>, Status> {
        let request = request.into_inner();
        let (id, source) = (request.name.clone(), request.source_volume_id);
        let node = self.node;
        let take = move |held: &mut Held, ledger: &mut Ledger| {
            held.asked_at(node, &source, ledger);
            if !held.snapshots.contains_key(&id) && !held.volumes.contains_key(&source) {
                return Err(Status::not_found("there is no such volume"));
            }
            held.snapshots.entry(id.clone()).or_insert_with(|| source.clone());
            Ok(CreateSnapshotResponse { snapshot: Some(snapshot(&id, &source)) })
        };
        self.storage.operate(&request.name, take).await.map(Response::new)
    }

    async fn delete_snapshot(
        &self,
        request: Request<DeleteSnapshotRequest>,
    ) -> Result<Response<DeleteSnapshotResponse>, Status> {
        let id = request.into_inner().snapshot_id;
        let about = id.clone();
        let forget = move |held: &mut Held, ledger: &mut Ledger| {
            held.forget(&id, ledger);
            Ok(())
        };
        self.storage.operate(&about, forget).await?;
        Ok(Response::new(DeleteSnapshotResponse {}))
    }

    async fn list_snapshots(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<ListSnapshotsResponse>, Status> {
        let id = request.into_inner().snapshot_id;
        let found = self.storage.hold(|held| held.snapshots.get(&id).map(|source| snapshot(&id, source)));
        let entry = |snapshot| list_snapshots_response::Entry { snapshot: Some(snapshot) };
        let entries = found.into_iter().map(entry).collect();
        Ok(Response::new(ListSnapshotsResponse { entries, next_token: String::new() }))
    }
}

fn snapshot(id: &str, source: &str) -> Snapshot {
    Snapshot {
        snapshot_id: id.to_owned(),
        source_volume_id: source.to_owned(),
        size_bytes: 1 << 30,
        creation_time: Some(csi::Timestamp { seconds: 1_700_000_000, nanos: 0 }),
        ready_to_use: true,
        ..Snapshot::default()
    }
}
