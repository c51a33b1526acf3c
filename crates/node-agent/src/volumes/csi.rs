//! CSI volumes of pods: staged once per node, published once per pod.
//!
//! The pod's record is durable before the driver is called, and removed after it has undone everything. What a
//! failed call has done is not known unless the driver's answer was final, so the record then stays, and the volume
//! is unpublished and unstaged before it is forgotten.

mod error;
mod stats;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    future::Future,
    io,
    path::Path,
    sync::Arc,
};

use csi::v1::{
    CapacityRange, NodeExpandVolumeRequest, NodeGetCapabilitiesRequest, NodePublishVolumeRequest,
    NodeStageVolumeRequest, NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest, VolumeCapability,
    node_client::NodeClient, node_service_capability,
};
use k8s_openapi::api::storage::v1::CSIDriver;
use linux::{
    Host, Unmount,
    ownership::{self, ChangePolicy},
};
use parking_lot::Mutex;
use resources::attachment;
use tonic::{Response, Status, transport::Channel};

use super::{
    VolumeError, capability,
    claim::ClaimedVolume,
    growth,
    inline::{INLINE, PERSISTENT},
    places::Places,
    stages::{self, PublishRecord, PublishState, StageRecord, Stages},
};
use crate::{
    Drivers,
    blocking::blocking,
    layout::Layout,
    leftovers::{self, Leftover},
    records::{self, RecordError},
};
pub(crate) use error::CsiError;

/// What a pod wants with the volume, beyond the volume itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Publication {
    pub(crate) uid: String,
    /// The pod's name for the volume.
    pub(crate) volume: String,
    pub(crate) read_only: bool,
    pub(crate) group: Option<u32>,
    pub(crate) policy: Option<ChangePolicy>,
    /// `csi.storage.k8s.io/…` entries for drivers that ask for them.
    pub(crate) pod_info: BTreeMap<String, String>,
    pub(crate) stage_secrets: BTreeMap<String, String>,
    pub(crate) publish_secrets: BTreeMap<String, String>,
    /// What the attacher was told, if the volume had to be attached.
    pub(crate) attachment: Option<BTreeMap<String, String>>,
    /// What the volume has to grow to on this node before it is used.
    pub(crate) growth: Option<Growth>,
}

/// What the driver is to let a published volume grow to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Growth {
    pub(crate) bytes: i64,
    pub(crate) secrets: BTreeMap<String, String>,
}

/// A registered driver and what its node service can.
struct Driver {
    channel: Channel,
    stages: bool,
    single_node_multi_writer: bool,
    mount_group: bool,
    expands: bool,
    /// It tells how full volumes are.
    counts: bool,
}

/// The CSI volumes of one node.
pub(crate) struct Csi {
    pub(crate) host: Arc<dyn Host>,
    pub(crate) layout: Layout,
    pub(crate) stages: Stages,
    pub(crate) drivers: Arc<dyn Drivers>,
    pub(crate) node: String,
    pub(crate) boot_id: String,
    known: Mutex<HashMap<(String, std::path::PathBuf), Arc<Driver>>>,
}

impl Csi {
    /// The volumes as the records below the layout's root have them. Blocks.
    pub(crate) fn open(
        host: Arc<dyn Host>,
        layout: Layout,
        drivers: Arc<dyn Drivers>,
        node: String,
        boot_id: String,
    ) -> io::Result<Csi> {
        let stages = Stages::load(&layout)?;
        Ok(Csi { host, layout, stages, drivers, node, boot_id, known: Mutex::default() })
    }

    /// Forgets what drivers can: one may have been replaced.
    pub(crate) fn drivers_changed(&self) {
        self.known.lock().clear();
    }

