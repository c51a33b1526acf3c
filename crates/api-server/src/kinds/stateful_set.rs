//! Stateful sets.

use std::borrow::Cow;
use std::collections::HashSet;

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use values::{LabelSelector, names};

use super::{
    fields::{default_field, entries, items, items_mut, same, text},
    groups,
    metadata::NameRule,
    persistent_volume_claim, pod,
    row::{Row, Rules, ScalePaths},
    violations::Violations,
};
use crate::schema::FieldError;
use crate::schema::TypeSchema;
use crate::table::age;
use crate::table::column::{AGE, Column, NAME, Printer, column, wide};

static SCHEMA: TypeSchema = TypeSchema::of::<k8s_openapi::api::apps::v1::StatefulSet>();

pub(crate) static KIND: Row = Row {
    group: groups::APPS,
    kind: "StatefulSet",
    plural: "statefulsets",
    short_names: &["sts"],
    categories: &["all"],
    status: true,
    schema: Some(&SCHEMA),
    // A set's name begins the names of its pods, which are host names.
    rules: Rules { name: NameRule::Label, default, check, check_change, warnings, ..Rules::NONE },
    table: Printer { columns: COLUMNS, cells },
    scale: Some(&SCALE),
    generations: true,
    ..Row::PLAIN
};

static SCALE: ScalePaths = ScalePaths {
    wanted: Cow::Borrowed("/spec/replicas"),
    observed: Cow::Borrowed("/status/replicas"),
    selector: Some(Cow::Borrowed("/spec/selector")),
};

const POLICIES: &[&str] = &["Retain", "Delete"];
/// What may change in a set's spec.
const MUTABLE: [&str; 7] = [
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];

fn default(set: &mut Value, old: Option<&Value>) {
    if old.is_none() {
        for count in ["replicas", "availableReplicas"] {
            default_field(set, &["status", count], 0);
        }
    }
    let Some(spec) = set.get_mut("spec").filter(|spec| spec.is_object()) else { return };
    default_field(spec, &["podManagementPolicy"], "OrderedReady");
    if text(&spec["updateStrategy"]["type"]).is_empty() {
        default_field(spec, &["updateStrategy", "rollingUpdate"], Map::new());
    }
    default_field(spec, &["updateStrategy", "type"], "RollingUpdate");
    let strategy = &spec["updateStrategy"];
    if strategy["type"] == "RollingUpdate" && strategy["rollingUpdate"].is_object() {
        default_field(spec, &["updateStrategy", "rollingUpdate", "partition"], 0);
    }
    for event in ["whenDeleted", "whenScaled"] {
        default_field(spec, &["persistentVolumeClaimRetentionPolicy", event], "Retain");
    }
    default_field(spec, &["replicas"], 1);
    default_field(spec, &["revisionHistoryLimit"], 10);
    if let Some(template) = spec.get_mut("template") {
        pod::default_template(template);
    }
    if let Some(templates) = spec.get_mut("volumeClaimTemplates") {
        for template in items_mut(templates).iter_mut().filter(|template| template.is_object()) {
            default_field(template, &["apiVersion"], "v1");
            default_field(template, &["kind"], "PersistentVolumeClaim");
            default_field(template, &["status", "phase"], "Pending");
            if let Some(spec) = template.get_mut("spec") {
                persistent_volume_claim::default_spec(spec, true);
            }
        }
    }
}

fn check(set: &Value, violations: &mut Violations) {
    let spec = &set["spec"];
    let policy = &spec["podManagementPolicy"];
    if !["OrderedReady", "Parallel"].contains(&text(policy)) {
        violations.invalid("spec.podManagementPolicy", policy, "must be 'OrderedReady' or 'Parallel'");
    }
    check_strategy(&spec["updateStrategy"], violations);
    for event in ["whenDeleted", "whenScaled"] {
        let field = format!("spec.persistentVolumeClaimRetentionPolicy.{event}");
        violations.one_of(field, &spec["persistentVolumeClaimRetentionPolicy"][event], POLICIES);
    }
    check_claims(items(&spec["volumeClaimTemplates"]), violations);
    for field in ["replicas", "minReadySeconds"] {
        violations.not_negative(format!("spec.{field}"), &spec[field]);
    }
    violations.not_negative("spec.ordinals.start", &spec["ordinals"]["start"]);
    if !text(&spec["serviceName"]).is_empty() {
        violations.named("spec.serviceName", &spec["serviceName"], names::dns_label);
    }
    check_selector(spec, violations);
    check_template(spec, violations);
    check_status(&set["status"], violations);
}

