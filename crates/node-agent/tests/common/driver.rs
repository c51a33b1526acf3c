//! A CSI driver whose volumes are tmpfs mounts, or files on loop devices, and which fails as it is told.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use csi::v1::{
    NodeExpandVolumeRequest, NodeExpandVolumeResponse, NodeGetCapabilitiesRequest,
    NodeGetCapabilitiesResponse, NodeGetInfoRequest, NodeGetInfoResponse, NodeGetVolumeHealthRequest,
    NodeGetVolumeHealthResponse, NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse,
    NodePublishVolumeRequest, NodePublishVolumeResponse, NodeServiceCapability, NodeStageVolumeRequest,
    NodeStageVolumeResponse, NodeUnpublishVolumeRequest, NodeUnpublishVolumeResponse,
    NodeUnstageVolumeRequest, NodeUnstageVolumeResponse, VolumeCapability, VolumeCondition, VolumeUsage,
    node_server::{Node, NodeServer},
    node_service_capability::{Rpc, Type, rpc},
    volume_capability::AccessType,
    volume_usage::Unit,
};
use linux::{Attributes, BindSource, Files, FilesystemMount, Kernel, LoopDevices, Mounts, Unmount};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tonic::{Request, Response, Status};

pub(crate) const NAME: &str = "fake.example.com";

/// What happens to one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Answered Unavailable, and nothing done.
    LostBefore,
    /// Done, and answered Unavailable.
    LostAfter,
    /// Refused for good, once.
    Refused,
    /// Never answered; nothing done.
    CrashBefore,
    /// Done, and never answered.
    CrashAfter,
}

#[derive(Clone, Default)]
pub(crate) struct Driver {
    /// Which call is to fail, and how.
    pub(crate) fault: Arc<Mutex<Option<(usize, Fault)>>>,
    pub(crate) calls: Arc<Mutex<Vec<String>>>,
    pub(crate) crash: Arc<Notify>,
    /// What the attacher said, as staging and publishing got it.
    pub(crate) contexts: Arc<Mutex<Vec<BTreeMap<String, String>>>>,
    /// Volumes grow on the node.
    pub(crate) expands: Arc<AtomicBool>,
    /// What the next calls of NodeExpandVolume are answered.
    pub(crate) refusals: Arc<Mutex<Vec<Status>>>,
    /// Publishing is refused, each time in other words.
    pub(crate) refuses: Arc<AtomicBool>,
    /// Where the files of block volumes are.
    pub(crate) images: Arc<Mutex<PathBuf>>,
    /// Volumes that were asked how full they are.
    pub(crate) counted: Arc<Mutex<Vec<String>>>,
    /// Volumes that never answer that.
    pub(crate) hangs: Arc<Mutex<BTreeSet<String>>>,
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap()
}

impl Driver {
    pub(crate) fn serve(&self, directory: &Path) -> PathBuf {
        *self.images.lock() = std::fs::canonicalize(directory).unwrap();
        let socket = directory.join("fake.sock");
        let listener = csi::listen(&socket).unwrap();
        let service = NodeServer::new(self.clone());
        tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(listener));
        socket
    }

    pub(crate) fn image(&self, handle: &str) -> PathBuf {
        self.images.lock().join(format!("{handle}.img"))
    }

    fn stage_device(&self, handle: &str) -> linux::Result<()> {
        let image = self.image(handle);
        if !image.exists() {
            Kernel.make_image(&image, 8 << 20)?;
        }
        Kernel.attach_fixed_loop(&image, false).map(drop)
    }

    fn publish_device(&self, request: &NodePublishVolumeRequest) -> linux::Result<()> {
        let path = Path::new(&request.target_path);
        if mounted(path)? {
            return Ok(());
        }
        let device = Kernel.attach_fixed_loop(&self.image(&request.volume_id), request.readonly)?;
        std::fs::write(path, "").unwrap();
        Kernel.bind(BindSource::Path(&device), path, Attributes::default())
    }

    async fn call(
        &self,
        name: &str,
        detail: String,
        effect: impl FnOnce() -> linux::Result<()>,
    ) -> Result<(), Status> {
        let number = {
            let mut calls = self.calls.lock();
            calls.push(format!("{name} {detail}"));
            calls.len() - 1
        };
        let fault = self.fault.lock().filter(|(at, _)| *at == number).map(|(_, fault)| fault);
        if name == "publish" && self.refuses.load(Ordering::SeqCst) {
            return Err(Status::internal(format!("refusal {number}: {}", "x".repeat(4096))));
        }
        match fault {
            Some(Fault::LostBefore) => return Err(Status::unavailable("lost before")),
            Some(Fault::Refused) => return Err(Status::invalid_argument("refused")),
            Some(Fault::CrashBefore) => {}
            _ => effect().map_err(|error| Status::internal(error.to_string()))?,
        }
        match fault {
            Some(Fault::LostAfter) => Err(Status::unavailable("lost after")),
            Some(Fault::CrashBefore | Fault::CrashAfter) => {
                self.crash.notify_one();
                std::future::pending().await
            }
            _ => Ok(()),
        }
    }
}

