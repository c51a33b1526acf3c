//! Snapshots of several volumes at one moment: the kinds of `groupsnapshot.storage.k8s.io`.

use k8s_openapi::api::core::v1::{ObjectReference, SecretReference};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, Time};
use kube::{CustomResource, ResourceExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::annotations;
use crate::approval::approved;
use crate::snapshot::{DeletionPolicy, SnapshotError, class_definition, class_kind, secret_in};

/// The group of the kinds here.
pub const GROUP: &str = "groupsnapshot.storage.k8s.io";

/// A snapshot of all claims with some labels, of one moment.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[kube(
    group = "groupsnapshot.storage.k8s.io",
    version = "v1",
    kind = "VolumeGroupSnapshot",
    plural = "volumegroupsnapshots",
    singular = "volumegroupsnapshot",
    shortname = "vgs",
    namespaced,
    status = "VolumeGroupSnapshotStatus",
    derive = "PartialEq",
    derive = "Default",
    printcolumn = r#"{"name":"ReadyToUse", "type":"boolean", "jsonPath":".status.readyToUse"}"#,
    printcolumn = r#"{"name":"VolumeGroupSnapshotClass", "type":"string", "jsonPath":".spec.volumeGroupSnapshotClassName"}"#,
    printcolumn = r#"{"name":"VolumeGroupSnapshotContent", "type":"string", "jsonPath":".status.boundVolumeGroupSnapshotContentName"}"#,
    printcolumn = r#"{"name":"CreationTime", "type":"date", "jsonPath":".status.creationTime"}"#,
    printcolumn = r#"{"name":"Age", "type":"date", "jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct VolumeGroupSnapshotSpec {
    /// What it is a snapshot of; can't be changed.
    pub source: VolumeGroupSnapshotSource,
    /// The class; the default one of the volumes' driver if none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_group_snapshot_class_name: Option<String>,
}

/// Claims to take a snapshot of, or a group that exists: exactly one of them.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeGroupSnapshotSource {
    /// The claims' labels, in the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
    /// The VolumeGroupSnapshotContent that stands for a group that was made by other means.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_group_snapshot_content_name: Option<String>,
}

/// What became of it.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeGroupSnapshotStatus {
    /// The content that stands for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound_volume_group_snapshot_content_name: Option<String>,
    /// The moment whose data it holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creation_time: Option<Time>,
    /// Whether volumes can be made from all of its snapshots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_to_use: Option<bool>,
    /// The last failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<SnapshotError>,
}

/// A group that a driver has, or is to make.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[kube(
    group = "groupsnapshot.storage.k8s.io",
    version = "v1",
    kind = "VolumeGroupSnapshotContent",
    plural = "volumegroupsnapshotcontents",
    singular = "volumegroupsnapshotcontent",
    shortname = "vgsc",
    shortname = "vgscs",
    status = "VolumeGroupSnapshotContentStatus",
    derive = "PartialEq",
    printcolumn = r#"{"name":"ReadyToUse", "type":"boolean", "jsonPath":".status.readyToUse"}"#,
    printcolumn = r#"{"name":"DeletionPolicy", "type":"string", "jsonPath":".spec.deletionPolicy"}"#,
    printcolumn = r#"{"name":"Driver", "type":"string", "jsonPath":".spec.driver"}"#,
    printcolumn = r#"{"name":"VolumeGroupSnapshotClass", "type":"string", "jsonPath":".spec.volumeGroupSnapshotClassName"}"#,
    printcolumn = r#"{"name":"VolumeGroupSnapshotNamespace", "type":"string", "jsonPath":".spec.volumeGroupSnapshotRef.namespace"}"#,
    printcolumn = r#"{"name":"VolumeGroupSnapshot", "type":"string", "jsonPath":".spec.volumeGroupSnapshotRef.name"}"#,
    printcolumn = r#"{"name":"Age", "type":"date", "jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct VolumeGroupSnapshotContentSpec {
    /// The VolumeGroupSnapshot that it belongs to. Without a uid it is free for the one of that name.
    pub volume_group_snapshot_ref: ObjectReference,
    /// What becomes of the driver's snapshots when the VolumeGroupSnapshot is deleted.
    pub deletion_policy: DeletionPolicy,
    /// The CSI driver.
    pub driver: String,
    /// The class that it was made by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_group_snapshot_class_name: Option<String>,
    /// The volumes to take a snapshot of, or a group that exists; can't be changed.
    pub source: VolumeGroupSnapshotContentSource,
}

/// Volumes or snapshots by the driver's ids: exactly one of them.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeGroupSnapshotContentSource {
    /// The volumes to take a snapshot of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_handles: Option<Vec<String>>,
    /// The group that exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_snapshot_handles: Option<GroupSnapshotHandles>,
}

