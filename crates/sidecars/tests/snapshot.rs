//! Snapshots of claims, volumes made from them, and groups of them: a driver with faults, a real API server, and processes that
//! die at every step.

#![allow(clippy::unwrap_used, reason = "a test says by its panic what went wrong")]

#[path = "snapshot/groups.rs"]
mod groups;
mod world;

use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Secret};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use resources::snapshot::{VolumeSnapshot, is_ready};
use resources::{VolumeSnapshotClass, annotations, claim, finalizers};
use serde_json::json;
use tonic::Status;
use world::driver::{Answer, Shot};
use world::steps::When;
use world::{DRIVER, Steps, World, eventually, has_intent, object};

/// A world with a bound claim `data` on `n1`.
async fn world_with_claim() -> World {
    let world = World::new(1).await;
    world.define_snapshots(|_| {}).await;
    world.class("fast", |_| {}).await;
    world.bound_pair("data", "fast", Some("n1"), "1Mi").await;
    world
}

async fn ready(world: &World, name: &str) -> VolumeSnapshot {
    eventually(&format!("snapshot {name} is ready"), async || {
        world.snapshots().get_opt(name).await.unwrap().is_some_and(|one| is_ready(&one))
    })
    .await;
    world.snapshots().get(name).await.unwrap()
}

async fn delete(world: &World, name: &str) {
    match world.snapshots().delete(name, &DeleteParams::default()).await {
        Err(kube::Error::Api(status)) if status.is_not_found() => {}
        result => drop(result.unwrap()),
    }
}

async fn no_snapshots(world: &World) {
    eventually("snapshots are gone, objects and data", async || {
        let snapshots = world.snapshots().list(&ListParams::default()).await.unwrap();
        let contents = world.contents().list(&ListParams::default()).await.unwrap();
        snapshots.items.is_empty() && contents.items.is_empty() && world.driver.snapshots().is_empty()
    })
    .await;
}

/// Whether the claim is kept by nobody but its users.
async fn is_free(world: &World, claim: &str) -> bool {
    let claim = world.claims().get(claim).await.unwrap();
    claim.finalizers().iter().all(|name| name == finalizers::CLAIM_PROTECTION)
}

/// A claim that is to be made from a source.
fn claim_from(name: &str, source: serde_json::Value, size: &str) -> PersistentVolumeClaim {
    object(json!({
        "metadata": {"name": name, "annotations": {annotations::STORAGE_PROVISIONER: DRIVER,
                     annotations::SELECTED_NODE: "n1"}},
        "spec": {"storageClassName": "fast", "accessModes": ["ReadWriteOnce"], "dataSource": source,
                 "resources": {"requests": {"storage": size}}},
    }))
}

fn from_snapshot(name: &str) -> serde_json::Value {
    json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": name})
}

#[tokio::test]
async fn a_snapshot_is_taken_with_few_writes_and_deleted_with_its_object() {
    let world = world_with_claim().await;
    let process = world.take_snapshots(&Steps::new()).await;
    let asked = world.snapshot("before", "data").await;
    let snapshot = ready(&world, "before").await;
    eventually("the claim is let go", async || is_free(&world, "data").await).await;
    let uid = asked.uid().unwrap();
    let status = snapshot.status.clone().unwrap();
    assert_eq!(status.bound_volume_snapshot_content_name, Some(format!("snapcontent-{uid}")));
    assert_eq!(status.restore_size.unwrap().0, "1Mi");
    assert_eq!(status.creation_time.unwrap().0.as_second(), 1_700_000_000);
    assert_eq!(snapshot.spec.volume_snapshot_class_name.as_deref(), Some("shots"));
    assert_eq!(snapshot.finalizers(), [finalizers::SNAPSHOT_AS_SOURCE, finalizers::SNAPSHOT_BOUND]);
    let content = world.contents().get(&format!("snapcontent-{uid}")).await.unwrap();
    assert_eq!(content.labels()[resources::labels::SNAPSHOT_MANAGED_BY], "n1");
    assert_eq!(content.spec.source_volume_mode.as_deref(), Some("Filesystem"));
    assert!(!content.annotations().contains_key(annotations::SNAPSHOT_BEING_CREATED));
    let calls = world.driver.shot();
    assert_eq!(calls.len(), 1);
    assert_eq!(
        (calls[0].name.as_str(), calls[0].source_volume_id.as_str()),
        (&*format!("snapshot-{uid}"), "id-pv-data")
    );
    // Snapshot, claim, content; intent, status, settled; one or two times the snapshot's status; claim.
    assert!((8..=10).contains(&world.writes()), "{} writes", world.writes());
    for reason in ["CreatingSnapshot", "SnapshotCreated", "SnapshotReady"] {
        eventually(reason, async || world.events(reason).await.len() == 1).await;
    }
    delete(&world, "before").await;
    no_snapshots(&world).await;
    process.kill().await;
}