fn mounted(path: &Path) -> linux::Result<bool> {
    Ok(Kernel.mount_table()?.at(path).is_some())
}

fn is_block(capability: Option<&VolumeCapability>) -> bool {
    matches!(capability.and_then(|of| of.access_type.as_ref()), Some(AccessType::Block(_)))
}

/// The node's root and the name of the volume, of a path below kubelet's directory of devices.
fn of_device(path: &Path, kind: &str) -> Option<(PathBuf, String)> {
    let (root, rest) = path.to_str()?.split_once("/plugins/kubernetes.io/csi/volumeDevices/")?;
    let name = rest.strip_prefix(kind)?.trim_start_matches('/').split('/').next()?;
    Some((PathBuf::from(root), name.to_owned()))
}

#[tonic::async_trait]
impl Node for Driver {
    async fn node_stage_volume(
        &self,
        request: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        let request = request.into_inner();
        let path = PathBuf::from(&request.staging_target_path);
        if is_block(request.volume_capability.as_ref()) {
            let (root, name) = of_device(&path, "staging").expect("kubelet's layout");
            let record = format!("plugins/kubernetes.io/csi/volumeDevices/{name}/data/vol_data.json");
            assert!(root.join(record).exists(), "the stage's record is there before the call");
            let handle = request.volume_id.clone();
            self.call("stage", request.volume_id, || self.stage_device(&handle)).await?;
            return Ok(Response::new(NodeStageVolumeResponse {}));
        }
        let record = path.parent().unwrap().join("vol_data.json");
        self.contexts.lock().push(request.publish_context.clone());
        assert!(record.exists(), "the stage's record is there before the call");
        self.call("stage", request.volume_id, || {
            if !mounted(&path)? {
                let tmpfs =
                    FilesystemMount { filesystem: "tmpfs", source: "fake", ..FilesystemMount::default() };
                Kernel.mount(&tmpfs, &path)?;
            }
            Ok(())
        })
        .await?;
        Ok(Response::new(NodeStageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let request = request.into_inner();
        self.contexts.lock().push(request.publish_context.clone());
        let (staging, path) =
            (PathBuf::from(&request.staging_target_path), PathBuf::from(&request.target_path));
        if is_block(request.volume_capability.as_ref()) {
            let (root, name) = of_device(&path, "publish").expect("kubelet's layout");
            let uid = path.file_name().unwrap().to_str().unwrap();
            let record = format!("pods/{uid}/plugins/kubernetes.io~csi/{name}/vol_data.json");
            assert!(root.join(record).exists(), "the pod's record is there before the call");
            let staged = Kernel.loops_of(&self.image(&request.volume_id)).unwrap();
            assert!(!staged.is_empty(), "published only when staged");
            let detail = format!("{} ro={}", request.volume_id, request.readonly);
            self.call("publish", detail, || self.publish_device(&request)).await?;
            return Ok(Response::new(NodePublishVolumeResponse {}));
        }
        assert!(
            path.parent().unwrap().join("vol_data.json").exists(),
            "the pod's record is there before the call"
        );
        let inline =
            request.volume_context.get("csi.storage.k8s.io/ephemeral").is_some_and(|it| it == "true");
        match inline {
            true => assert_eq!(staging, PathBuf::new(), "never staged"),
            false => assert!(mounted(&staging).unwrap(), "published only when staged"),
        }
        let detail = format!("{} ro={} {:?}", request.volume_id, request.readonly, request.volume_context);
        self.call("publish", detail, || {
            if !mounted(&path)? {
                std::fs::create_dir_all(&path).unwrap();
                if inline {
                    let tmpfs =
                        FilesystemMount { filesystem: "tmpfs", source: "fake", ..FilesystemMount::default() };
                    return Kernel.mount(&tmpfs, &path);
                }
                let attributes = Attributes { read_only: request.readonly, ..Attributes::default() };
                Kernel.bind(BindSource::Path(&staging), &path, attributes)?;
            }
            Ok(())
        })
        .await?;
        Ok(Response::new(NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let path = PathBuf::from(request.target_path);
        self.call("unpublish", request.volume_id, || {
            Kernel.unmount(&path, Unmount::Plain)?;
            let _ = std::fs::remove_dir(&path).or_else(|_| std::fs::remove_file(&path));
            Ok(())
        })
        .await?;
        Ok(Response::new(NodeUnpublishVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        let request = request.into_inner();
        let path = PathBuf::from(request.staging_target_path);
        let image = self.image(&request.volume_id);
        self.call("unstage", request.volume_id, || {
            for one in Kernel.loops_of(&image)? {
                Kernel.detach_loop(&one.device)?;
            }
            Kernel.unmount(&path, Unmount::Plain).map(drop)
        })
        .await?;
        Ok(Response::new(NodeUnstageVolumeResponse {}))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let rpc = Rpc { r#type: rpc::Type::StageUnstageVolume as i32 };
        let counts = Rpc { r#type: rpc::Type::GetVolumeStats as i32 };
        let mut capabilities =
            [rpc, counts].map(|rpc| NodeServiceCapability { r#type: Some(Type::Rpc(rpc)) }).to_vec();
        if self.expands.load(Ordering::SeqCst) {
            let rpc = Rpc { r#type: rpc::Type::ExpandVolume as i32 };
            capabilities.push(NodeServiceCapability { r#type: Some(Type::Rpc(rpc)) });
        }
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        let request = request.into_inner();
        self.counted.lock().push(request.volume_id.clone());
        if self.hangs.lock().contains(&request.volume_id) {
            std::future::pending::<()>().await;
        }
        let space = Kernel.space(Path::new(&request.volume_path)).unwrap();
        let (total, available) = (signed(space.size), signed(space.available));
        let bytes = VolumeUsage { total, available, used: total - available, unit: Unit::Bytes.into() };
        let condition = VolumeCondition { abnormal: true, message: "a bit worn".into() };
        Ok(Response::new(NodeGetVolumeStatsResponse {
            usage: vec![bytes],
            volume_condition: Some(condition),
        }))
    }

    async fn node_expand_volume(
        &self,
        request: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        let request = request.into_inner();
        assert!(mounted(Path::new(&request.volume_path)).unwrap(), "expanded only when published");
        assert!(mounted(Path::new(&request.staging_target_path)).unwrap(), "and staged");
        let bytes = request.capacity_range.map(|range| range.required_bytes).unwrap_or_default();
        self.call("expand", format!("{} {bytes}", request.volume_id), || Ok(())).await?;
        match self.refusals.lock().pop() {
            Some(refusal) => Err(refusal),
            None => Ok(Response::new(NodeExpandVolumeResponse { capacity_bytes: bytes })),
        }
    }

    async fn node_get_info(
        &self,
        _: Request<NodeGetInfoRequest>,
    ) -> Result<Response<NodeGetInfoResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn node_get_volume_health(
        &self,
        _: Request<NodeGetVolumeHealthRequest>,
    ) -> Result<Response<NodeGetVolumeHealthResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}
