//! Snapshots. Their kinds come from definitions; what these would demand by CEL rules, which this server does not
//! evaluate, is demanded here: one source, and nothing changed of what a driver may already have acted upon.

use serde_json::Value;

use super::{
    fields::{entries, text},
    row::{Row, Rules},
    violations::Violations,
};

const SINGLE: &str = "snapshot.storage.k8s.io";
const GROUPED: &str = "groupsnapshot.storage.k8s.io";

const SNAPSHOT: Rules = Rules {
    check: |snapshot, violations| {
        one_of(
            "spec.source",
            &snapshot["spec"]["source"],
            ["persistentVolumeClaimName", "volumeSnapshotContentName"],
            violations,
        );
        not_empty("spec.volumeSnapshotClassName", &snapshot["spec"]["volumeSnapshotClassName"], violations);
    },
    check_change: |new, old, violations| {
        keep("spec.source", &new["spec"]["source"], &old["spec"]["source"], violations);
    },
    ..Rules::NONE
};

const SNAPSHOT_CONTENT: Rules = Rules {
    check: |content, violations| {
        let spec = &content["spec"];
        one_of("spec.source", &spec["source"], ["volumeHandle", "snapshotHandle"], violations);
        complete("spec.volumeSnapshotRef", &spec["volumeSnapshotRef"], violations);
    },
    check_change: |new, old, violations| {
        keep("spec.source", &new["spec"]["source"], &old["spec"]["source"], violations);
        keep_set("spec.sourceVolumeMode", new, old, violations);
    },
    ..Rules::NONE
};

const GROUP: Rules = Rules {
    check: |group, violations| {
        let spec = &group["spec"];
        one_of("spec.source", &spec["source"], ["selector", "volumeGroupSnapshotContentName"], violations);
        not_empty("spec.volumeGroupSnapshotClassName", &spec["volumeGroupSnapshotClassName"], violations);
    },
    check_change: |new, old, violations| {
        keep("spec.source", &new["spec"]["source"], &old["spec"]["source"], violations);
        keep_set("status.boundVolumeGroupSnapshotContentName", new, old, violations);
    },
    ..Rules::NONE
};

const GROUP_CONTENT: Rules = Rules {
    check: |content, violations| {
        let spec = &content["spec"];
        one_of("spec.source", &spec["source"], ["volumeHandles", "groupSnapshotHandles"], violations);
        complete("spec.volumeGroupSnapshotRef", &spec["volumeGroupSnapshotRef"], violations);
    },
    check_change: |new, old, violations| {
        keep("spec.source", &new["spec"]["source"], &old["spec"]["source"], violations);
        for field in [
            "spec.driver",
            "spec.volumeGroupSnapshotClassName",
            "spec.volumeGroupSnapshotRef.name",
            "spec.volumeGroupSnapshotRef.namespace",
            "spec.volumeGroupSnapshotRef.uid",
            "status.volumeGroupSnapshotHandle",
        ] {
            keep_set(field, new, old, violations);
        }
    },
    ..Rules::NONE
};

const GROUP_CLASS: Rules = Rules {
    check_change: |new, old, violations| {
        for field in ["driver", "deletionPolicy", "parameters"] {
            keep_set(field, new, old, violations);
        }
    },
    ..Rules::NONE
};

/// The rows of the snapshot kinds: their names and columns are what their definitions say.
pub(super) static KINDS: &[&Row] = &[
    &Row { group: SINGLE, kind: "VolumeSnapshot", rules: SNAPSHOT, ..Row::CUSTOM },
    &Row { group: SINGLE, kind: "VolumeSnapshotContent", rules: SNAPSHOT_CONTENT, ..Row::CUSTOM },
    &Row { group: GROUPED, kind: "VolumeGroupSnapshot", rules: GROUP, ..Row::CUSTOM },
    &Row { group: GROUPED, kind: "VolumeGroupSnapshotContent", rules: GROUP_CONTENT, ..Row::CUSTOM },
    &Row { group: GROUPED, kind: "VolumeGroupSnapshotClass", rules: GROUP_CLASS, ..Row::CUSTOM },
];

/// Exactly one of two fields is there; an empty selector is there too.
fn one_of(field: &str, source: &Value, names: [&str; 2], violations: &mut Violations) {
    let [first, second] = names.map(|name| !source[name].is_null());
    if first == second {
        let [first, second] = names;
        violations.invalid(field, source, &format!("exactly one of {first} and {second} must be set"));
    }
}

fn not_empty(field: &str, value: &Value, violations: &mut Violations) {
    if value == "" {
        violations.invalid(field, value, "must not be empty; leave it out for the default class");
    }
}

/// A reference has name and namespace.
fn complete(field: &str, reference: &Value, violations: &mut Violations) {
    for part in ["name", "namespace"] {
        violations.require(format!("{field}.{part}"), &Value::from(text(&reference[part])), "");
    }
}

