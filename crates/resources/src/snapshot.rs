//! Snapshots: the kinds of `snapshot.storage.k8s.io`.
//!
//! A VolumeSnapshot is what a user asks for, a VolumeSnapshotContent what a driver made, and both refer to each other,
//! as claims and volumes do. Group, names, fields and printed columns are those of Kubernetes' snapshot API.

use std::collections::BTreeMap;

use k8s_openapi::ClusterResourceScope;
use k8s_openapi::api::core::v1::{ObjectReference, SecretReference};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::{CustomResource, ResourceExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::annotations;
use crate::approval::approved;

/// The group of the kinds here.
pub const GROUP: &str = "snapshot.storage.k8s.io";

/// What becomes of a driver's snapshot when the object that stands for it is deleted.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum DeletionPolicy {
    /// It is deleted too.
    Delete,
    /// It stays.
    Retain,
}

/// The last failure about a snapshot.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
pub struct SnapshotError {
    /// When.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Time>,
    /// What failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

impl SnapshotError {
    /// A failure of this moment.
    pub fn now(message: impl Into<String>) -> SnapshotError {
        SnapshotError { time: Some(Time(clock::now())), message: Some(message.into()) }
    }
}

/// A snapshot that a user asks for.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[kube(
    group = "snapshot.storage.k8s.io",
    version = "v1",
    kind = "VolumeSnapshot",
    plural = "volumesnapshots",
    singular = "volumesnapshot",
    shortname = "vs",
    namespaced,
    status = "VolumeSnapshotStatus",
    derive = "PartialEq",
    derive = "Default",
    printcolumn = r#"{"name":"ReadyToUse", "type":"boolean", "jsonPath":".status.readyToUse"}"#,
    printcolumn = r#"{"name":"SourcePVC", "type":"string", "jsonPath":".spec.source.persistentVolumeClaimName"}"#,
    printcolumn = r#"{"name":"SourceSnapshotContent", "type":"string", "jsonPath":".spec.source.volumeSnapshotContentName"}"#,
    printcolumn = r#"{"name":"RestoreSize", "type":"string", "jsonPath":".status.restoreSize"}"#,
    printcolumn = r#"{"name":"SnapshotClass", "type":"string", "jsonPath":".spec.volumeSnapshotClassName"}"#,
    printcolumn = r#"{"name":"SnapshotContent", "type":"string", "jsonPath":".status.boundVolumeSnapshotContentName"}"#,
    printcolumn = r#"{"name":"CreationTime", "type":"date", "jsonPath":".status.creationTime"}"#,
    printcolumn = r#"{"name":"Age", "type":"date", "jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct VolumeSnapshotSpec {
    /// What it is a snapshot of; can't be changed.
    pub source: VolumeSnapshotSource,
    /// The class; the default one of the volume's driver if none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_snapshot_class_name: Option<String>,
}

/// A claim to take a snapshot of, or a snapshot that exists: exactly one of them.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeSnapshotSource {
    /// The claim, in the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim_name: Option<String>,
    /// The VolumeSnapshotContent that stands for a snapshot that was made by other means.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_snapshot_content_name: Option<String>,
}

/// What became of it.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeSnapshotStatus {
    /// The content that stands for it. It is bound only if that content refers back to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound_volume_snapshot_content_name: Option<String>,
    /// The moment whose data it holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creation_time: Option<Time>,
    /// Whether volumes can be made from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_to_use: Option<bool>,
    /// The least size of a volume made from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore_size: Option<Quantity>,
    /// The last failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<SnapshotError>,
    /// The VolumeGroupSnapshot that it was taken with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_group_snapshot_name: Option<String>,
}

