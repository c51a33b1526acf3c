//! Events.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    Column, age,
    columns::{column, wide},
};
use crate::kinds::fields::text;

pub(super) const COLUMNS: &[Column] = &[
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

pub(super) fn cells(event: &Value, now: Timestamp) -> Vec<Value> {
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
