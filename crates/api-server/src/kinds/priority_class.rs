//! Priority classes, and the priority that pods have by them.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    fields::{default_unset, text},
    groups,
    row::{Cluster, Hooks, Row, Rules},
    violations::Violations,
};
use crate::object;
use crate::schema::TypeSchema;
use crate::table::age;
use crate::table::column::{AGE, Column, NAME, Printer, column, flag, name};

static SCHEMA: TypeSchema = TypeSchema::of::<k8s_openapi::api::scheduling::v1::PriorityClass>();

pub(crate) static KIND: Row = Row {
    group: groups::SCHEDULING,
    kind: "PriorityClass",
    plural: "priorityclasses",
    short_names: &["pc"],
    namespaced: false,
    schema: Some(&SCHEMA),
    rules: Rules { default, check, check_change, ..Rules::NONE },
    table: Printer { columns: COLUMNS, cells },
    hooks: Hooks {
        on_create: |class, cluster| one_default(class, cluster),
        on_update: |new, _, cluster| one_default(new, cluster),
        kept,
        ..Hooks::NONE
    },
    generations: true,
    shows_deleted: true,
    ..Row::PLAIN
};

/// What people may give at most; above is the system's own.
const HIGHEST: i64 = 1_000_000_000;
const SYSTEM_PREFIX: &str = "system-";
/// The classes of the system: name, value, description.
const SYSTEM: [(&str, i64, &str); 2] = [
    (
        "system-node-critical",
        2_000_001_000,
        "Used for system critical pods that must not be moved from their current node.",
    ),
    (
        "system-cluster-critical",
        2_000_000_000,
        "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
    ),
];
const POLICIES: &[&str] = &["Never", "PreemptLowerPriority"];
const POLICY: &str = "PreemptLowerPriority";

/// The classes that a cluster has from its first start on.
pub(crate) fn system() -> impl Iterator<Item = (&'static Row, Value)> {
    SYSTEM.into_iter().map(|(name, value, description)| {
        (&KIND, json!({"metadata": {"name": name}, "value": value, "description": description}))
    })
}

fn default(class: &mut Value, _: Option<&Value>) {
    default_unset(class, &["preemptionPolicy"], POLICY);
}

fn check(class: &Value, violations: &mut Violations) {
    violations.one_of("preemptionPolicy", &class["preemptionPolicy"], POLICIES);
    let (name, value) = (object::name(class), class["value"].as_i64().unwrap_or_default());
    let is_system = SYSTEM.iter().any(|(known, at, _)| *known == name && *at == value);
    if name.starts_with(SYSTEM_PREFIX) && !is_system {
        let known = SYSTEM.iter().any(|(known, ..)| *known == name);
        let why = if known { "has a value of its own" } else { "is not a known system priority class" };
        violations.forbid(
            "metadata.name",
            &format!(
                "priority class names with '{SYSTEM_PREFIX}' prefix are reserved for system use only. error: {name} {why}"
            ),
        );
    } else if !is_system && value > HIGHEST {
        violations.forbid("value", &format!("maximum allowed value of a user defined priority is {HIGHEST}"));
    }
}

fn check_change(new: &Value, old: &Value, violations: &mut Violations) {
    if new["value"].as_i64().unwrap_or_default() != old["value"].as_i64().unwrap_or_default() {
        violations.forbid("value", "may not be changed in an update.");
    }
    violations.immutable("preemptionPolicy", &new["preemptionPolicy"], &old["preemptionPolicy"]);
}

/// There is one class at most for pods that name none.
fn one_default(class: &Value, cluster: &dyn Cluster) -> Result<(), String> {
    if class["globalDefault"] != true {
        return Ok(());
    }
    let all = cluster.list(&KIND);
    let other = all.iter().find(|other| is_default(other) && object::name(other) != object::name(class));
    other.map_or(Ok(()), |other| {
        Err(format!(
            "PriorityClass {} is already marked as default. Only one default can exist",
            object::name(other)
        ))
    })
}

fn is_default(class: &Value) -> bool {
    class["globalDefault"] == true
}

fn kept(class: &Value) -> Option<&'static str> {
    let is_system = SYSTEM.iter().any(|(name, ..)| *name == object::name(class));
    is_system.then_some("this is a system priority class and cannot be deleted")
}

/// Gives a new pod the priority and the policy of its class, or of the default one.
///
/// # Errors
/// There is no such class, or the pod claims to have what its class does not give.
pub(super) fn admit(spec: &mut Value, cluster: &dyn Cluster) -> Result<(), String> {
    let named = text(&spec["priorityClassName"]).to_owned();
    let class = if named.is_empty() {
        let defaults = cluster.list(&KIND).into_iter().filter(is_default);
        defaults.min_by_key(|class| class["value"].as_i64())
    } else {
        let known = cluster.get(&KIND, "", &named);
        Some(known.ok_or_else(|| format!("no PriorityClass with name {named} was found"))?)
    };
    let priority = class.as_ref().and_then(|class| class["value"].as_i64()).unwrap_or_default();
    let policy =
        class.as_ref().and_then(|class| class["preemptionPolicy"].as_str()).unwrap_or(POLICY).to_owned();
    if let Some(given) = spec["priority"].as_i64().filter(|given| *given != priority) {
        return Err(format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller \
             computed {priority} from the given PriorityClass name"
        ));
    }
    if let Some(given) = spec["preemptionPolicy"].as_str().filter(|given| *given != policy) {
        return Err(format!(
            "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission \
             controller computed {policy} from the given PriorityClass name"
        ));
    }
    if let Some(class) = class.filter(|_| named.is_empty()) {
        spec["priorityClassName"] = object::name(&class).into();
    }
    spec["priority"] = priority.into();
    spec["preemptionPolicy"] = policy.into();
    Ok(())
}

const COLUMNS: &[Column] = &[
    NAME,
    column("Value", "integer", "Pods of a higher value are placed first."),
    column("Global-Default", "boolean", "Whether it is the class of pods that name none."),
    AGE,
    column("PreemptionPolicy", "string", "Whether its pods may take the place of others."),
];

fn cells(class: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(class),
        class["value"].as_i64().unwrap_or_default().into(),
        flag(&class["globalDefault"], false),
        age::of(class, now),
        text(&class["preemptionPolicy"]).into(),
    ]
}