/// A snapshot that a driver has, or is to make.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[kube(
    group = "snapshot.storage.k8s.io",
    version = "v1",
    kind = "VolumeSnapshotContent",
    plural = "volumesnapshotcontents",
    singular = "volumesnapshotcontent",
    shortname = "vsc",
    shortname = "vscs",
    status = "VolumeSnapshotContentStatus",
    derive = "PartialEq",
    printcolumn = r#"{"name":"ReadyToUse", "type":"boolean", "jsonPath":".status.readyToUse"}"#,
    printcolumn = r#"{"name":"RestoreSize", "type":"integer", "jsonPath":".status.restoreSize"}"#,
    printcolumn = r#"{"name":"DeletionPolicy", "type":"string", "jsonPath":".spec.deletionPolicy"}"#,
    printcolumn = r#"{"name":"Driver", "type":"string", "jsonPath":".spec.driver"}"#,
    printcolumn = r#"{"name":"VolumeSnapshotClass", "type":"string", "jsonPath":".spec.volumeSnapshotClassName"}"#,
    printcolumn = r#"{"name":"VolumeSnapshot", "type":"string", "jsonPath":".spec.volumeSnapshotRef.name"}"#,
    printcolumn = r#"{"name":"VolumeSnapshotNamespace", "type":"string", "jsonPath":".spec.volumeSnapshotRef.namespace"}"#,
    printcolumn = r#"{"name":"Age", "type":"date", "jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct VolumeSnapshotContentSpec {
    /// The VolumeSnapshot that it belongs to. Without a uid it is free for the one of that name.
    pub volume_snapshot_ref: ObjectReference,
    /// What becomes of the driver's snapshot when the VolumeSnapshot is deleted.
    pub deletion_policy: DeletionPolicy,
    /// The CSI driver.
    pub driver: String,
    /// The class that it was made by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_snapshot_class_name: Option<String>,
    /// The volume to take a snapshot of, or a snapshot that exists; can't be changed.
    pub source: VolumeSnapshotContentSource,
    /// The volume mode of the volume; can't be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_volume_mode: Option<String>,
}

/// A volume or a snapshot by the driver's id: exactly one of them.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeSnapshotContentSource {
    /// The volume to take a snapshot of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_handle: Option<String>,
    /// The snapshot that exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_handle: Option<String>,
}

/// What the driver said.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeSnapshotContentStatus {
    /// The snapshot's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_handle: Option<String>,
    /// The moment whose data it holds, in nanoseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creation_time: Option<i64>,
    /// The least size of a volume made from it, in bytes; 0 if the driver does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub restore_size: Option<i64>,
    /// Whether volumes can be made from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_to_use: Option<bool>,
    /// The last failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<SnapshotError>,
    /// The id of the group that it was taken with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_group_snapshot_handle: Option<String>,
}

/// Declares a class of snapshots, whose fields lie beside its metadata instead of under `spec`.
macro_rules! class_kind {
    ($(#[$doc:meta])* $kind:ident, $group:expr, $plural:expr) => {
        $(#[$doc])*
        #[derive(::serde::Serialize, ::serde::Deserialize, Clone, Debug, PartialEq)]
        #[serde(rename_all = "camelCase")]
        pub struct $kind {
            /// The API version.
            pub api_version: String,
            /// The kind.
            pub kind: String,
            /// The class's metadata.
            pub metadata: ::k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
            /// The CSI driver whose volumes it is for.
            pub driver: String,
            /// What becomes of its snapshots when their objects are deleted.
            pub deletion_policy: $crate::snapshot::DeletionPolicy,
            /// What the driver is told, beside keys under `csi.storage.k8s.io/`, which are for us.
            #[serde(default, skip_serializing_if = "::std::collections::BTreeMap::is_empty")]
            pub parameters: ::std::collections::BTreeMap<String, String>,
        }

        impl $kind {
            /// A class of a driver whose snapshots are deleted with their objects.
            pub fn new(name: &str, driver: &str) -> Self {
                $kind {
                    api_version: <Self as ::kube::Resource>::api_version(&()).into_owned(),
                    kind: stringify!($kind).to_owned(),
                    metadata: ::k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
                        name: Some(name.to_owned()),
                        ..Default::default()
                    },
                    driver: driver.to_owned(),
                    deletion_policy: $crate::snapshot::DeletionPolicy::Delete,
                    parameters: Default::default(),
                }
            }
        }

        impl ::kube::Resource for $kind {
            type DynamicType = ();
            type Scope = ::k8s_openapi::ClusterResourceScope;

            fn kind((): &()) -> ::std::borrow::Cow<'_, str> {
                stringify!($kind).into()
            }

            fn group((): &()) -> ::std::borrow::Cow<'_, str> {
                $group.into()
            }

            fn version((): &()) -> ::std::borrow::Cow<'_, str> {
                "v1".into()
            }

            fn plural((): &()) -> ::std::borrow::Cow<'_, str> {
                $plural.into()
            }

            fn meta(&self) -> &::k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
                &self.metadata
            }

            fn meta_mut(&mut self) -> &mut ::k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
                &mut self.metadata
            }
        }
    };
}
pub(crate) use class_kind;

class_kind!(
    /// How snapshots of a driver's volumes are made.
    VolumeSnapshotClass,
    "snapshot.storage.k8s.io",
    "volumesnapshotclasses"
);

