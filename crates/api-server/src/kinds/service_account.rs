//! Service accounts.

use jiff::Timestamp;
use serde_json::Value;

use super::{groups, row::Row};
use crate::protobuf::wire::{
    Encoding::{self, Boolean},
    METADATA, Message,
};
use crate::schema::TypeSchema;
use crate::table::age;
use crate::table::column::{AGE, Column, NAME, Printer, name};

static SCHEMA: TypeSchema = TypeSchema::of::<k8s_openapi::api::core::v1::ServiceAccount>();

pub(crate) static KIND: Row = Row {
    group: groups::CORE,
    kind: "ServiceAccount",
    plural: "serviceaccounts",
    short_names: &["sa"],
    schema: Some(&SCHEMA),
    table: Printer { columns: COLUMNS, cells },
    protobuf: Some(PROTOBUF),
    shows_deleted: true,
    ..Row::PLAIN
};

const COLUMNS: &[Column] = &[NAME, AGE];

fn cells(account: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(account), age::of(account, now)]
}

const PROTOBUF: Message =
    &[(1, "metadata", Encoding::Message(METADATA)), (4, "automountServiceAccountToken", Boolean)];
