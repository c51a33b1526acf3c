//! Stateful sets, their revisions, and services.

use jiff::Timestamp;
use serde_json::Value;

use super::{
    Column, age,
    columns::{AGE, NAME, column, wide},
};
use crate::kinds::fields::{entries, items, text};

const NONE: &str = "<none>";

pub(super) const SET_COLUMNS: &[Column] = &[
    NAME,
    column("Ready", "string", "Pods that are ready, of those asked for."),
    AGE,
    wide("Containers", "Names of the containers in the template."),
    wide("Images", "Images of the containers in the template."),
];

pub(super) const REVISION_COLUMNS: &[Column] = &[
    NAME,
    column("Controller", "string", "Object whose history this is part of."),
    column("Revision", "integer", "Place in that history."),
    AGE,
];

pub(super) const SERVICE_COLUMNS: &[Column] = &[
    NAME,
    column("Type", "string", "How the service would be reached."),
    column("Cluster-IP", "string", "Address inside the cluster."),
    column("External-IP", "string", "Address outside the cluster."),
    column("Port(s)", "string", "Ports of the service."),
    AGE,
    wide("Selector", "Labels of the pods behind the service."),
];

pub(super) fn set_cells(set: &Value, now: Timestamp) -> Vec<Value> {
    let containers = items(&set["spec"]["template"]["spec"]["containers"]);
    let joined = |field: &str| {
        containers.iter().map(|container| text(&container[field])).collect::<Vec<_>>().join(",")
    };
    let count = |value: &Value| value.as_i64().unwrap_or(0);
    vec![
        set["metadata"]["name"].clone(),
        format!("{}/{}", count(&set["status"]["readyReplicas"]), count(&set["spec"]["replicas"])).into(),
        age::of(set, now),
        joined("name").into(),
        joined("image").into(),
    ]
}

pub(super) fn revision_cells(revision: &Value, now: Timestamp) -> Vec<Value> {
    let owners = items(&revision["metadata"]["ownerReferences"]);
    let controller = owners.iter().find(|owner| owner["controller"] == true).map_or_else(
        || NONE.to_owned(),
        |owner| {
            let kind = text(&owner["kind"]).to_lowercase();
            let group = text(&owner["apiVersion"]).split_once('/').map(|(group, _)| format!(".{group}"));
            format!("{kind}{}/{}", group.unwrap_or_default(), text(&owner["name"]))
        },
    );
    let number = revision["revision"].as_i64().unwrap_or(0);
    vec![revision["metadata"]["name"].clone(), controller.into(), number.into(), age::of(revision, now)]
}

pub(super) fn service_cells(service: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &service["spec"];
    let or_none = |text: String| if text.is_empty() { NONE.to_owned() } else { text };
    let ports = items(&spec["ports"]).iter().map(|port| {
        let node = port["nodePort"].as_i64().filter(|number| *number > 0);
        let node = node.map(|number| format!(":{number}")).unwrap_or_default();
        format!("{}{node}/{}", port["port"], text(&port["protocol"]))
    });
    let external = match text(&spec["type"]) {
        "ExternalName" => text(&spec["externalName"]).to_owned(),
        "LoadBalancer" => "<pending>".to_owned(),
        _ => items(&spec["externalIPs"]).iter().map(text).collect::<Vec<_>>().join(","),
    };
    let selector = entries(&spec["selector"]).map(|(key, value)| format!("{key}={}", text(value)));
    vec![
        service["metadata"]["name"].clone(),
        text(&spec["type"]).into(),
        or_none(text(&spec["clusterIP"]).to_owned()).into(),
        or_none(external).into(),
        or_none(ports.collect::<Vec<_>>().join(",")).into(),
        age::of(service, now),
        or_none(selector.collect::<Vec<_>>().join(",")).into(),
    ]
}
