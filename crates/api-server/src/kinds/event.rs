//! Events.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    fields::text,
    groups,
    row::{Field, Row, Rules},
    violations::Violations,
};
use crate::schema::TypeSchema;
use crate::table::age;
use crate::table::column::{Column, Printer, column, wide};

static SCHEMA: TypeSchema = TypeSchema::of::<k8s_openapi::api::core::v1::Event>();

pub(crate) static KIND: Row = Row {
    group: groups::CORE,
    kind: "Event",
    plural: "events",
    short_names: &["ev"],
    schema: Some(&SCHEMA),
    rules: Rules { check, ..Rules::NONE },
    table: Printer { columns: COLUMNS, cells },
    fields: &[
        Field::at("involvedObject.kind"),
        Field::at("involvedObject.namespace"),
        Field::at("involvedObject.name"),
        Field::at("involvedObject.uid"),
        Field::at("involvedObject.apiVersion"),
        Field::at("involvedObject.resourceVersion"),
        Field::at("involvedObject.fieldPath"),
        Field::at("reason"),
        Field::at("reportingComponent"),
        // Events' source is selected by component.
        Field { path: "source.component", ..Field::at("source") },
        Field::at("type"),
    ],
    ..Row::PLAIN
};

/// An event lives in the namespace of what it is about; those of cluster-scoped objects live in `default` or
/// `kube-system`.
fn check(event: &Value, violations: &mut Violations) {
    let namespace = text(&event["metadata"]["namespace"]);
    let about = &event["involvedObject"]["namespace"];
    let fits = match text(about) {
        "" => matches!(namespace, "default" | "kube-system"),
        about => about == namespace,
    };
    if !fits {
        violations.invalid(
            "involvedObject.namespace",
            &Value::from(text(about)),
            "does not match event.namespace",
        );
    }
}

const COLUMNS: &[Column] = &[
    column("Last Seen", "string", "Time since the event last occurred."),
    column("Type", "string", "Normal or Warning."),
    column("Reason", "string", "Reason in one word, for programs."),
    column("Object", "string", "Object that the event is about."),
    wide("Subobject", "Part of the object that the event is about."),
    wide("Source", "Component that reported the event."),
    column("Message", "string", "What happened."),
    wide("First Seen", "Time since the event first occurred."),
    wide("Count", "How often the event occurred."),
    wide("Name", "Name of the event."),
];

fn cells(event: &Value, now: Timestamp) -> Vec<Value> {
    let either = |old: &Value, new: &Value| if old.is_null() { new.clone() } else { old.clone() };
    let first = either(&event["firstTimestamp"], &event["eventTime"]);
    let (last, count) = match &event["series"] {
        Value::Null => {
            let count = event["count"].as_i64().filter(|count| *count > 0).unwrap_or(1);
            (either(&event["lastTimestamp"], &first), json!(count))
        }
        series => (series["lastObservedTime"].clone(), series["count"].clone()),
    };
    let about = &event["involvedObject"];
    let object = match text(&about["name"]) {
        "" => text(&about["kind"]).to_lowercase(),
        name => format!("{}/{name}", text(&about["kind"]).to_lowercase()),
    };
    vec![
        age::since(&last, now).into(),
        text(&event["type"]).into(),
        text(&event["reason"]).into(),
        object.into(),
        text(&about["fieldPath"]).into(),
        source(event).into(),
        text(&event["message"]).trim().into(),
        age::since(&first, now).into(),
        count,
        event["metadata"]["name"].clone(),
    ]
}

/// `component, host`.
fn source(event: &Value) -> String {
    let first =
        |a: &Value, b: &Value| if text(a).is_empty() { text(b).to_owned() } else { text(a).to_owned() };
    let component = first(&event["source"]["component"], &event["reportingComponent"]);
    match first(&event["source"]["host"], &event["reportingInstance"]) {
        host if host.is_empty() => component,
        host => format!("{component}, {host}"),
    }
}
