//! Requests about snapshots.

use super::{List, Refusal, controller::place_or_elsewhere, parameters, text, volume};
use csi::v1;
use csi::v1::volume_content_source::Type;
use drives::{Origin, SnapshotId, VolumeId};
use std::collections::BTreeMap;

pub(crate) struct CreateSnapshot {
    pub(crate) source: VolumeId,
    pub(crate) name: String,
}

impl CreateSnapshot {
    /// `segments` are those of the node that the snapshot would be on.
    pub(crate) fn check(
        request: v1::CreateSnapshotRequest,
        segments: &BTreeMap<String, String>,
    ) -> Result<Self, Refusal> {
        text("name", &request.name)?;
        text("source_volume_id", &request.source_volume_id)?;
        parameters::of_snapshot(&request.parameters)?;
        place_or_elsewhere(request.accessibility_requirements, segments)?;
        Ok(Self { source: volume(&request.source_volume_id)?, name: request.name })
    }
}

/// One snapshot, to be deleted or shown.
pub(crate) struct OneSnapshot(pub(crate) SnapshotId);

impl OneSnapshot {
    pub(crate) fn check(snapshot_id: &str) -> Result<Self, Refusal> {
        text("snapshot_id", snapshot_id)?;
        volume(snapshot_id).map(Self)
    }
}

pub(crate) struct ListSnapshots {
    pub(crate) page: List,
    /// Only this one.
    pub(crate) id: String,
    /// Only those of this volume.
    pub(crate) source: String,
}

impl ListSnapshots {
    /// An identity of another driver's names nothing here, and is no error: the list is empty.
    pub(crate) fn check(request: v1::ListSnapshotsRequest) -> Result<Self, Refusal> {
        let page = List::of(request.max_entries, &request.starting_token)?;
        Ok(Self { page, id: request.snapshot_id, source: request.source_volume_id })
    }
}

/// What a new volume is filled with.
pub(super) fn origin(source: Option<v1::VolumeContentSource>) -> Result<Option<Origin>, Refusal> {
    let Some(source) = source else { return Ok(None) };
    match source.r#type {
        None => Err(Refusal::Missing { field: "volume_content_source.type" }),
        Some(Type::Snapshot(source)) => {
            text("volume_content_source.snapshot_id", &source.snapshot_id)?;
            volume(&source.snapshot_id).map(|id| Some(Origin::Snapshot(id)))
        }
        Some(Type::Volume(source)) => {
            text("volume_content_source.volume_id", &source.volume_id)?;
            volume(&source.volume_id).map(|id| Some(Origin::Volume(id)))
        }
    }
}
