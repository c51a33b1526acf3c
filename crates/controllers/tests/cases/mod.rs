//! Plays one case.

mod cluster;
mod objects;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use controllers::bind::{
    self, Cluster, Live, Look, Modes, Notice, Operation, Outcome, Plugin, Plugins, Step, World, sync_claim,
    sync_volume,
};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::ResourceExt;
use serde_json::{Value, json};

use cluster::{Map, Scripted};

/// Rounds after which a world that still changes is taken to never settle.
const ROUNDS: usize = 20;

/// Plays a case.
///
/// # Errors
/// What came out differently.
pub(crate) async fn play(case: &Value, fixtures: &Value) -> Result<(), String> {
    let (given, when, then) = (&case["given"], &case["when"], &case["then"]);
    let call = when["call"].as_str().unwrap_or_default();
    match call {
        "sync_claim" | "sync_volume" => sync(given, when, then).await,
        "run_controller" => run_controller(given, when, then).await,
        _ => compare(then, &answer(call, given, fixtures)?),
    }
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|one| one.as_str().map(str::to_owned)).collect()
}

fn modes(value: &Value) -> Vec<String> {
    strings(value).iter().map(|mode| objects::mode(mode)).collect()
}

/// The answer of a plain function.
fn answer(call: &str, given: &Value, fixtures: &Value) -> Result<Value, String> {
    let labels: BTreeMap<String, String> =
        serde_json::from_value(given["node_labels"].clone()).unwrap_or_default();
    let volumes = || -> Vec<Arc<PersistentVolume>> {
        let list = match given["volumes"].as_str() {
            Some(fixture) => &fixtures[fixture.trim_start_matches("@fixtures.")],
            None => &given["volumes"],
        };
        list.as_array().into_iter().flatten().map(|one| Arc::new(objects::volume(one))).collect()
    };
    let world = || {
        let mut world = World::default();
        world.attributes_class_off = given["features"]["VolumeAttributesClass"] == false;
        for volume in volumes() {
            world.volumes.put(volume);
        }
        for class in given["classes"].as_array().into_iter().flatten() {
            world.put_class(Arc::new(objects::class(class)));
        }
        world
    };
    let plugins = || Plugins::new(Vec::new(), migrated(given));
    Ok(match call {
        "match_volume" => {
            let world = world();
            let claim = objects::claim(&given["claim"]);
            let delayed = given["delay_binding"] == true;
            matched(bind::volume_for(&world, &claim, delayed).map_err(|_| ()))
        }
        "match_volume_on_node" => {
            let claim = objects::claim(&given["claim"]);
            let mut all = volumes();
            all.sort_by_cached_key(|volume| resources::fit::capacity(volume));
            let excluded: HashSet<_> = strings(&given["excluded"]).into_iter().collect();
            let off = given["features"]["VolumeAttributesClass"] == false;
            let taken = |name: &str| excluded.contains(name);
            matched(
                scheduler::volume_on_node(&claim, &all, &all, ("node", &labels), taken, off).map_err(|_| ()),
            )
        }
        "volume_modes_differ" => {
            let claim = objects::claim(&json!({"volume_mode": given["claim_volume_mode"]}));
            let volume = objects::volume(&json!({"volume_mode": given["volume_volume_mode"]}));
            json!({"differ": resources::volume::is_mode_mismatch(&claim, &volume)})
        }
        "volume_admits_node" => {
            let volume = objects::volume(&json!({"node_affinity": given["node_affinity"]}));
            json!({"ok": resources::volume::admits_node(&volume, "node", &labels)})
        }
        "access_modes_satisfied" => {
            let claim = objects::claim(&json!({"access_modes": given["requested"]}));
            let volume = objects::volume(&json!({"access_modes": given["volume"]}));
            json!({"ok": resources::volume::satisfies_access_modes(&volume, &claim)})
        }
        "is_delayed" => {
            let world = world();
            let class = world.class(given["claim_class"].as_str().unwrap_or_default());
            let delayed = class.map(|class| bind::is_delayed(class)).transpose();
            json!({"delayed": delayed.as_ref().is_ok_and(|delayed| *delayed == Some(true)), "error": delayed.is_err()})
        }
        "default_class" => json!({"name": world().default_class()}),
        "claim_has_class" => json!({"has": resources::claim::has_class(&objects::claim(given))}),
        "candidate_mode_sets" => json!({"count": world().volumes.mode_sets(&modes(&given["modes"])).count()}),
        "list_by_exact_mode_set" => {
            let mut all = volumes();
            let wanted = Modes::new(&modes(&given["modes"]));
            all.retain(|volume| Modes::new(resources::volume::access_modes(volume)) == wanted);
            all.sort_by_cached_key(|volume| resources::fit::capacity(volume));
            json!({"starts_with": all.iter().map(|volume| volume.name_any()).take(3).collect::<Vec<_>>()})
        }
        "requested_volume_acceptable" => {
            let (claim, volume) = (objects::claim(&given["claim"]), objects::volume(&given["volume"]));
            json!({"acceptable": bind::acceptable(&world(), &claim, &volume).is_ok()})
        }
        "fix_deletion_finalizers" => {
            let mut volume = objects::volume(given);
            let modified = bind::deletion_finalizers(&plugins(), &mut volume);
            json!({"finalizers": volume.finalizers(), "modified": modified})
        }
        "fix_migration_annotations" => {
            let annotations = if given["object"] == "claim" {
                let mut claim = objects::claim(given);
                bind::migrate_claim(&plugins(), &mut claim);
                claim.annotations().clone()
            } else {
                let mut volume = objects::volume(given);
                bind::migrate_volume(&plugins(), &mut volume);
                volume.annotations().clone()
            };
            json!({"annotations": annotations})
        }
        other => return Err(format!("no such call: {other}")),
    })
}

