//! Nodes.

use jiff::Timestamp;
use serde_json::Value;
use values::names;

use super::{
    fields::{default_field, entries, items, text},
    groups,
    row::{Act, Field, Row, Rules, Subresource},
    violations::Violations,
};
use crate::schema::TypeSchema;
use crate::table::age;
use crate::table::column::{AGE, Column, NAME, Printer, column, wide};

static SCHEMA: TypeSchema = TypeSchema::of::<k8s_openapi::api::core::v1::Node>();

pub(crate) static KIND: Row = Row {
    group: groups::CORE,
    kind: "Node",
    plural: "nodes",
    short_names: &["no"],
    namespaced: false,
    status: true,
    schema: Some(&SCHEMA),
    rules: Rules { default, check, ..Rules::NONE },
    table: Printer { columns: COLUMNS, cells },
    fields: &[Field::flag("spec.unschedulable")],
    subresources: &[Subresource {
        name: "proxy",
        kind: Some("NodeProxyOptions"),
        group: None,
        verbs: &["get"],
        act: Act::Page,
    }],
    // A node agent registers a node with its status in one request.
    status_on_create: true,
    ..Row::PLAIN
};

fn default(node: &mut Value, _: Option<&Value>) {
    let capacity = node["status"]["capacity"].clone();
    if capacity.is_object() {
        default_field(node, &["status", "allocatable"], capacity);
    }
}

fn check(node: &Value, violations: &mut Violations) {
    for (index, taint) in items(&node["spec"]["taints"]).iter().enumerate() {
        let field = format!("spec.taints[{index}]");
        violations.require_named(&format!("{field}.key"), &taint["key"], names::qualified_name);
        violations.named(&format!("{field}.value"), &taint["value"], names::label_value);
        let effect = format!("{field}.effect");
        if violations.require(&effect, &taint["effect"], "") {
            violations.one_of(effect, &taint["effect"], &["NoExecute", "NoSchedule", "PreferNoSchedule"]);
        }
    }
}

const ROLE: &str = "node-role.kubernetes.io/";
const OLD_ROLE: &str = "kubernetes.io/role";

const COLUMNS: &[Column] = &[
    NAME,
    column("Status", "string", "Whether the node takes pods."),
    column("Roles", "string", "Roles that the node's labels give it."),
    AGE,
    column("Version", "string", "Version that the node agent reports."),
    wide("Internal-IP", "Address inside the cluster."),
    wide("External-IP", "Address outside the cluster."),
    wide("OS-Image", "Operating system."),
    wide("Kernel-Version", "Kernel and architecture."),
    wide("Container-Runtime", "Container runtime."),
];

fn cells(node: &Value, now: Timestamp) -> Vec<Value> {
    let info = &node["status"]["nodeInfo"];
    let known = |field: &str| match text(&info[field]) {
        "" => "<unknown>".to_owned(),
        value => value.to_owned(),
    };
    let kernel = match text(&info["architecture"]) {
        "" => known("kernelVersion"),
        architecture => format!("{} ({architecture})", known("kernelVersion")),
    };
    vec![
        node["metadata"]["name"].clone(),
        status(node).into(),
        roles(node).into(),
        age::of(node, now),
        text(&info["kubeletVersion"]).into(),
        address(node, "InternalIP").into(),
        address(node, "ExternalIP").into(),
        known("osImage").into(),
        kernel.into(),
        known("containerRuntimeVersion").into(),
    ]
}

fn status(node: &Value) -> String {
    let ready = items(&node["status"]["conditions"]).iter().find(|condition| condition["type"] == "Ready");
    let ready = match ready {
        Some(ready) if ready["status"] == "True" => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    };
    match node["spec"]["unschedulable"] == true {
        true => format!("{ready},SchedulingDisabled"),
        false => ready.to_owned(),
    }
}

fn roles(node: &Value) -> String {
    let mut roles: Vec<&str> = entries(&node["metadata"]["labels"])
        .filter_map(|(key, value)| match key.strip_prefix(ROLE) {
            Some(role) => Some(role),
            None if key == OLD_ROLE => Some(text(value)),
            None => None,
        })
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    roles.dedup();
    if roles.is_empty() { "<none>".to_owned() } else { roles.join(",") }
}

fn address<'a>(node: &'a Value, kind: &str) -> &'a str {
    let address = items(&node["status"]["addresses"]).iter().find(|address| address["type"] == kind);
    address.map_or("<none>", |address| text(&address["address"]))
}
