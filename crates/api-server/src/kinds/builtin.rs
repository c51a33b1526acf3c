//! The rows of the built-in kinds.

use std::borrow::Cow;

use super::{Kind, Text};

use Scope::{Cluster, Namespaced};
use Status::{Separate, Whole};

enum Scope {
    Cluster,
    Namespaced,
}

/// Whether status is written through its own subresource.
enum Status {
    Separate,
    Whole,
}

const CORE: &str = "";
const APPS: &str = "apps";
const STORAGE: &str = "storage.k8s.io";

/// Every built-in kind, by group, then as discovery lists them.
pub static BUILTIN: &[Kind] = &[
    row(
        CORE,
        ["ConfigMap", "ConfigMapList", "configmaps", "configmap"],
        &[Cow::Borrowed("cm")],
        &[],
        Namespaced,
        Whole,
    ),
    row(CORE, ["Event", "EventList", "events", "event"], &[Cow::Borrowed("ev")], &[], Namespaced, Whole),
    row(
        CORE,
        ["Namespace", "NamespaceList", "namespaces", "namespace"],
        &[Cow::Borrowed("ns")],
        &[],
        Cluster,
        Separate,
    ),
    row(CORE, ["Node", "NodeList", "nodes", "node"], &[Cow::Borrowed("no")], &[], Cluster, Separate),
    row(
        CORE,
        [
            "PersistentVolumeClaim",
            "PersistentVolumeClaimList",
            "persistentvolumeclaims",
            "persistentvolumeclaim",
        ],
        &[Cow::Borrowed("pvc")],
        &[],
        Namespaced,
        Separate,
    ),
    row(
        CORE,
        ["PersistentVolume", "PersistentVolumeList", "persistentvolumes", "persistentvolume"],
        &[Cow::Borrowed("pv")],
        &[],
        Cluster,
        Separate,
    ),
    row(
        CORE,
        ["Pod", "PodList", "pods", "pod"],
        &[Cow::Borrowed("po")],
        &[Cow::Borrowed("all")],
        Namespaced,
        Separate,
    ),
    row(CORE, ["Secret", "SecretList", "secrets", "secret"], &[], &[], Namespaced, Whole),
    row(
        CORE,
        ["ServiceAccount", "ServiceAccountList", "serviceaccounts", "serviceaccount"],
        &[Cow::Borrowed("sa")],
        &[],
        Namespaced,
        Whole,
    ),
    row(
        CORE,
        ["Service", "ServiceList", "services", "service"],
        &[Cow::Borrowed("svc")],
        &[Cow::Borrowed("all")],
        Namespaced,
        Separate,
    ),
    row(
        "apiextensions.k8s.io",
        [
            "CustomResourceDefinition",
            "CustomResourceDefinitionList",
            "customresourcedefinitions",
            "customresourcedefinition",
        ],
        &[Cow::Borrowed("crd"), Cow::Borrowed("crds")],
        &[Cow::Borrowed("api-extensions")],
        Cluster,
        Separate,
    ),
    row(
        APPS,
        ["ControllerRevision", "ControllerRevisionList", "controllerrevisions", "controllerrevision"],
        &[],
        &[],
        Namespaced,
        Whole,
    ),
    row(
        APPS,
        ["StatefulSet", "StatefulSetList", "statefulsets", "statefulset"],
        &[Cow::Borrowed("sts")],
        &[Cow::Borrowed("all")],
        Namespaced,
        Separate,
    ),
    row("coordination.k8s.io", ["Lease", "LeaseList", "leases", "lease"], &[], &[], Namespaced, Whole),
    row(STORAGE, ["CSIDriver", "CSIDriverList", "csidrivers", "csidriver"], &[], &[], Cluster, Whole),
    row(STORAGE, ["CSINode", "CSINodeList", "csinodes", "csinode"], &[], &[], Cluster, Whole),
    row(
        STORAGE,
        ["CSIStorageCapacity", "CSIStorageCapacityList", "csistoragecapacities", "csistoragecapacity"],
        &[],
        &[],
        Namespaced,
        Whole,
    ),
    row(
        STORAGE,
        ["StorageClass", "StorageClassList", "storageclasses", "storageclass"],
        &[Cow::Borrowed("sc")],
        &[],
        Cluster,
        Whole,
    ),
    row(
        STORAGE,
        ["VolumeAttachment", "VolumeAttachmentList", "volumeattachments", "volumeattachment"],
        &[],
        &[],
        Cluster,
        Separate,
    ),
    row(
        STORAGE,
        [
            "VolumeAttributesClass",
            "VolumeAttributesClassList",
            "volumeattributesclasses",
            "volumeattributesclass",
        ],
        &[Cow::Borrowed("vac")],
        &[],
        Cluster,
        Whole,
    ),
];

const fn row(
    group: &'static str,
    names: [&'static str; 4],
    short_names: &'static [Text],
    categories: &'static [Text],
    scope: Scope,
    status: Status,
) -> Kind {
    let [kind, list_kind, plural, singular] = names;
    Kind {
        group: Cow::Borrowed(group),
        version: Cow::Borrowed("v1"),
        kind: Cow::Borrowed(kind),
        list_kind: Cow::Borrowed(list_kind),
        plural: Cow::Borrowed(plural),
        singular: Cow::Borrowed(singular),
        short_names: Cow::Borrowed(short_names),
        categories: Cow::Borrowed(categories),
        namespaced: matches!(scope, Namespaced),
        status: matches!(status, Separate),
    }
}
