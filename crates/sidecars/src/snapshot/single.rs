//! Single snapshots.

use std::collections::BTreeMap;

use csi::v1::controller_service_capability::rpc;
use csi::v1::{
    CreateSnapshotRequest, DeleteSnapshotRequest, GetSnapshotRequest, ListSnapshotsRequest, Snapshot,
};
use k8s_openapi::api::core::v1::SecretReference;
use kube::ResourceExt;
use resources::snapshot::{self, DeletionPolicy, VolumeSnapshotClass, VolumeSnapshotContent};
use resources::{annotations, finalizers};
use tonic::Code;

use super::SnapshotError;
use super::kind::{Call, Content};
use crate::Driver;
use crate::driver::{ASK, CHANGE, within};

impl Content for VolumeSnapshotContent {
    type Class = VolumeSnapshotClass;
    type Told = Snapshot;

    const BEING_CREATED: &'static str = annotations::SNAPSHOT_BEING_CREATED;
    const BEING_DELETED: &'static str = annotations::SNAPSHOT_BEING_DELETED;
    const FINALIZER: &'static str = finalizers::SNAPSHOT_CONTENT;
    const CREATE_FAILED: &'static str = "SnapshotCreationFailed";
    const CHECK_FAILED: &'static str = "SnapshotContentCheckandUpdateFailed";
    const DELETE_FAILED: &'static str = "SnapshotDeleteError";
    const ASKING_SECRET: &'static str = "snapshotter-list";

    const WHAT: &'static str = "snapshots";

    fn is_served_by(driver: &Driver) -> bool {
        driver.can(rpc::Type::CreateDeleteSnapshot)
    }

    fn driver(&self) -> &str {
        &self.spec.driver
    }

    fn policy(&self) -> DeletionPolicy {
        self.spec.deletion_policy
    }

    fn class_name(&self) -> Option<&str> {
        self.spec.volume_snapshot_class_name.as_deref()
    }

    fn volumes(&self) -> &[String] {
        self.spec.source.volume_handle.as_slice()
    }

    fn is_given(&self) -> bool {
        self.spec.source.snapshot_handle.is_some()
    }

    fn is_taken(&self) -> bool {
        snapshot::is_taken(self)
    }

    fn is_member(&self) -> bool {
        snapshot::is_in_group(self)
    }

    fn handle(&self) -> Option<&str> {
        snapshot::handle(self)
    }

    fn told_handle(&self) -> Option<&str> {
        self.status.as_ref()?.snapshot_handle.as_deref()
    }

    fn is_ready(&self) -> bool {
        self.status.as_ref().is_some_and(|status| status.ready_to_use == Some(true))
    }

    fn age(&self) -> i64 {
        let since = self.status.as_ref().and_then(|status| status.creation_time).unwrap_or_default();
        clock::now().as_second().saturating_sub(since / 1_000_000_000)
    }

    fn secret(&self) -> Option<SecretReference> {
        snapshot::secret(self)
    }

    fn failure(&self) -> Option<&str> {
        self.status.as_ref()?.error.as_ref()?.message.as_deref()
    }

    fn set_failure(&mut self, message: &str) {
        let status = self.status.get_or_insert_default();
        status.error = Some(snapshot::SnapshotError::now(message));
        status.ready_to_use = Some(false);
    }

    fn set_told(&mut self, told: &Snapshot) {
        let status = self.status.get_or_insert_default();
        status.snapshot_handle = Some(told.snapshot_id.clone());
        status.ready_to_use = Some(told.ready_to_use);
        status.error = None;
        // Drivers that can't be asked say neither.
        if let Some(at) = &told.creation_time {
            status.creation_time = Some(nanoseconds(at));
        } else if status.creation_time.is_none() {
            status.creation_time = i64::try_from(clock::now().as_nanosecond()).ok();
        }
        if told.size_bytes > 0 || status.restore_size.is_none() {
            status.restore_size = Some(told.size_bytes.max(0));
        }
        if !told.group_snapshot_id.is_empty() {
            status.volume_group_snapshot_handle = Some(told.group_snapshot_id.clone());
        }
    }

