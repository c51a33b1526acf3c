//! Plays one case: a world, a pod, and what each node says to it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service};
use kube::ResourceExt;
use runtime::Key;
use scheduler::{Stage, Verdict, World, judge, scores};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

fn objects<K: DeserializeOwned>(list: &Value) -> Vec<Arc<K>> {
    let object =
        |value: &Value| serde_json::from_value(value.clone()).expect("an object has Kubernetes' form");
    list.as_array().into_iter().flatten().map(object).map(Arc::new).collect()
}

/// Objects by name.
fn named<K: DeserializeOwned + kube::Resource>(list: &Value) -> HashMap<String, Arc<K>> {
    objects::<K>(list).into_iter().map(|object| (object.name_any(), object)).collect()
}

/// A pod or claim without a UID has `NAMESPACE-NAME`.
fn with_uid(object: &Value) -> Value {
    let mut object = object.clone();
    let meta = &mut object["metadata"];
    if meta["uid"].is_null() {
        let namespace = meta["namespace"].as_str().unwrap_or("default");
        meta["uid"] = format!("{namespace}-{}", meta["name"].as_str().unwrap_or_default()).into();
    }
    object
}

/// A pod as the API server keeps it.
fn stored(pod: &Value, case: &Value) -> Arc<Pod> {
    let mut pod = with_uid(pod);
    let status = pod["status"].clone();
    let kind = api_server::kinds::BUILTIN.iter().find(|kind| kind.kind == "Pod").expect("pods are served");
    api_server::kinds::default_object(kind, &mut pod, None);
    if !status.is_null() {
        pod["status"] = status;
    }
    if let Some(parts) = case["stored"][pod["metadata"]["name"].as_str().unwrap_or_default()].as_object() {
        for (field, value) in parts {
            assert_eq!(pod["spec"][field], *value, "{field} as stored");
        }
    }
    Arc::new(serde_json::from_value(pod).expect("a pod"))
}

/// The world of a case.
fn world(case: &Value) -> World {
    let given = &case["given"];
    let mut world = World::default();
    objects(&given["nodes"]).iter().for_each(|node| world.put_node(node));
    for pod in given["pods"].as_array().into_iter().flatten() {
        let mut pod = pod.clone();
        if pod["status"]["phase"].is_null() {
            pod["status"]["phase"] = "Running".into();
        }
        world.put_pod(&stored(&pod, case));
    }
    objects(&given["volumes"]).iter().for_each(|volume| world.put_volume(volume));
    for claim in given["claims"].as_array().into_iter().flatten() {
        world.put_claim(&Arc::new(serde_json::from_value(with_uid(claim)).expect("a claim")));
    }
    world.classes = named(&given["classes"]);
    world.csi_nodes = named(&given["csi_nodes"]);
    world.drivers = named(&given["csi_drivers"]);
    world.namespaces = named(&given["namespaces"]);
    let services = objects::<Service>(&given["services"]);
    world.services = services.into_iter().map(|service| (Key::of(&*service), service)).collect();
    objects(&given["capacities"]).iter().for_each(|capacity| world.ledger.publish(capacity));
    world
}

/// What each node says, in the form of the cases.
fn verdicts(world: &World, pod: &Pod) -> Value {
    let (mut feasible, mut refused) = (Vec::new(), BTreeMap::new());
    for Verdict { node, refused: why } in judge(world, pod) {
        match why {
            None => feasible.push(node),
            Some(why) => {
                let stage = match why.stage {
                    Stage::PreEnqueue => "PreEnqueue",
                    Stage::PreFilter => "PreFilter",
                    Stage::Filter => "Filter",
                };
                let code = if why.resolvable { "Unschedulable" } else { "UnschedulableAndUnresolvable" };
                let said =
                    json!({"plugin": why.plugin, "reasons": why.reasons, "code": code, "stage": stage});
                refused.insert(node, said);
            }
        }
    }
    json!({"feasible": feasible, "refused": refused})
}

/// Plays a case.
///
/// # Errors
/// What came out differently.
pub(crate) fn play(case: &Value) -> Result<(), String> {
    let (world, pod, then) = (world(case), stored(&case["pod"], case), &case["then"]);
    let got = verdicts(&world, &pod);
    for part in ["feasible", "refused"] {
        if !then[part].is_null() && got[part] != then[part] {
            return Err(format!("{part}: expected {}\n    got {}", then[part], got[part]));
        }
    }
    let Some(plugin) = then["scores"]["plugin"].as_str() else { return Ok(()) };
    let all = scores(&world, &pod);
    let found = all.iter().find(|scores| scores.plugin == plugin).expect("the plugin has scores");
    let skipped = found.nodes.is_none();
    let nothing = || judge(&world, &pod).into_iter().filter(|verdict| verdict.refused.is_none());
    let got: BTreeMap<String, i64> = match &found.nodes {
        Some(nodes) => nodes.iter().cloned().collect(),
        None => nothing().map(|verdict| (verdict.node, 0)).collect(),
    };
    match json!(got) == then["scores"]["nodes"] && skipped == (then["scores"]["skipped"] == true) {
        true => Ok(()),
        false => {
            Err(format!("scores: expected {}\n    got {} skipped: {skipped}", then["scores"], json!(got)))
        }
    }
}

/// Whether a case differs in this alone: nodes that have room for each claim, but not for all of them, are refused.
pub(crate) fn differs_by_joint_capacity(case: &Value) -> bool {
    let got = verdicts(&world(case), &stored(&case["pod"], case));
    let volumes = case["pod"]["spec"]["volumes"].as_array().map_or(0, Vec::len);
    let short = |node: &str| {
        let said = &got["refused"][node];
        said["plugin"] == "VolumeBinding"
            && said["reasons"] == json!(["node(s) did not have enough free storage"])
    };
    let names = |list: &Value| -> Vec<String> {
        list.as_array().into_iter().flatten().filter_map(|name| Some(name.as_str()?.to_owned())).collect()
    };
    let (mine, theirs) = (names(&got["feasible"]), names(&case["then"]["feasible"]));
    volumes > 1
        && mine.len() < theirs.len()
        && mine.iter().all(|node| theirs.contains(node))
        && theirs.iter().filter(|node| !mine.contains(*node)).all(|node| short(node))
}