    /// Stages and publishes the volume, lets it grow, and gives its files to the pod's group.
    ///
    /// A driver that can't let a volume grow while it is in use does not keep it from being used: its refusal is
    /// given back.
    pub(crate) async fn set_up(
        &self,
        volume: &ClaimedVolume,
        object: Option<&CSIDriver>,
        publication: &Publication,
    ) -> Result<Option<VolumeError>, VolumeError> {
        let places = Places { layout: &self.layout, block: volume.block };
        let driver = self.driver(&volume.driver).await?;
        let group =
            publication.group.filter(|_| capability::fs_group_applies(volume, object, publication.read_only));
        let driver_group = group.filter(|_| driver.mount_group);
        let capability = capability::of(volume, driver.single_node_multi_writer, driver_group);
        let stage = self.stages.of(&volume.driver, &volume.handle);
        let mut stage = stage.lock().await;
        let others = stage.users.iter().any(|uid| *uid != publication.uid);
        if others && volume.access_modes.iter().any(|mode| mode == "ReadWriteOncePod") {
            return Err(CsiError::InUse.into());
        }
        let stages = driver.stages && !volume.inline;
        let (mut record, is_new) = self.write_record(volume, publication, stages).await?;
        let fresh = is_new && !stage.users.contains(&publication.uid);
        stage.users.insert(publication.uid.clone());

        if stages && !stage.staged {
            if let Err(error) = self.stage(&driver, volume, &capability, publication).await {
                if fresh && !others && !uncertain(&error) {
                    self.forget(&mut stage, volume, &publication.uid).await?;
                }
                return Err(error);
            }
            stage.staged = true;
        }
        if let Err(error) = self.publish(&driver, volume, &capability, publication).await {
            // The stage is undone with the last user, so a final refusal leaves only a record that nobody needs.
            if fresh && !uncertain(&error) && (others || !stages) {
                self.forget(&mut stage, volume, &publication.uid).await?;
            }
            return Err(error);
        }
        let mut put_off = None;
        if let Some(growth) = &publication.growth
            && let Err(error) = self.expand(volume, &publication.uid, growth).await
        {
            if growth::Failure::of(&error) != growth::Failure::InUse {
                return Err(VolumeError::Growth(Box::new(error)));
            }
            put_off = Some(error);
        }
        drop(stage);

        let target = places.target(&publication.uid, &volume.name);
        let link = volume.block.then(|| places.link(&publication.uid, &volume.name));
        let by_us = group.filter(|_| !driver.mount_group);
        let policy = publication.policy.unwrap_or(ChangePolicy::Always);
        let (host, file) = (self.host.clone(), places.record(&publication.uid, &volume.name));
        blocking("giving the volume to fsGroup", move || {
            let files = |source| VolumeError::Files { action: "give the volume to fsGroup", source };
            if let Some(group) = by_us {
                ownership::apply(&target, group, false, policy).map_err(files)?;
            }
            if let Some(link) = link {
                show_device(&*host, &link, &target)?;
            }
            record.own.ready = true;
            record.own.mounted = host.mount_table()?.at(&target).is_some();
            // Without durability: a power loss that takes this takes the mount as well.
            records::write_volatile(&file, &record).map_err(|error| CsiError::Record(error).into())
        })
        .await?;
        Ok(put_off)
    }

    /// Unpublishes the volume from the pod, unstages it after its last pod, and forgets it. Without a record, because
    /// it was never written or nothing tells what it said, what is mounted is unmounted without the driver.
    pub(crate) async fn tear_down(
        &self,
        uid: &str,
        name: &str,
        block: bool,
        record: Option<PublishRecord>,
    ) -> Result<Vec<Leftover>, VolumeError> {
        let places = Places { layout: &self.layout, block };
        let Some(record) = record else {
            let left = self.remove_directory(uid, name, block, false).await?;
            self.stages.made_up_for(uid, name);
            return Ok(left);
        };
        let driver = self.driver(&record.driver).await?;
        let target = places.target(uid, name);
        self.call("NodeUnpublishVolume", &record.driver, {
            let request =
                NodeUnpublishVolumeRequest { volume_id: record.handle.clone(), target_path: text(&target) };
            let mut client = NodeClient::new(driver.channel.clone());
            async move { client.node_unpublish_volume(request).await }
        })
        .await?;

        let mut left = Vec::new();
        let stage = self.stages.of(&record.driver, &record.handle);
        let mut stage = stage.lock().await;
        let staged = driver.stages && record.mode != INLINE;
        let others =
            stage.users.iter().any(|other| other != uid) || self.stages.may_be_used_beside(uid, name);
        if staged && !others {
            let staging_target_path = text(&places.staging(&record.driver, &record.handle, name));
            let request = NodeUnstageVolumeRequest { volume_id: record.handle.clone(), staging_target_path };
            let mut client = NodeClient::new(driver.channel.clone());
            let call = async move { client.node_unstage_volume(request).await };
            self.call("NodeUnstageVolume", &record.driver, call).await?;
            stage.staged = false;
            left = self.remove_stage(&record.driver, &record.handle, name, block).await?;
        }
        left.extend(self.remove_directory(uid, name, block, true).await?);
        stage.users.remove(uid);
        self.stages.made_up_for(uid, name);
        drop(stage);
        self.stages.prune();
        Ok(left)
    }