/// The definition of a kind that [`class_kind`] declares.
pub(crate) fn class_definition<K>(short_names: [&str; 2]) -> CustomResourceDefinition
where
    K: kube::Resource<DynamicType = (), Scope = ClusterResourceScope>,
{
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
        CustomResourceColumnDefinition, CustomResourceDefinitionNames, CustomResourceDefinitionSpec,
        CustomResourceDefinitionVersion, CustomResourceValidation, JSON, JSONSchemaProps,
        JSONSchemaPropsOrBool,
    };
    let of_type = |name: &str| JSONSchemaProps { type_: Some(name.to_owned()), ..JSONSchemaProps::default() };
    let policy = JSONSchemaProps {
        enum_: Some(["Delete", "Retain"].map(|policy| JSON(policy.into())).to_vec()),
        ..of_type("string")
    };
    let parameters = JSONSchemaProps {
        additional_properties: Some(JSONSchemaPropsOrBool::Schema(Box::new(of_type("string")))),
        ..of_type("object")
    };
    let fields = [
        ("apiVersion", of_type("string")),
        ("kind", of_type("string")),
        ("metadata", of_type("object")),
        ("driver", of_type("string")),
        ("deletionPolicy", policy),
        ("parameters", parameters),
    ];
    let schema = JSONSchemaProps {
        properties: Some(fields.map(|(name, schema)| (name.to_owned(), schema)).into()),
        required: Some(["deletionPolicy", "driver"].map(str::to_owned).to_vec()),
        ..of_type("object")
    };
    let column = |name: &str, type_: &str, path: &str| CustomResourceColumnDefinition {
        name: name.to_owned(),
        type_: type_.to_owned(),
        json_path: path.to_owned(),
        ..CustomResourceColumnDefinition::default()
    };
    let kind = K::kind(&()).into_owned();
    let version = CustomResourceDefinitionVersion {
        name: K::version(&()).into_owned(),
        served: true,
        storage: true,
        additional_printer_columns: Some(vec![
            column("Driver", "string", ".driver"),
            column("DeletionPolicy", "string", ".deletionPolicy"),
            column("Age", "date", ".metadata.creationTimestamp"),
        ]),
        schema: Some(CustomResourceValidation { open_api_v3_schema: Some(schema) }),
        ..CustomResourceDefinitionVersion::default()
    };
    CustomResourceDefinition {
        metadata: ObjectMeta {
            name: Some(format!("{}.{}", K::plural(&()), K::group(&()))),
            ..ObjectMeta::default()
        },
        spec: CustomResourceDefinitionSpec {
            group: K::group(&()).into_owned(),
            names: CustomResourceDefinitionNames {
                list_kind: Some(format!("{kind}List")),
                singular: Some(kind.to_lowercase()),
                plural: K::plural(&()).into_owned(),
                short_names: Some(short_names.map(str::to_owned).to_vec()),
                kind,
                ..CustomResourceDefinitionNames::default()
            },
            scope: "Cluster".to_owned(),
            versions: vec![version],
            ..CustomResourceDefinitionSpec::default()
        },
        ..CustomResourceDefinition::default()
    }
}

/// The definitions of the kinds here.
pub fn definitions() -> [CustomResourceDefinition; 3] {
    use kube::CustomResourceExt;
    [
        VolumeSnapshot::crd(),
        VolumeSnapshotContent::crd(),
        class_definition::<VolumeSnapshotClass>(["vsclass", "vsclasses"]),
    ]
    .map(|definition| approved(definition, "https://github.com/kubernetes-csi/external-snapshotter/pull/814"))
}

/// The name of the content that is made for a snapshot.
pub fn content_name(snapshot_uid: &str) -> String {
    format!("snapcontent-{snapshot_uid}")
}

/// The name under which a driver is asked for a snapshot: its idempotency key.
pub fn name_for(snapshot_uid: &str) -> String {
    format!("snapshot-{snapshot_uid}")
}

/// Whether a content belongs to a snapshot: it names it with its uid.
pub fn is_bound_to(content: &VolumeSnapshotContent, snapshot: &VolumeSnapshot) -> bool {
    names(content, snapshot) && content.spec.volume_snapshot_ref.uid == snapshot.metadata.uid
}

/// Whether a content belongs to a snapshot, or waits for one of its name.
pub fn is_meant_for(content: &VolumeSnapshotContent, snapshot: &VolumeSnapshot) -> bool {
    names(content, snapshot) && (!is_taken(content) || is_bound_to(content, snapshot))
}

fn names(content: &VolumeSnapshotContent, snapshot: &VolumeSnapshot) -> bool {
    let reference = &content.spec.volume_snapshot_ref;
    reference.name == snapshot.metadata.name && reference.namespace == snapshot.metadata.namespace
}