fn matched(found: Result<Option<&Arc<PersistentVolume>>, ()>) -> Value {
    json!({"match": found.as_ref().ok().and_then(|found| found.map(|volume| volume.name_any())), "error": found.is_err()})
}

fn compare(then: &Value, got: &Value) -> Result<(), String> {
    let expected = then.as_object().into_iter().flatten();
    for (key, value) in expected.filter(|(key, _)| !key.starts_with("events")) {
        let same = match (key.as_str(), value.as_array(), got[key].as_array()) {
            ("starts_with", Some(wanted), Some(got)) => got.starts_with(wanted),
            _ => *value == got[key],
        };
        if !same {
            return Err(format!("{key}: expected {value}, got {}", got[key]));
        }
    }
    Ok(())
}

fn migrated(given: &Value) -> BTreeMap<String, String> {
    match &given["migrated_plugins"] {
        Value::Object(map) => {
            map.iter().map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned())).collect()
        }
        Value::Array(names) => names
            .iter()
            .filter_map(|name| Some((name.as_str()?.to_owned(), "migrated.example.com".to_owned())))
            .collect(),
        _ => bind::MIGRATED.map(|(plugin, driver)| (plugin.to_owned(), driver.to_owned())).into(),
    }
}

/// A world in play.
struct Game<'a> {
    given: &'a Value,
    map: Map,
    plugins: Plugins,
    events: Vec<Notice>,
    refused: bool,
    operations: usize,
}

impl<'a> Game<'a> {
    fn new(given: &'a Value) -> Self {
        let mut migrated = migrated(given);
        if let Some(driver) = given["all_builtin_plugins_migrated_to"].as_str() {
            migrated.insert(Scripted::NAME.to_owned(), driver.to_owned());
        }
        let plugin = Scripted::of(&given["builtin_plugin"]).map(|plugin| Arc::new(plugin) as Arc<dyn Plugin>);
        let plugins = Plugins::new(plugin.into_iter().collect(), migrated);
        Self { given, map: Map::of(given), plugins, events: Vec::new(), refused: false, operations: 0 }
    }

    fn world(&self) -> World {
        let mut world = self.map.world(self.given);
        world.plugins = self.plugins.clone();
        world.attributes_class_off = self.given["features"]["VolumeAttributesClass"] == false;
        world
    }

    async fn claim(&mut self, name: &str) {
        let world = self.world();
        let Some(claim) = self.map.claim_named(name) else { return };
        self.make(sync_claim(&world, &claim)).await;
    }

    async fn volume(&mut self, name: &str) {
        let world = self.world();
        let mut live = Live::Unread;
        loop {
            let Some(volume) = self.map.volume_named(name) else { return };
            match sync_volume(&world, &volume, live) {
                Look::Decided(step) => return self.make(step).await,
                Look::Ask(key) => {
                    live = Live::Read(self.map.claim(&key).await.expect("the map answers").map(Box::new));
                }
            }
        }
    }

    async fn make(&mut self, step: Step) {
        let Step { writes, notices, operation, refused, .. } = step;
        self.refused |= refused.is_some();
        if let Err(error) = bind::write_all(&self.map, writes, |_, _| {}).await {
            self.refused = true;
            eprintln!("a write failed: {error}");
            return;
        }
        self.events.extend(notices);
        if let Some(operation) = operation {
            self.operate(operation).await;
        }
    }

