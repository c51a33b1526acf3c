//! Volume attachments.

use jiff::Timestamp;
use serde_json::Value;
use values::names;

use super::{
    fields::{default_field, same, text},
    groups,
    row::{Row, Rules},
    violations::Violations,
};
use crate::schema::TypeSchema;
use crate::table::age;
use crate::table::column::{AGE, Column, NAME, Printer, column, flag, name};

static SCHEMA: TypeSchema = TypeSchema::of::<k8s_openapi::api::storage::v1::VolumeAttachment>();

pub(crate) static KIND: Row = Row {
    group: groups::STORAGE,
    kind: "VolumeAttachment",
    plural: "volumeattachments",
    namespaced: false,
    status: true,
    schema: Some(&SCHEMA),
    rules: Rules { default, check, check_change, ..Rules::NONE },
    table: Printer { columns: COLUMNS, cells },
    shows_deleted: true,
    ..Row::PLAIN
};

fn default(attachment: &mut Value, _: Option<&Value>) {
    default_field(attachment, &["status", "attached"], false);
}

fn check(attachment: &Value, violations: &mut Violations) {
    let spec = &attachment["spec"];
    violations.driver_name("spec.attacher", &spec["attacher"]);
    violations.require_named("spec.nodeName", &spec["nodeName"], names::dns_subdomain);
    let source = &spec["source"];
    let (inline, name) = (&source["inlineVolumeSpec"], &source["persistentVolumeName"]);
    const ONE: &str = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
    match (inline.is_null(), name.is_null()) {
        (true, true) => _ = violations.require("spec.source", &Value::Null, ONE),
        (false, false) => violations.forbid("spec.source", ONE),
        (true, false) => {
            violations.require_named("spec.source.persistentVolumeName", name, names::dns_subdomain)
        }
        (false, true) => {}
    }
}

fn check_change(new: &Value, old: &Value, violations: &mut Violations) {
    if !same(&new["spec"], &old["spec"]) {
        violations.invalid("spec", &new["spec"], "field is immutable");
    }
}

const COLUMNS: &[Column] = &[
    NAME,
    column("Attacher", "string", "Driver that attaches the volume."),
    column("PV", "string", "Volume to attach."),
    column("Node", "string", "Node to attach it to."),
    column("Attached", "boolean", "Whether the volume is attached."),
    AGE,
];

fn cells(attachment: &Value, now: Timestamp) -> Vec<Value> {
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