/// Lives with a fault at each step in turn, some side by side, until one was over before its fault. The number of steps.
async fn every_step<F: Future<Output = bool>>(life: impl Fn(usize) -> F) -> usize {
    const SIDE_BY_SIDE: usize = 8;
    let mut first = 0;
    loop {
        let had_fault = futures::future::join_all((first..first + SIDE_BY_SIDE).map(&life)).await;
        if let Some(over) = had_fault.iter().position(|had_fault| !had_fault) {
            return first + over;
        }
        first += SIDE_BY_SIDE;
    }
}

/// Kills the process at every step in turn. After a step there is the same as before the next, so one round has this and
/// the other that; in the second one the snapshot, and its claim, are deleted while nobody is there.
#[tokio::test]
async fn a_crash_at_any_step_neither_loses_nor_leaks_a_snapshot() {
    for (deleted, when) in [(false, When::After), (true, When::Before)] {
        let steps = every_step(|step| life_with_a_crash(step, when, deleted)).await;
        assert!(steps >= 13, "a whole life has at least 13 steps, this one had {steps}");
    }
}

async fn life_with_a_crash(step: usize, when: When, deleted: bool) -> bool {
    let world = world_with_claim().await;
    let asked = world.snapshot("before", "data").await;
    let steps = Steps::crashing_at(step, when);
    let process = world.take_snapshots(&steps).await;
    let life = async {
        ready(&world, "before").await;
        eventually("the claim is let go", async || is_free(&world, "data").await).await;
        delete(&world, "before").await;
        no_snapshots(&world).await;
    };
    let crashed = tokio::select! {
        () = life => false,
        () = steps.crashed() => true,
    };
    process.kill().await;
    if !crashed {
        return false;
    }
    let living = world.snapshots().get_opt("before").await.unwrap();
    let living = living.is_some_and(|one| one.metadata.deletion_timestamp.is_none());
    if deleted {
        delete(&world, "before").await;
        world.delete_claim("data").await;
    }
    let process = world.take_snapshots(&Steps::new()).await;
    if !deleted && living {
        ready(&world, "before").await;
        eventually("the claim is let go", async || is_free(&world, "data").await).await;
        assert_eq!(world.driver.snapshots().len(), 1, "crash {when:?} step {step}");
        delete(&world, "before").await;
    }
    no_snapshots(&world).await;
    if deleted {
        eventually("the claim is gone", async || {
            world.bind().await;
            world.claims().get_opt("data").await.unwrap().is_none()
        })
        .await;
    }
    let name = format!("snapshot-{}", asked.uid().unwrap());
    assert!(world.driver.shot().iter().all(|request| request.name == name));
    process.kill().await;
    true
}

/// Refuses every write in turn, as a conflict and as a failure of the API.
#[tokio::test]
async fn any_refused_write_is_made_good() {
    let life = |code: u16, write: usize| async move {
        let world = world_with_claim().await;
        let process = world.take_snapshots(&Steps::refusing_at(write, code)).await;
        world.snapshot("before", "data").await;
        ready(&world, "before").await;
        let restored = claim_from("restored", from_snapshot("before"), "1Mi");
        world.claims().create(&PostParams::default(), &restored).await.unwrap();
        world.bound("restored").await;
        eventually("the sources are let go", async || {
            let snapshot = world.snapshots().get("before").await.unwrap();
            is_free(&world, "data").await
                && !snapshot.finalizers().iter().any(|name| name == finalizers::SNAPSHOT_SOURCE)
        })
        .await;
        delete(&world, "before").await;
        no_snapshots(&world).await;
        let writes = world.writes();
        process.kill().await;
        write < writes
    };
    for code in [409, 500] {
        let writes = every_step(|write| life(code, write)).await;
        assert!(writes >= 18, "{writes}");
    }
}

