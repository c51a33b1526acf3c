//! A pod's quality-of-service class, which follows from its containers' requests and limits.

use serde_json::Value;

use super::super::{
    fields::{entries, items},
    violations::quantity,
};

/// `Guaranteed` when every container's CPU and memory are limited and requested alike, `BestEffort` when nothing is
/// asked, else `Burstable`.
pub(super) fn class(spec: &Value) -> &'static str {
    let mut asked = false;
    let mut guaranteed = true;
    for container in items(&spec["containers"]).iter().chain(items(&spec["initContainers"])) {
        let (requests, limits) = (&container["resources"]["requests"], &container["resources"]["limits"]);
        let counts = |(name, _): &(&String, &Value)| matches!(name.as_str(), "cpu" | "memory");
        asked |= entries(requests).chain(entries(limits)).any(|entry| counts(&entry));
        guaranteed &= ["cpu", "memory"].iter().all(|resource| {
            let limit = quantity(&limits[*resource]);
            limit.is_some() && limit == quantity(&requests[*resource])
        });
    }
    match (asked, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
#[test]
fn classes() {
    use serde_json::json;
    let both = json!({"cpu": "1", "memory": "1Gi"});
    for (resources, expected) in [
        (json!({}), "BestEffort"),
        (json!({"requests": {"ephemeral-storage": "1"}}), "BestEffort"),
        (json!({"requests": {"cpu": "1"}}), "Burstable"),
        (json!({"requests": both, "limits": both}), "Guaranteed"),
        (json!({"requests": {"cpu": "1000m", "memory": "1024Mi"}, "limits": both}), "Guaranteed"),
        (json!({"limits": both}), "Burstable"),
    ] {
        assert_eq!(class(&json!({"containers": [{"resources": resources}]})), expected, "{resources}");
    }
}
