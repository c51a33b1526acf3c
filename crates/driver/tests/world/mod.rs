//! A driver on its socket with one drive, and the calls that the scenarios make of it.
#![allow(dead_code, reason = "a module of several test binaries, and each uses its part")]

use csi::v1::controller_client::ControllerClient;
use csi::v1::node_client::NodeClient;
use csi::v1::volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode};
use csi::v1::{self, CapacityRange};
use driver::{Name, NodeInfo, ServeError};
use drives::{BackendKind, Confines, DriveState, Drives, Force, Source};
use linux::{Kernel, LoopDevices, Mounts, Unmount};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status};

pub(crate) const MI: u64 = 1 << 20;
pub(crate) const GI: u64 = 1 << 30;
const DRIVE: &str = "drive.img";
const SOCKET: &str = "csi.sock";
pub(crate) const NODE: &str = "node-1";

pub(crate) struct World {
    pub(crate) controller: ControllerClient<Channel>,
    pub(crate) node: NodeClient<Channel>,
    pub(crate) channel: Channel,
    /// What volumes are asked for as.
    pub(crate) access: AccessType,
    drives: Drives,
    shutdown: CancellationToken,
    serving: JoinHandle<Result<(), ServeError>>,
    ground: Ground,
}

/// The directory of a test. Whatever a failed test leaves mounted in it is taken away again.
pub(crate) struct Ground(TempDir);

