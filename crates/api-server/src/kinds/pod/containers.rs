//! A pod's containers and what they mount.

use std::collections::{HashMap, HashSet};

use serde_json::Value;
use values::names;

use super::{
    super::{
        fields::{entries, items, text},
        violations::{Violations, quantity},
    },
    probes, security,
    volumes::check_descending,
};
use crate::schema::FieldError;

type Volumes<'a> = HashMap<&'a str, &'a Value>;

pub(super) fn check(spec: &Value, volumes: &Volumes<'_>, violations: &mut Violations) {
    violations.require("spec.containers", &spec["containers"], "");
    let mut seen = HashSet::new();
    for list in ["containers", "initContainers"] {
        for (index, container) in items(&spec[list]).iter().enumerate() {
            let field = format!("spec.{list}[{index}]");
            if !seen.insert(text(&container["name"])) && !text(&container["name"]).is_empty() {
                violations.add(FieldError::duplicate(format!("{field}.name"), container["name"].clone()));
            }
            check_container(spec["hostNetwork"] == true, &field, container, volumes, violations);
            if list == "initContainers" && container["restartPolicy"] != "Always" {
                for name in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
                    if !container[name].is_null() {
                        let detail = "may not be set for init containers without restartPolicy=Always";
                        violations.forbid(format!("{field}.{name}"), detail);
                    }
                }
            }
        }
    }
}

fn check_container(
    host_network: bool,
    field: &str,
    container: &Value,
    volumes: &Volumes<'_>,
    violations: &mut Violations,
) {
    violations.require_named(&format!("{field}.name"), &container["name"], names::dns_label);
    if violations.require(format!("{field}.image"), &container["image"], "")
        && text(&container["image"]).trim() != text(&container["image"])
    {
        let detail = "must not have leading or trailing whitespace";
        violations.invalid(format!("{field}.image"), &container["image"], detail);
    }
    violations.one_of(
        format!("{field}.terminationMessagePolicy"),
        &container["terminationMessagePolicy"],
        &["File", "FallbackToLogsOnError"],
    );
    let policies = &["Always", "IfNotPresent", "Never"];
    violations.one_of(format!("{field}.imagePullPolicy"), &container["imagePullPolicy"], policies);
    check_env(field, container, violations);
    check_ports(host_network, field, container, violations);
    check_mounts(field, container, volumes, violations);
    check_devices(field, container, volumes, violations);
    check_resources(&format!("{field}.resources"), &container["resources"], violations);
    probes::check(field, container, violations);
    security::check_container(field, container, violations);
}

fn check_env(field: &str, container: &Value, violations: &mut Violations) {
    for (index, variable) in items(&container["env"]).iter().enumerate() {
        let field = format!("{field}.env[{index}]");
        let name = format!("{field}.name");
        if violations.require(&name, &variable["name"], "") && text(&variable["name"]).contains('=') {
            let detail = "a valid environment variable name must consist only of printable ASCII characters other than \
                          '='";
            violations.invalid(&name, &variable["name"], detail);
        }
        if !variable["valueFrom"].is_null() && !text(&variable["value"]).is_empty() {
            let detail = "may not be specified when `value` is not empty";
            violations.invalid(format!("{field}.valueFrom"), &Value::from(""), detail);
        }
    }
}

fn check_ports(host_network: bool, field: &str, container: &Value, violations: &mut Violations) {
    for (index, port) in items(&container["ports"]).iter().enumerate() {
        let field = format!("{field}.ports[{index}]");
        for (name, required) in [("containerPort", true), ("hostPort", false)] {
            match port[name].as_i64() {
                None | Some(0) if required => {
                    violations.add(FieldError::required(format!("{field}.{name}"), ""));
                }
                Some(number) if number != 0 && !(1..=65535).contains(&number) => {
                    violations.invalid(
                        format!("{field}.{name}"),
                        &port[name],
                        "must be between 1 and 65535, inclusive",
                    );
                }
                _ => {}
            }
        }
        violations.one_of(format!("{field}.protocol"), &port["protocol"], &["SCTP", "TCP", "UDP"]);
        if !text(&port["name"]).is_empty() {
            probes::check_port_name(&format!("{field}.name"), &port["name"], violations);
        }
        let (own, host) = (port["containerPort"].as_i64(), port["hostPort"].as_i64().unwrap_or(0));
        if host_network && host != 0 && own != Some(host) {
            let detail = "must match `containerPort` when `hostNetwork` is true";
            violations.invalid(format!("{field}.hostPort"), &port["hostPort"], detail);
        }
    }
}

/// The texts of one field of all items.
fn texts<'a>(list: &'a Value, field: &str) -> HashSet<&'a str> {
    items(list).iter().map(|item| text(&item[field])).collect()
}