/// Whether a content's snapshot is known by its uid.
pub fn is_taken(content: &VolumeSnapshotContent) -> bool {
    content.spec.volume_snapshot_ref.uid.as_deref().is_some_and(|uid| !uid.is_empty())
}

/// The driver's id of a snapshot, once there is one.
pub fn handle(content: &VolumeSnapshotContent) -> Option<&str> {
    let told = content.status.as_ref().and_then(|status| status.snapshot_handle.as_deref());
    told.or(content.spec.source.snapshot_handle.as_deref())
}

/// Whether a content was made as one of a group: the driver is not asked for it alone.
pub fn is_in_group(content: &VolumeSnapshotContent) -> bool {
    content.annotations().contains_key(annotations::GROUP_HANDLE)
        || content.status.as_ref().is_some_and(|status| status.volume_group_snapshot_handle.is_some())
}

/// Whether volumes can be made from a snapshot, as its status says.
pub fn is_ready(snapshot: &VolumeSnapshot) -> bool {
    snapshot.status.as_ref().is_some_and(|status| status.ready_to_use == Some(true))
}

/// The content that a snapshot's status names.
pub fn bound_content(snapshot: &VolumeSnapshot) -> Option<&str> {
    snapshot.status.as_ref()?.bound_volume_snapshot_content_name.as_deref().filter(|name| !name.is_empty())
}

/// The secret for calls about a snapshot, from its content's annotations.
pub fn secret(content: &VolumeSnapshotContent) -> Option<SecretReference> {
    secret_in(
        content.annotations(),
        annotations::SNAPSHOT_SECRET_NAME,
        annotations::SNAPSHOT_SECRET_NAMESPACE,
    )
}

pub(crate) fn secret_in(
    marks: &BTreeMap<String, String>,
    name: &str,
    namespace: &str,
) -> Option<SecretReference> {
    let mark = |key: &str| marks.get(key).filter(|value| !value.is_empty()).cloned();
    Some(SecretReference { name: Some(mark(name)?), namespace: Some(mark(namespace)?) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_have_the_names_that_kubectl_users_know() {
        for (definition, name, scope, short, columns) in [
            (0, "volumesnapshots.snapshot.storage.k8s.io", "Namespaced", vec!["vs"], 8),
            (1, "volumesnapshotcontents.snapshot.storage.k8s.io", "Cluster", vec!["vsc", "vscs"], 8),
            (2, "volumesnapshotclasses.snapshot.storage.k8s.io", "Cluster", vec!["vsclass", "vsclasses"], 3),
        ]
        .map(|(at, name, scope, short, columns)| {
            (serde_json::to_value(&definitions()[at]).expect("JSON"), name, scope, short, columns)
        }) {
            assert_eq!(definition["metadata"]["name"], name);
            assert_eq!(definition["spec"]["scope"], scope);
            assert_eq!(definition["spec"]["names"]["shortNames"], serde_json::json!(short));
            let version = &definition["spec"]["versions"][0];
            assert_eq!(version["name"], "v1");
            assert_eq!(version["additionalPrinterColumns"].as_array().map(Vec::len), Some(columns));
        }
    }

    #[test]
    fn a_content_is_of_one_snapshot_and_not_of_the_next_one_of_its_name() {
        let snapshot = VolumeSnapshot {
            metadata: ObjectMeta {
                name: Some("s".to_owned()),
                namespace: Some("shop".to_owned()),
                uid: Some("7".to_owned()),
                ..ObjectMeta::default()
            },
            ..VolumeSnapshot::default()
        };
        for (name, uid, meant, bound) in [
            ("s", Some("7"), true, true),
            ("s", None, true, false),
            ("s", Some(""), true, false),
            ("s", Some("8"), false, false),
            ("t", Some("7"), false, false),
        ] {
            let content = VolumeSnapshotContent::new(
                "c",
                VolumeSnapshotContentSpec {
                    volume_snapshot_ref: ObjectReference {
                        name: Some(name.to_owned()),
                        namespace: Some("shop".to_owned()),
                        uid: uid.map(str::to_owned),
                        ..ObjectReference::default()
                    },
                    deletion_policy: DeletionPolicy::Delete,
                    driver: "orlop.dev".to_owned(),
                    volume_snapshot_class_name: None,
                    source: VolumeSnapshotContentSource::default(),
                    source_volume_mode: None,
                },
            );
            let found = (is_meant_for(&content, &snapshot), is_bound_to(&content, &snapshot));
            assert_eq!(found, (meant, bound), "{name} {uid:?}");
        }
    }
}
