//! What of a pod is stored and not obeyed: one table, from which the API server warns, the node agent writes an event, and
//! the user guide tells.

use serde_json::Value;

/// A field that is not obeyed.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Its path below `spec`; `[]` stands for every item of a list.
    pub path: &'static str,
    /// The value that is not obeyed; None: any but null, false, "" and empty ones.
    pub value: Option<&'static str>,
    /// What holds instead.
    pub instead: &'static str,
}

const fn row(path: &'static str, instead: &'static str) -> Row {
    Row { path, value: None, instead }
}

/// The table, for pods of image `host`.
pub const TABLE: &[Row] = &[
    row("shareProcessNamespace", "each container has a process namespace of its own"),
    Row {
        path: "hostUsers",
        value: Some("false"),
        instead: "no user namespace is made: users are those of the host",
    },
    row("runtimeClassName", "pods that name a class are refused, because there are no RuntimeClasses"),
    row("setHostnameAsFQDN", "the host name has no domain"),
    row("dnsConfig", "names are resolved as the host does"),
    Row { path: "dnsPolicy", value: Some("None"), instead: "names are resolved as the host does" },
    row("readinessGates", "they are not waited for"),
    row("resourceClaims", "no devices are allocated"),
    row("ephemeralContainers", "they are not started"),
    row("securityContext.appArmorProfile", "no profile is loaded"),
    row("securityContext.seLinuxOptions", "no label is set"),
    row("securityContext.windowsOptions", "this node runs Linux"),
    row("containers[].securityContext.appArmorProfile", "no profile is loaded"),
    row("containers[].securityContext.seLinuxOptions", "no label is set"),
    Row {
        path: "containers[].securityContext.procMount",
        value: Some("Unmasked"),
        instead: "/proc is masked as usual",
    },
    row("containers[].resources.limits.hugepages-2Mi", "huge pages are not limited"),
    row("containers[].resources.limits.hugepages-1Gi", "huge pages are not limited"),
    row("containers[].livenessProbe", "it is not run: a container lives until it ends"),
    row("containers[].readinessProbe", "it is not run: a container is ready while it runs"),
    row("containers[].startupProbe", "it is not run: a container has started when it runs"),
    row("containers[].lifecycle", "hooks are not run"),
    row("containers[].stdin", "standard input is empty"),
    row("containers[].tty", "no terminal is made"),
    Row {
        path: "containers[].volumeMounts[].mountPropagation",
        value: Some("Bidirectional"),
        instead: "mounts do not propagate",
    },
    Row {
        path: "containers[].volumeMounts[].mountPropagation",
        value: Some("HostToContainer"),
        instead: "mounts do not propagate",
    },
    Row {
        path: "containers[].volumeMounts[].recursiveReadOnly",
        value: Some("Enabled"),
        instead: "only the mount itself is read-only",
    },
];

/// A sentence for each field of a pod's spec that is not obeyed, each once; `at` is where the spec is ("spec").
pub fn of(at: &str, spec: &Value) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for row in TABLE {
        // What holds for containers holds for those that run before them.
        let init = row.path.strip_prefix("containers[]").map(|rest| format!("initContainers[]{rest}"));
        for path in std::iter::once(row.path).chain(init.as_deref()) {
            if asks(spec, path, row.value) {
                let is = row.value.map(|value| format!(" {value}")).unwrap_or_default();
                let said = format!("{at}.{path}{is} is not served: {}", row.instead);
                if !found.contains(&said) {
                    found.push(said);
                }
            }
        }
    }
    found
}

fn asks(value: &Value, path: &str, wanted: Option<&str>) -> bool {
    let (first, rest) = path.split_once('.').unwrap_or((path, ""));
    let inner = match first.strip_suffix("[]") {
        Some(list) => {
            let items = value[list].as_array();
            return items.into_iter().flatten().any(|item| asks(item, rest, wanted));
        }
        None => &value[first],
    };
    if !rest.is_empty() {
        return asks(inner, rest, wanted);
    }
    match (wanted, inner) {
        (_, Value::Null) => false,
        (Some(wanted), Value::String(text)) => text == wanted,
        (Some(wanted), Value::Bool(is)) => wanted == if *is { "true" } else { "false" },
        (Some(_), _) => false,
        (None, Value::Bool(is)) => *is,
        (None, Value::String(text)) => !text.is_empty(),
        (None, Value::Array(items)) => !items.is_empty(),
        (None, _) => true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_obeyed_is_named() {
        for (spec, expected) in [
            (
                json!({"containers": [{"name": "c"}], "hostUsers": true, "shareProcessNamespace": false}),
                vec![],
            ),
            (json!({"hostUsers": false}), vec!["spec.hostUsers false"]),
            (json!({"runtimeClassName": "kata", "readinessGates": []}), vec!["spec.runtimeClassName"]),
            (
                json!({"containers": [{"tty": true}, {"tty": true}], "initContainers": [{"livenessProbe": {}}]}),
                vec!["spec.initContainers[].livenessProbe", "spec.containers[].tty"],
            ),
            (
                json!({"containers": [{"volumeMounts": [{"mountPropagation": "None"}, {"mountPropagation": "Bidirectional"}]}]}),
                vec!["spec.containers[].volumeMounts[].mountPropagation Bidirectional"],
            ),
        ] {
            let said = of("spec", &spec);
            let fields: Vec<_> =
                said.iter().map(|text| text.split_once(" is not served: ").map(|(field, _)| field)).collect();
            assert_eq!(fields, expected.into_iter().map(Some).collect::<Vec<_>>(), "{spec}");
        }
    }

    #[test]
    fn the_guide_tells_the_table() {
        let guide = include_str!("../../../docs/user-guide.md");
        for Row { path, value, instead } in TABLE {
            let value = value.map(|value| format!(" {value}")).unwrap_or_default();
            let line = format!("| `{path}{value}` | {instead} |");
            assert!(guide.contains(&line), "docs/user-guide.md lacks: {line}");
        }
    }
}
