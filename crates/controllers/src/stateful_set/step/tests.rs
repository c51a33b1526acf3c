use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// A set and its objects, and what happens to them.
struct World {
    set: StatefulSet,
    pods: BTreeMap<String, Arc<Pod>>,
    claims: BTreeMap<String, Arc<PersistentVolumeClaim>>,
    revisions: Vec<Arc<ControllerRevision>>,
    now: Timestamp,
    made: u32,
}

fn ready(since: i64) -> Value {
    let at = Timestamp::from_second(since).unwrap();
    json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": at}]})
}

impl World {
    fn new(replicas: i32, spec: Value) -> Self {
        let mut set = json!({
            "metadata": {"name": "db", "namespace": "n", "uid": "set", "generation": 1},
            "spec": {
                "replicas": replicas, "selector": {"matchLabels": {"app": "db"}}, "serviceName": "db",
                "template": {"metadata": {"labels": {"app": "db"}}, "spec": {"containers": [{"name": "c"}]}},
                "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}],
                "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
            },
        });
        for (field, value) in spec.as_object().unwrap() {
            set["spec"][field] = value.clone();
        }
        let set = serde_json::from_value(set).unwrap();
        let now = Timestamp::from_second(1000).unwrap();
        let mut world =
            Self { set, pods: BTreeMap::new(), claims: BTreeMap::new(), revisions: vec![], now, made: 0 };
        world.look();
        world
    }

    fn plan(&self) -> Plan {
        step(&View {
            set: &self.set,
            pods: self.pods.values().cloned().collect(),
            revisions: self.revisions.clone(),
            pod: &|name| self.pods.get(name).cloned(),
            claim: &|name| self.claims.get(name).cloned(),
            now: self.now,
        })
    }

    /// What would be written now; the status aside.
    fn writes(&self) -> Vec<String> {
        self.plan().writes.iter().map(ToString::to_string).collect()
    }

    /// Plans, and does it.
    fn look(&mut self) -> usize {
        let plan = self.plan();
        let mut changes = plan.writes.len();
        for write in plan.writes {
            match write {
                Write::CreatePod(mut pod) => {
                    self.made += 1;
                    pod.metadata.uid = Some(format!("pod-{}", self.made));
                    pod.status = Some(serde_json::from_value(json!({"phase": "Pending"})).unwrap());
                    let before = self.pods.insert(pod.name_any(), Arc::new(*pod));
                    assert!(before.is_none(), "a pod is made only where there is none");
                }
                Write::UpdatePod(pod) | Write::AdoptPod(pod) | Write::ReleasePod(pod) => {
                    self.pods.insert(pod.name_any(), Arc::new(*pod));
                }
                Write::DeletePod(pod) => {
                    let mut pod = Pod::clone(&pod);
                    pod.metadata.deletion_timestamp =
                        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(self.now));
                    self.pods.insert(pod.name_any(), Arc::new(pod));
                }
                Write::CreateClaim(claim, _) | Write::UpdateClaim(claim, _) => {
                    self.claims.insert(claim.name_any(), Arc::new(*claim));
                }
                Write::CreateRevision(new) | Write::UpdateRevision(new) | Write::AdoptRevision(new) => {
                    self.revisions.retain(|revision| revision.name_any() != new.name_any());
                    self.revisions.push(Arc::new(*new));
                }
                Write::DeleteRevision(gone) => {
                    self.revisions.retain(|revision| revision.name_any() != gone.name_any());
                }
            }
        }
        if let Some(status) = plan.status {
            self.set.status = Some(status);
            changes += 1;
        }
        changes
    }

    fn change(&mut self, name: &str, edit: impl FnOnce(&mut Pod)) {
        let mut pod = Pod::clone(&self.pods[name]);
        edit(&mut pod);
        self.pods.insert(name.to_owned(), Arc::new(pod));
    }

    fn state(&mut self, name: &str, status: Value) {
        self.change(name, |pod| pod.status = Some(serde_json::from_value(status).unwrap()));
    }

    /// Looks until all is well, with a node that starts and ends pods.
    fn settle(&mut self) {
        for _ in 0..200 {
            let changes = self.look();
            let names: Vec<_> = self.pods.keys().cloned().collect();
            let news = names.iter().filter(|name| self.run(name)).count();
            if changes + news == 0 {
                return;
            }
        }
        panic!("it does not come to rest: {:?}", self.writes());
    }

    /// A node's next step about a pod.
    fn run(&mut self, name: &str) -> bool {
        let pod = &self.pods[name];
        if pods::is_going(pod) {
            self.pods.remove(name);
        } else if pods::is_pending(pod) {
            self.state(name, ready(0));
        } else {
            return false;
        }
        true
    }

    fn set_template(&mut self, marker: &str) {
        let template = &mut self.set.spec.as_mut().unwrap().template;
        template.metadata.get_or_insert_default().annotations =
            Some([("marker".to_owned(), marker.to_owned())].into());
        self.generation();
    }

    fn scale(&mut self, replicas: i32) {
        self.set.spec.as_mut().unwrap().replicas = Some(replicas);
        self.generation();
    }

    fn start(&mut self, ordinal: i32) {
        self.set.spec.as_mut().unwrap().ordinals.get_or_insert_default().start = Some(ordinal);
        self.generation();
    }

    fn generation(&mut self) {
        let generation = self.set.metadata.generation.get_or_insert_default();
        *generation += 1;
    }
}

