//! Services: kept for the manifests that contain them. There is no network here that could serve one.

use std::collections::HashSet;

use serde_json::Value;
use values::names;

use super::{
    fields::{default_field, items, items_mut, text},
    metadata::NameRule,
    rules::Rules,
    violations::Violations,
};
use crate::schema::FieldError;

pub(super) const RULES: Rules = Rules { name: NameRule::Label, default, check, ..Rules::NONE };

/// What a client is told about every service.
pub(super) const NOT_SERVED: &str =
    "services are stored only: this server gives them no address, no endpoints and no DNS name";

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
