//! A pod's volumes.

use std::collections::{HashMap, HashSet};

use serde_json::Value;
use values::{Quantity, names};

use super::super::{
    fields::{items, text},
    metadata, persistent_volume_claim,
    violations::{Violations, quantity},
};
use crate::schema::FieldError;

pub(crate) const HOST_PATH_TYPES: &[&str] =
    &["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];

/// Checks the volumes; returns them by name.
pub(super) fn check<'a>(pod: &'a Value, violations: &mut Violations) -> HashMap<&'a str, &'a Value> {
    let mut by_name = HashMap::new();
    for (index, volume) in items(&pod["spec"]["volumes"]).iter().enumerate() {
        let field = format!("spec.volumes[{index}]");
        let name = format!("{field}.name");
        violations.require_named(&name, &volume["name"], names::dns_label);
        if by_name.insert(text(&volume["name"]), volume).is_some() {
            violations.add(FieldError::duplicate(name, volume["name"].clone()));
        }
        check_source(&field, text(&pod["metadata"]["name"]), &pod["spec"], volume, violations);
    }
    by_name
}

fn check_source(field: &str, pod: &str, spec: &Value, volume: &Value, violations: &mut Violations) {
    let mut sources = volume.as_object().into_iter().flatten().filter(|(name, _)| *name != "name");
    let Some((source, fields)) = sources.next() else {
        violations.add(FieldError::required(field, "must specify a volume type"));
        return;
    };
    for (other, _) in sources {
        violations.forbid(format!("{field}.{other}"), "may not specify more than 1 volume type");
    }
    let path = format!("{field}.{source}");
    match source.as_str() {
        "emptyDir" if quantity(&fields["sizeLimit"]).is_some_and(|size| size < Quantity::zero()) => {
            let detail = "SizeLimit field must be a valid resource quantity";
            violations.forbid(format!("{path}.sizeLimit"), detail);
        }
        "downwardAPI" => {
            check_mode(format!("{path}.defaultMode"), &fields["defaultMode"], violations);
            check_downward(&path, fields, violations);
        }
        "hostPath" => {
            violations.require(format!("{path}.path"), &fields["path"], "");
            violations.no_backsteps(format!("{path}.path"), &fields["path"]);
            violations.one_of(format!("{path}.type"), &fields["type"], HOST_PATH_TYPES);
        }
        "persistentVolumeClaim" => {
            violations.require(format!("{path}.claimName"), &fields["claimName"], "");
        }
        "configMap" => {
            violations.require(format!("{path}.name"), &fields["name"], "");
            check_files(&path, fields, violations);
        }
        "secret" => {
            violations.require(format!("{path}.secretName"), &fields["secretName"], "");
            check_files(&path, fields, violations);
        }
        "csi" => violations.driver_name(&format!("{path}.driver"), &fields["driver"]),
        "nfs" => {
            violations.require(format!("{path}.server"), &fields["server"], "");
            violations.require(format!("{path}.path"), &fields["path"], "");
        }
        "projected" => check_projected(&path, spec, fields, violations),
        "ephemeral" => check_ephemeral(field, pod, volume, violations),
        _ => {}
    }
}

/// Keys that become files below the volume.
fn check_files(path: &str, source: &Value, violations: &mut Violations) {
    check_mode(format!("{path}.defaultMode"), &source["defaultMode"], violations);
    for (index, item) in items(&source["items"]).iter().enumerate() {
        let path = format!("{path}.items[{index}]");
        violations.require(format!("{path}.key"), &item["key"], "");
        let field = format!("{path}.path");
        if violations.require(&field, &item["path"], "") {
            check_descending(&field, &item["path"], violations);
            if text(&item["path"]).starts_with("..") && !text(&item["path"]).starts_with("../") {
                violations.invalid(&field, &item["path"], "must not start with '..'");
            }
        }
        check_mode(format!("{path}.mode"), &item["mode"], violations);
    }
}