    /// Whether the driver's node service lets volumes grow.
    pub(crate) async fn expands(&self, driver: &str) -> Result<bool, VolumeError> {
        Ok(self.driver(driver).await?.expands)
    }

    /// Lets a volume that is published to the pod grow.
    pub(crate) async fn expand(
        &self,
        volume: &ClaimedVolume,
        uid: &str,
        growth: &Growth,
    ) -> Result<(), VolumeError> {
        let driver = self.driver(&volume.driver).await?;
        let places = Places { layout: &self.layout, block: volume.block };
        let staging = places.staging(&volume.driver, &volume.handle, &volume.name);
        let request = NodeExpandVolumeRequest {
            volume_id: volume.handle.clone(),
            volume_path: text(&places.target(uid, &volume.name)),
            capacity_range: Some(CapacityRange { required_bytes: growth.bytes, limit_bytes: 0 }),
            staging_target_path: if driver.stages { text(&staging) } else { String::new() },
            volume_capability: Some(capability::of(volume, driver.single_node_multi_writer, None)),
            secrets: growth.secrets.clone().into_iter().collect(),
        };
        let mut client = NodeClient::new(driver.channel.clone());
        let call = async move { client.node_expand_volume(request).await };
        self.call("NodeExpandVolume", &volume.driver, call).await.map(drop)
    }

    async fn stage(
        &self,
        driver: &Driver,
        volume: &ClaimedVolume,
        capability: &VolumeCapability,
        publication: &Publication,
    ) -> Result<(), VolumeError> {
        let places = Places { layout: &self.layout, block: volume.block };
        let staging = places.staging(&volume.driver, &volume.handle, &volume.name);
        let file = places.stage_record(&volume.driver, &volume.handle, &volume.name);
        let record = StageRecord {
            handle: volume.handle.clone(),
            driver: volume.driver.clone(),
            own: BTreeMap::new(),
        };
        let host = self.host.clone();
        blocking("writing a stage's record", {
            let staging = staging.clone();
            move || {
                host.make_directory(&staging, 0o750)?;
                host.make_directory(file.parent().unwrap_or(Path::new("/")), 0o750)?;
                let content = records::render(&record).map_err(CsiError::Record)?;
                Ok(host.write_durable(&file, &content, 0o600)?)
            }
        })
        .await?;
        let request = NodeStageVolumeRequest {
            volume_id: volume.handle.clone(),
            publish_context: publication.attachment.clone().unwrap_or_default(),
            staging_target_path: text(&staging),
            volume_capability: Some(capability.clone()),
            secrets: publication.stage_secrets.clone().into_iter().collect(),
            volume_context: volume.attributes.clone().into_iter().collect(),
        };
        let mut client = NodeClient::new(driver.channel.clone());
        let call = async move { client.node_stage_volume(request).await };
        self.call("NodeStageVolume", &volume.driver, call).await.map(drop)
    }