fn check_strategy(strategy: &Value, violations: &mut Violations) {
    const FIELD: &str = "spec.updateStrategy.rollingUpdate";
    let rolling = &strategy["rollingUpdate"];
    match text(&strategy["type"]) {
        "RollingUpdate" => {}
        "OnDelete" if rolling.is_null() => {}
        "OnDelete" => {
            violations.invalid(FIELD, rolling, "only allowed for updateStrategy 'RollingUpdate'");
        }
        _ => {
            violations.invalid("spec.updateStrategy", strategy, "must be 'RollingUpdate' or 'OnDelete'");
        }
    }
    violations.not_negative(format!("{FIELD}.partition"), &rolling["partition"]);
    let most = &rolling["maxUnavailable"];
    let field = format!("{FIELD}.maxUnavailable");
    let number = match most {
        Value::String(percent) => {
            let number = percent.strip_suffix('%').and_then(|number| number.parse::<i64>().ok());
            if number.is_none_or(|number| number < 0) {
                let detail = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or \
                              '93%', regex used for validation is '[0-9]+%')";
                violations.invalid(&*field, most, detail);
                return;
            }
            if number.is_some_and(|number| number > 100) {
                violations.invalid(&*field, most, "must not be greater than 100%");
            }
            number
        }
        _ => most.as_i64(),
    };
    violations.not_negative(&*field, most);
    if number == Some(0) {
        violations.invalid(&*field, most, "cannot be 0");
    }
}

/// A template's name begins the names of its claims, and is the name of the pods' volume.
fn check_claims(templates: &[Value], violations: &mut Violations) {
    let mut seen = HashSet::new();
    for (index, template) in templates.iter().enumerate() {
        let field = format!("spec.volumeClaimTemplates[{index}]");
        let mut inner = Violations::default();
        persistent_volume_claim::check_spec(&template["spec"], &mut inner);
        for error in inner.into_vec() {
            violations.add(error.below(&field));
        }
        let name = &template["metadata"]["name"];
        let at = format!("{field}.metadata.name");
        violations.require_named(&at, name, names::dns_label);
        if !text(name).is_empty() && !seen.insert(text(name)) {
            violations.add(FieldError::duplicate(at, name.clone()));
        }
    }
}

fn check_selector(spec: &Value, violations: &mut Violations) {
    let selector = &spec["selector"];
    if selector.is_null() {
        violations.add(FieldError::required("spec.selector", ""));
        return;
    }
    violations.label_selector("spec.selector", selector);
    let labels = &spec["template"]["metadata"]["labels"];
    match parse(selector) {
        Some(parsed) if parsed.is_empty() => {
            violations.invalid("spec.selector", selector, "empty selector is invalid for statefulset");
        }
        Some(parsed) if !parsed.matches(|key| labels[key].as_str()) => {
            let detail = "`selector` does not match template `labels`";
            violations.invalid("spec.template.metadata.labels", labels, detail);
        }
        _ => {}
    }
}

/// The selector, if every part of it can be read.
fn parse(selector: &Value) -> Option<LabelSelector> {
    let labels = entries(&selector["matchLabels"]).map(|(key, value)| (key.as_str(), text(value)));
    let values: Vec<Vec<String>> = items(&selector["matchExpressions"])
        .iter()
        .map(|one| items(&one["values"]).iter().map(|value| text(value).to_owned()).collect())
        .collect();
    let expressions = items(&selector["matchExpressions"])
        .iter()
        .zip(&values)
        .map(|(one, values)| (text(&one["key"]), text(&one["operator"]), values.as_slice()));
    LabelSelector::new(labels, expressions).ok()
}

