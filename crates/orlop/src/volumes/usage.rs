//! How full a volume is, as its driver tells where the volume is staged.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use csi::v1::NodeGetVolumeStatsRequest;
use csi::v1::node_client::NodeClient;
use csi::v1::volume_usage::Unit;
use futures::stream::{self, StreamExt};
use tokio::time::timeout;
use tonic::Response;
use tonic::transport::Channel;

use super::Found;

/// Volumes that are asked for at once.
const AT_ONCE: usize = 16;
/// How long all of it may take; what has not been told by then is not known.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is used of a volume; nothing where that is not known, because it is not mounted.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) bytes: Option<u64>,
    pub(super) inodes: Option<u64>,
}

/// The usage of each volume.
pub(super) async fn of(found: &[Found]) -> Vec<Usage> {
    let mut usages = vec![Usage::default(); found.len()];
    let counting = async {
        let mut drivers = BTreeMap::new();
        for socket in found.iter().map(|one| &one.socket) {
            if !drivers.contains_key(socket) {
                drivers.insert(socket, csi::connect(socket).await.ok());
            }
        }
        let asked = found.iter().enumerate().filter_map(|(at, one)| {
            let driver = drivers[&one.socket].clone()?;
            let path = staged(one).filter(|path| path.exists())?;
            Some(async move { (at, ask(driver, one, &path).await) })
        });
        let mut answers = stream::iter(asked).buffer_unordered(AT_ONCE);
        while let Some((at, usage)) = answers.next().await {
            usages[at] = usage;
        }
    };
    if timeout(PATIENCE, counting).await.is_err() {
        eprintln!("Some volumes did not tell in time how full they are");
    }
    usages
}

async fn ask(driver: Channel, one: &Found, path: &Path) -> Usage {
    let request = NodeGetVolumeStatsRequest {
        volume_id: one.volume.volume_id.clone(),
        volume_path: path.to_string_lossy().into_owned(),
        ..NodeGetVolumeStatsRequest::default()
    };
    let answer = NodeClient::new(driver).node_get_volume_stats(request).await;
    let answer = answer.map(Response::into_inner).unwrap_or_default();
    let used = |unit: Unit| {
        let usage = answer.usage.iter().find(|usage| usage.unit() == unit)?;
        // Of a device, only its user knows what is used.
        u64::try_from(usage.used).ok().filter(|_| usage.used > 0 || usage.available > 0)
    };
    Usage { bytes: used(Unit::Bytes), inodes: used(Unit::Inodes) }
}

/// Where kubelet, or a node agent, stages the volume: below the root whose `plugins/DRIVER/csi.sock` the socket is.
fn staged(one: &Found) -> Option<PathBuf> {
    let root = one.socket.parent()?.parent()?.parent()?;
    Some(node_agent::Layout::new(root).stage(&one.driver, &one.volume.volume_id).join("globalmount"))
}
