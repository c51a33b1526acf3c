//! A driver on its socket, called as an orchestrator calls it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use csi::v1::controller_client::ControllerClient;
use csi::v1::identity_client::IdentityClient;
use csi::v1::node_client::NodeClient;
use csi::v1::volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode};
use csi::v1::{self, CapacityRange};
use rustix::process::{Pid, Signal, kill_process};
use tonic::Status;
use tonic::transport::Channel;

use super::{BINARY, Place};

/// `orlop driver` on a test's directory, not started yet.
pub fn driver(place: &Place, arguments: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.args(["driver", "--node-id", "n1", "--data-dir"]).arg(place.data());
    command.arg("--endpoint").arg(format!("unix://{}", socket(place).display()));
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Where it serves.
pub fn socket(place: &Place) -> PathBuf {
    place.path().join("csi.sock")
}

/// SIGTERM, and a clean end.
pub fn stop(mut child: Child) {
    let pid = Pid::from_raw(child.id().cast_signed()).expect("a process");
    kill_process(pid, Signal::TERM).expect("a signal");
    assert!(child.wait().expect("waiting").success());
}

/// Page faults of all children that a process has had: it grows with each.
pub fn faults_of_children(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a running process");
    let fields = stat.rsplit_once(')').expect("a name in brackets").1;
    fields.split_whitespace().nth(8).expect("cminflt").parse().expect("a number")
}

/// A volume as the driver described it.
pub struct Volume {
    pub id: String,
    context: BTreeMap<String, String>,
}

#[derive(Clone)]
pub struct Caller {
    identity: IdentityClient<Channel>,
    controller: ControllerClient<Channel>,
    node: NodeClient<Channel>,
    /// Where volumes are shown.
    place: PathBuf,
}

impl Caller {
    pub async fn connect(socket: &Path, place: &Path) -> Caller {
        let channel = csi::connect(socket).await.expect("served");
        Caller {
            identity: IdentityClient::new(channel.clone()),
            controller: ControllerClient::new(channel.clone()),
            node: NodeClient::new(channel),
            place: place.to_owned(),
        }
    }

    pub async fn probe(&self) -> Result<(), Status> {
        self.identity.clone().probe(v1::ProbeRequest {}).await.map(drop)
    }

    pub async fn create(&self, name: &str, bytes: i64) -> Result<Volume, Status> {
        let request = v1::CreateVolumeRequest {
            name: name.to_owned(),
            capacity_range: Some(CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
            volume_capabilities: vec![capability()],
            ..Default::default()
        };
        let made = self.controller.clone().create_volume(request).await?.into_inner();
        let made = made.volume.expect("a volume");
        Ok(Volume { id: made.volume_id, context: made.volume_context })
    }

    /// Stages and publishes.
    pub async fn show(&self, volume: &Volume, name: &str) -> Result<PathBuf, Status> {
        let (staging, target) = self.paths(name);
        std::fs::create_dir_all(&staging).expect("made");
        let staging_target_path = staging.display().to_string();
        let stage = v1::NodeStageVolumeRequest {
            volume_id: volume.id.clone(),
            staging_target_path: staging_target_path.clone(),
            volume_capability: Some(capability()),
            volume_context: volume.context.clone(),
            ..Default::default()
        };
        self.node.clone().node_stage_volume(stage).await?;
        let publish = v1::NodePublishVolumeRequest {
            volume_id: volume.id.clone(),
            staging_target_path,
            target_path: target.display().to_string(),
            volume_capability: Some(capability()),
            volume_context: volume.context.clone(),
            ..Default::default()
        };
        self.node.clone().node_publish_volume(publish).await?;
        Ok(target)
    }

    /// Unpublishes and unstages.
    pub async fn hide(&self, volume: &Volume, name: &str) -> Result<(), Status> {
        let (staging, target) = self.paths(name);
        let unpublish = v1::NodeUnpublishVolumeRequest {
            volume_id: volume.id.clone(),
            target_path: target.display().to_string(),
        };
        self.node.clone().node_unpublish_volume(unpublish).await?;
        let unstage = v1::NodeUnstageVolumeRequest {
            volume_id: volume.id.clone(),
            staging_target_path: staging.display().to_string(),
        };
        self.node.clone().node_unstage_volume(unstage).await.map(drop)
    }

    pub async fn expand(&self, volume: &Volume, bytes: i64) -> Result<(), Status> {
        let request = v1::ControllerExpandVolumeRequest {
            volume_id: volume.id.clone(),
            capacity_range: Some(CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
            volume_capability: Some(capability()),
            ..Default::default()
        };
        self.controller.clone().controller_expand_volume(request).await.map(drop)
    }

    /// The names of all volumes.
    pub async fn names(&self) -> BTreeSet<String> {
        let request = v1::ListVolumesRequest::default();
        let listed = self.controller.clone().list_volumes(request).await.expect("listed").into_inner();
        let ids = listed.entries.into_iter().filter_map(|entry| entry.volume).map(|volume| volume.volume_id);
        ids.map(|id| id.rsplit_once('/').expect("a drive and a name").1.to_owned()).collect()
    }

    pub async fn delete(&self, volume: &Volume) -> Result<(), Status> {
        let request = v1::DeleteVolumeRequest { volume_id: volume.id.clone(), ..Default::default() };
        self.controller.clone().delete_volume(request).await.map(drop)
    }

    fn paths(&self, name: &str) -> (PathBuf, PathBuf) {
        (self.place.join("staging").join(name), self.place.join(format!("target-{name}")))
    }
}

pub fn capability() -> v1::VolumeCapability {
    v1::VolumeCapability {
        access_type: Some(AccessType::Mount(MountVolume::default())),
        access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
    }
}

/// A running `orlop driver`. Dropping it kills it; stopping it in order is [`Running::stop`].
pub struct Running(Option<Child>);

impl Running {
    /// Starts it, and waits until it serves.
    pub fn start(place: &Place, arguments: &[&str]) -> Running {
        let log = std::fs::File::options().create(true).append(true).open(place.path().join("driver.log"));
        let child = driver(place, arguments).stderr(log.expect("the log")).spawn().expect("the driver");
        let mut running = Running(Some(child));
        super::wait_until("the driver serves", || {
            let ended = running.0.as_mut().expect("running").try_wait().expect("waiting");
            assert!(ended.is_none(), "the driver ended: {}", log_end(place));
            socket(place).exists()
        });
        running
    }

    pub fn pid(&self) -> u32 {
        self.0.as_ref().expect("running").id()
    }

    /// `kill -9`; the socket stays behind, as after any crash.
    pub fn kill(self) {
        drop(self);
    }

    /// SIGTERM, and a clean end.
    pub fn stop(mut self) {
        stop(self.0.take().expect("running"));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

fn log_end(place: &Place) -> String {
    let log = std::fs::read_to_string(place.path().join("driver.log")).unwrap_or_default();
    log.lines().rev().take(5).collect::<Vec<_>>().join("\n")
}
