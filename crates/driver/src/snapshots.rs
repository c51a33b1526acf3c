//! What the Controller service does with snapshots.

use crate::controller::{page, signed};
use crate::flight::Key;
use crate::name::Name;
use crate::request::{CreateSnapshot, ListSnapshots, OneSnapshot, Refusal};
use crate::serve::Driver;
use crate::status::refused;
use csi::v1;
use csi::v1::volume_content_source::{SnapshotSource, Type, VolumeSource};
use drives::{Origin, Snapshot};
use tonic::Status;

impl Driver {
    pub(crate) async fn snapshot(
        &self,
        mut request: v1::CreateSnapshotRequest,
    ) -> Result<v1::Snapshot, Status> {
        request.source_volume_id = self.identity(request.source_volume_id)?;
        let CreateSnapshot { source, name } = CreateSnapshot::check(request, &self.node.segments)?;
        let drives = self.drives.clone();
        let key = Key::SnapshotName(name.clone());
        let work = async move { drives.create_snapshot(&source, &name).await.map_err(refused) };
        Ok(self.shown_snapshot(&self.flights.run(key, work).await?))
    }

    pub(crate) async fn forget_snapshot(&self, request: &v1::DeleteSnapshotRequest) -> Result<(), Status> {
        let id = match OneSnapshot::check(&request.snapshot_id) {
            Ok(OneSnapshot(id)) => id,
            // What never existed is deleted.
            Err(Refusal::ForeignVolume(_) | Refusal::TooLong { .. }) => return Ok(()),
            Err(refusal) => return Err(refusal.into()),
        };
        let drives = self.drives.clone();
        let key = Key::Volume(id.clone());
        self.flights.run(key, async move { drives.delete_snapshot(&id).await.map_err(refused) }).await
    }

    pub(crate) fn one_snapshot(&self, request: &v1::GetSnapshotRequest) -> Result<v1::Snapshot, Status> {
        let OneSnapshot(id) = OneSnapshot::check(&request.snapshot_id)?;
        let found = self.drives.snapshot(&id).ok_or_else(|| {
            Status::not_found(format!("snapshot {id} does not exist on node {}", self.node.node_id))
        })?;
        Ok(self.shown_snapshot(&found))
    }

    pub(crate) fn all_snapshots(
        &self,
        request: v1::ListSnapshotsRequest,
    ) -> Result<v1::ListSnapshotsResponse, Status> {
        let ListSnapshots { page: asked, id, source } = ListSnapshots::check(request)?;
        let mut found = self.drives.snapshots();
        found.retain(|snapshot| {
            (id.is_empty() || snapshot.id.to_string() == id)
                && (source.is_empty() || self.node.name.handle(&snapshot.source) == source)
        });
        let (found, next_token) = page(found, |snapshot| &snapshot.id, &asked);
        let entry =
            |snapshot| v1::list_snapshots_response::Entry { snapshot: Some(self.shown_snapshot(&snapshot)) };
        Ok(v1::ListSnapshotsResponse { entries: found.into_iter().map(entry).collect(), next_token })
    }

    pub(crate) fn shown_snapshot(&self, snapshot: &Snapshot) -> v1::Snapshot {
        v1::Snapshot {
            size_bytes: signed(snapshot.restore_size),
            snapshot_id: snapshot.id.to_string(),
            source_volume_id: self.node.name.handle(&snapshot.source),
            creation_time: Some(time(snapshot.created)),
            // It is announced when the copy is complete.
            ready_to_use: true,
            group_snapshot_id: snapshot.group.as_ref().map(ToString::to_string).unwrap_or_default(),
            // Who tells this has to have a capability that tools of CSI 1.12 take for an error (docs/decisions.md).
            accessible_topology: Vec::new(),
        }
    }
}

pub(crate) fn time(moment: jiff::Timestamp) -> csi::Timestamp {
    csi::Timestamp { seconds: moment.as_second(), nanos: moment.subsec_nanosecond() }
}

/// What a volume was filled with, as CSI says it.
pub(crate) fn content_source(name: Name, origin: &Origin) -> v1::VolumeContentSource {
    let kind = match origin {
        Origin::Snapshot(id) => Type::Snapshot(SnapshotSource { snapshot_id: id.to_string() }),
        Origin::Volume(id) => Type::Volume(VolumeSource { volume_id: name.handle(id) }),
    };
    v1::VolumeContentSource { r#type: Some(kind) }
}
