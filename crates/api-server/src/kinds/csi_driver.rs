//! CSI drivers.

use std::collections::HashSet;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    fields::{default_field, items, text},
    groups,
    row::{Row, Rules},
    violations::Violations,
};
use crate::schema::FieldError;
use crate::schema::TypeSchema;
use crate::table::age;
use crate::table::column::{AGE, Column, NAME, Printer, column, flag, name};

static SCHEMA: TypeSchema = TypeSchema::of::<k8s_openapi::api::storage::v1::CSIDriver>();

pub(crate) static KIND: Row = Row {
    group: groups::STORAGE,
    kind: "CSIDriver",
    plural: "csidrivers",
    namespaced: false,
    schema: Some(&SCHEMA),
    rules: Rules { default, check, check_change, ..Rules::NONE },
    table: Printer { columns: COLUMNS, cells },
    shows_deleted: true,
    ..Row::PLAIN
};

fn default(driver: &mut Value, _: Option<&Value>) {
    default_field(driver, &["spec", "attachRequired"], true);
    default_field(driver, &["spec", "podInfoOnMount"], false);
    default_field(driver, &["spec", "storageCapacity"], false);
    default_field(driver, &["spec", "fsGroupPolicy"], "ReadWriteOnceWithFSType");
    default_field(driver, &["spec", "requiresRepublish"], false);
    default_field(driver, &["spec", "seLinuxMount"], false);
    if items(&driver["spec"]["volumeLifecycleModes"]).is_empty() && driver["spec"].is_object() {
        driver["spec"]["volumeLifecycleModes"] = json!(["Persistent"]);
    }
}

fn check(driver: &Value, violations: &mut Violations) {
    let spec = &driver["spec"];
    violations.one_of(
        "spec.fsGroupPolicy",
        &spec["fsGroupPolicy"],
        &["File", "None", "ReadWriteOnceWithFSType"],
    );
    for mode in items(&spec["volumeLifecycleModes"]) {
        violations.one_of("spec.volumeLifecycleModes", mode, &["Persistent", "Ephemeral"]);
    }
    let period = &spec["nodeAllocatableUpdatePeriodSeconds"];
    if period.as_i64().is_some_and(|seconds| seconds < 10) {
        let detail = "must be greater than or equal to 10 seconds";
        violations.invalid("spec.nodeAllocatableUpdatePeriodSeconds", period, detail);
    }
    let mut audiences = HashSet::new();
    for (index, request) in items(&spec["tokenRequests"]).iter().enumerate() {
        let field = format!("spec.tokenRequests[{index}]");
        let audience = text(&request["audience"]);
        if !audiences.insert(audience) {
            violations.add(FieldError::duplicate(format!("{field}.audience"), audience));
        }
        if request["expirationSeconds"].as_i64().is_some_and(|seconds| seconds < 600) {
            let detail = "may not specify a duration less than 10 minutes";
            violations.invalid(format!("{field}.expirationSeconds"), &request["expirationSeconds"], detail);
        }
    }
}

fn check_change(new: &Value, old: &Value, violations: &mut Violations) {
    for (field, path) in
        [("attachRequired", "spec.attachedRequired"), ("volumeLifecycleModes", "spec.volumeLifecycleModes")]
    {
        violations.immutable(path, &new["spec"][field], &old["spec"][field]);
    }
}

const COLUMNS: &[Column] = &[
    NAME,
    column("AttachRequired", "boolean", "Whether volumes are attached before they are mounted."),
    column("PodInfoOnMount", "boolean", "Whether mounts are told about the pod."),
    column("StorageCapacity", "boolean", "Whether pods are scheduled by published capacity."),
    column("TokenRequests", "string", "Audiences of the tokens that the driver asks for."),
    column("RequiresRepublish", "boolean", "Whether volumes are published again from time to time."),
    column("Modes", "string", "Life cycles of volumes that the driver supports."),
    AGE,
];

fn cells(driver: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &driver["spec"];
    let joined = |list: &[Value], none: &str, of: fn(&Value) -> &str| match list {
        [] => none.to_owned(),
        list => list.iter().map(of).collect::<Vec<_>>().join(","),
    };
    vec![
        name(driver),
        flag(&spec["attachRequired"], true),
        flag(&spec["podInfoOnMount"], false),
        flag(&spec["storageCapacity"], false),
        joined(items(&spec["tokenRequests"]), "<unset>", |request| text(&request["audience"])).into(),
        flag(&spec["requiresRepublish"], false),
        joined(items(&spec["volumeLifecycleModes"]), "<none>", text).into(),
        age::of(driver, now),
    ]
}