#[tokio::test]
async fn a_refusal_is_told_once_and_an_open_answer_followed_up() {
    let world = world_with_claim().await;
    let busy = || Status::aborted("the volume is busy");
    world.driver.answer_snapshot([
        Shot::Refuse(Status::internal("out of order")),
        Shot::Refuse(Status::internal("out of order")),
        Shot::MakeAndFail(busy()),
    ]);
    let process = world.take_snapshots(&Steps::new()).await;
    let uid = world.snapshot("before", "data").await.uid().unwrap();
    eventually("the refusal is told", async || {
        let snapshot = world.snapshots().get("before").await.unwrap();
        let error = snapshot.status.and_then(|status| status.error?.message).unwrap_or_default();
        error.contains("Failed to create snapshot: CreateSnapshot id-pv-data: rpc error: code = Internal desc = out of order")
    })
    .await;
    eventually("the driver may have it", async || world.driver.snapshots().len() == 1).await;
    let content = world.contents().get(&format!("snapcontent-{uid}")).await.unwrap();
    assert!(content.annotations().contains_key(annotations::SNAPSHOT_BEING_CREATED));
    // Deleted while nobody knows whether the driver has it: it is found out first.
    delete(&world, "before").await;
    no_snapshots(&world).await;
    assert_eq!(world.events("SnapshotCreationFailed").await.len(), 2, "one for each wording");
    process.kill().await;
}

#[tokio::test]
async fn a_snapshot_that_takes_long_is_asked_for_again_and_not_restored_before() {
    let world = world_with_claim().await;
    world.driver.answer_snapshot([Shot::Unready, Shot::Unready]);
    let process = world.take_snapshots(&Steps::new()).await;
    world.snapshot("before", "data").await;
    let restored = claim_from("restored", from_snapshot("before"), "1Mi");
    world.claims().create(&PostParams::default(), &restored).await.unwrap();
    eventually("the claim says what it waits for", async || {
        let told = world.events("ProvisioningFailed").await;
        told.iter().any(|message| message.contains("data source VolumeSnapshot default/before is not ready"))
    })
    .await;
    assert!(world.driver.requests().is_empty());
    // The driver's creation time is long ago, so it is asked seldom; another look at the content comes sooner.
    let uid = world.snapshots().get("before").await.unwrap().uid().unwrap();
    let name = format!("snapcontent-{uid}");
    eventually("the driver was asked twice", async || world.driver.shot().len() == 2).await;
    let retain = json!({"spec": {"deletionPolicy": "Retain"}});
    world.contents().patch(&name, &PatchParams::default(), &Patch::Merge(&retain)).await.unwrap();
    ready(&world, "before").await;
    world.bound("restored").await;
    // And so it is retained, although its class says Delete.
    delete(&world, "before").await;
    eventually("the snapshot is gone", async || world.snapshots().get_opt("before").await.unwrap().is_none())
        .await;
    assert_eq!(world.driver.snapshots().len(), 1);
    assert!(world.contents().get(&name).await.unwrap().metadata.deletion_timestamp.is_none());
    process.kill().await;
}