/// No field of an object changes, comes or goes.
fn keep(field: &str, new: &Value, old: &Value, violations: &mut Violations) {
    let names = entries(old).chain(entries(new)).map(|(name, _)| name);
    let mut names: Vec<&String> = names.collect();
    names.sort();
    names.dedup();
    for name in names {
        violations.immutable(format!("{field}.{name}"), &new[name], &old[name]);
    }
}

/// A field that was set keeps its value.
fn keep_set(path: &str, new: &Value, old: &Value, violations: &mut Violations) {
    let at = |object: &Value| path.split('.').fold(object.clone(), |value, name| value[name].clone());
    let was = at(old);
    if !was.is_null() && was != "" {
        violations.immutable(path, &at(new), &was);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn violations(group: &str, kind: &str, new: &Value, old: Option<&Value>) -> Vec<String> {
        let row = KINDS.iter().find(|row| row.group == group && row.kind == kind);
        let rules = &row.expect("a kind with rules").rules;
        let mut violations = Violations::default();
        (rules.check)(new, &mut violations);
        if let Some(old) = old {
            (rules.check_change)(new, old, &mut violations);
        }
        violations.into_vec().into_iter().map(|error| error.field).collect()
    }

    #[test]
    fn a_snapshot_has_one_source_for_good() {
        let snapshot = |source: Value| json!({"spec": {"source": source}});
        let of_claim = snapshot(json!({"persistentVolumeClaimName": "a"}));
        let of_content = snapshot(json!({"volumeSnapshotContentName": "a"}));
        let both = snapshot(json!({"persistentVolumeClaimName": "a", "volumeSnapshotContentName": "a"}));
        let check = |new: &Value, old| violations("snapshot.storage.k8s.io", "VolumeSnapshot", new, old);
        assert!(check(&of_claim, None).is_empty());
        assert!(check(&of_content, Some(&of_content)).is_empty());
        assert_eq!(check(&both, None), ["spec.source"]);
        assert_eq!(check(&snapshot(json!({})), None), ["spec.source"]);
        assert_eq!(
            check(&of_content, Some(&of_claim)),
            ["spec.source.persistentVolumeClaimName", "spec.source.volumeSnapshotContentName"]
        );
        let mut classed = of_claim.clone();
        classed["spec"]["volumeSnapshotClassName"] = json!("");
        assert_eq!(check(&classed, None), ["spec.volumeSnapshotClassName"]);
        classed["spec"]["volumeSnapshotClassName"] = json!("fast");
        assert!(check(&classed, Some(&of_claim)).is_empty());
    }

    #[test]
    fn a_content_keeps_its_source_and_mode_and_may_be_bound() {
        let content = |uid: &str, mode: Option<&str>, handle: &str| {
            json!({"spec": {"source": {"snapshotHandle": handle}, "sourceVolumeMode": mode,
                            "volumeSnapshotRef": {"name": "s", "namespace": "n", "uid": uid}}})
        };
        let check = |new: &Value, old: &Value| {
            violations("snapshot.storage.k8s.io", "VolumeSnapshotContent", new, Some(old))
        };
        let plain = content("", None, "h");
        assert!(check(&content("7", Some("Block"), "h"), &plain).is_empty());
        assert_eq!(check(&content("", None, "i"), &plain), ["spec.source.snapshotHandle"]);
        let block = content("", Some("Block"), "h");
        assert_eq!(check(&content("", Some("Filesystem"), "h"), &block), ["spec.sourceVolumeMode"]);
        assert_eq!(check(&plain, &block), ["spec.sourceVolumeMode"]);
        let nowhere =
            json!({"spec": {"source": {"snapshotHandle": "h"}, "volumeSnapshotRef": {"name": "s"}}});
        assert_eq!(check(&nowhere, &plain), ["spec.volumeSnapshotRef.namespace"]);
    }

    #[test]
    fn groups_keep_what_they_have() {
        const GROUP: &str = "groupsnapshot.storage.k8s.io";
        let everything = json!({"spec": {"source": {"selector": {}}}});
        assert!(violations(GROUP, "VolumeGroupSnapshot", &everything, None).is_empty());
        let bound = |name: &str| {
            json!({"spec": {"source": {"selector": {}}},
                   "status": {"boundVolumeGroupSnapshotContentName": name}})
        };
        assert!(violations(GROUP, "VolumeGroupSnapshot", &bound("a"), Some(&everything)).is_empty());
        assert_eq!(
            violations(GROUP, "VolumeGroupSnapshot", &bound("b"), Some(&bound("a"))),
            ["status.boundVolumeGroupSnapshotContentName"]
        );
        let class = |policy: &str| json!({"driver": "d", "deletionPolicy": policy});
        assert_eq!(
            violations(GROUP, "VolumeGroupSnapshotClass", &class("Retain"), Some(&class("Delete"))),
            ["deletionPolicy"]
        );
    }
}