/// A group that exists, by the driver's ids.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GroupSnapshotHandles {
    /// The group.
    pub volume_group_snapshot_handle: String,
    /// Its snapshots.
    pub volume_snapshot_handles: Vec<String>,
}

/// What the driver said.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeGroupSnapshotContentStatus {
    /// The group's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_group_snapshot_handle: Option<String>,
    /// The moment whose data it holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creation_time: Option<Time>,
    /// Whether volumes can be made from all of its snapshots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_to_use: Option<bool>,
    /// The last failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<SnapshotError>,
    /// Its snapshots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_snapshot_info_list: Option<Vec<VolumeSnapshotInfo>>,
}

/// One snapshot of a group.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeSnapshotInfo {
    /// The volume that it is of, by the driver's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_handle: Option<String>,
    /// Its own id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_handle: Option<String>,
    /// The moment whose data it holds, in nanoseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creation_time: Option<i64>,
    /// Whether volumes can be made from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_to_use: Option<bool>,
    /// The least size of a volume made from it, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore_size: Option<i64>,
}

class_kind!(
    /// How groups of snapshots of a driver's volumes are made.
    VolumeGroupSnapshotClass,
    "groupsnapshot.storage.k8s.io",
    "volumegroupsnapshotclasses"
);

/// The definitions of the kinds here. The version before v1 has the same fields and is served too: manifests name it.
pub fn definitions() -> [CustomResourceDefinition; 3] {
    use kube::CustomResourceExt;
    [
        VolumeGroupSnapshot::crd(),
        VolumeGroupSnapshotContent::crd(),
        class_definition::<VolumeGroupSnapshotClass>(["vgsclass", "vgsclasses"]),
    ]
    .map(|mut definition| {
        let before: Vec<_> = definition.spec.versions.to_vec();
        definition.spec.versions.extend(before.into_iter().map(|mut version| {
            version.name = "v1beta2".to_owned();
            version.storage = false;
            version
        }));
        approved(definition, "https://github.com/kubernetes-csi/external-snapshotter/pull/1150")
    })
}

/// The name of the content that is made for a group.
pub fn content_name(group_uid: &str) -> String {
    format!("groupsnapcontent-{group_uid}")
}

/// The name under which a driver is asked for a group: its idempotency key.
pub fn name_for(group_uid: &str) -> String {
    format!("groupsnapshot-{group_uid}")
}

/// Whether a content belongs to a group: it names it with its uid.
pub fn is_bound_to(content: &VolumeGroupSnapshotContent, group: &VolumeGroupSnapshot) -> bool {
    names(content, group) && content.spec.volume_group_snapshot_ref.uid == group.metadata.uid
}

/// Whether a content belongs to a group, or waits for one of its name.
pub fn is_meant_for(content: &VolumeGroupSnapshotContent, group: &VolumeGroupSnapshot) -> bool {
    names(content, group) && (!is_taken(content) || is_bound_to(content, group))
}

fn names(content: &VolumeGroupSnapshotContent, group: &VolumeGroupSnapshot) -> bool {
    let reference = &content.spec.volume_group_snapshot_ref;
    reference.name == group.metadata.name && reference.namespace == group.metadata.namespace
}

/// Whether a content's group is known by its uid.
pub fn is_taken(content: &VolumeGroupSnapshotContent) -> bool {
    content.spec.volume_group_snapshot_ref.uid.as_deref().is_some_and(|uid| !uid.is_empty())
}

/// The driver's id of a group, once there is one.
pub fn handle(content: &VolumeGroupSnapshotContent) -> Option<&str> {
    let told = content.status.as_ref().and_then(|status| status.volume_group_snapshot_handle.as_deref());
    let given = content.spec.source.group_snapshot_handles.as_ref();
    told.or(given.map(|given| given.volume_group_snapshot_handle.as_str()))
}

/// The content that a group's status names.
pub fn bound_content(group: &VolumeGroupSnapshot) -> Option<&str> {
    let name = group.status.as_ref()?.bound_volume_group_snapshot_content_name.as_deref();
    name.filter(|name| !name.is_empty())
}

/// The secret for calls about a group, from its content's annotations.
pub fn secret(content: &VolumeGroupSnapshotContent) -> Option<SecretReference> {
    secret_in(content.annotations(), annotations::GROUP_SECRET_NAME, annotations::GROUP_SECRET_NAMESPACE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_serve_two_versions_and_store_one() {
        for definition in definitions() {
            let versions = definition.spec.versions.iter();
            let versions: Vec<_> =
                versions.map(|version| (version.name.as_str(), version.served, version.storage)).collect();
            assert_eq!(versions, [("v1", true, true), ("v1beta2", true, false)]);
        }
    }
}
