//! Whether a claim's volume is to change, and to what: pure.

use std::time::Duration;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use resources::modification::{self, Stage};
use resources::{claim, fit};
use tokio::time::Instant;

/// How long a class that a volume can't have is left alone.
pub(super) const PAUSE: Duration = Duration::from_secs(300);

/// What is known of earlier attempts for a claim beyond its status. All of it may be lost: then the last attempt is
/// repeated, and what it gives is known again.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Remembered {
    /// The last attempt ended for sure, and nothing was changed.
    pub(super) ended: bool,
    /// A class that the volume can't have is not tried before then.
    pub(super) pause: Option<(String, Instant)>,
}

/// What is done about a claim.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Plan<'a> {
    /// Nothing: it has what it asks for, or is not ready.
    Nothing,
    /// It asks for what it has again: forget the change.
    Cancel,
    /// Make its volume be as this class says.
    Modify(&'a str),
    /// That failed for good: try it again after a while.
    Wait(Duration),
}

/// Decides about a claim. Whatever it asks for now, an attempt whose end is not known is repeated until it is.
pub(super) fn plan<'a>(of: &'a PersistentVolumeClaim, remembered: &Remembered, now: Instant) -> Plan<'a> {
    if claim::phase(of) != "Bound" || of.metadata.deletion_timestamp.is_some() {
        return Plan::Nothing;
    }
    let (wanted, current) = (fit::attributes_class_of_claim(of), modification::current(of));
    let satisfied = wanted.is_empty() || wanted == current;
    match modification::under_way(of) {
        Some((Stage::InProgress, target)) if !remembered.ended => Plan::Modify(target),
        Some(_) if satisfied => Plan::Cancel,
        None if satisfied => Plan::Nothing,
        _ => match &remembered.pause {
            Some((class, until)) if class == wanted && *until > now => Plan::Wait(*until - now),
            _ => Plan::Modify(wanted),
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn what_is_done_follows_from_spec_and_status() {
        let claim = |wanted: &str, current: &str, under_way: &str, phase: &str| -> PersistentVolumeClaim {
            let status = match under_way.split_once(' ') {
                Some((stage, target)) => {
                    json!({"status": stage, "targetVolumeAttributesClassName": target})
                }
                None => Value::Null,
            };
            let current = Some(current).filter(|name| !name.is_empty());
            let object = json!({"spec": {"volumeAttributesClassName": wanted},
                "status": {"phase": phase, "modifyVolumeStatus": status,
                           "currentVolumeAttributesClassName": current}});
            serde_json::from_value(object).expect("a claim")
        };
        let now = Instant::now();
        let ended = Remembered { ended: true, pause: None };
        let paused = Remembered { ended: true, pause: Some(("gold".to_owned(), now + PAUSE)) };
        let nothing = Remembered::default();
        for (wanted, current, under_way, remembered, expected) in [
            ("", "", "", &nothing, Plan::Nothing),
            ("gold", "gold", "", &nothing, Plan::Nothing),
            ("gold", "", "", &nothing, Plan::Modify("gold")),
            ("gold", "silver", "", &nothing, Plan::Modify("gold")),
            ("gold", "silver", "Pending gold", &nothing, Plan::Modify("gold")),
            ("gold", "silver", "InProgress gold", &nothing, Plan::Modify("gold")),
            ("silver", "silver", "InProgress gold", &nothing, Plan::Modify("gold")),
            ("bronze", "silver", "InProgress gold", &nothing, Plan::Modify("gold")),
            ("bronze", "silver", "InProgress gold", &ended, Plan::Modify("bronze")),
            ("silver", "silver", "InProgress gold", &ended, Plan::Cancel),
            ("silver", "silver", "Infeasible gold", &nothing, Plan::Cancel),
            ("", "", "Pending gold", &nothing, Plan::Cancel),
            ("gold", "silver", "Infeasible gold", &paused, Plan::Wait(PAUSE)),
            ("bronze", "silver", "Infeasible gold", &paused, Plan::Modify("bronze")),
        ] {
            let of = claim(wanted, current, under_way, "Bound");
            assert_eq!(plan(&of, remembered, now), expected, "{wanted} {current} {under_way}");
        }
        assert_eq!(plan(&claim("gold", "", "", "Pending"), &nothing, now), Plan::Nothing);
    }
}
