//! How full a volume is, as its driver tells where the volume is staged.

use std::path::PathBuf;
use std::time::Duration;

use csi::v1::NodeGetVolumeStatsRequest;
use csi::v1::node_client::NodeClient;
use csi::v1::volume_usage::Unit;

use super::Found;

/// How long a driver may take for one volume.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is used of a volume; nothing where that is not known, because it is not mounted.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) bytes: Option<u64>,
    pub(super) inodes: Option<u64>,
}

/// Asks for the volume's usage.
pub(super) async fn of(one: &Found) -> Usage {
    let Some(path) = staged(one).filter(|path| path.exists()) else { return Usage::default() };
    let asking = async {
        let channel = csi::connect(&one.socket).await.ok()?;
        let request = NodeGetVolumeStatsRequest {
            volume_id: one.volume.volume_id.clone(),
            volume_path: path.to_string_lossy().into_owned(),
            ..NodeGetVolumeStatsRequest::default()
        };
        Some(NodeClient::new(channel).node_get_volume_stats(request).await.ok()?.into_inner())
    };
    let answer = tokio::time::timeout(PATIENCE, asking).await.ok().flatten().unwrap_or_default();
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