#[test]
fn one_pod_follows_the_other() {
    let mut world = World::new(3, json!({"minReadySeconds": 10}));
    assert_eq!(world.revisions.len(), 1);
    assert_eq!(world.writes(), ["creating claim data-db-0", "creating pod db-0"]);
    world.look();
    assert_eq!(world.writes(), [""; 0], "it is not ready");
    world.state("db-0", ready(995));
    let plan = world.plan();
    assert_eq!((plan.writes.len(), plan.again), (0, Some(Duration::from_secs(5))), "it is not available");
    world.state("db-0", ready(990));
    assert_eq!(world.writes(), ["creating claim data-db-1", "creating pod db-1"]);
    world.state("db-0", json!({"phase": "Failed"}));
    assert_eq!(world.writes(), ["deleting pod db-0"]);
    world.look();
    assert_eq!(world.writes(), [""; 0], "it is going");
    world.set.metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(world.now));
    world.pods.clear();
    assert_eq!(world.writes(), [""; 0], "so is the set");
}

#[test]
fn parallel_pods_come_in_batches() {
    let world = World::new(3, json!({"podManagementPolicy": "Parallel"}));
    assert_eq!(world.writes().len(), 6);
    let world =
        World::new(2_000_000_000, json!({"podManagementPolicy": "Parallel", "volumeClaimTemplates": []}));
    assert_eq!(world.writes().len(), BATCH);
}

#[test]
fn pods_that_are_not_asked_for_go_from_the_top_after_their_claims_were_given_to_them() {
    let policy = json!({"whenScaled": "Delete", "whenDeleted": "Retain"});
    let mut world = World::new(3, json!({"persistentVolumeClaimRetentionPolicy": policy}));
    world.settle();
    world.scale(1);
    assert_eq!(
        world.writes(),
        [
            "changing the owners of claim data-db-2",
            "changing the owners of claim data-db-1",
            "deleting pod db-2"
        ]
    );
    world.look();
    assert_eq!(world.writes(), [""; 0], "db-2 is going");
    world.pods.remove("db-2");
    assert_eq!(world.writes(), ["deleting pod db-1"]);
    // While the claim still belongs to the pod that went, its successor must not begin with it.
    world.scale(3);
    world.look();
    assert_eq!(world.writes(), [""; 0]);
    world.claims.remove("data-db-2");
    assert_eq!(world.writes(), ["creating claim data-db-2", "creating pod db-2"]);
}

#[test]
fn pods_that_have_ended_stand_in_the_way_of_no_scaling_down() {
    let (ended, unready) = (json!({"phase": "Failed"}), json!({"phase": "Running"}));
    let cases = [
        // The states of db-1 and db-2; what goes first.
        (ready(0), ready(0), Some("db-2")),
        (ended.clone(), ended.clone(), Some("db-2")),
        (unready.clone(), ended.clone(), Some("db-2")),
        (ended.clone(), unready.clone(), Some("db-2")),
        (ready(0), unready.clone(), Some("db-2")),
        (unready.clone(), ready(0), Some("db-2")),
        // Only the lowest that is not available may end as such.
        (unready.clone(), unready, None),
    ];
    for (first, second, expected) in cases {
        let mut world = World::new(3, json!({}));
        world.settle();
        world.scale(1);
        world.state("db-1", first.clone());
        world.state("db-2", second.clone());
        let expected: Vec<_> = expected.map(|name| format!("deleting pod {name}")).into_iter().collect();
        assert_eq!(world.writes(), expected, "{first} {second}");
    }
}

