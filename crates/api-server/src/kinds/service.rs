//! Services: kept for the manifests that contain them. There is no network here that could serve one.

use std::collections::HashSet;

use jiff::Timestamp;
use serde_json::Value;
use values::names;

use super::{
    fields::{default_field, entries, items, items_mut, text},
    groups,
    metadata::NameRule,
    row::{Field, Row, Rules},
    violations::Violations,
};
use crate::schema::FieldError;
use crate::schema::TypeSchema;
use crate::table::age;
use crate::table::column::{AGE, Column, NAME, Printer, column, wide};

static SCHEMA: TypeSchema = TypeSchema::of::<k8s_openapi::api::core::v1::Service>();

pub(crate) static KIND: Row = Row {
    group: groups::CORE,
    kind: "Service",
    plural: "services",
    short_names: &["svc"],
    categories: &["all"],
    status: true,
    schema: Some(&SCHEMA),
    rules: Rules {
        name: NameRule::Label,
        default,
        check,
        warnings: |_| vec![NOT_SERVED.to_owned()],
        ..Rules::NONE
    },
    table: Printer { columns: COLUMNS, cells },
    fields: &[Field::at("spec.clusterIP"), Field::at("spec.type")],
    ..Row::PLAIN
};

/// What a client is told about every service.
const NOT_SERVED: &str =
    "services are stored only: this server gives them no address, no endpoints and no DNS name";

const NONE: &str = "<none>";
const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];

fn default(service: &mut Value, _: Option<&Value>) {
    let Some(spec) = service.get_mut("spec").filter(|spec| spec.is_object()) else { return };
    default_field(spec, &["sessionAffinity"], "None");
    default_field(spec, &["type"], "ClusterIP");
    let headless = Some(spec["clusterIP"].clone()).filter(|address| address == "None");
    if let Some(address) = headless {
        default_field(spec, &["clusterIPs"], vec![address]);
    }
    if let Some(ports) = spec.get_mut("ports") {
        for port in items_mut(ports) {
            default_field(port, &["protocol"], "TCP");
            let number = port["port"].clone();
            if !number.is_null() {
                default_field(port, &["targetPort"], number);
            }
        }
    }
    default_field(service, &["status", "loadBalancer"], serde_json::Map::new());
}

fn check(service: &Value, violations: &mut Violations) {
    let spec = &service["spec"];
    violations.one_of("spec.type", &spec["type"], TYPES);
    violations.one_of("spec.sessionAffinity", &spec["sessionAffinity"], &["ClientIP", "None"]);
    super::metadata::check_labels("spec.selector", &spec["selector"], violations);
    if spec["type"] == "ExternalName" {
        violations.require_named("spec.externalName", &spec["externalName"], names::dns_subdomain);
    } else if spec["clusterIP"] != "None" {
        violations.require("spec.ports", &spec["ports"], "");
    }
    check_ports(items(&spec["ports"]), violations);
}

fn check_ports(ports: &[Value], violations: &mut Violations) {
    let mut named = HashSet::new();
    for (index, port) in ports.iter().enumerate() {
        let field = format!("spec.ports[{index}]");
        let name = text(&port["name"]);
        if name.is_empty() && ports.len() > 1 {
            violations.add(FieldError::required(format!("{field}.name"), ""));
        } else if !name.is_empty() && !named.insert(name) {
            violations.add(FieldError::duplicate(format!("{field}.name"), port["name"].clone()));
        }
        if !name.is_empty() {
            violations.named(&format!("{field}.name"), &port["name"], names::dns_label);
        }
        for number in ["port", "targetPort"] {
            let value = &port[number];
            if value.is_number() && !value.as_i64().is_some_and(|number| (1..=65535).contains(&number)) {
                violations.invalid(
                    format!("{field}.{number}"),
                    value,
                    "must be between 1 and 65535, inclusive",
                );
            }
        }
        violations.require(format!("{field}.port"), &port["port"], "");
        violations.one_of(format!("{field}.protocol"), &port["protocol"], &["SCTP", "TCP", "UDP"]);
    }
}

const COLUMNS: &[Column] = &[
    NAME,
    column("Type", "string", "How the service would be reached."),
    column("Cluster-IP", "string", "Address inside the cluster."),
    column("External-IP", "string", "Address outside the cluster."),
    column("Port(s)", "string", "Ports of the service."),
    AGE,
    wide("Selector", "Labels of the pods behind the service."),
];

fn cells(service: &Value, now: Timestamp) -> Vec<Value> {
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
