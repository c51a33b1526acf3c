//! What a definition must be like.

use std::collections::HashSet;

use serde_json::Value;
use values::names;

use super::super::{
    fields::{default_field, items, text},
    groups,
    violations::Violations,
};
use crate::schema::{FieldError, Patterns, Schema};
use crate::table::json_path::JsonPath;

pub(super) fn default(definition: &mut Value, _: Option<&Value>) {
    let kind = text(&definition["spec"]["names"]["kind"]).to_owned();
    if !kind.is_empty() {
        default_field(definition, &["spec", "names", "singular"], kind.to_lowercase());
        default_field(definition, &["spec", "names", "listKind"], format!("{kind}List"));
    }
    default_field(definition, &["spec", "conversion", "strategy"], "None");
}

pub(super) fn check(definition: &Value, violations: &mut Violations) {
    let spec = &definition["spec"];
    check_names(definition, violations);
    if violations.require("spec.scope", &spec["scope"], "") {
        violations.one_of("spec.scope", &spec["scope"], &["Cluster", "Namespaced"]);
    }
    violations.one_of("spec.conversion.strategy", &spec["conversion"]["strategy"], &["None"]);
    let versions = items(&spec["versions"]);
    if !violations.require("spec.versions", &spec["versions"], "") {
        return;
    }
    let (mut patterns, mut seen) = (Patterns::default(), HashSet::new());
    let one_schema = versions.iter().all(|version| version["schema"] == versions[0]["schema"]);
    for (index, version) in versions.iter().enumerate() {
        if violations.are_many() {
            return;
        }
        let field = format!("spec.versions[{index}]");
        violations.require_named(&format!("{field}.name"), &version["name"], names::dns_label);
        if !seen.insert(text(&version["name"])) {
            violations.invalid("spec.versions", &version["name"], "must contain unique version names");
        }
        check_columns(&field, version, violations);
        if let Err(errors) = Schema::of_version(version, &mut patterns) {
            for mut error in errors {
                // The one schema of all versions is known by its old place.
                let below = error.field.strip_prefix("schema.").filter(|_| one_schema).map(str::to_owned);
                match below {
                    Some(below) => {
                        error.field = format!("spec.validation.{below}");
                        if index == 0 {
                            violations.add(error);
                        }
                    }
                    None => violations.add(error.below(&field)),
                }
            }
        }
    }
    if versions.iter().filter(|version| version["storage"] == true).count() != 1 {
        let detail = "must have exactly one version marked as storage version";
        violations.invalid("spec.versions", &spec["versions"], detail);
    }
}

fn check_names(definition: &Value, violations: &mut Violations) {
    let spec = &definition["spec"];
    let given = &spec["names"];
    violations.require_named("spec.group", &spec["group"], names::dns_subdomain);
    if !text(&spec["group"]).is_empty() && !text(&spec["group"]).contains('.') {
        violations.invalid("spec.group", &spec["group"], "should be a domain with at least one dot");
    }
    if groups::BUILTIN.contains(&text(&spec["group"])) {
        violations.forbid("spec.group", "is the group of built-in kinds");
    }
    violations.require_named("spec.names.plural", &given["plural"], names::dns_label);
    violations.named("spec.names.singular", &given["singular"], names::dns_label);
    violations
        .require_named("spec.names.kind", &given["kind"], |kind| names::dns_label(&kind.to_lowercase()));
    if !given["kind"].is_null() && given["kind"] == given["listKind"] {
        violations.invalid(
            "spec.names.listKind",
            &given["listKind"],
            "kind and listKind may not be the same",
        );
    }
    for field in ["shortNames", "categories"] {
        for (index, name) in items(&given[field]).iter().enumerate() {
            violations.named(&format!("spec.names.{field}[{index}]"), name, names::dns_label);
        }
    }
    const APPROVAL: &str = "api-approved.kubernetes.io";
    let group = text(&spec["group"]);
    if [".k8s.io", ".kubernetes.io"].iter().any(|end| format!(".{group}").ends_with(end))
        && text(&definition["metadata"]["annotations"][APPROVAL]).is_empty()
    {
        let detail = format!(
            "protected groups must have approval annotation {APPROVAL:?}, see https://github.com/kubernetes/enhancements/pull/1111"
        );
        violations.add(FieldError::required(format!("metadata.annotations[{APPROVAL}]"), &detail));
    }
    let expected = format!("{}.{}", text(&given["plural"]), text(&spec["group"]));
    let name = &definition["metadata"]["name"];
    if !name.is_null() && text(name) != expected {
        violations.invalid("metadata.name", name, "must be spec.names.plural+\".\"+spec.group");
    }
}

fn check_columns(field: &str, version: &Value, violations: &mut Violations) {
    for (index, column) in items(&version["additionalPrinterColumns"]).iter().enumerate() {
        let field = format!("{field}.additionalPrinterColumns[{index}]");
        violations.require(format!("{field}.name"), &column["name"], "");
        let path = format!("{field}.jsonPath");
        if violations.require(&path, &column["jsonPath"], "")
            && let Err(error) = JsonPath::parse(text(&column["jsonPath"]))
        {
            violations.invalid(path, &column["jsonPath"], &error.to_string());
        }
        let ty = format!("{field}.type");
        if violations.require(&ty, &column["type"], "") {
            violations.one_of(ty, &column["type"], &["boolean", "date", "integer", "number", "string"]);
        }
    }
}

/// Stored objects are keyed by group and plural, and placed by scope.
pub(super) fn check_change(new: &Value, old: &Value, violations: &mut Violations) {
    let (new, old) = (&new["spec"], &old["spec"]);
    for field in ["group", "scope"] {
        violations.immutable(format!("spec.{field}"), &new[field], &old[field]);
    }
    for field in ["kind", "plural"] {
        violations.immutable(format!("spec.names.{field}"), &new["names"][field], &old["names"][field]);
    }
}
