//! How a pod ends.

use jiff::Timestamp;
use serde_json::Value;

use super::super::fields::text;
use crate::object;

/// Seconds that a pod gets to end by itself; only one that may be running gets any.
pub(super) fn grace(pod: &Value, asked: Option<i64>) -> i64 {
    let assigned = !text(&pod["spec"]["nodeName"]).is_empty();
    if !assigned || matches!(text(&pod["status"]["phase"]), "Succeeded" | "Failed") {
        return 0;
    }
    let own = pod["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(30);
    match asked.unwrap_or(own) {
        negative if negative < 0 => 1,
        seconds => seconds,
    }
}

/// What a pod that goes without grace looks like at last.
pub(super) fn ended(pod: &mut Value, now: Timestamp) {
    let deleting = object::is_deleting(pod);
    let metadata = object::metadata_mut(pod);
    if !deleting {
        metadata.insert("deletionTimestamp".into(), object::time(now).into());
        if let Some(generation) = metadata.get("generation").and_then(Value::as_i64) {
            metadata.insert("generation".into(), (generation + 1).into());
        }
    }
    metadata.insert("deletionGracePeriodSeconds".into(), 0.into());
}