/// The pod template as pods will be made of it: with a volume for each claim, and named by the set.
fn check_template(spec: &Value, violations: &mut Violations) {
    const FIELD: &str = "spec.template";
    let mut template = spec["template"].clone();
    if let Some(pod) = template.get_mut("spec").and_then(Value::as_object_mut) {
        pod.remove("hostname");
        pod.remove("subdomain");
        let names: Vec<&Value> =
            items(&spec["volumeClaimTemplates"]).iter().map(|claim| &claim["metadata"]["name"]).collect();
        let mut volumes: Vec<Value> = pod.get("volumes").map(items).unwrap_or_default().to_vec();
        let of_claims: HashSet<&str> = names.iter().map(|name| text(name)).collect();
        volumes.retain(|volume| !of_claims.contains(text(&volume["name"])));
        let of_claim = |name: &&Value| json!({"name": name, "persistentVolumeClaim": {"claimName": name}});
        volumes.extend(names.iter().map(of_claim));
        pod.insert("volumes".into(), volumes.into());
    }
    pod::check_template(FIELD, &template, violations);
    violations.one_of("spec.template.spec.restartPolicy", &template["spec"]["restartPolicy"], &["Always"]);
    if !template["spec"]["activeDeadlineSeconds"].is_null() {
        let detail = "activeDeadlineSeconds in StatefulSet is not Supported";
        violations.forbid("spec.template.spec.activeDeadlineSeconds", detail);
    }
}

fn check_status(status: &Value, violations: &mut Violations) {
    const PARTS: [&str; 4] = ["readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas"];
    let count = |field: &str| status[field].as_i64().unwrap_or(0);
    for field in PARTS.iter().chain(&["replicas", "observedGeneration", "collisionCount"]) {
        violations.not_negative(format!("status.{field}"), &status[*field]);
    }
    for field in PARTS.iter().filter(|field| count(field) > count("replicas")) {
        let detail = "cannot be greater than status.replicas";
        violations.invalid(format!("status.{field}"), &status[*field], detail);
    }
    if count("availableReplicas") > count("readyReplicas") {
        let detail = "cannot be greater than status.readyReplicas";
        violations.invalid("status.availableReplicas", &status["availableReplicas"], detail);
    }
}

fn check_change(new: &Value, old: &Value, violations: &mut Violations) {
    let mut allowed = new["spec"].clone();
    for field in MUTABLE {
        allowed[field] = old["spec"][field].clone();
    }
    if !same(&allowed, &old["spec"]) {
        let detail = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', \
                      'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and \
                      'minReadySeconds' are forbidden";
        violations.forbid("spec", detail);
    }
    let collisions = |set: &Value| set["status"]["collisionCount"].as_i64().unwrap_or(0);
    if collisions(new) < collisions(old) {
        let detail = "cannot be decremented";
        violations.invalid("status.collisionCount", &new["status"]["collisionCount"], detail);
    }
}

fn warnings(set: &Value) -> Vec<String> {
    values::unserved::of("spec.template.spec", &set["spec"]["template"]["spec"])
}

const COLUMNS: &[Column] = &[
    NAME,
    column("Ready", "string", "Pods that are ready, of those asked for."),
    AGE,
    wide("Containers", "Names of the containers in the template."),
    wide("Images", "Images of the containers in the template."),
];

fn cells(set: &Value, now: Timestamp) -> Vec<Value> {
    let containers = items(&set["spec"]["template"]["spec"]["containers"]);
    let joined = |field: &str| {
        containers.iter().map(|container| text(&container[field])).collect::<Vec<_>>().join(",")
    };
    let count = |value: &Value| value.as_i64().unwrap_or(0);
    vec![
        set["metadata"]["name"].clone(),
        format!("{}/{}", count(&set["status"]["readyReplicas"]), count(&set["spec"]["replicas"])).into(),
        age::of(set, now),
        joined("name").into(),
        joined("image").into(),
    ]
}
