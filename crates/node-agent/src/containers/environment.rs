//! A container's environment, command and arguments, from its pod and the objects that it refers to. Pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Container, EnvVarSource, Pod, ResourceFieldSelector};
use values::Quantity;

/// An object of the pod's namespace that a container takes values from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reference {
    ConfigMap(String),
    /// A config map without its `binaryData`, which can't be variables.
    ConfigMapText(String),
    Secret(String),
}

/// Data of the objects; an object that does not exist is absent.
pub(crate) type Data = BTreeMap<Reference, BTreeMap<String, Vec<u8>>>;

/// What the fields of a pod that are known only on its node are.
#[derive(Clone, Debug)]
pub(crate) struct NodeFacts {
    pub(crate) name: String,
    pub(crate) address: String,
    /// Processors, and bytes of memory: what a container has that sets itself no limit.
    pub(crate) processors: i64,
    pub(crate) memory: i64,
}

/// A value that could not be had. kubelet's reason for it is `CreateContainerConfigError`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum EnvironmentError {
    #[error("{kind} \"{name}\" not found")]
    MissingObject { kind: &'static str, name: String },
    #[error("couldn't find key {key} in {kind} {name}")]
    MissingKey { kind: &'static str, name: String, key: String },
    #[error("missing value for {0}")]
    MissingValue(String),
    #[error("subPath \"{path}\" {why}")]
    SubPath { path: String, why: &'static str },
    #[error("environment variable {0} takes its value from {1}, which is not served yet")]
    Unserved(String, String),
}

/// The objects that the container's environment refers to.
pub(crate) fn references(container: &Container) -> Vec<Reference> {
    let mut found = Vec::new();
    for source in container.env_from.iter().flatten() {
        found.extend(source.config_map_ref.as_ref().map(|of| Reference::ConfigMapText(of.name.clone())));
        found.extend(source.secret_ref.as_ref().map(|of| Reference::Secret(of.name.clone())));
    }
    for source in container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()) {
        found.extend(source.config_map_key_ref.as_ref().map(|of| Reference::ConfigMapText(of.name.clone())));
        found.extend(source.secret_key_ref.as_ref().map(|of| Reference::Secret(of.name.clone())));
    }
    found.sort();
    found.dedup();
    found
}

/// The variables of the container, later ones replacing earlier ones; `$(NAME)` in a value is replaced by a
/// variable defined before.
pub(crate) fn variables(
    pod: &Pod,
    container: &Container,
    node: &NodeFacts,
    data: &Data,
) -> Result<BTreeMap<String, String>, EnvironmentError> {
    let mut variables = BTreeMap::new();
    for source in container.env_from.iter().flatten() {
        let (reference, optional) = match (&source.config_map_ref, &source.secret_ref) {
            (Some(of), _) => (Reference::ConfigMapText(of.name.clone()), of.optional),
            (None, Some(of)) => (Reference::Secret(of.name.clone()), of.optional),
            (None, None) => continue,
        };
        let Some(values) = find(data, &reference, optional)? else { continue };
        for (key, value) in values {
            let prefix = source.prefix.as_deref().unwrap_or_default();
            variables.insert(format!("{prefix}{key}"), String::from_utf8_lossy(value).into_owned());
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match &variable.value_from {
            None => Some(expand(variable.value.as_deref().unwrap_or_default(), &variables)),
            Some(source) => value_from(pod, container, node, data, &variable.name, source)?,
        };
        if let Some(value) = value {
            variables.insert(variable.name.clone(), value);
        }
    }
    Ok(variables)
}

fn value_from(
    pod: &Pod,
    container: &Container,
    node: &NodeFacts,
    data: &Data,
    variable: &str,
    source: &EnvVarSource,
) -> Result<Option<String>, EnvironmentError> {
    if let Some(of) = &source.resource_field_ref {
        return resource(pod, Some(container), node, of)
            .map(Some)
            .ok_or_else(|| EnvironmentError::Unserved(variable.into(), format!("resource {}", of.resource)));
    }
    if let Some(field) = &source.field_ref {
        return self::field(pod, node, &field.field_path).map(Some).ok_or_else(|| {
            EnvironmentError::Unserved(variable.into(), format!("field {}", field.field_path))
        });
    }
    let (reference, key, optional) = if let Some(of) = &source.config_map_key_ref {
        (Reference::ConfigMapText(of.name.clone()), &of.key, of.optional)
    } else if let Some(of) = &source.secret_key_ref {
        (Reference::Secret(of.name.clone()), &of.key, of.optional)
    } else {
        return Err(EnvironmentError::Unserved(variable.into(), "a file".into()));
    };
    let Some(values) = find(data, &reference, optional)? else { return Ok(None) };
    match values.get(key) {
        Some(value) => Ok(Some(String::from_utf8_lossy(value).into_owned())),
        None if optional == Some(true) => Ok(None),
        None => {
            let (kind, name) = reference.parts();
            Err(EnvironmentError::MissingKey { kind, name: name.into(), key: key.clone() })
        }
    }
}

fn find<'a>(
    data: &'a Data,
    reference: &Reference,
    optional: Option<bool>,
) -> Result<Option<&'a BTreeMap<String, Vec<u8>>>, EnvironmentError> {
    match data.get(reference) {
        Some(values) => Ok(Some(values)),
        None if optional == Some(true) => Ok(None),
        None => {
            let (kind, name) = reference.parts();
            Err(EnvironmentError::MissingObject { kind, name: name.into() })
        }
    }
}

