//! The status of a definition: whether its names are free, so that its kind is served.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::super::{fields::text, row::Cluster};
use crate::object;

/// Gives a definition the status that Kubernetes' naming and establishing controllers give it, in the same write: its
/// kind is served when its creation is answered.
pub(super) fn establish(crd: &mut Value, cluster: &dyn Cluster) {
    let kind = text(&crd["spec"]["names"]["kind"]).to_owned();
    for (field, default) in [("singular", kind.to_lowercase()), ("listKind", format!("{kind}List"))] {
        if crd["spec"]["names"][field].as_str().is_none_or(str::is_empty) {
            crd["spec"]["names"][field] = default.into();
        }
    }
    if crd.pointer("/spec/conversion/strategy").is_none() {
        crd["spec"]["conversion"] = json!({"strategy": "None"});
    }
    let spec = &crd["spec"];
    let taken = cluster.is_taken(text(&spec["group"]), text(&spec["names"]["plural"]), &kind);
    let old = crd.get("status").cloned().unwrap_or_default();
    let conditions = if taken {
        let message = format!("the kind or plural of {kind:?} is already in use");
        [
            ("NamesAccepted", "False", "KindConflict", message),
            ("Established", "False", "NotAccepted", "not all names are accepted".to_owned()),
        ]
    } else {
        [
            ("NamesAccepted", "True", "NoConflicts", "no conflicts found".to_owned()),
            (
                "Established",
                "True",
                "InitialNamesAccepted",
                "the initial names have been accepted".to_owned(),
            ),
        ]
    };
    let now = object::time(clock::now());
    let conditions: Vec<Value> = conditions
        .into_iter()
        .map(|(kind, status, reason, message)| {
            let before = old["conditions"].as_array().into_iter().flatten();
            let same = before.clone().find(|known| known["type"] == kind && known["status"] == status);
            let since = same.map_or_else(|| now.as_str().into(), |known| known["lastTransitionTime"].clone());
            json!({"type": kind, "status": status, "lastTransitionTime": since, "reason": reason, "message": message})
        })
        .collect();
    let mut stored = old["storedVersions"].as_array().cloned().unwrap_or_default();
    let mut known: HashSet<String> = stored.iter().map(Value::to_string).collect();
    for version in crd["spec"]["versions"].as_array().into_iter().flatten() {
        if version["storage"] == true && known.insert(version["name"].to_string()) {
            stored.push(version["name"].clone());
        }
    }
    let accepted = if taken { json!({"kind": "", "plural": ""}) } else { crd["spec"]["names"].clone() };
    crd["status"] = json!({"conditions": conditions, "acceptedNames": accepted, "storedVersions": stored});
}
