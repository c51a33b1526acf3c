//! The columns of each built-in kind, and the cells of those that are read off the object.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Column, Printer, age, claim, event, node, pod, workload};
use crate::kinds::fields::{entries, items, text};

pub(super) fn of(kind: &str) -> Printer {
    match kind {
        "ConfigMap" => Printer { columns: CONFIG_MAP, cells: config_map },
        "ControllerRevision" => {
            Printer { columns: workload::REVISION_COLUMNS, cells: workload::revision_cells }
        }
        "CSIDriver" => Printer { columns: CSI_DRIVER, cells: csi_driver },
        "CSINode" => Printer { columns: CSI_NODE, cells: csi_node },
        "CSIStorageCapacity" => Printer { columns: CAPACITY, cells: capacity },
        "Event" => Printer { columns: event::COLUMNS, cells: event::cells },
        "Lease" => Printer { columns: LEASE, cells: lease },
        "Namespace" => Printer { columns: NAMESPACE, cells: namespace },
        "Node" => Printer { columns: node::COLUMNS, cells: node::cells },
        "PersistentVolume" => Printer { columns: claim::VOLUME_COLUMNS, cells: claim::volume_cells },
        "PersistentVolumeClaim" => Printer { columns: claim::CLAIM_COLUMNS, cells: claim::claim_cells },
        "Pod" => Printer { columns: pod::COLUMNS, cells: pod::cells },
        "Secret" => Printer { columns: SECRET, cells: secret },
        "ServiceAccount" => Printer { columns: SERVICE_ACCOUNT, cells: service_account },
        "Service" => Printer { columns: workload::SERVICE_COLUMNS, cells: workload::service_cells },
        "StatefulSet" => Printer { columns: workload::SET_COLUMNS, cells: workload::set_cells },
        "StorageClass" => Printer { columns: STORAGE_CLASS, cells: storage_class },
        "VolumeAttachment" => Printer { columns: ATTACHMENT, cells: attachment },
        "VolumeAttributesClass" => Printer { columns: ATTRIBUTES_CLASS, cells: attributes_class },
        _ => Printer { columns: OTHER, cells: other },
    }
}

pub(super) const fn column(name: &'static str, ty: &'static str, description: &'static str) -> Column {
    Column { name, ty, description, wide: false }
}

pub(super) const fn wide(name: &'static str, description: &'static str) -> Column {
    Column { name, ty: "string", description, wide: true }
}

pub(super) const NAME: Column =
    column("Name", "string", "Name of the object, unique in its namespace and kind.");
pub(super) const AGE: Column = column("Age", "string", "Time since the object was created.");

const CONFIG_MAP: &[Column] = &[NAME, column("Data", "string", "Number of keys."), AGE];
const SECRET: &[Column] =
    &[NAME, column("Type", "string", "Use of the secret."), column("Data", "string", "Number of keys."), AGE];
const SERVICE_ACCOUNT: &[Column] = &[NAME, AGE];
const NAMESPACE: &[Column] = &[NAME, column("Status", "string", "Phase of the namespace."), AGE];
const LEASE: &[Column] = &[NAME, column("Holder", "string", "Identity of the current holder."), AGE];
const STORAGE_CLASS: &[Column] = &[
    NAME,
    column("Provisioner", "string", "Driver that provisions volumes of this class."),
    column("ReclaimPolicy", "string", "What happens to a volume after its claim is deleted."),
    column("VolumeBindingMode", "string", "When claims are bound and volumes provisioned."),
    column("AllowVolumeExpansion", "string", "Whether claims may grow."),
    AGE,
];
const ATTRIBUTES_CLASS: &[Column] =
    &[NAME, column("DriverName", "string", "Driver that knows the attributes."), AGE];
const CSI_DRIVER: &[Column] = &[
    NAME,
    column("AttachRequired", "boolean", "Whether volumes are attached before they are mounted."),
    column("PodInfoOnMount", "boolean", "Whether mounts are told about the pod."),
    column("StorageCapacity", "boolean", "Whether pods are scheduled by published capacity."),
    column("TokenRequests", "string", "Audiences of the tokens that the driver asks for."),
    column("RequiresRepublish", "boolean", "Whether volumes are published again from time to time."),
    column("Modes", "string", "Life cycles of volumes that the driver supports."),
    AGE,
];
const CSI_NODE: &[Column] =
    &[NAME, column("Drivers", "integer", "Number of drivers registered on the node."), AGE];
