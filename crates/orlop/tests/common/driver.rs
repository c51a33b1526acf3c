//! A CSI driver whose volumes are directories that have to be attached to one node at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use csi::v1::controller_server::{Controller, ControllerServer};
use csi::v1::controller_service_capability::rpc::Type as ControllerRpc;
use csi::v1::identity_server::{Identity, IdentityServer};
use csi::v1::node_server::{Node, NodeServer};
use csi::v1::node_service_capability::rpc::Type as NodeRpc;
use csi::v1::plugin_capability::{self, Service, service};
use csi::v1::*;
use csi::v1::{controller_service_capability, node_service_capability};
use linux::{Attributes, BindSource, Kernel, Mounts, Unmount};
use parking_lot::Mutex;
use tonic::{Request, Response, Status};

/// What it is called: as the driver of the example, whose place it takes.
pub const NAME: &str = "hostpath.csi.k8s.io";

/// What all nodes share: the storage and its controller.
#[derive(Clone)]
pub struct Storage {
    directory: PathBuf,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Where each volume is attached.
    attached: BTreeMap<String, BTreeSet<String>>,
    /// Where each volume is staged.
    staged: BTreeMap<String, BTreeSet<String>>,
    calls: Vec<String>,
    refusal: Option<String>,
    /// What must never happen, and did.
    wrong: Vec<String>,
}

/// The driver as one node runs it.
#[derive(Clone)]
struct OnNode {
    storage: Storage,
    node: String,
}

impl Storage {
    /// Volumes below a directory.
    pub fn new(directory: &Path) -> Storage {
        std::fs::create_dir_all(directory).expect("a directory");
        Storage { directory: directory.to_owned(), state: Arc::default() }
    }

    /// Serves the driver of a node, and gives its socket.
    pub fn serve(&self, node: &str) -> PathBuf {
        let socket = self.directory.join(format!("{node}.sock"));
        let listener = csi::listen(&socket).expect("a socket");
        let driver = OnNode { storage: self.clone(), node: node.to_owned() };
        let server = tonic::transport::Server::builder()
            .add_service(IdentityServer::new(driver.clone()))
            .add_service(ControllerServer::new(driver.clone()))
            .add_service(NodeServer::new(driver));
        tokio::spawn(server.serve_with_incoming(listener));
        socket
    }

    /// What was called and done since it was asked last.
    pub fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().calls)
    }

    /// What must never happen, and did.
    pub fn wrong(&self) -> Vec<String> {
        self.state.lock().wrong.clone()
    }

    /// Lets a method fail from now on, or none.
    pub fn refuse(&self, method: Option<&str>) {
        self.state.lock().refusal = method.map(str::to_owned);
    }

    /// Where volumes are attached.
    pub fn attached(&self) -> Vec<(String, BTreeSet<String>)> {
        self.state.lock().attached.clone().into_iter().collect()
    }

    /// The directories of volumes.
    pub fn volumes(&self) -> Vec<PathBuf> {
        let all = super::world::children(&self.directory).into_iter();
        all.filter(|path| path.is_dir()).collect()
    }
}

impl OnNode {
    /// Does a call unless it is to be refused. Only what changes something is noted.
    fn call(
        &self,
        method: &str,
        node: &str,
        effect: impl FnOnce(&mut State) -> Result<bool, Status>,
    ) -> Result<(), Status> {
        let mut state = self.storage.state.lock();
        if state.refusal.as_deref() == Some(method) {
            return Err(Status::internal(format!("{method} is not possible now")));
        }
        if effect(&mut state)? {
            state.calls.push(format!("{method} {node}").trim_end().to_owned());
        }
        Ok(())
    }

    fn directory(&self, volume: &str) -> PathBuf {
        self.storage.directory.join(volume)
    }

    /// Refuses a call that does not say what the controller said when the volume was attached.
    fn check(
        &self,
        state: &mut State,
        volume: &str,
        context: &BTreeMap<String, String>,
    ) -> Result<(), Status> {
        if context.get("device") == Some(&device(volume, &self.node)) {
            return Ok(());
        }
        state.wrong.push(format!("{volume} was to be mounted with {context:?}"));
        Err(Status::invalid_argument("this is not what ControllerPublishVolume answered"))
    }

    fn bind(&self, from: &Path, to: &str) -> Result<bool, Status> {
        let failed = |error: linux::Error| Status::internal(error.to_string());
        let to = Path::new(to);
        if Kernel.mount_table().map_err(failed)?.at(to).is_some() {
            return Ok(false);
        }
        std::fs::create_dir_all(to)?;
        Kernel.bind(BindSource::Path(from), to, Attributes::default()).map_err(failed)?;
        Ok(true)
    }

    fn unbind(&self, path: &str) -> Result<bool, Status> {
        let failed = |error: linux::Error| Status::internal(error.to_string());
        let mounted = Kernel.mount_table().map_err(failed)?.at(Path::new(path)).is_some();
        Kernel.unmount(Path::new(path), Unmount::Plain).map_err(failed)?;
        let _ = std::fs::remove_dir(path);
        Ok(mounted)
    }
}

fn device(volume: &str, node: &str) -> String {
    format!("/dev/{volume}-on-{node}")
}

fn done<T: Default>(outcome: Result<(), Status>) -> Result<Response<T>, Status> {
    outcome.map(|()| Response::new(T::default()))
}

