//! Kinds of which there is nothing, and can't be anything: they are not served, but a list of them is empty rather than
//! an error, for clients that look at every workload of a cluster (`kubectl cluster-info dump`).

use http::StatusCode;
use serde_json::json;

use crate::answer::{self, Answer};
use crate::request::ResourcePath;

/// Group, version, plural, kind.
const KINDS: &[(&str, &str, &str, &str)] = &[
    ("", "v1", "replicationcontrollers", "ReplicationController"),
    ("apps", "v1", "daemonsets", "DaemonSet"),
    ("apps", "v1", "deployments", "Deployment"),
    ("apps", "v1", "replicasets", "ReplicaSet"),
];

/// The answer to a list, if it is one of these.
pub(crate) fn list(path: &ResourcePath, revision: u64) -> Option<Answer> {
    let is_meant = |(group, version, plural, _): &&(&str, &str, &str, &str)| {
        path.group == *group && path.version == *version && path.resource == *plural
    };
    let (group, version, _, kind) = KINDS.iter().find(is_meant)?;
    let api_version = if group.is_empty() { (*version).to_owned() } else { format!("{group}/{version}") };
    let list = json!({"kind": format!("{kind}List"), "apiVersion": api_version,
        "metadata": {"resourceVersion": revision.to_string()}, "items": []});
    Some(answer::json(StatusCode::OK, &list))
}
