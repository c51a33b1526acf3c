use std::collections::BTreeSet;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use csi::v1::controller_client::ControllerClient;
use csi::v1::controller_service_capability::{self, rpc};
use csi::v1::group_controller_client::GroupControllerClient;
use csi::v1::identity_client::IdentityClient;
use csi::v1::node_client::NodeClient;
use csi::v1::plugin_capability::{self, service};
use csi::v1::{
    ControllerGetCapabilitiesRequest, GetPluginCapabilitiesRequest, GetPluginInfoRequest,
    GroupControllerGetCapabilitiesRequest, NodeGetCapabilitiesRequest, NodeGetInfoRequest,
    NodeGetInfoResponse, group_controller_service_capability, node_service_capability,
};
use tonic::transport::Channel;
use tonic::{Code, Response, Status};
use values::Segments;

/// Deadline of calls that only ask.
pub(crate) const ASK: Duration = Duration::from_secs(10);
/// Deadline of calls that change something.
pub(crate) const CHANGE: Duration = csi::CALL_DEADLINE;

/// Why a driver can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// Nobody serves its socket.
    #[error(transparent)]
    Connect(#[from] csi::ConnectError),
    /// It refused a call that every driver must answer.
    #[error("the driver on {} failed {call}: {}; check the driver's log", socket.display(), wording(status))]
    Call {
        /// The driver's socket.
        socket: PathBuf,
        /// The call.
        call: &'static str,
        /// Its answer.
        status: Box<Status>,
    },
}

/// A connection to a CSI driver on this node, and what the driver said about itself when it was made.
#[derive(Clone, Debug)]
pub struct Driver {
    name: String,
    socket: PathBuf,
    channel: Channel,
    has_topology: bool,
    controller: BTreeSet<i32>,
    takes_groups: bool,
    expands_on_node: bool,
    node: NodeGetInfoResponse,
}

impl Driver {
    /// Connects and asks for name, capabilities and node facts. Waits for the socket as [`csi::connect`] does.
    pub async fn connect(socket: &Path) -> Result<Driver, DriverError> {
        Self::over(csi::connect(socket).await?, socket).await
    }

    /// [`Driver::connect`] by a connection that was made otherwise; errors name `socket`.
    pub async fn over(channel: Channel, socket: &Path) -> Result<Driver, DriverError> {
        let failed = |call| {
            move |status| DriverError::Call { socket: socket.to_owned(), call, status: Box::new(status) }
        };
        let mut identity = IdentityClient::new(channel.clone());
        let info = within(ASK, identity.get_plugin_info(GetPluginInfoRequest {})).await;
        let name = info.map_err(failed("GetPluginInfo"))?.name;
        let plugin = within(ASK, identity.get_plugin_capabilities(GetPluginCapabilitiesRequest {})).await;
        let plugin = plugin.map_err(failed("GetPluginCapabilities"))?;
        let services: BTreeSet<i32> = plugin
            .capabilities
            .into_iter()
            .filter_map(|capability| match capability.r#type? {
                plugin_capability::Type::Service(service) => Some(service.r#type),
                plugin_capability::Type::VolumeExpansion(_) => None,
            })
            .collect();
        let mut controller = BTreeSet::new();
        if services.contains(&(service::Type::ControllerService as i32)) {
            let mut client = ControllerClient::new(channel.clone());
            let answer = client.controller_get_capabilities(ControllerGetCapabilitiesRequest {});
            let answer = within(ASK, answer).await.map_err(failed("ControllerGetCapabilities"))?;
            controller.extend(answer.capabilities.into_iter().filter_map(|capability| {
                let controller_service_capability::Type::Rpc(rpc) = capability.r#type?;
                Some(rpc.r#type)
            }));
        }
        let mut takes_groups = false;
        if services.contains(&(service::Type::GroupControllerService as i32)) {
            use group_controller_service_capability::{Type, rpc::Type::CreateDeleteGetVolumeGroupSnapshot};
            let mut client = GroupControllerClient::new(channel.clone());
            let answer = client.group_controller_get_capabilities(GroupControllerGetCapabilitiesRequest {});
            let answer = within(ASK, answer).await.map_err(failed("GroupControllerGetCapabilities"))?;
            takes_groups = answer.capabilities.iter().any(|capability| {
                const GROUPS: i32 = CreateDeleteGetVolumeGroupSnapshot as i32;
                matches!(capability.r#type, Some(Type::Rpc(rpc)) if rpc.r#type == GROUPS)
            });
        }
        let mut node = NodeClient::new(channel.clone());
        let answer = within(ASK, node.node_get_capabilities(NodeGetCapabilitiesRequest {})).await;
        let answer = answer.map_err(failed("NodeGetCapabilities"))?;
        let expands_on_node = answer.capabilities.iter().any(|capability| {
            const EXPAND: i32 = node_service_capability::rpc::Type::ExpandVolume as i32;
            matches!(capability.r#type, Some(node_service_capability::Type::Rpc(rpc)) if rpc.r#type == EXPAND)
        });
        let node =
            within(ASK, node.node_get_info(NodeGetInfoRequest {})).await.map_err(failed("NodeGetInfo"))?;
        let has_topology = services.contains(&(service::Type::VolumeAccessibilityConstraints as i32));
        Ok(Driver {
            name,
            socket: socket.to_owned(),
            channel,
            has_topology,
            controller,
            takes_groups,
            expands_on_node,
            node,
        })
    }

    /// The driver's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The socket that it serves.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The segments that this node lies in; empty for a driver whose volumes can be reached from everywhere.
    pub fn segments(&self) -> Segments {
        let topology = self.node.accessible_topology.as_ref().filter(|_| self.has_topology);
        topology.map(|topology| topology.segments.clone()).unwrap_or_default()
    }

    /// Whether its controller service has a capability.
    pub fn can(&self, capability: rpc::Type) -> bool {
        self.controller.contains(&(capability as i32))
    }

    /// Whether it takes snapshots of several volumes at one moment.
    pub fn takes_groups(&self) -> bool {
        self.takes_groups
    }

    /// Whether its node service lets volumes grow.
    pub fn expands_on_node(&self) -> bool {
        self.expands_on_node
    }

    pub(crate) fn group_controller(&self) -> GroupControllerClient<Channel> {
        GroupControllerClient::new(self.channel.clone())
    }

    pub(crate) fn controller(&self) -> ControllerClient<Channel> {
        ControllerClient::new(self.channel.clone())
    }
}

/// Ends a call after its deadline with DEADLINE_EXCEEDED: the driver may still be at it.
pub(crate) async fn within<T>(
    deadline: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Status> {
    match tokio::time::timeout(deadline, call).await {
        Ok(answer) => answer.map(Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded(format!("no answer within {} s", deadline.as_secs()))),
    }
}

/// A refusal as Kubernetes' sidecars word it.
pub(crate) fn wording(status: &Status) -> String {
    format!("rpc error: code = {} desc = {}", code_name(status.code()), status.message())
}

fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}