    fn parameters(class: &VolumeSnapshotClass) -> &BTreeMap<String, String> {
        &class.parameters
    }

    fn metadata_parameters(&self) -> Vec<(&'static str, String)> {
        let reference = &self.spec.volume_snapshot_ref;
        vec![
            ("volumesnapshot/name", reference.name.clone().unwrap_or_default()),
            ("volumesnapshot/namespace", reference.namespace.clone().unwrap_or_default()),
            ("volumesnapshotcontent/name", self.name_any()),
        ]
    }

    async fn create(&self, driver: &Driver, call: Call) -> Result<Snapshot, SnapshotError> {
        let source = self.spec.source.volume_handle.clone().unwrap_or_default();
        let request = CreateSnapshotRequest {
            source_volume_id: source.clone(),
            name: snapshot::name_for(self.spec.volume_snapshot_ref.uid.as_deref().unwrap_or_default()),
            secrets: call.secrets,
            parameters: call.parameters,
            accessibility_requirements: None,
        };
        let answer = within(CHANGE, driver.controller().create_snapshot(request)).await;
        let answer = answer.map_err(failed("CreateSnapshot", source))?;
        let told = answer.snapshot.unwrap_or_default();
        if told.snapshot_id.is_empty() {
            return Err(SnapshotError::NoId("CreateSnapshot"));
        }
        Ok(told)
    }

    async fn check(&self, driver: &Driver, call: Call) -> Result<Snapshot, SnapshotError> {
        let id = self.handle().unwrap_or_default().to_owned();
        if driver.can(rpc::Type::GetSnapshot) {
            let request = GetSnapshotRequest { snapshot_id: id.clone(), secrets: call.secrets };
            return match within(ASK, driver.controller().get_snapshot(request)).await {
                Ok(answer) => answer.snapshot.ok_or(SnapshotError::Unknown(id)),
                Err(status) if status.code() == Code::NotFound => Err(SnapshotError::Unknown(id)),
                Err(status) => Err(failed("GetSnapshot", id)(status)),
            };
        }
        if !driver.can(rpc::Type::ListSnapshots) {
            // The driver can't be asked: taken at the word of whoever gave the id.
            return Ok(Snapshot { snapshot_id: id, ready_to_use: true, ..Snapshot::default() });
        }
        let request = ListSnapshotsRequest {
            snapshot_id: id.clone(),
            secrets: call.secrets,
            ..ListSnapshotsRequest::default()
        };
        let answer = within(ASK, driver.controller().list_snapshots(request)).await;
        let answer = answer.map_err(failed("ListSnapshots", id.clone()))?;
        let mut found = answer.entries.into_iter().filter_map(|entry| entry.snapshot);
        found.find(|snapshot| snapshot.snapshot_id == id).ok_or(SnapshotError::Unknown(id))
    }

    async fn delete(&self, driver: &Driver, call: Call) -> Result<(), SnapshotError> {
        let id = self.handle().unwrap_or_default().to_owned();
        let request = DeleteSnapshotRequest { snapshot_id: id.clone(), secrets: call.secrets };
        match within(CHANGE, driver.controller().delete_snapshot(request)).await {
            Err(status) if status.code() != Code::NotFound => Err(failed("DeleteSnapshot", id)(status)),
            _ => Ok(()),
        }
    }
}

pub(super) fn nanoseconds(at: &csi::Timestamp) -> i64 {
    at.seconds.saturating_mul(1_000_000_000).saturating_add(at.nanos.into())
}

pub(super) fn failed(call: &'static str, about: String) -> impl FnOnce(tonic::Status) -> SnapshotError {
    move |status| SnapshotError::Call { call, about, status: Box::new(status) }
}