impl Ground {
    fn new() -> Self {
        Self(tempfile::Builder::new().prefix("orlop-driver-").tempdir().expect("temporary directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    async fn open(&self, size: u64) -> Drives {
        let source = Source::LoopFile { path: self.path(DRIVE), size };
        Drives::open(Arc::new(Kernel), self.path("drives"), vec![source]).await.expect("opened")
    }

    /// Starts a driver, which knows nothing but the drive. A drive serves one holder at a time: the one before has ended.
    pub(crate) async fn serve_again(self, name: Name) -> World {
        let drives = self.open(0).await;
        assert_eq!(drives.uninitialised(), [], "the drive is recognised");
        assert_eq!(drives.drives()[0].state, DriveState::Ready, "nothing of the old driver holds it");
        World::serve(name, self, drives).await
    }

    /// The innermost first.
    fn mounts(&self) -> Vec<PathBuf> {
        let table = Kernel.mount_table().expect("readable");
        table.below(self.0.path()).into_iter().map(|mount| mount.target.clone()).collect()
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let drives = || fs::read_dir(self.path("drives")).into_iter().flatten().flatten();
        let volumes =
            drives().flat_map(|drive| fs::read_dir(drive.path().join("volumes")).into_iter().flatten());
        let attached = volumes.flatten().flat_map(|volume| Kernel.loops_of(&volume.path().join("image")));
        let attached: Vec<_> = attached.flatten().collect();
        for target in self.mounts() {
            let _ = Kernel.unmount(&target, Unmount::Detach);
        }
        for volume in attached {
            let _ = Kernel.detach_loop(&volume.device);
        }
        if let Ok(Some(device)) = Kernel.loop_of(&self.path(DRIVE)) {
            let _ = Kernel.detach_loop(&device);
        }
    }
}

pub(crate) fn node_segment() -> BTreeMap<String, String> {
    BTreeMap::from([("topology.orlop.dev/node".to_owned(), NODE.to_owned())])
}

pub(crate) fn capability(mode: Mode) -> v1::VolumeCapability {
    v1::VolumeCapability {
        access_type: Some(AccessType::Mount(MountVolume::default())),
        access_mode: Some(AccessMode { mode: mode.into() }),
    }
}

pub(crate) fn code<T: std::fmt::Debug>(answer: Result<T, Status>) -> Code {
    answer.expect_err("refused").code()
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

impl World {
    /// With a drive of the backend that `$ORLOP_BACKEND` names, or else of btrfs. None, told loudly, on a machine where
    /// this can't be tried.
    pub(crate) async fn with_drive(size: u64) -> Option<Self> {
        if !fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0) {
            assert!(std::env::var_os("CI").is_none(), "these tests need root");
            eprintln!("SKIPPED: needs root, for loop devices and mounts");
            return None;
        }
        let ground = Ground::new();
        let drives = ground.open(size).await;
        let [source] = &drives.uninitialised()[..] else { panic!("a new file carries nothing") };
        let kind: BackendKind = std::env::var("ORLOP_BACKEND")
            .map_or(BackendKind::Btrfs, |name| name.parse().expect("the name of a backend"));
        drives.initialise(source.clone(), Some(kind), Force::No).await.expect("formatted");
        Some(Self::serve(Name::Orlop, ground, drives).await)
    }

    async fn serve(name: Name, ground: Ground, drives: Drives) -> Self {
        let socket = ground.path(SOCKET);
        let node =
            NodeInfo { name, node_id: NODE.into(), segments: name.segments(NODE), max_volumes: Some(9) };
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn({
            let (socket, drives, shutdown) = (socket.clone(), drives.clone(), shutdown.clone());
            async move { driver::serve(&socket, drives, node, driver::Calls::default(), shutdown).await }
        });
        let channel = csi::connect(&socket).await.expect("served");
        Self {
            controller: ControllerClient::new(channel.clone()),
            node: NodeClient::new(channel.clone()),
            channel,
            access: AccessType::Mount(MountVolume::default()),
            drives,
            shutdown,
            serving,
            ground,
        }
    }

    /// Stops the driver and starts another, which knows nothing but the drive.
    pub(crate) async fn restart(self) -> Self {
        self.restart_as(Name::Orlop).await
    }

    /// As [`restart`](Self::restart), under another name.
    pub(crate) async fn restart_as(self, name: Name) -> Self {
        self.halt().await.serve_again(name).await
    }

    /// Stops the driver, and closes no drive: all stays mounted, and nobody holds it any more.
    pub(crate) async fn halt(mut self) -> Ground {
        self.stop().await;
        self.ground
    }

    async fn stop(&mut self) {
        self.shutdown.cancel();
        (&mut self.serving).await.expect("joined").expect("served to the end");
        assert!(!self.path(SOCKET).exists(), "the socket goes with the driver");
    }

    /// Stops the driver, and finds that nothing is left.
    pub(crate) async fn end(mut self) {
        self.stop().await;
        self.drives.close().await.expect("nothing is in use");
        assert_eq!(self.ground.mounts(), Vec::<PathBuf>::new());
        let devices = Kernel.loops_of(&self.path(DRIVE)).expect("readable");
        assert!(devices.iter().all(|device| device.leaving), "{devices:?}");
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.ground.path(name)
    }

    /// Lets volumes be shown below these directories only.
    pub(crate) fn confine(&self, below: &[&str]) {
        let below = below.iter().map(|name| self.path(name)).collect();
        self.drives.confine(Confines { below, never: Vec::new() });
    }

    fn capability(&self) -> v1::VolumeCapability {
        v1::VolumeCapability { access_type: Some(self.access.clone()), ..capability(Mode::SingleNodeWriter) }
    }

    pub(crate) fn request(&self, name: &str, size: u64) -> v1::CreateVolumeRequest {
        v1::CreateVolumeRequest {
            name: name.into(),
            capacity_range: Some(CapacityRange { required_bytes: size as i64, limit_bytes: 0 }),
            volume_capabilities: vec![self.capability()],
            ..Default::default()
        }
    }

    /// A call of its own, to be made beside others.
    pub(crate) fn creation(
        &self,
        name: &str,
        size: u64,
    ) -> impl Future<Output = Result<v1::Volume, Status>> + use<> {
        let request = self.request(name, size);
        let mut controller = self.controller.clone();
        async move { Ok(controller.create_volume(request).await?.into_inner().volume.expect("a volume")) }
    }

    pub(crate) fn deletion(&self, id: &str) -> impl Future<Output = Result<(), Status>> + use<> {
        let request = v1::DeleteVolumeRequest { volume_id: id.into(), ..Default::default() };
        let mut controller = self.controller.clone();
        async move { controller.delete_volume(request).await.map(drop) }
    }

    pub(crate) async fn create(&self, name: &str, size: u64) -> Result<v1::Volume, Status> {
        self.creation(name, size).await
    }

    pub(crate) async fn delete(&self, id: &str) -> Result<(), Status> {
        self.deletion(id).await
    }

    pub(crate) async fn get(&mut self, id: &str) -> Result<v1::Volume, Status> {
        let request = v1::ControllerGetVolumeRequest { volume_id: id.into() };
        let answer = self.controller.controller_get_volume(request).await?;
        Ok(answer.into_inner().volume.expect("a volume"))
    }

    pub(crate) async fn capacity(&mut self) -> v1::GetCapacityResponse {
        self.controller.get_capacity(v1::GetCapacityRequest::default()).await.expect("answered").into_inner()
    }

    pub(crate) async fn expand(
        &mut self,
        id: &str,
        size: u64,
    ) -> Result<v1::ControllerExpandVolumeResponse, Status> {
        let request = v1::ControllerExpandVolumeRequest {
            volume_id: id.into(),
            capacity_range: Some(CapacityRange { required_bytes: size as i64, limit_bytes: 0 }),
            ..Default::default()
        };
        Ok(self.controller.controller_expand_volume(request).await?.into_inner())
    }

    pub(crate) async fn stage(&mut self, id: &str, staging: &Path) -> Result<(), Status> {
        let request = v1::NodeStageVolumeRequest {
            volume_id: id.into(),
            staging_target_path: text(staging),
            volume_capability: Some(self.capability()),
            ..Default::default()
        };
        self.node.node_stage_volume(request).await.map(drop)
    }

    pub(crate) async fn unstage(&mut self, id: &str, staging: &Path) -> Result<(), Status> {
        let request =
            v1::NodeUnstageVolumeRequest { volume_id: id.into(), staging_target_path: text(staging) };
        self.node.node_unstage_volume(request).await.map(drop)
    }

    pub(crate) async fn publish(
        &mut self,
        id: &str,
        staging: &Path,
        target: &Path,
        readonly: bool,
    ) -> Result<(), Status> {
        let request = v1::NodePublishVolumeRequest {
            volume_id: id.into(),
            staging_target_path: text(staging),
            target_path: text(target),
            volume_capability: Some(self.capability()),
            readonly,
            ..Default::default()
        };
        self.node.node_publish_volume(request).await.map(drop)
    }

    pub(crate) async fn unpublish(&mut self, id: &str, target: &Path) -> Result<(), Status> {
        let request = v1::NodeUnpublishVolumeRequest { volume_id: id.into(), target_path: text(target) };
        self.node.node_unpublish_volume(request).await.map(drop)
    }

    pub(crate) async fn stats(
        &mut self,
        id: &str,
        path: &Path,
    ) -> Result<v1::NodeGetVolumeStatsResponse, Status> {
        let request = v1::NodeGetVolumeStatsRequest {
            volume_id: id.into(),
            volume_path: text(path),
            ..Default::default()
        };
        Ok(self.node.node_get_volume_stats(request).await?.into_inner())
    }
}