#[tokio::test]
async fn secrets_of_the_class_reach_the_driver() {
    let world = World::new(1).await;
    world
        .define_snapshots(|class| {
            class.parameters = [
                ("tier", "cold"),
                ("csi.storage.k8s.io/snapshotter-secret-name", "${volumesnapshot.name}-key"),
                ("csi.storage.k8s.io/snapshotter-secret-namespace", "${volumesnapshot.namespace}"),
            ]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
        })
        .await;
    world.class("fast", |_| {}).await;
    world.bound_pair("data", "fast", Some("n1"), "1Mi").await;
    let process = world.take_snapshots(&Steps::new()).await;
    world.snapshot("before", "data").await;
    eventually("the missing secret is told", async || {
        let snapshot = world.snapshots().get("before").await.unwrap();
        let error = snapshot.status.and_then(|status| status.error?.message).unwrap_or_default();
        error.contains("the secret default/before-key does not exist")
    })
    .await;
    assert!(world.driver.shot().is_empty());
    let secret: Secret =
        object(json!({"metadata": {"name": "before-key"}, "stringData": {"password": "hush"}}));
    let secrets: Api<Secret> = Api::default_namespaced(world.client.clone());
    secrets.create(&PostParams::default(), &secret).await.unwrap();
    ready(&world, "before").await;
    let call = &world.driver.shot()[0];
    assert_eq!(call.parameters, [("tier".to_owned(), "cold".to_owned())].into());
    assert_eq!(call.secrets, [("password".to_owned(), "hush".to_owned())].into());
    process.kill().await;
}

#[tokio::test]
async fn bad_input_ends_in_a_status_and_writes_no_more() {
    let world = world_with_claim().await;
    world.claim("unbound", "fast", None, "1Mi").await;
    let process = world.take_snapshots(&Steps::new()).await;
    world.bound_pair("going", "fast", Some("n1"), "1Mi").await;
    world.delete_claim("going").await;
    let own = claim_from("own", from_snapshot("of-own"), "1Mi");
    world.claims().create(&PostParams::default(), &own).await.unwrap();
    for (name, claim, why) in [
        ("of-nothing", "nothing", "claim nothing not found; create it"),
        ("of-unbound", "unbound", "the PVC unbound is not yet bound to a PV"),
        ("of-going", "going", "claim going is being deleted, will not attempt"),
        ("of-own", "own", "the PVC own is not yet bound to a PV"),
    ] {
        world.snapshot(name, claim).await;
        eventually(why, async || {
            let snapshot = world.snapshots().get(name).await.unwrap();
            let status = snapshot.status.unwrap_or_default();
            let error = status.error.and_then(|error| error.message).unwrap_or_default();
            error.contains(why) && status.ready_to_use == Some(false)
        })
        .await;
    }
    let given: VolumeSnapshot = object(json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot", "metadata": {"name": "given"},
        "spec": {"source": {"volumeSnapshotContentName": "missing"}},
    }));
    world.snapshots().create(&PostParams::default(), &given).await.unwrap();
    let clone = |of: &str| json!({"kind": "PersistentVolumeClaim", "name": of});
    for claim in [
        claim_from("itself", clone("itself"), "1Mi"),
        claim_from("first", clone("second"), "1Mi"),
        claim_from("second", clone("third"), "1Mi"),
        claim_from("third", clone("first"), "1Mi"),
        claim_from("of-circle", clone("first"), "1Mi"),
        claim_from("from-nothing", from_snapshot("nothing"), "1Mi"),
        claim_from("too-small", clone("data"), "1Ki"),
    ] {
        world.claims().create(&PostParams::default(), &claim).await.unwrap();
    }
    for why in [
        "default/itself from default/itself",
        "default/second from default/third from default/first from default/second",
        "PersistentVolumeClaim default/first has no volume yet",
        "VolumeSnapshot default/of-own is not ready",
        "VolumeSnapshot default/nothing does not exist",
        "1Ki is less than the size 1Mi",
    ] {
        eventually(why, async || {
            world.events("ProvisioningFailed").await.iter().any(|message| message.contains(why))
        })
        .await;
    }
    eventually("the missing content is told", async || {
        world.events("SnapshotContentMissing").await == ["VolumeSnapshotContent is missing"]
    })
    .await;
    let writes = world.writes();
    assert!(writes <= 9, "{writes} writes");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!((world.writes(), world.driver.shot().len(), world.driver.requests().len()), (writes, 0, 0));
    process.kill().await;
}