    async fn operate(&mut self, operation: Operation) {
        self.operations += 1;
        let change = &self.given["concurrent_change"];
        match change["before_operation"].as_str() {
            Some("delete_volume") => self.map.drop_volume(change["volume"].as_str().unwrap_or_default()),
            Some("volume_already_made_available") => {
                self.map.change_volume(change["volume"].as_str().unwrap_or_default(), |volume| {
                    volume.spec.get_or_insert_default().claim_ref = None;
                    volume.annotations_mut().clear();
                    volume.status.get_or_insert_default().phase = Some("Available".to_owned());
                });
            }
            Some("add_claim_and_mark_volume_bound") => {
                let claim = objects::claim(&change["claim"]);
                let name = resources::claim::volume_name(&claim).to_owned();
                self.map.add_claim(claim);
                self.map.change_volume(&name, |volume| {
                    volume.status.get_or_insert_default().phase = Some("Bound".to_owned());
                });
            }
            _ => {}
        }
        let Outcome { step, .. } = bind::operate(&self.map, operation).await.expect("the map answers");
        bind::write_all(&self.map, step.writes, |_, _| {}).await.expect("the map takes writes");
        self.events.extend(step.notices);
    }

    /// Looks at everything until nothing changes.
    async fn settle(&mut self) -> Result<(), String> {
        let mut operations = None;
        for _ in 0..ROUNDS {
            let before = self.map.version();
            for name in self.map.claim_names() {
                self.claim(&name).await;
            }
            for name in self.map.volume_names() {
                self.volume(&name).await;
            }
            if self.map.version() == before && operations == Some(self.operations) {
                return Ok(());
            }
            operations = Some(self.operations);
            let provisioning = &self.given["concurrent_change"]["before_second_provision_operation"];
            if provisioning == "add_volume" {
                self.map.add_volume(objects::volume(&self.given["concurrent_change"]["volume"]));
            }
        }
        Ok(())
    }

    fn verify(&self, then: &Value) -> Result<(), String> {
        if then["error"].as_bool().is_some_and(|error| error != self.refused) {
            return Err(format!("error: expected {}, got {}", then["error"], self.refused));
        }
        let volumes =
            |list: Vec<PersistentVolume>| list.iter().map(objects::volume_facts).collect::<Vec<_>>();
        let claims =
            |list: Vec<PersistentVolumeClaim>| list.iter().map(objects::claim_facts).collect::<Vec<_>>();
        let expected = |key: &str| then[key].as_array().cloned().unwrap_or_default();
        same(
            "volume",
            expected("volumes").iter().map(objects::normal_volume).collect(),
            volumes(self.map.volumes()),
        )?;
        same(
            "claim",
            expected("claims").iter().map(objects::normal_claim).collect(),
            claims(self.map.claims()),
        )?;
        let got: Vec<_> = self.events.iter().map(objects::event_facts).collect();
        let required = expected("events_required");
        if !got.starts_with(&required) {
            return Err(format!("events: expected {required:?}, got {got:?}"));
        }
        Ok(())
    }
}

fn same(what: &str, mut expected: Vec<Value>, mut got: Vec<Value>) -> Result<(), String> {
    let by_name = |value: &Value| value["name"].as_str().unwrap_or_default().to_owned();
    expected.sort_by_key(by_name);
    got.sort_by_key(by_name);
    if expected == got {
        return Ok(());
    }
    let differing = expected.iter().zip(&got).find(|(expected, got)| expected != got);
    let (expected, got) = differing.map_or((json!(expected), json!(got)), |(a, b)| (a.clone(), b.clone()));
    Err(format!("{what}:\n      expected {expected}\n      got      {got}"))
}

async fn sync(given: &Value, when: &Value, then: &Value) -> Result<(), String> {
    let mut game = Game::new(given);
    let name = when["name"].as_str().unwrap_or_default();
    if when["call"] == "sync_claim" {
        game.claim(name).await;
    } else {
        game.volume(name).await;
    }
    if when["repeat_until_stable"] == true {
        game.settle().await?;
    }
    game.verify(then)
}

async fn run_controller(given: &Value, when: &Value, then: &Value) -> Result<(), String> {
    let mut game = Game::new(given);
    game.settle().await?;
    for action in when["actions"].as_array().into_iter().flatten() {
        if let Some(name) = action["delete_volume"].as_str() {
            game.map.drop_volume(name);
        } else if let Some(name) = action["delete_claim"].as_str() {
            game.map.drop_claim(name);
        } else if action["create_claim"].is_object() {
            game.map.add_claim(objects::claim(&action["create_claim"]));
        } else if action["create_volume"].is_object() {
            game.map.add_volume(objects::volume(&action["create_volume"]));
        } else if let Some(phase) = action["wait_claim_phase"].as_str() {
            let claims = game.map.claims();
            if !claims.iter().any(|claim| resources::claim::phase(claim) == phase) {
                return Err(format!("no claim became {phase}"));
            }
        } else {
            return Err(format!("no such action: {action}"));
        }
        game.settle().await?;
    }
    game.verify(then)
}
