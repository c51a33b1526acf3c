//! Groups of snapshots.

use std::collections::BTreeMap;

use csi::v1::{
    CreateVolumeGroupSnapshotRequest, DeleteVolumeGroupSnapshotRequest, GetVolumeGroupSnapshotRequest,
    VolumeGroupSnapshot,
};
use k8s_openapi::api::core::v1::SecretReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use resources::group_snapshot::{
    self, VolumeGroupSnapshotClass, VolumeGroupSnapshotContent, VolumeSnapshotInfo,
};
use resources::snapshot::{DeletionPolicy, SnapshotError as Failure};
use resources::{annotations, finalizers};
use tonic::Code;

use super::SnapshotError;
use super::kind::{Call, Content};
use super::single::{failed, nanoseconds};
use crate::Driver;
use crate::driver::{ASK, CHANGE, within};

impl Content for VolumeGroupSnapshotContent {
    type Class = VolumeGroupSnapshotClass;
    type Told = VolumeGroupSnapshot;

    const BEING_CREATED: &'static str = annotations::GROUP_BEING_CREATED;
    const BEING_DELETED: &'static str = annotations::GROUP_BEING_DELETED;
    const FINALIZER: &'static str = finalizers::GROUP_CONTENT;
    const CREATE_FAILED: &'static str = "GroupSnapshotCreationFailed";
    const CHECK_FAILED: &'static str = "GroupSnapshotContentCheckandUpdateFailed";
    const DELETE_FAILED: &'static str = "GroupSnapshotDeleteError";
    const ASKING_SECRET: &'static str = "group-snapshotter-get";

    const WHAT: &'static str = "snapshots of several volumes at once";

    fn is_served_by(driver: &Driver) -> bool {
        driver.takes_groups()
    }

    fn driver(&self) -> &str {
        &self.spec.driver
    }

    fn policy(&self) -> DeletionPolicy {
        self.spec.deletion_policy
    }

    fn class_name(&self) -> Option<&str> {
        self.spec.volume_group_snapshot_class_name.as_deref()
    }

    fn volumes(&self) -> &[String] {
        self.spec.source.volume_handles.as_deref().unwrap_or_default()
    }

    fn is_given(&self) -> bool {
        self.spec.source.group_snapshot_handles.is_some()
    }

    fn is_taken(&self) -> bool {
        group_snapshot::is_taken(self)
    }

    fn is_member(&self) -> bool {
        false
    }

    fn handle(&self) -> Option<&str> {
        group_snapshot::handle(self)
    }

    fn told_handle(&self) -> Option<&str> {
        self.status.as_ref()?.volume_group_snapshot_handle.as_deref()
    }

    fn is_ready(&self) -> bool {
        self.status.as_ref().is_some_and(|status| status.ready_to_use == Some(true))
    }

    fn age(&self) -> i64 {
        let since = self.status.as_ref().and_then(|status| status.creation_time.as_ref());
        clock::now().as_second() - since.map(|at| at.0.as_second()).unwrap_or_default()
    }

    fn secret(&self) -> Option<SecretReference> {
        group_snapshot::secret(self)
    }

    fn failure(&self) -> Option<&str> {
        self.status.as_ref()?.error.as_ref()?.message.as_deref()
    }

    fn set_failure(&mut self, message: &str) {
        let status = self.status.get_or_insert_default();
        status.error = Some(Failure::now(message));
        status.ready_to_use = Some(false);
    }