#[tonic::async_trait]
impl Identity for OnNode {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Ok(Response::new(GetPluginInfoResponse { name: NAME.to_owned(), ..Default::default() }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        let controller = Service { r#type: service::Type::ControllerService as i32 };
        let capability = PluginCapability { r#type: Some(plugin_capability::Type::Service(controller)) };
        Ok(Response::new(GetPluginCapabilitiesResponse { capabilities: vec![capability] }))
    }
}

#[tonic::async_trait]
impl Controller for OnNode {
    async fn controller_get_capabilities(
        &self,
        _: Request<ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<ControllerGetCapabilitiesResponse>, Status> {
        let types = [ControllerRpc::CreateDeleteVolume, ControllerRpc::PublishUnpublishVolume];
        let capabilities = types.map(|kind| ControllerServiceCapability {
            r#type: Some(controller_service_capability::Type::Rpc(controller_service_capability::Rpc {
                r#type: kind as i32,
            })),
        });
        Ok(Response::new(ControllerGetCapabilitiesResponse { capabilities: capabilities.into() }))
    }

    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        let request = request.into_inner();
        self.call("create", "", |_| Ok(std::fs::create_dir(self.directory(&request.name)).is_ok()))?;
        let capacity_bytes = request.capacity_range.map(|range| range.required_bytes).unwrap_or_default();
        let volume = Volume { volume_id: request.name, capacity_bytes, ..Volume::default() };
        Ok(Response::new(CreateVolumeResponse { volume: Some(volume) }))
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        let volume = request.into_inner().volume_id;
        done(self.call("delete", "", |state| {
            if state.attached.get(&volume).is_some_and(|nodes| !nodes.is_empty()) {
                return Err(Status::failed_precondition("the volume is attached"));
            }
            Ok(std::fs::remove_dir_all(self.directory(&volume)).is_ok())
        }))
    }

    async fn controller_publish_volume(
        &self,
        request: Request<ControllerPublishVolumeRequest>,
    ) -> Result<Response<ControllerPublishVolumeResponse>, Status> {
        let ControllerPublishVolumeRequest { volume_id, node_id, .. } = request.into_inner();
        self.call("attach", &node_id, |state| {
            let nodes = state.attached.entry(volume_id.clone()).or_default();
            if nodes.iter().any(|node| *node != node_id) {
                state.wrong.push(format!("{volume_id} was to be attached to {node_id} and to {nodes:?}"));
                return Err(Status::failed_precondition("the volume is attached to another node"));
            }
            Ok(nodes.insert(node_id.clone()))
        })?;
        let publish_context = [("device".to_owned(), device(&volume_id, &node_id))].into();
        Ok(Response::new(ControllerPublishVolumeResponse { publish_context }))
    }

    async fn controller_unpublish_volume(
        &self,
        request: Request<ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<ControllerUnpublishVolumeResponse>, Status> {
        let ControllerUnpublishVolumeRequest { volume_id, node_id, .. } = request.into_inner();
        done(self.call("detach", &node_id, |state| {
            if state.staged.get(&volume_id).is_some_and(|nodes| nodes.contains(&node_id)) {
                state
                    .wrong
                    .push(format!("{volume_id} was to be detached from {node_id}, which has it mounted"));
            }
            Ok(state.attached.get_mut(&volume_id).is_some_and(|nodes| nodes.remove(&node_id)))
        }))
    }
}

#[tonic::async_trait]
impl Node for OnNode {
    async fn node_get_info(
        &self,
        _: Request<NodeGetInfoRequest>,
    ) -> Result<Response<NodeGetInfoResponse>, Status> {
        Ok(Response::new(NodeGetInfoResponse { node_id: self.node.clone(), ..Default::default() }))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let rpc = node_service_capability::Rpc { r#type: NodeRpc::StageUnstageVolume as i32 };
        let capability = NodeServiceCapability { r#type: Some(node_service_capability::Type::Rpc(rpc)) };
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities: vec![capability] }))
    }

    async fn node_stage_volume(
        &self,
        request: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        let request = request.into_inner();
        let volume = request.volume_id;
        done(self.call("stage", &self.node, |state| {
            self.check(state, &volume, &request.publish_context)?;
            if !state.attached.get(&volume).is_some_and(|nodes| nodes.contains(&self.node)) {
                state
                    .wrong
                    .push(format!("{volume} was to be staged on {}, where it is not attached", self.node));
                return Err(Status::failed_precondition("the volume is not attached to this node"));
            }
            state.staged.entry(volume.clone()).or_default().insert(self.node.clone());
            self.bind(&self.directory(&volume), &request.staging_target_path)
        }))
    }

    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        let request = request.into_inner();
        done(self.call("unstage", &self.node, |state| {
            if let Some(nodes) = state.staged.get_mut(&request.volume_id) {
                nodes.remove(&self.node);
            }
            self.unbind(&request.staging_target_path)
        }))
    }

    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let request = request.into_inner();
        done(self.call("publish", &self.node, |state| {
            self.check(state, &request.volume_id, &request.publish_context)?;
            self.bind(Path::new(&request.staging_target_path), &request.target_path)
        }))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let target = request.into_inner().target_path;
        done(self.call("unpublish", &self.node, |_| self.unbind(&target)))
    }
}