impl Reference {
    pub(crate) fn parts(&self) -> (&'static str, &str) {
        match self {
            Reference::ConfigMap(name) | Reference::ConfigMapText(name) => ("configmap", name),
            Reference::Secret(name) => ("secret", name),
        }
    }
}

/// The value of a field path of the downward API; None for a path that is not served.
pub(crate) fn field(pod: &Pod, node: &NodeFacts, path: &str) -> Option<String> {
    let spec = pod.spec.as_ref();
    let metadata = &pod.metadata;
    if let Some((map, key)) =
        path.split_once("['").and_then(|(map, rest)| Some((map, rest.strip_suffix("']")?)))
    {
        let map = match map {
            "metadata.labels" => &metadata.labels,
            "metadata.annotations" => &metadata.annotations,
            _ => return None,
        };
        return Some(map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default());
    }
    Some(match path {
        "metadata.name" => metadata.name.clone()?,
        "metadata.namespace" => metadata.namespace.clone()?,
        "metadata.uid" => metadata.uid.clone()?,
        "metadata.labels" => lines(metadata.labels.as_ref()),
        "metadata.annotations" => lines(metadata.annotations.as_ref()),
        "spec.nodeName" => node.name.clone(),
        "spec.serviceAccountName" => {
            spec.and_then(|spec| spec.service_account_name.clone()).unwrap_or_else(|| "default".into())
        }
        "status.hostIP" | "status.hostIPs" | "status.podIP" | "status.podIPs" => node.address.clone(),
        _ => return None,
    })
}

/// A limit or request of a container of the pod, in units of the divisor, rounded up. Without a limit it is what the node
/// has; without a request it is 0. None for what is not served.
pub(crate) fn resource(
    pod: &Pod,
    own: Option<&Container>,
    node: &NodeFacts,
    reference: &ResourceFieldSelector,
) -> Option<String> {
    let containers = || {
        let spec = pod.spec.iter();
        spec.flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers))
    };
    let container = match reference.container_name.as_deref().filter(|name| !name.is_empty()) {
        Some(name) => containers().find(|container| container.name == name)?,
        None => own?,
    };
    let (list, name) = reference.resource.split_once('.')?;
    let resources = container.resources.clone().unwrap_or_default();
    let amount = |list: Option<BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>>| {
        list.and_then(|list| list.get(name)?.0.parse::<Quantity>().ok())
    };
    let cpu = name == "cpu";
    let count = |amount: Quantity| if cpu { amount.milli() } else { amount.ceil() };
    let whole = match (list, name) {
        ("limits", "cpu") => Some(node.processors * 1000),
        ("limits", "memory") => Some(node.memory),
        ("limits", _) => None,
        _ => Some(0),
    };
    let value = match list {
        "limits" => amount(resources.limits).and_then(count).or(whole)?,
        "requests" => {
            let limit = amount(resources.limits);
            amount(resources.requests).or(limit).and_then(count).or(whole)?
        }
        _ => return None,
    };
    let divisor = reference.divisor.as_ref().and_then(|divisor| divisor.0.parse::<Quantity>().ok());
    let divisor = divisor.and_then(count).filter(|divisor| *divisor > 0);
    let divisor = divisor.unwrap_or(if cpu { 1000 } else { 1 });
    Some((value / divisor + i64::from(value % divisor > 0)).to_string())
}

/// `key="value"` lines, as the downward API shows a map.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> =
        map.into_iter().flatten().map(|(key, value)| format!("{key}={value:?}")).collect();
    lines.join("\n")
}

/// Replaces `$(NAME)` by the variable's value; `$$` is a dollar, an unknown name stays as it is.
pub(crate) fn expand(text: &str, variables: &BTreeMap<String, String>) -> String {
    replace(text, |name| variables.get(name).cloned())
}

/// As [`expand`], for a path: a variable that is unknown or empty is an error, as it would lead elsewhere.
pub(crate) fn expand_path(
    text: &str,
    variables: &BTreeMap<String, String>,
) -> Result<String, EnvironmentError> {
    let mut missing = BTreeSet::new();
    let path = replace(text, |name| {
        let value = variables.get(name).filter(|value| !value.is_empty()).cloned();
        if value.is_none() {
            missing.insert(name.to_owned());
        }
        value
    });
    match missing.is_empty() {
        true => Ok(path),
        false => Err(EnvironmentError::MissingValue(missing.into_iter().collect::<Vec<_>>().join(", "))),
    }
}