const CAPACITY: &[Column] = &[
    NAME,
    column("StorageClassName", "string", "Storage class that the capacity is for."),
    column("Capacity", "string", "Space that the driver reports for the topology segment."),
];
const ATTACHMENT: &[Column] = &[
    NAME,
    column("Attacher", "string", "Driver that attaches the volume."),
    column("PV", "string", "Volume to attach."),
    column("Node", "string", "Node to attach it to."),
    column("Attached", "boolean", "Whether the volume is attached."),
    AGE,
];
const OTHER: &[Column] = &[NAME, column("Created At", "date", "Time at which the object was created.")];

fn name(object: &Value) -> Value {
    text(&object["metadata"]["name"]).into()
}

fn config_map(map: &Value, now: Timestamp) -> Vec<Value> {
    let keys = entries(&map["data"]).count() + entries(&map["binaryData"]).count();
    vec![name(map), keys.into(), age::of(map, now)]
}

fn secret(secret: &Value, now: Timestamp) -> Vec<Value> {
    let keys = entries(&secret["data"]).count();
    vec![name(secret), text(&secret["type"]).into(), keys.into(), age::of(secret, now)]
}

fn service_account(account: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(account), age::of(account, now)]
}

fn namespace(namespace: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(namespace), text(&namespace["status"]["phase"]).into(), age::of(namespace, now)]
}

fn lease(lease: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(lease), text(&lease["spec"]["holderIdentity"]).into(), age::of(lease, now)]
}

fn storage_class(class: &Value, now: Timestamp) -> Vec<Value> {
    let annotations = &class["metadata"]["annotations"];
    let is_default =
        ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"]
            .iter()
            .any(|name| annotations[*name] == "true");
    let name = text(&class["metadata"]["name"]);
    let name = if is_default { format!("{name} (default)") } else { name.to_owned() };
    vec![
        name.into(),
        text(&class["provisioner"]).into(),
        class["reclaimPolicy"].as_str().unwrap_or("Delete").into(),
        class["volumeBindingMode"].as_str().unwrap_or("Immediate").into(),
        flag(&class["allowVolumeExpansion"], false),
        age::of(class, now),
    ]
}

fn attributes_class(class: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(class), text(&class["driverName"]).into(), age::of(class, now)]
}

fn csi_driver(driver: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &driver["spec"];
    let joined = |list: &[Value], none: &str, of: fn(&Value) -> &str| match list {
        [] => none.to_owned(),
        list => list.iter().map(of).collect::<Vec<_>>().join(","),
    };
    vec![
        name(driver),
        flag(&spec["attachRequired"], true),
        flag(&spec["podInfoOnMount"], false),
        flag(&spec["storageCapacity"], false),
        joined(items(&spec["tokenRequests"]), "<unset>", |request| text(&request["audience"])).into(),
        flag(&spec["requiresRepublish"], false),
        joined(items(&spec["volumeLifecycleModes"]), "<none>", text).into(),
        age::of(driver, now),
    ]
}

fn csi_node(node: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(node), items(&node["spec"]["drivers"]).len().into(), age::of(node, now)]
}

fn capacity(capacity: &Value, _: Timestamp) -> Vec<Value> {
    let space = capacity["capacity"].as_str().unwrap_or("<unset>");
    vec![name(capacity), text(&capacity["storageClassName"]).into(), space.into()]
}

fn attachment(attachment: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &attachment["spec"];
    vec![
        name(attachment),
        text(&spec["attacher"]).into(),
        text(&spec["source"]["persistentVolumeName"]).into(),
        text(&spec["nodeName"]).into(),
        flag(&attachment["status"]["attached"], false),
        age::of(attachment, now),
    ]
}

fn other(object: &Value, _: Timestamp) -> Vec<Value> {
    vec![name(object), object["metadata"]["creationTimestamp"].clone()]
}

fn flag(value: &Value, default: bool) -> Value {
    json!(value.as_bool().unwrap_or(default))
}