    fn set_told(&mut self, told: &VolumeGroupSnapshot) {
        let status = self.status.get_or_insert_default();
        status.volume_group_snapshot_handle = Some(told.group_snapshot_id.clone());
        let at = told.creation_time.as_ref().and_then(|at| Timestamp::from_second(at.seconds).ok());
        status.creation_time = at.map(Time).or(status.creation_time.take());
        status.ready_to_use = Some(told.ready_to_use);
        status.error = None;
        let infos = told.snapshots.iter().map(|snapshot| VolumeSnapshotInfo {
            volume_handle: Some(snapshot.source_volume_id.clone()),
            snapshot_handle: Some(snapshot.snapshot_id.clone()),
            creation_time: snapshot.creation_time.as_ref().map(nanoseconds),
            ready_to_use: Some(snapshot.ready_to_use),
            restore_size: Some(snapshot.size_bytes),
        });
        status.volume_snapshot_info_list = Some(infos.collect());
    }

    fn parameters(class: &VolumeGroupSnapshotClass) -> &BTreeMap<String, String> {
        &class.parameters
    }

    fn metadata_parameters(&self) -> Vec<(&'static str, String)> {
        let reference = &self.spec.volume_group_snapshot_ref;
        vec![
            ("volumegroupsnapshot/name", reference.name.clone().unwrap_or_default()),
            ("volumegroupsnapshot/namespace", reference.namespace.clone().unwrap_or_default()),
            ("volumegroupsnapshotcontent/name", self.name_any()),
        ]
    }

    async fn create(&self, driver: &Driver, call: Call) -> Result<VolumeGroupSnapshot, SnapshotError> {
        let uid = self.spec.volume_group_snapshot_ref.uid.as_deref().unwrap_or_default();
        let name = group_snapshot::name_for(uid);
        let request = CreateVolumeGroupSnapshotRequest {
            name: name.clone(),
            source_volume_ids: self.volumes().to_vec(),
            secrets: call.secrets,
            parameters: call.parameters,
        };
        let answer = within(CHANGE, driver.group_controller().create_volume_group_snapshot(request)).await;
        let answer = answer.map_err(failed("CreateVolumeGroupSnapshot", name))?;
        let told = answer.group_snapshot.unwrap_or_default();
        if told.group_snapshot_id.is_empty() {
            return Err(SnapshotError::NoId("CreateVolumeGroupSnapshot"));
        }
        Ok(told)
    }

    async fn check(&self, driver: &Driver, call: Call) -> Result<VolumeGroupSnapshot, SnapshotError> {
        let id = self.handle().unwrap_or_default().to_owned();
        let request = GetVolumeGroupSnapshotRequest {
            group_snapshot_id: id.clone(),
            snapshot_ids: snapshot_ids(self),
            secrets: call.secrets,
        };
        match within(ASK, driver.group_controller().get_volume_group_snapshot(request)).await {
            Ok(answer) => answer.group_snapshot.ok_or(SnapshotError::Unknown(id)),
            Err(status) if status.code() == Code::NotFound => Err(SnapshotError::Unknown(id)),
            Err(status) => Err(failed("GetVolumeGroupSnapshot", id)(status)),
        }
    }

    async fn delete(&self, driver: &Driver, call: Call) -> Result<(), SnapshotError> {
        let id = self.handle().unwrap_or_default().to_owned();
        let request = DeleteVolumeGroupSnapshotRequest {
            group_snapshot_id: id.clone(),
            snapshot_ids: snapshot_ids(self),
            secrets: call.secrets,
        };
        match within(CHANGE, driver.group_controller().delete_volume_group_snapshot(request)).await {
            Err(status) if status.code() != Code::NotFound => {
                Err(failed("DeleteVolumeGroupSnapshot", id)(status))
            }
            _ => Ok(()),
        }
    }
}

/// The snapshots of a group, as the driver said, or as given.
fn snapshot_ids(content: &VolumeGroupSnapshotContent) -> Vec<String> {
    let told = content.status.as_ref().and_then(|status| status.volume_snapshot_info_list.as_ref());
    let given = content.spec.source.group_snapshot_handles.as_ref();
    match told {
        Some(infos) => infos.iter().filter_map(|info| info.snapshot_handle.clone()).collect(),
        None => given.map(|given| given.volume_snapshot_handles.clone()).unwrap_or_default(),
    }
}
