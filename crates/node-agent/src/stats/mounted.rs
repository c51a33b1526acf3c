//! Which volumes of pods are there, and how each is counted.

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use k8s_openapi::api::core::v1::{Pod, Volume};
use kube::ResourceExt;

use super::space::{Counted, Space, misleads};
use crate::{
    blocking::blocking,
    layout::{self, Layout},
    limits,
    volumes::{self, Source, VolumeError, csi::Csi, places::Places, stages},
};

/// A volume that a pod of the node has.
#[derive(Debug)]
pub(super) struct Mounted {
    pub(super) pod: Arc<Pod>,
    /// The pod's name for it.
    pub(super) volume: String,
    /// The claim behind it.
    pub(super) claim: Option<String>,
    pub(super) by: By,
}

/// Who knows how full a volume is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// The CSI driver that published it.
    Driver { driver: String, handle: String, path: PathBuf, block: bool },
    /// The file system that it has for itself.
    FileSystem(PathBuf),
    /// Its files, one by one.
    Files(PathBuf),
}

impl Mounted {
    pub(super) fn key(&self) -> (String, String) {
        (self.pod.uid().unwrap_or_default(), self.volume.clone())
    }

    /// Counts it. `token` is given back when nothing waits in the kernel or for the driver any more, which may be long
    /// after this has given up.
    pub(super) async fn count(&self, csi: &Csi, token: Arc<()>) -> Result<Counted, VolumeError> {
        let (space, condition, shown) = match self.by.clone() {
            By::Driver { driver, handle, path, block } => {
                let answer = csi.stats(&driver, &handle, &path).await?;
                let space = Space::told(&answer);
                let shown = match space.capacity.filter(|_| !block) {
                    Some(size) => shown(csi, path, token).await?.filter(|shown| misleads(*shown, size)),
                    None => None,
                };
                (space, answer.volume_condition, shown)
            }
            By::FileSystem(path) => {
                let host = csi.host.clone();
                let space = blocking("asking for a volume's free space", move || {
                    let _token = token;
                    Ok(Space::of(&host.space(&path)?))
                });
                (space.await?, None, None)
            }
            By::Files(path) => {
                let host = csi.host.clone();
                let space = blocking("counting a volume's files", move || {
                    let _token = token;
                    Ok(Space::shared(&host.space(&path)?, limits::used(&path)))
                });
                (space.await?, None, None)
            }
        };
        Ok(Counted {
            at: clock::now(),
            space,
            has_condition: condition.is_some(),
            abnormal: condition.filter(|condition| condition.abnormal).map(|condition| condition.message),
            shown,
        })
    }
}

/// The size of the file system at `path`, as `df` would show it.
async fn shown(csi: &Csi, path: PathBuf, token: Arc<()>) -> Result<Option<u64>, VolumeError> {
    let host = csi.host.clone();
    let size = blocking("asking for a volume's size", move || {
        let _token = token;
        Ok(host.space(&path)?.size)
    });
    Ok(Some(size.await?).filter(|size| *size > 0))
}

/// The volumes of these pods that are there: of claims, and directories that the pods have for themselves. Blocks.
pub(super) fn find(layout: &Layout, boot_id: &str, pods: &[Arc<Pod>]) -> Result<Vec<Mounted>, VolumeError> {
    let read = |source| VolumeError::Files { action: "read the volumes' records", source };
    let mut published = HashMap::new();
    for found in stages::records(layout).map_err(read)? {
        // One that can't be read is told of when its pod is looked at.
        let Ok(record) = found.record else { continue };
        if record.own.ready && record.own.boot_id == boot_id {
            let path = Places { layout, block: found.block }.target(&found.uid, &found.name);
            let by = By::Driver { driver: record.driver, handle: record.handle, path, block: found.block };
            for volume in record.own.volumes {
                published.insert((found.uid.clone(), volume), by.clone());
            }
        }
    }
    let mut all = Vec::new();
    for pod in pods {
        let uid = pod.uid().unwrap_or_default();
        for volume in volumes::used(pod) {
            let by = published.remove(&(uid.clone(), volume.name.clone()));
            if let Some(by) = by.or_else(|| own(layout, &uid, volume)) {
                let claim = resources::claim::of_volume(pod, volume);
                all.push(Mounted { pod: pod.clone(), volume: volume.name.clone(), claim, by });
            }
        }
    }
    Ok(all)
}

/// A volume without a driver. As with kubelet, nothing is told of a host's own directories.
fn own(layout: &Layout, uid: &str, volume: &Volume) -> Option<By> {
    let is_ready = |plugin| layout.ready(uid, plugin, &volume.name).exists();
    let directory = |plugin| layout.volume(uid, plugin, &volume.name);
    match Source::of(volume) {
        Source::EmptyDir { memory, .. } if is_ready(layout::EMPTY_DIR) => {
            let directory = directory(layout::EMPTY_DIR);
            Some(if memory { By::FileSystem(directory) } else { By::Files(directory) })
        }
        Source::Claim { .. } | Source::Ephemeral if is_ready(layout::LOCAL) => {
            Some(By::FileSystem(directory(layout::LOCAL)))
        }
        _ => None,
    }
}
