//! Asking a driver how full a volume is.

use std::path::Path;

use csi::v1::{NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse, node_client::NodeClient};

use super::{super::VolumeError, Csi};

impl Csi {
    /// What the driver tells of a volume that it published at `path`; nothing where it can't count.
    pub(crate) async fn stats(
        &self,
        driver: &str,
        handle: &str,
        path: &Path,
    ) -> Result<NodeGetVolumeStatsResponse, VolumeError> {
        let known = self.driver(driver).await?;
        if !known.counts {
            return Ok(NodeGetVolumeStatsResponse::default());
        }
        let request = NodeGetVolumeStatsRequest {
            volume_id: handle.to_owned(),
            volume_path: super::text(path),
            ..NodeGetVolumeStatsRequest::default()
        };
        let mut client = NodeClient::new(known.channel.clone());
        let call = async move { client.node_get_volume_stats(request).await };
        self.call("NodeGetVolumeStats", driver, call).await
    }
}