    async fn publish(
        &self,
        driver: &Driver,
        volume: &ClaimedVolume,
        capability: &VolumeCapability,
        publication: &Publication,
    ) -> Result<(), VolumeError> {
        let places = Places { layout: &self.layout, block: volume.block };
        let staging = places.staging(&volume.driver, &volume.handle, &volume.name);
        let target = places.target(&publication.uid, &volume.name);
        if let Some(parent) = target.parent().filter(|_| volume.block).map(Path::to_owned) {
            let host = self.host.clone();
            // The target itself the driver makes.
            blocking("making the directory of a device", move || Ok(host.make_directory(&parent, 0o750)?))
                .await?;
        }
        let mut context = volume.attributes.clone();
        context.extend(publication.pod_info.clone());
        let request = NodePublishVolumeRequest {
            volume_id: volume.handle.clone(),
            publish_context: publication.attachment.clone().unwrap_or_default(),
            staging_target_path: if driver.stages && !volume.inline { text(&staging) } else { String::new() },
            target_path: text(&target),
            volume_capability: Some(capability.clone()),
            readonly: publication.read_only || volume.read_only,
            secrets: publication.publish_secrets.clone().into_iter().collect(),
            volume_context: context.into_iter().collect(),
        };
        let mut client = NodeClient::new(driver.channel.clone());
        let call = async move { client.node_publish_volume(request).await };
        self.call("NodePublishVolume", &volume.driver, call).await.map(drop)
    }

    async fn driver(&self, name: &str) -> Result<Arc<Driver>, VolumeError> {
        let endpoint = self.drivers.endpoint(name).ok_or_else(|| CsiError::NotRegistered(name.into()))?;
        let key = (name.to_owned(), endpoint.clone());
        if let Some(driver) = self.known.lock().get(&key) {
            return Ok(driver.clone());
        }
        let unreachable = |reason: String| CsiError::Unreachable { driver: name.into(), reason };
        let channel = csi::connect(&endpoint).await.map_err(|error| unreachable(error.to_string()))?;
        let mut client = NodeClient::new(channel.clone());
        let call = async move { client.node_get_capabilities(NodeGetCapabilitiesRequest {}).await };
        let answer = self.call("NodeGetCapabilities", name, call).await?;
        let offered: BTreeSet<i32> = answer
            .capabilities
            .into_iter()
            .filter_map(|capability| match capability.r#type {
                Some(node_service_capability::Type::Rpc(rpc)) => Some(rpc.r#type),
                _ => None,
            })
            .collect();
        use node_service_capability::rpc::Type;
        let driver = Arc::new(Driver {
            channel,
            stages: offered.contains(&(Type::StageUnstageVolume as i32)),
            single_node_multi_writer: offered.contains(&(Type::SingleNodeMultiWriter as i32)),
            mount_group: offered.contains(&(Type::VolumeMountGroup as i32)),
            expands: offered.contains(&(Type::ExpandVolume as i32)),
            counts: offered.contains(&(Type::GetVolumeStats as i32)),
        });
        self.known.lock().insert(key, driver.clone());
        Ok(driver)
    }

