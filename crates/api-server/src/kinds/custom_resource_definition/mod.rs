//! Custom resource definitions.

mod establish;
mod rules;

use serde_json::Value;

use super::{
    fields::items,
    groups,
    row::{Hooks, Row, Rules},
};
use crate::object;
use crate::schema::{TypeSchema, has_unevaluated_rules};

/// Taken off by the definition's clean-up when its objects are gone.
pub(crate) const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";

static SCHEMA: TypeSchema = TypeSchema::of::<
    k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
>();

pub(crate) static KIND: Row = Row {
    group: groups::EXTENSIONS,
    kind: "CustomResourceDefinition",
    plural: "customresourcedefinitions",
    short_names: &["crd", "crds"],
    categories: &["api-extensions"],
    namespaced: false,
    status: true,
    schema: Some(&SCHEMA),
    rules: Rules {
        default: rules::default,
        check: rules::check,
        check_change: rules::check_change,
        warnings,
        ..Rules::NONE
    },
    hooks: Hooks {
        on_create: |definition, cluster| {
            object::add_finalizer(definition, CLEANUP);
            establish::establish(definition, cluster);
            Ok(())
        },
        on_update: |new, _, cluster| {
            establish::establish(new, cluster);
            Ok(())
        },
        stand_in: |definition| object::add_finalizer(definition, CLEANUP),
        ..Hooks::NONE
    },
    generations: true,
    defines: true,
    ..Row::PLAIN
};

fn warnings(definition: &Value) -> Vec<String> {
    items(&definition["spec"]["versions"])
        .iter()
        .filter(|version| has_unevaluated_rules(&version["schema"]["openAPIV3Schema"]))
        .map(|version| {
            format!(
                "version {}: x-kubernetes-validations (CEL rules) are stored but not evaluated by this server",
                version["name"]
            )
        })
        .collect()
}
