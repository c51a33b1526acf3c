//! The plugin's side of registration: tells the node agent or kubelet that a driver is there.
//!
//! This is what node-driver-registrar does, beside any driver, until it is told to stop.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use csi::registration::registration_server::{Registration, RegistrationServer};
use csi::registration::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::register::PLUGIN_TYPE;

/// The CSI version that is announced: all 1.x are compatible.
const VERSION: &str = "1.0.0";

/// Why a driver can't be announced.
#[derive(Debug, thiserror::Error)]
pub enum AnnounceError {
    /// Its registration socket can't be had.
    #[error(transparent)]
    Listen(#[from] csi::ListenError),
    /// Serving broke off.
    #[error("serving {} broke off: {source}; start it again", socket.display())]
    Transport {
        /// The registration socket.
        socket: PathBuf,
        /// The failure.
        source: tonic::transport::Error,
    },
}

/// Serves `<registry>/<driver>-reg.sock` for the driver on `endpoint` until `shutdown`; then the socket is removed,
/// which takes the registration back.
///
/// A registration that is refused is logged; the node agent tries again by itself.
pub async fn run(
    registry: &Path,
    driver: &str,
    endpoint: &Path,
    shutdown: CancellationToken,
) -> Result<(), AnnounceError> {
    let socket = registry.join(format!("{driver}-reg.sock"));
    let incoming = csi::listen(&socket)?;
    let announcement = Announcement(Arc::new(PluginInfo {
        r#type: PLUGIN_TYPE.to_owned(),
        name: driver.to_owned(),
        endpoint: endpoint.to_string_lossy().into_owned(),
        supported_versions: vec![VERSION.to_owned()],
    }));
    tonic::transport::Server::builder()
        .add_service(RegistrationServer::new(announcement))
        .serve_with_incoming_shutdown(incoming, shutdown.cancelled())
        .await
        .map_err(|source| AnnounceError::Transport { socket, source })
}

struct Announcement(Arc<PluginInfo>);

#[tonic::async_trait]
impl Registration for Announcement {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo::clone(&self.0)))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        if status.plugin_registered {
            tracing::info!(driver = self.0.name, "registered on this node");
        } else {
            tracing::error!(driver = self.0.name, error = status.error, "registration was refused");
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}
