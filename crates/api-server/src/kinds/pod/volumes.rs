//! A pod's volumes.

use std::collections::HashMap;

use serde_json::Value;
use values::names;

use super::super::{
    fields::{items, text},
    persistent_volume_claim,
    violations::Violations,
};
use crate::schema::FieldError;

const HOST_PATH_TYPES: &[&str] =
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
        check_source(&field, text(&pod["metadata"]["name"]), volume, violations);
    }
    by_name
}

fn check_source(field: &str, pod: &str, volume: &Value, violations: &mut Violations) {
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
        "emptyDir" => violations.not_negative(format!("{path}.sizeLimit"), &fields["sizeLimit"]),
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
        "projected" => check_mode(format!("{path}.defaultMode"), &fields["defaultMode"], violations),
        "ephemeral" => check_ephemeral(&path, pod, volume, violations),
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

fn check_ephemeral(path: &str, pod: &str, volume: &Value, violations: &mut Violations) {
    let field = format!("{path}.volumeClaimTemplate");
    let template = &volume["ephemeral"]["volumeClaimTemplate"];
    if template.is_null() {
        violations.add(FieldError::required(field, ""));
        return;
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
                format!("{path}.name"),
                &volume["name"],
                &format!("PVC name {claim:?}: {message}"),
            );
        }
    }
}
