//! Requests about group snapshots.

use super::{Refusal, parameters, text, volume};
use csi::v1;
use drives::{SnapshotId, VolumeId};

pub(crate) struct CreateGroup {
    pub(crate) name: String,
    pub(crate) sources: Vec<VolumeId>,
}

impl CreateGroup {
    pub(crate) fn check(request: v1::CreateVolumeGroupSnapshotRequest) -> Result<Self, Refusal> {
        text("name", &request.name)?;
        if request.source_volume_ids.is_empty() {
            return Err(Refusal::Missing { field: "source_volume_ids" });
        }
        for id in &request.source_volume_ids {
            text("source_volume_ids", id)?;
        }
        parameters::of_group(&request.parameters)?;
        let sources = request.source_volume_ids.iter().map(|id| volume(id)).collect::<Result<_, _>>()?;
        Ok(Self { name: request.name, sources })
    }
}

/// One group snapshot, to be deleted or shown, and what the caller takes for its members.
pub(crate) struct OneGroup {
    pub(crate) id: SnapshotId,
    members: Vec<String>,
}

impl OneGroup {
    pub(crate) fn check(id: &str, members: Vec<String>) -> Result<Self, Refusal> {
        text("group_snapshot_id", id)?;
        Ok(Self { id: volume(id)?, members })
    }

    /// Whether the caller means the group as it is. Naming no members is no mistake: the identity says it all.
    pub(crate) fn agrees<'a>(&self, members: impl Iterator<Item = &'a SnapshotId>) -> Result<(), Refusal> {
        let mut members: Vec<String> = members.map(ToString::to_string).collect();
        let mut named = self.members.clone();
        members.sort_unstable();
        named.sort_unstable();
        named.dedup();
        match named.is_empty() || named == members {
            true => Ok(()),
            false => Err(Refusal::Invalid {
                field: "snapshot_ids",
                why: format!("group snapshot {} is of {}; name those", self.id, members.join(", ")),
            }),
        }
    }
}
