//! Comparing what is said to be attached with what the driver lists. Nothing announces such a difference: a volume that
//! somebody detached behind the back of Kubernetes is found only by asking.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use csi::v1::ListVolumesRequest;
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::ResourceExt;
use resources::{annotations, attachment};
use runtime::Queue;
use tokio::time::MissedTickBehavior;
use tonic::Status;

use super::plan::Plan;
use super::{Attacher, Key};
use crate::driver::{ASK, within, wording};

/// How often the driver is asked, as upstream does.
const EVERY: Duration = Duration::from_secs(60);
/// Volumes per page, and pages looked at.
const PAGE: i32 = 500;
const PAGES: usize = 200;

/// Node ids by volume id.
struct Published {
    nodes: HashMap<String, HashSet<String>>,
    /// There was no end of it: what is not in it may yet be published.
    cut_off: bool,
}

impl Attacher {
    /// Has attachments published again that the driver does not list, for ever.
    pub(super) async fn verify(&self, queue: &Queue<Key>) {
        let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + EVERY, EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            // Seen before the driver is asked, so that what is attached meanwhile is not missed in its answer.
            let settled = self.settled();
            if settled.is_empty() {
                continue;
            }
            match self.published().await {
                Ok(published) => {
                    for name in self.unlisted(&settled, &published) {
                        tracing::warn!(
                            driver = self.driver.name(),
                            attachment = name,
                            "the driver does not list the volume as attached to its node: attaching again"
                        );
                        self.doubted.lock().insert(name.clone());
                        queue.add(Key::Attachment(name));
                    }
                }
                Err(status) => {
                    let error = wording(&status);
                    tracing::warn!(driver = self.driver.name(), error, "can't list the attached volumes");
                }
            }
        }
    }

    /// This node's attachments that are said to be attached.
    fn settled(&self) -> Vec<Arc<VolumeAttachment>> {
        let mut all = self.attachments.all();
        all.retain(|one| {
            let volume = attachment::volume(one).and_then(|name| self.volumes.get("", name));
            one.spec.attacher == self.driver.name()
                && attachment::is_attached(one)
                && self.plan(one) == Plan::Nothing
                && self.is_ours(one, volume.as_deref())
        });
        all
    }

    fn unlisted(&self, settled: &[Arc<VolumeAttachment>], published: &Published) -> Vec<String> {
        let is_unlisted = |one: &&Arc<VolumeAttachment>| {
            let volume = attachment::volume(one).and_then(|name| self.volumes.get("", name));
            let handle =
                volume.and_then(|volume| Some(volume.spec.as_ref()?.csi.as_ref()?.volume_handle.clone()));
            let id = one.annotations().get(annotations::ATTACHMENT_NODE_ID);
            let (Some(handle), Some(id)) = (handle, id) else { return false };
            match published.nodes.get(&handle) {
                Some(nodes) => !nodes.contains(id),
                None => !published.cut_off,
            }
        };
        settled.iter().filter(is_unlisted).map(|one| one.name_any()).collect()
    }

    async fn published(&self) -> Result<Published, Status> {
        let mut nodes = HashMap::new();
        let mut starting_token = String::new();
        for _ in 0..PAGES {
            let request = ListVolumesRequest { max_entries: PAGE, starting_token };
            let answer = within(ASK, self.driver.controller().list_volumes(request)).await?;
            for entry in answer.entries {
                let Some(volume) = entry.volume else { continue };
                let ids = entry.status.unwrap_or_default().published_node_ids;
                nodes.insert(volume.volume_id, ids.into_iter().collect());
            }
            starting_token = answer.next_token;
            if starting_token.is_empty() {
                return Ok(Published { nodes, cut_off: false });
            }
        }
        Ok(Published { nodes, cut_off: true })
    }
}