    async fn call<T>(
        &self,
        method: &'static str,
        driver: &str,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, VolumeError> {
        match tokio::time::timeout(csi::CALL_DEADLINE, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => {
                tracing::debug!(driver, method, code = ?status.code(), "driver refused");
                Err(CsiError::Call { status }.into())
            }
            Err(_) => Err(CsiError::Deadline(method).into()),
        }
    }

    /// The record, and whether there was none before.
    async fn write_record(
        &self,
        volume: &ClaimedVolume,
        publication: &Publication,
        staged: bool,
    ) -> Result<(PublishRecord, bool), VolumeError> {
        let uid = &publication.uid;
        let places = Places { layout: &self.layout, block: volume.block };
        let (old, is_new) = match stages::publish_record(places, uid, &volume.name) {
            Ok(old) => (old.clone(), old.is_none()),
            Err(error @ RecordError::Newer { .. }) => return Err(error.into()),
            // What was published before is published once more: drivers must allow it.
            Err(_) => (None, false),
        };
        let mut volumes = old.map(|old| old.own.volumes).unwrap_or_default();
        volumes.insert(publication.volume.clone());
        let record = PublishRecord {
            spec_volume: volume.name.clone(),
            handle: volume.handle.clone(),
            driver: volume.driver.clone(),
            node: self.node.clone(),
            attachment: attachment::name(&volume.handle, &volume.driver, &self.node),
            mode: if volume.inline { INLINE } else { PERSISTENT }.into(),
            own: PublishState {
                boot_id: self.boot_id.clone(),
                volumes,
                staged,
                attached: publication.attachment.is_some(),
                ready: false,
                mounted: false,
            },
        };
        let (host, file, content) = (self.host.clone(), places.record(uid, &volume.name), record.clone());
        blocking("writing a volume's record", move || {
            host.make_directory(file.parent().unwrap_or(Path::new("/")), 0o750)?;
            let content = records::render(&content).map_err(CsiError::Record)?;
            Ok(host.write_durable(&file, &content, 0o600)?)
        })
        .await?;
        self.stages.made_up_for(uid, &volume.name);
        Ok((record, is_new))
    }

    /// Removes the traces of a volume that a driver has refused for good.
    async fn forget(
        &self,
        stage: &mut stages::Stage,
        volume: &ClaimedVolume,
        uid: &str,
    ) -> Result<(), VolumeError> {
        if stage.users.len() == 1 {
            self.remove_stage(&volume.driver, &volume.handle, &volume.name, volume.block).await?;
        }
        self.remove_directory(uid, &volume.name, volume.block, true).await?;
        stage.users.remove(uid);
        Ok(())
    }

    async fn remove_stage(
        &self,
        driver: &str,
        handle: &str,
        name: &str,
        block: bool,
    ) -> Result<Vec<Leftover>, VolumeError> {
        let (host, layout) = (self.host.clone(), self.layout.clone());
        let (driver, handle, name) = (driver.to_owned(), handle.to_owned(), name.to_owned());
        blocking("removing a staging directory", move || {
            Places { layout: &layout, block }.remove_stage(&*host, &driver, &handle, &name)
        })
        .await
    }

    /// Removes the pod's directory of the volume; a driver that left its target mounted or filled is not helped out
    /// by deleting through it: what it left is set aside, unless it is mounted.
    async fn remove_directory(
        &self,
        uid: &str,
        name: &str,
        block: bool,
        by_driver: bool,
    ) -> Result<Vec<Leftover>, VolumeError> {
        let (host, layout) = (self.host.clone(), self.layout.clone());
        let places = Places { layout: &self.layout, block };
        let (directory, target) = (places.directory(uid, name), places.target(uid, name));
        let link = block.then(|| places.link(uid, name));
        let record = places.record(uid, name);
        blocking("removing a volume's directory", move || {
            if let Some(link) = link {
                host.remove_file(&link)?;
            }
            let mut left = Vec::new();
            if !by_driver {
                // The driver is unknown; the mount table still tells what is there.
                while host.mount_table()?.at(&target).is_some() {
                    host.unmount(&target, Unmount::Plain)?;
                }
                if host.exists(&record)? {
                    left.push(leftovers::set_aside(&*host, &layout, &record)?);
                }
            }
            if block {
                host.remove_file(&target)?;
                match target.parent().map(|parent| host.remove_directory(parent)) {
                    // Other pods have the volume too.
                    Some(Err(error)) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
                    Some(removed) => drop(removed?),
                    None => {}
                }
            } else {
                left.extend(leftovers::remove_directory(&*host, &layout, &target)?);
            }
            host.remove_file(&record)?;
            left.extend(leftovers::remove_directory(&*host, &layout, &directory)?);
            Ok(left)
        })
        .await
    }
}

/// Makes the link by which people and tools find a pod's device; what an earlier boot left there is replaced.
fn show_device(host: &dyn Host, link: &Path, device: &Path) -> Result<(), VolumeError> {
    host.make_directory(link.parent().unwrap_or(link), 0o750)?;
    host.remove_file(link)?;
    let shown = std::os::unix::fs::symlink(device, link);
    shown.map_err(|source| VolumeError::Files { action: "make the link to the volume's device", source })
}

fn uncertain(error: &VolumeError) -> bool {
    matches!(error, VolumeError::Csi(error) if error.uncertain())
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