/// Fields of the pod that may become files.
fn check_downward(path: &str, source: &Value, violations: &mut Violations) {
    const FIELDS: &[&str] =
        &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
    for item in items(&source["items"]) {
        let named = &item["fieldRef"]["fieldPath"];
        let subscripted = ["metadata.annotations['", "metadata.labels['"]
            .iter()
            .any(|start| text(named).starts_with(start) && text(named).ends_with("']"));
        if !subscripted {
            violations.one_of(format!("{path}.fieldRef.fieldPath"), named, FIELDS);
        }
    }
}

fn check_projected(path: &str, spec: &Value, projected: &Value, violations: &mut Violations) {
    check_mode(format!("{path}.defaultMode"), &projected["defaultMode"], violations);
    let mut paths = HashSet::new();
    for (index, source) in items(&projected["sources"]).iter().enumerate() {
        let field = format!("{path}.sources[{index}]");
        check_downward(&format!("{field}.downwardAPI"), &source["downwardAPI"], violations);
        if source["serviceAccountToken"].is_object() && text(&spec["serviceAccountName"]).is_empty() {
            let detail = "must not be specified when serviceAccountName is not set";
            violations.forbid(format!("{field}.serviceAccountToken"), detail);
        }
        for (kind, named) in [("secret", "name"), ("configMap", "name"), ("downwardAPI", "")] {
            for item in items(&source[kind]["items"]) {
                let file = text(&item["path"]);
                if !file.is_empty() && !paths.insert(file) {
                    let of = &source[kind][named];
                    let value = if named.is_empty() { &item["path"] } else { of };
                    violations.invalid(path, value, "conflicting duplicate paths");
                }
            }
        }
        let token = text(&source["serviceAccountToken"]["path"]);
        if !token.is_empty() && !paths.insert(token) {
            violations.invalid(path, &source["serviceAccountToken"]["path"], "conflicting duplicate paths");
        }
    }
}

fn check_mode(field: String, mode: &Value, violations: &mut Violations) {
    if mode.as_i64().is_some_and(|mode| !(0..=0o777).contains(&mode)) {
        let detail = "must be a number between 0 and 0777 (octal), both inclusive";
        violations.invalid(field, mode, detail);
    }
}

/// A path that stays below where it starts.
pub(super) fn check_descending(field: &str, path: &Value, violations: &mut Violations) {
    if text(path).starts_with('/') {
        violations.invalid(field, path, "must be a relative path");
    }
    violations.no_backsteps(field, path);
}

fn check_ephemeral(volume_field: &str, pod: &str, volume: &Value, violations: &mut Violations) {
    let field = format!("{volume_field}.ephemeral.volumeClaimTemplate");
    let template = &volume["ephemeral"]["volumeClaimTemplate"];
    if template.is_null() {
        violations.add(FieldError::required(field, ""));
        return;
    }
    let given = &template["metadata"];
    metadata::check_labels(&format!("{field}.metadata.labels"), &given["labels"], violations);
    metadata::check_annotations(&format!("{field}.metadata.annotations"), &given["annotations"], violations);
    for name in given.as_object().into_iter().flatten().map(|(name, _)| name) {
        if !matches!(name.as_str(), "labels" | "annotations" | "creationTimestamp") {
            let detail = "is not allowed in a template: the claim is named for the pod and its volume";
            violations.forbid(format!("{field}.metadata.{name}"), detail);
        }
    }
    let mut inner = Violations::default();
    persistent_volume_claim::check_spec(&template["spec"], &mut inner);
    for error in inner.into_vec() {
        violations.add(error.below(&field));
    }
    let name = text(&volume["name"]);
    if !pod.is_empty() && !name.is_empty() {
        let claim = format!("{pod}-{name}");
        for message in names::dns_subdomain(&claim) {
            violations.invalid(
                format!("{volume_field}.name"),
                &volume["name"],
                &format!("PVC name {claim:?}: {message}"),
            );
        }
    }
}
