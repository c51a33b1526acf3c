//! What a pod's author may leave out.

use serde_json::{Map, Value, json};

use super::{
    super::{
        fields::{default_field, entries, items, items_mut, text},
        persistent_volume_claim,
    },
    placement, quality,
};

/// Readable by all, writable by the owner: files of config maps, secrets and projections.
const FILE_MODE: i64 = 0o644;

pub(super) fn default(pod: &mut Value, old: Option<&Value>) {
    if !pod["spec"].is_object() {
        return;
    }
    default_spec(&mut pod["spec"]);
    if pod["spec"]["terminationGracePeriodSeconds"].as_i64().is_some_and(|seconds| seconds < 0) {
        pod["spec"]["terminationGracePeriodSeconds"] = 1.into();
    }
    default_field(pod, &["spec", "enableServiceLinks"], true);
    default_requests(&mut pod["spec"]);
    placement::default(pod, old);
    if old.is_none() {
        default_field(pod, &["status", "phase"], "Pending");
        let class = quality::class(&pod["spec"]);
        default_field(pod, &["status", "qosClass"], class);
    }
    // As admission does, whenever a spec is written.
    if old.is_none_or(|old| old["spec"] != pod["spec"]) {
        tolerate(&mut pod["spec"]);
    }
}

/// A pod asks for what it is limited to, unless it asks for something else; a template does not yet.
fn default_requests(spec: &mut Value) {
    for list in ["initContainers", "containers"] {
        for container in spec.get_mut(list).map(items_mut).into_iter().flatten() {
            let limits: Vec<(String, Value)> = entries(&container["resources"]["limits"])
                .map(|(name, limit)| (name.clone(), limit.clone()))
                .collect();
            for (name, limit) in limits {
                default_field(container, &["resources", "requests", &name], limit);
            }
        }
    }
}

/// How long a pod stays on a node that is gone, unless its author says it.
fn tolerate(spec: &mut Value) {
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerated = items(&spec["tolerations"]).iter().any(|toleration| {
            let (of, effect) = (text(&toleration["key"]), text(&toleration["effect"]));
            (of == key || of.is_empty()) && (effect == "NoExecute" || effect.is_empty())
        });
        if !tolerated {
            let toleration =
                json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300});
            match &mut spec["tolerations"] {
                Value::Array(tolerations) => tolerations.push(toleration),
                unset if unset.is_null() => *unset = json!([toleration]),
                _ => {}
            }
        }
    }
}

/// Defaults of a pod's spec, also within a template.
pub(super) fn default_spec(spec: &mut Value) {
    default_field(spec, &["restartPolicy"], "Always");
    default_field(spec, &["dnsPolicy"], "ClusterFirst");
    default_field(spec, &["securityContext"], Map::new());
    default_field(spec, &["terminationGracePeriodSeconds"], 30);
    default_field(spec, &["schedulerName"], "default-scheduler");
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        if let Some(containers) = spec.get_mut(list) {
            items_mut(containers).iter_mut().for_each(default_container);
        }
    }
    if let Some(volumes) = spec.get_mut("volumes") {
        items_mut(volumes).iter_mut().for_each(default_volume);
    }
}

fn default_container(container: &mut Value) {
    let policy = pull_policy(text(&container["image"]));
    default_field(container, &["imagePullPolicy"], policy);
    default_field(container, &["terminationMessagePath"], "/dev/termination-log");
    default_field(container, &["terminationMessagePolicy"], "File");
    default_field(container, &["resources"], Map::new());
    if let Some(ports) = container.get_mut("ports") {
        items_mut(ports).iter_mut().for_each(|port| default_field(port, &["protocol"], "TCP"));
    }
    if let Some(env) = container.get_mut("env") {
        for variable in items_mut(env) {
            if let Some(from) = variable.get_mut("valueFrom") {
                default_field_reference(from);
            }
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(probe) {
            default_probe(probe);
        }
    }
}

fn default_probe(probe: &mut Value) {
    for (field, value) in
        [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
    {
        default_field(probe, &[field], value);
    }
    if probe.get("httpGet").is_some_and(Value::is_object) {
        default_field(probe, &["httpGet", "path"], "/");
        default_field(probe, &["httpGet", "scheme"], "HTTP");
    }
}

/// An image without a tag, or with `latest`, is pulled anew each time; one named by digest never changes.
fn pull_policy(image: &str) -> &'static str {
    let last = image.rsplit('/').next().unwrap_or_default();
    match last.split_once('@').map(|_| "").or(last.rsplit_once(':').map(|(_, tag)| tag)) {
        None | Some("latest") => "Always",
        Some(_) => "IfNotPresent",
    }
}

fn default_volume(volume: &mut Value) {
    let Some(fields) = volume.as_object_mut() else { return };
    // A volume with a name alone is an empty directory.
    if fields.keys().all(|field| field == "name") {
        fields.insert("emptyDir".into(), json!({}));
    }
    for (source, field, value) in [
        ("hostPath", "type", json!("")),
        ("configMap", "defaultMode", json!(FILE_MODE)),
        ("secret", "defaultMode", json!(FILE_MODE)),
        ("downwardAPI", "defaultMode", json!(FILE_MODE)),
        ("projected", "defaultMode", json!(FILE_MODE)),
    ] {
        if fields.get(source).is_some_and(Value::is_object)
            && let Some(source) = fields.get_mut(source)
        {
            default_field(source, &[field], value);
        }
    }
    if let Some(sources) = fields.get_mut("projected").and_then(|projected| projected.get_mut("sources")) {
        for source in items_mut(sources) {
            if source.get("serviceAccountToken").is_some_and(Value::is_object) {
                default_field(source, &["serviceAccountToken", "expirationSeconds"], 3600);
            }
            if let Some(items) = source.get_mut("downwardAPI").and_then(|api| api.get_mut("items")) {
                items_mut(items).iter_mut().for_each(default_field_reference);
            }
        }
    }
    if let Some(items) = fields.get_mut("downwardAPI").and_then(|api| api.get_mut("items")) {
        items_mut(items).iter_mut().for_each(default_field_reference);
    }
    let template = fields.get_mut("ephemeral").and_then(|ephemeral| ephemeral.get_mut("volumeClaimTemplate"));
    if let Some(spec) = template.and_then(|template| template.get_mut("spec")) {
        persistent_volume_claim::default_spec(spec, true);
    }
}

fn default_field_reference(item: &mut Value) {
    if item.get("resourceFieldRef").is_some_and(Value::is_object) {
        default_field(item, &["resourceFieldRef", "divisor"], "0");
    }
    if item.get("fieldRef").is_some_and(Value::is_object) {
        default_field(item, &["fieldRef", "apiVersion"], "v1");
    }
}

#[cfg(test)]
#[test]
fn images_are_pulled_by_tag() {
    for (image, policy) in [
        ("host", "Always"),
        ("busybox:1.36", "IfNotPresent"),
        ("busybox:latest", "Always"),
        ("registry:5000/busybox", "Always"),
        ("registry:5000/busybox:1", "IfNotPresent"),
        ("busybox@sha256:0123", "IfNotPresent"),
    ] {
        assert_eq!(pull_policy(image), policy, "{image}");
    }
}