#[tokio::test]
async fn what_was_refused_is_made_once_it_can_be() {
    let world = World::new(1).await;
    let is_default = annotations::IS_DEFAULT_SNAPSHOT_CLASS;
    world.define_snapshots(|class| class.metadata.annotations = None).await;
    world.class("fast", |_| {}).await;
    world.bound_pair("data", "fast", Some("n1"), "1Mi").await;
    let process = world.take_snapshots(&Steps::new()).await;
    let uid = world.snapshot("before", "data").await.uid().unwrap();
    eventually("the missing class is told", async || {
        let told = world.events("SetDefaultSnapshotClassFailed").await;
        told.iter().any(|message| message.contains("cannot find default snapshot class for driver"))
    })
    .await;
    let classes: Api<VolumeSnapshotClass> = Api::all(world.client.clone());
    let annotated = json!({"metadata": {"annotations": {is_default: "true"}}});
    classes.patch("shots", &PatchParams::default(), &Patch::Merge(&annotated)).await.unwrap();
    let snapshot = ready(&world, "before").await;
    assert_eq!(snapshot.status.unwrap().error, None);

    let mut device = claim_from("device", from_snapshot("before"), "1Mi");
    device.spec.as_mut().unwrap().volume_mode = Some("Block".to_owned());
    world.claims().create(&PostParams::default(), &device).await.unwrap();
    eventually("the mode is told", async || {
        let told = world.events("ProvisioningFailed").await;
        told.iter().any(|message| message.contains("volume mode Block differs from the mode Filesystem"))
    })
    .await;
    assert!(world.driver.requests().is_empty());
    let allowed = json!({"metadata": {"annotations": {annotations::ALLOW_MODE_CHANGE: "true"}}});
    let content = format!("snapcontent-{uid}");
    world.contents().patch(&content, &PatchParams::default(), &Patch::Merge(&allowed)).await.unwrap();
    world.bound("device").await;
    process.kill().await;
}

#[tokio::test]
async fn a_snapshot_that_is_being_restored_is_deleted_afterwards() {
    let world = world_with_claim().await;
    let process = world.take_snapshots(&Steps::new()).await;
    world.snapshot("before", "data").await;
    ready(&world, "before").await;
    // Whether there is a volume nobody knows before the driver is asked again.
    world.driver.answer_create([Answer::MakeAndFail(Status::unavailable("no answer"))]);
    let copy = claim_from("copy", from_snapshot("before"), "1Mi");
    world.claims().create(&PostParams::default(), &copy).await.unwrap();
    eventually("the driver was asked", async || !world.driver.requests().is_empty()).await;
    delete(&world, "before").await;
    eventually("what it waits for is told", async || {
        let told = world.events("SnapshotDeletePending").await;
        told.iter().any(|message| message == "Snapshot is being used to restore a PVC")
    })
    .await;
    assert_eq!(world.driver.snapshots().len(), 1);
    world.bound("copy").await;
    no_snapshots(&world).await;
    process.kill().await;
}

#[tokio::test]
async fn a_snapshot_that_exists_is_bound_in_either_order_and_to_one_only() {
    let world = world_with_claim().await;
    world.driver.add_snapshot("old", "id-pv-data");
    let process = world.take_snapshots(&Steps::new()).await;
    let given = |name: &str| -> VolumeSnapshot {
        object(json!({
            "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot", "metadata": {"name": name},
            "spec": {"source": {"volumeSnapshotContentName": "known"}},
        }))
    };
    world.snapshots().create(&PostParams::default(), &given("mine")).await.unwrap();
    eventually("the content is missed", async || !world.events("SnapshotContentMissing").await.is_empty())
        .await;
    let content = object(json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotContent", "metadata": {"name": "known"},
        "spec": {"driver": DRIVER, "deletionPolicy": "Delete", "source": {"snapshotHandle": "id-old"},
                 "volumeSnapshotRef": {"name": "mine", "namespace": "default"}},
    }));
    world.contents().create(&PostParams::default(), &content).await.unwrap();
    let mine = ready(&world, "mine").await;
    assert_eq!(mine.status.unwrap().error, None);
    let content = world.contents().get("known").await.unwrap();
    assert_eq!(content.spec.volume_snapshot_ref.uid, mine.metadata.uid);
    assert_eq!(content.labels()[resources::labels::SNAPSHOT_MANAGED_BY], "n1");
    assert!(world.driver.shot().is_empty(), "it was there already");

    world.snapshots().create(&PostParams::default(), &given("theirs")).await.unwrap();
    eventually("the other one is refused", async || {
        let told = world.events("SnapshotContentMisbound").await;
        told.iter().any(|message| message.contains("bound to a different snapshot, default/mine"))
    })
    .await;
    delete(&world, "theirs").await;
    eventually("it goes alone", async || world.snapshots().get_opt("theirs").await.unwrap().is_none()).await;
    assert_eq!(world.driver.snapshots(), ["old"]);
    delete(&world, "mine").await;
    no_snapshots(&world).await;
    process.kill().await;
}