#[test]
fn what_is_in_the_way_is_named_and_nothing_is_written() {
    let mut world = World::new(1, json!({}));
    let stranger: Pod =
        serde_json::from_value(json!({"metadata": {"name": "db-0", "namespace": "n"}})).unwrap();
    world.pods.insert("db-0".to_owned(), Arc::new(stranger));
    let plan = world.plan();
    assert!(
        plan.writes.is_empty() && plan.notices[0].message.contains("a pod of that name is there"),
        "{plan:?}"
    );
    world.pods.clear();
    let going = json!({"metadata": {"name": "data-db-0", "deletionTimestamp": world.now}});
    world.claims.insert("data-db-0".to_owned(), Arc::new(serde_json::from_value(going).unwrap()));
    let plan = world.plan();
    assert!(plan.writes.is_empty() && plan.notices[0].message.contains("is being deleted"), "{plan:?}");
}

#[test]
fn a_roll_out_spends_what_may_be_unavailable() {
    let cases = [
        // (most unavailable, unready pods, partition, deleted)
        (1, vec![], 0, vec!["db-4"]),
        (2, vec![], 0, vec!["db-4", "db-3"]),
        (9, vec![], 2, vec!["db-4", "db-3", "db-2"]),
        (1, vec!["db-4"], 0, vec!["db-4"]),
        // What is broken already costs nothing.
        (1, vec!["db-1"], 0, vec!["db-1"]),
        (2, vec!["db-1"], 0, vec!["db-4", "db-1"]),
        // It keeps its template, so that nothing is gained by waiting for it.
        (1, vec!["db-1"], 2, vec!["db-4"]),
    ];
    for (most, unready, partition, expected) in cases {
        let strategy = json!({"type": "RollingUpdate", "rollingUpdate": {"partition": partition, "maxUnavailable": most}});
        let mut world = World::new(5, json!({"podManagementPolicy": "Parallel", "updateStrategy": strategy}));
        world.settle();
        unready.iter().for_each(|name| world.state(name, json!({"phase": "Running"})));
        world.set_template("a");
        world.look();
        let expected: Vec<_> = expected.iter().map(|name| format!("deleting pod {name}")).collect();
        assert_eq!(world.writes(), expected, "{most} {unready:?} {partition}");
    }
}

/// A template whose pods never get ready is got rid of by a better one, in order, whatever the policy.
#[test]
fn a_bad_template_does_not_stand_in_the_way_of_a_better_one() {
    for policy in ["OrderedReady", "Parallel"] {
        for (replicas, good_before, strategy) in [
            (3, true, json!({"partition": 0})),
            (3, false, json!({"partition": 0})),
            (1, false, json!({"partition": 0})),
            (3, true, json!({})),
            (3, false, json!({})),
        ] {
            let spec = json!({"podManagementPolicy": policy, "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": strategy}});
            let mut world = World::new(replicas, spec);
            if good_before {
                world.settle();
            }
            world.set_template("bad");
            let marker = |pod: &Pod| pod.annotations().get("marker").cloned().unwrap_or_default();
            // Every pod of it stays unready: only the others are run, and those that go.
            let go_on = |world: &mut World| {
                for _ in 0..40 {
                    world.look();
                    let runs = |pod: &Pod| marker(pod) != "bad" || pods::is_going(pod);
                    let names: Vec<_> = world
                        .pods
                        .iter()
                        .filter(|(_, pod)| runs(pod))
                        .map(|(name, _)| name.clone())
                        .collect();
                    for name in &names {
                        world.run(name);
                    }
                }
            };
            go_on(&mut world);
            assert!(world.pods.values().any(|pod| marker(pod) == "bad"), "{policy} {replicas} {good_before}");
            world.set_template("good");
            go_on(&mut world);
            let left: Vec<_> = world.pods.values().map(|pod| marker(pod)).collect();
            assert_eq!(left, vec!["good"; replicas as usize], "{policy} {replicas} {good_before}");
        }
    }
}