fn replace(text: &str, mut value_of: impl FnMut(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(tail) = rest.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some((name, tail)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match value_of(name) {
                Some(value) => out.push_str(&value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = tail;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn references_to_variables_are_expanded() {
        let variables =
            BTreeMap::from([("A".to_owned(), "1".to_owned()), ("B".to_owned(), "$(A)".to_owned())]);
        for (text, expanded) in [
            ("plain", "plain"),
            ("$(A)", "1"),
            ("x$(A)$(A)y", "x11y"),
            ("$$(A)", "$(A)"),
            ("$(UNKNOWN)", "$(UNKNOWN)"),
            ("$(A", "$(A"),
            ("cost $5", "cost $5"),
            ("$", "$"),
            ("$(B)", "$(A)"),
        ] {
            assert_eq!(expand(text, &variables), expanded, "{text}");
        }
    }

    #[test]
    fn a_path_needs_all_its_variables() {
        let variables =
            BTreeMap::from([("A".to_owned(), "1".to_owned()), ("EMPTY".to_owned(), String::new())]);
        let missing = |names: &str| Err(EnvironmentError::MissingValue(names.to_owned()));
        for (text, expected) in [
            ("a/b", Ok("a/b".to_owned())),
            ("$(A)/b", Ok("1/b".to_owned())),
            ("$$(NOPE)/$(A)", Ok("$(NOPE)/1".to_owned())),
            ("$(NOPE)/a", missing("NOPE")),
            ("t/$(EMPTY)", missing("EMPTY")),
            ("$(EMPTY)$(A)$(NOPE)$(NOPE)", missing("EMPTY, NOPE")),
            ("$(OOPS", Ok("$(OOPS".to_owned())),
        ] {
            assert_eq!(expand_path(text, &variables), expected, "{text}");
        }
    }

    #[test]
    fn limits_and_requests_are_counted_in_their_divisor() {
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [
            {"name": "a", "resources": {"limits": {"cpu": "150m", "memory": "192Mi"}, "requests": {"memory": "100"}}},
            {"name": "b"}]}}))
        .unwrap();
        let node = NodeFacts { name: "n".into(), address: String::new(), processors: 2, memory: 1 << 30 };
        for (container, name, divisor, expected) in [
            ("a", "limits.memory", "1Mi", Some("192")),
            ("a", "limits.memory", "0", Some("201326592")),
            ("a", "limits.cpu", "1", Some("1")),
            ("a", "limits.cpu", "1m", Some("150")),
            ("a", "requests.cpu", "1m", Some("150")),
            ("a", "requests.memory", "1Ki", Some("1")),
            ("b", "limits.cpu", "1", Some("2")),
            ("b", "limits.memory", "1Gi", Some("1")),
            ("b", "requests.memory", "1", Some("0")),
            ("b", "limits.example.com/gpu", "1", None),
            ("none", "limits.cpu", "1", None),
        ] {
            let reference = json!({"containerName": container, "resource": name, "divisor": divisor});
            let value = resource(&pod, None, &node, &serde_json::from_value(reference).unwrap());
            assert_eq!(value.as_deref(), expected, "{container} {name} {divisor}");
        }
    }

    fn container(value: serde_json::Value) -> Container {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn values_come_from_objects_and_fields() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "web-0", "namespace": "shop", "uid": "u", "labels": {"app": "web"}},
            "spec": {"containers": []}
        }))
        .unwrap();
        let node =
            NodeFacts { name: "n1".into(), address: "127.0.0.1".into(), processors: 2, memory: 1 << 30 };
        let container = container(json!({"name": "c",
            "envFrom": [
                {"configMapRef": {"name": "cm"}, "prefix": "P_"},
                {"secretRef": {"name": "gone", "optional": true}}],
            "env": [
                {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
                {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
                {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
                {"name": "BOTH", "value": "$(NAME)-$(P_a)"}]}));
        let data = Data::from([
            (Reference::ConfigMapText("cm".into()), BTreeMap::from([("a".into(), b"1".to_vec())])),
            (Reference::Secret("s".into()), BTreeMap::from([("k".into(), b"hunter2".to_vec())])),
        ]);
        let values = variables(&pod, &container, &node, &data).unwrap();
        let values: Vec<(&str, &str)> = values.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(
            values,
            [
                ("APP", "web"),
                ("BOTH", "web-0-1"),
                ("NAME", "web-0"),
                ("NODE", "n1"),
                ("PASSWORD", "hunter2"),
                ("P_a", "1")
            ]
        );
        assert_eq!(
            variables(&pod, &container, &node, &Data::new()).unwrap_err(),
            EnvironmentError::MissingObject { kind: "configmap", name: "cm".into() }
        );
    }
}