/// Kills the process before every step of a restore, then after every one of a clone; the sources are deleted while
/// nobody is there.
#[tokio::test]
async fn a_copy_survives_a_crash_at_any_step_and_the_deletion_of_its_source() {
    let clone = json!({"kind": "PersistentVolumeClaim", "name": "data"});
    for (source, when) in [(from_snapshot("before"), When::Before), (clone, When::After)] {
        let steps = every_step(|step| copy_with_a_crash(&source, step, when)).await;
        assert!(steps >= 5, "keep, intent, call, volume, settle; {steps}");
    }
}

async fn copy_with_a_crash(source: &serde_json::Value, step: usize, when: When) -> bool {
    let world = world_with_claim().await;
    let process = world.take_snapshots(&Steps::new()).await;
    world.snapshot("before", "data").await;
    ready(&world, "before").await;
    eventually("the claim is let go", async || is_free(&world, "data").await).await;
    process.kill().await;
    let steps = Steps::crashing_at(step, when);
    let process = world.take_snapshots(&steps).await;
    world.claims().create(&PostParams::default(), &claim_from("copy", source.clone(), "2Mi")).await.unwrap();
    let life = async {
        world.bound("copy").await;
        eventually("the source is let go", async || {
            let snapshot = world.snapshots().get("before").await.unwrap();
            is_free(&world, "data").await
                && !snapshot.finalizers().iter().any(|name| name == finalizers::SNAPSHOT_SOURCE)
        })
        .await;
    };
    let crashed = tokio::select! {
        () = life => false,
        () = steps.crashed() => true,
    };
    process.kill().await;
    if crashed {
        // Once it is on record that the copy is being made, it comes to be; before, it may not.
        let kept = has_intent(&world.claims().get("copy").await.unwrap());
        delete(&world, "before").await;
        world.delete_claim("data").await;
        let process = world.take_snapshots(&Steps::new()).await;
        if kept {
            world.bound("copy").await;
        }
        world.delete_claim("copy").await;
        let what = format!("crash {when:?} step {step}, kept {kept}: everything is gone");
        eventually(&what, async || {
            world.bind().await;
            world.claims().list(&ListParams::default()).await.unwrap().items.is_empty()
                && world.driver.volumes().is_empty()
        })
        .await;
        no_snapshots(&world).await;
        let content = |request: &csi::v1::CreateVolumeRequest| request.volume_content_source.is_some();
        assert!(world.driver.requests().iter().all(content), "never made empty");
        process.kill().await;
    }
    crashed
}

#[tokio::test]
async fn a_claim_that_was_given_the_wrong_node_is_handed_back() {
    let world = World::new(2).await;
    world.define_snapshots(|_| {}).await;
    world.class("fast", |_| {}).await;
    world.bound_pair("there", "fast", Some("n2"), "1Mi").await;
    let process = world.take_snapshots(&Steps::new()).await;
    let copy = claim_from("copy", json!({"kind": "PersistentVolumeClaim", "name": "there"}), "1Mi");
    world.claims().create(&PostParams::default(), &copy).await.unwrap();
    eventually("the node is taken off", async || {
        claim::selected_node(&world.claims().get("copy").await.unwrap()).is_none()
    })
    .await;
    eventually("the reason is told", async || {
        let told = world.events("ProvisioningFailed").await;
        told.iter().any(|message| message.contains("is on the node of volume pv-there"))
    })
    .await;
    assert!(world.driver.requests().is_empty());
    process.kill().await;
}