#[test]
fn a_percentage_may_be_unavailable() {
    let strategy = json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "50%"}});
    let world = World::new(5, json!({"updateStrategy": strategy}));
    assert_eq!(Set::of(&world.set).unwrap().max_unavailable(), 2);
}

#[derive(Clone, Debug)]
enum Event {
    Look,
    Run(u8),
    Scale(u8),
    Start(u8),
    Template(u8),
    Fail(u8),
    Unready(u8),
    Lose(u8),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let one = prop_oneof![
        6 => Just(Event::Look),
        6 => (0..8u8).prop_map(Event::Run),
        1 => (0..6u8).prop_map(Event::Scale),
        1 => (0..3u8).prop_map(Event::Start),
        1 => (0..3u8).prop_map(Event::Template),
        1 => (0..8u8).prop_map(Event::Fail),
        1 => (0..8u8).prop_map(Event::Unready),
        1 => (0..8u8).prop_map(Event::Lose),
    ];
    proptest::collection::vec(one, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever happens, no pod of an ordered set is made before those below it are available, none is ended out of
    /// turn, no claim is lost, and in the end everything is as asked for.
    #[test]
    fn order_holds_whatever_happens(events in events(), is_ordered in any::<bool>()) {
        let policy = if is_ordered { "OrderedReady" } else { "Parallel" };
        let mut world = World::new(3, json!({"podManagementPolicy": policy}));
        for event in events {
            let name = |ordinal: u8| format!("db-{ordinal}");
            let present = |world: &World, ordinal: u8| {
                world.pods.get(&name(ordinal)).is_some_and(|pod| !pods::is_going(pod))
            };
            match event {
                Event::Look => {
                    if is_ordered {
                        keeps_order(&world)?;
                    }
                    let claims = world.claims.len();
                    world.look();
                    prop_assert!(world.claims.len() >= claims);
                }
                Event::Run(ordinal) if world.pods.contains_key(&name(ordinal)) => drop(world.run(&name(ordinal))),
                Event::Scale(replicas) => world.scale(replicas.into()),
                Event::Start(ordinal) => world.start(ordinal.into()),
                Event::Template(marker) => world.set_template(&marker.to_string()),
                Event::Fail(ordinal) if present(&world, ordinal) => world.state(&name(ordinal), json!({"phase": "Failed"})),
                Event::Unready(ordinal) if present(&world, ordinal) => {
                    world.state(&name(ordinal), json!({"phase": "Pending"}));
                }
                Event::Lose(ordinal) => drop(world.pods.remove(&name(ordinal))),
                _ => {}
            }
        }
        world.settle();
        let (asked, set) = (world.set.spec.as_ref().unwrap().replicas.unwrap(), Set::of(&world.set).unwrap());
        let names: Vec<_> = (set.start()..set.start() + set.replicas()).map(|ordinal| set.pod_name(ordinal)).collect();
        prop_assert_eq!(world.pods.keys().cloned().collect::<Vec<_>>(), names);
        let status = world.set.status.as_ref().unwrap();
        prop_assert_eq!((status.updated_replicas, status.ready_replicas), (Some(asked), Some(asked)));
        prop_assert_eq!(&status.current_revision, &status.update_revision);
        prop_assert_eq!(status.observed_generation, world.set.metadata.generation);
    }
}

/// Whether the next look makes pods only above available ones, and ends no two.
fn keeps_order(world: &World) -> Result<(), TestCaseError> {
    let set = Set::of(&world.set).unwrap();
    let available = |ordinal: i64| {
        let pod = world.pods.get(&set.pod_name(ordinal));
        pod.is_some_and(|pod| !pods::is_going(pod) && pods::health(pod, 0, world.now) == Health::Available)
    };
    let plan = world.plan();
    for write in &plan.writes {
        if let Write::CreatePod(pod) = write {
            let ordinal = set.ordinal(&pod.name_any()).unwrap();
            prop_assert!((set.start()..ordinal).all(available), "{plan:?}");
        }
    }
    let ends = plan.writes.iter().filter(|write| matches!(write, Write::DeletePod(_))).count();
    prop_assert!(ends <= 1, "{plan:?}");
    Ok(())
}
