//! Leases.

use jiff::Timestamp;
use serde_json::Value;

use super::{
    fields::text,
    groups,
    row::{Row, Rules},
    violations::Violations,
};
use crate::schema::TypeSchema;
use crate::table::age;
use crate::table::column::{AGE, Column, NAME, Printer, column, name};

static SCHEMA: TypeSchema = TypeSchema::of::<k8s_openapi::api::coordination::v1::Lease>();

pub(crate) static KIND: Row = Row {
    group: groups::COORDINATION,
    kind: "Lease",
    plural: "leases",
    schema: Some(&SCHEMA),
    rules: Rules { check, ..Rules::NONE },
    table: Printer { columns: COLUMNS, cells },
    ..Row::PLAIN
};

fn check(lease: &Value, violations: &mut Violations) {
    let spec = &lease["spec"];
    if spec["leaseDurationSeconds"].as_i64().is_some_and(|seconds| seconds <= 0) {
        violations.invalid(
            "spec.leaseDurationSeconds",
            &spec["leaseDurationSeconds"],
            "must be greater than 0",
        );
    }
    violations.not_negative("spec.leaseTransitions", &spec["leaseTransitions"]);
}

const COLUMNS: &[Column] = &[NAME, column("Holder", "string", "Identity of the current holder."), AGE];

fn cells(lease: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(lease), text(&lease["spec"]["holderIdentity"]).into(), age::of(lease, now)]
}