fn check_mounts(field: &str, container: &Value, volumes: &Volumes<'_>, violations: &mut Violations) {
    let devices = texts(&container["volumeDevices"], "name");
    let device_paths = texts(&container["volumeDevices"], "devicePath");
    let mut paths = HashSet::new();
    // Kubernetes names some of these without the mount's number.
    let unnumbered = format!("{field}.volumeMounts");
    for (index, mount) in items(&container["volumeMounts"]).iter().enumerate() {
        let field = format!("{field}.volumeMounts[{index}]");
        violations.require(format!("{field}.name"), &mount["name"], "");
        if !volumes.contains_key(text(&mount["name"])) {
            violations.add(FieldError::not_found(format!("{field}.name"), mount["name"].clone()));
        }
        violations.require(format!("{field}.mountPath"), &mount["mountPath"], "");
        if text(&mount["mountPath"]).contains(':') {
            violations.invalid(format!("{field}.mountPath"), &mount["mountPath"], "must not contain ':'");
        }
        if !paths.insert(text(&mount["mountPath"])) {
            violations.invalid(format!("{field}.mountPath"), &mount["mountPath"], "must be unique");
        }
        if devices.contains(text(&mount["name"])) {
            let detail = "must not already exist in volumeDevices";
            violations.invalid(format!("{field}.name"), &mount["name"], detail);
        }
        if device_paths.contains(text(&mount["mountPath"])) {
            let detail = "must not already exist as a path in volumeDevices";
            violations.invalid(format!("{field}.mountPath"), &mount["mountPath"], detail);
        }
        for name in ["subPath", "subPathExpr"] {
            check_descending(&format!("{unnumbered}.{name}"), &mount[name], violations);
        }
        if !text(&mount["subPath"]).is_empty() && !text(&mount["subPathExpr"]).is_empty() {
            let detail = "subPathExpr and subPath are mutually exclusive";
            violations.invalid(format!("{field}.subPathExpr"), &mount["subPathExpr"], detail);
        }
        if mount["mountPropagation"] == "Bidirectional" && container["securityContext"]["privileged"] != true
        {
            let detail = "Bidirectional mount propagation is available only to privileged containers";
            violations.forbid(format!("{unnumbered}.mountPropagation"), detail);
        }
        let propagation = format!("{field}.mountPropagation");
        violations.one_of(
            propagation,
            &mount["mountPropagation"],
            &["Bidirectional", "HostToContainer", "None"],
        );
        check_recursive_read_only(&unnumbered, mount, violations);
    }
}

fn check_recursive_read_only(field: &str, mount: &Value, violations: &mut Violations) {
    let field = format!("{field}.recursiveReadOnly");
    match text(&mount["recursiveReadOnly"]) {
        "" | "Disabled" => {}
        "Enabled" | "IfPossible" => {
            if mount["readOnly"] != true {
                violations.forbid(&*field, "may only be specified when readOnly is true");
            }
            if !matches!(text(&mount["mountPropagation"]), "" | "None") {
                violations
                    .forbid(field, "may only be specified when mountPropagation is None or not specified");
            }
        }
        _ => {
            let supported = &["Disabled", "Enabled", "IfPossible"];
            violations.one_of(field, &mount["recursiveReadOnly"], supported);
        }
    }
}

fn check_devices(field: &str, container: &Value, volumes: &Volumes<'_>, violations: &mut Violations) {
    let (mut paths, mut seen) = (HashSet::new(), HashSet::new());
    let mounts = texts(&container["volumeMounts"], "name");
    let mount_paths = texts(&container["volumeMounts"], "mountPath");
    for (index, device) in items(&container["volumeDevices"]).iter().enumerate() {
        let field = format!("{field}.volumeDevices[{index}]");
        violations.require(format!("{field}.name"), &device["name"], "");
        if !seen.insert(text(&device["name"])) {
            violations.invalid(format!("{field}.name"), &device["name"], "must be unique");
        }
        match volumes.get(text(&device["name"])) {
            None => violations.add(FieldError::not_found(format!("{field}.name"), device["name"].clone())),
            Some(volume) if volume["persistentVolumeClaim"].is_null() && volume["ephemeral"].is_null() => {
                let detail =
                    "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                violations.invalid(format!("{field}.name"), &device["name"], detail);
            }
            Some(_) => {}
        }
        violations.require(format!("{field}.devicePath"), &device["devicePath"], "");
        if !paths.insert(text(&device["devicePath"])) {
            violations.invalid(format!("{field}.devicePath"), &device["devicePath"], "must be unique");
        }
        violations.no_backsteps(format!("{field}.devicePath"), &device["devicePath"]);
        if mounts.contains(text(&device["name"])) {
            let detail = "must not already exist in volumeMounts";
            violations.invalid(format!("{field}.name"), &device["name"], detail);
        }
        if mount_paths.contains(text(&device["devicePath"])) {
            let detail = "must not already exist as a path in volumeMounts";
            violations.invalid(format!("{field}.devicePath"), &device["devicePath"], detail);
        }
    }
}

/// What containers may ask for: the node's own resources, and whole devices of someone's domain.
fn check_resource_name(field: &str, name: &str, value: &Value, violations: &mut Violations) {
    const OWN: &[&str] = &["cpu", "memory", "ephemeral-storage"];
    if OWN.contains(&name) || name.starts_with("hugepages-") {
        return;
    }
    let given = Value::from(name);
    if !name.contains('/') {
        violations.invalid(field, &given, "must be a standard resource type or fully qualified");
        violations.invalid(field, &given, "must be a standard resource for containers");
    } else if quantity(value).and_then(|quantity| quantity.milli()).is_some_and(|milli| milli % 1000 != 0) {
        violations.invalid(field, value, "must be an integer");
    }
}

fn check_resources(field: &str, resources: &Value, violations: &mut Violations) {
    for list in ["limits", "requests"] {
        for (name, value) in entries(&resources[list]) {
            violations.not_negative(format!("{field}.{list}[{name}]"), value);
            check_resource_name(&format!("{field}.{list}[{name}]"), name, value, violations);
        }
    }
    for (name, request) in entries(&resources["requests"]) {
        let limit = &resources["limits"][name];
        if let (Some(requested), Some(limited)) = (quantity(request), quantity(limit))
            && requested > limited
        {
            let detail = format!("must be less than or equal to {name} limit of {}", text(limit));
            violations.invalid(format!("{field}.requests"), request, &detail);
        }
    }
}
