use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;

fn object<K: DeserializeOwned>(value: Value) -> Arc<K> {
    Arc::new(serde_json::from_value(value).expect("an object"))
}

/// A snapshot of the bound claim `data` as the user wrote it, and all that it takes.
fn facts() -> Facts {
    Facts {
        snapshot: object(json!({
            "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot",
            "metadata": {"name": "s", "namespace": "shop", "uid": "7"},
            "spec": {"source": {"persistentVolumeClaimName": "data"}},
        })),
        classes: vec![class("one", "d", true), class("other", "e", true), class("plain", "d", false)],
        claim: Some(object(json!({
            "metadata": {"name": "data", "namespace": "shop", "uid": "8"},
            "spec": {"volumeName": "pv"}, "status": {"phase": "Bound"},
        }))),
        volume: Some(object(json!({
            "metadata": {"name": "pv"},
            "spec": {"csi": {"driver": "d", "volumeHandle": "id-pv"},
                     "claimRef": {"name": "data", "namespace": "shop", "uid": "8"}},
        }))),
        only_node: Some("n1".to_owned()),
        content: None,
        in_group: false,
    }
}

fn class(name: &str, driver: &str, is_default: bool) -> Arc<VolumeSnapshotClass> {
    let mut class = VolumeSnapshotClass::new(name, driver);
    if is_default {
        class.annotations_mut().insert(IS_DEFAULT_SNAPSHOT_CLASS.to_owned(), "true".to_owned());
    }
    Arc::new(class)
}

fn content(uid: &str, policy: &str, annotations: Value, status: Value) -> Arc<VolumeSnapshotContent> {
    object(json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotContent",
        "metadata": {"name": "snapcontent-7", "annotations": annotations},
        "spec": {"driver": "d", "deletionPolicy": policy, "source": {"volumeHandle": "id-pv"},
                 "volumeSnapshotRef": {"name": "s", "namespace": "shop", "uid": uid}},
        "status": status,
    }))
}

fn edit(facts: &mut Facts, change: impl FnOnce(&mut VolumeSnapshot)) {
    change(Arc::make_mut(&mut facts.snapshot));
}

/// The write and the events, in short.
fn told(facts: &Facts) -> String {
    let step = step(facts);
    let write = match &step.write {
        None => "nothing".to_owned(),
        Some(Write::Snapshot(one)) => format!("finalizers {}", one.finalizers().len()),
        Some(Write::ReleaseSnapshot { snapshot, without }) => {
            format!("finalizers {} unless there is {without}", snapshot.finalizers().len())
        }
        Some(Write::SnapshotStatus(one)) => {
            let status = one.status.clone().unwrap_or_default();
            let error = status.error.and_then(|error| error.message);
            error.map_or(format!("ready {:?}", status.ready_to_use == Some(true)), |_| "error".to_owned())
        }
        Some(Write::CreateContent(_)) => "create".to_owned(),
        Some(Write::Content(_)) => "mark".to_owned(),
        Some(Write::DeleteContent(_)) => "delete".to_owned(),
        Some(Write::Claim(_)) => "keep claim".to_owned(),
        Some(other) => format!("{other:?}"),
    };
    let reasons = step.events.iter().map(|event| event.reason);
    std::iter::once(write.as_str()).chain(reasons).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_snapshot_comes_to_be() {
    let mut of = facts();
    assert_eq!(told(&of), "finalizers 2");
    edit(&mut of, |snapshot| {
        snapshot.spec.volume_snapshot_class_name = Some("one".to_owned());
        snapshot.metadata.finalizers = Some(vec![SNAPSHOT_AS_SOURCE.to_owned(), SNAPSHOT_BOUND.to_owned()]);
    });
    assert_eq!(told(&of), "keep claim");
    let claim = of.claim.as_mut().map(Arc::make_mut).expect("the claim");
    claim.finalizers_mut().push(CLAIM_AS_SNAPSHOT_SOURCE.to_owned());
    assert_eq!(told(&of), "create CreatingSnapshot");
    let Some(Write::CreateContent(made)) = step(&of).write else { panic!("it is created") };
    assert_eq!(made.labels()["snapshot.storage.kubernetes.io/managed-by"], "n1");
    of.content = Some(content("7", "Delete", json!({}), Value::Null));
    assert_eq!(told(&of), "ready false");
    let status = json!({"snapshotHandle": "id", "readyToUse": true, "creationTime": 1, "restoreSize": 1024});
    of.content = Some(content("7", "Delete", json!({}), status));
    assert_eq!(told(&of), "ready true SnapshotCreated SnapshotReady");
    let Some(Write::SnapshotStatus(done)) = step(&of).write else { panic!("it is shown") };
    assert_eq!(done.status.as_ref().and_then(|status| status.restore_size.clone()).expect("size").0, "1Ki");
    of.snapshot = Arc::new(*done);
    assert_eq!(told(&of), "nothing");
    of.content = None;
    assert_eq!(told(&of), "error SnapshotContentMissing");
    let Some(Write::SnapshotStatus(missing)) = step(&of).write else { panic!("it is told") };
    of.snapshot = Arc::new(*missing);
    assert_eq!(told(&of), "nothing", "it is not taken anew");
}

#[test]
fn what_can_not_be_taken_is_told_once() {
    type Change = fn(&mut Facts);
    let cases: [(&str, Change); 12] = [
        ("SnapshotContentCreationFailed", |of| of.claim = None),
        ("SnapshotContentCreationFailed", |of| of.volume = None),
        ("SnapshotContentCreationFailed", |of| {
            let claim = of.claim.as_mut().map(Arc::make_mut).expect("the claim");
            claim.status.get_or_insert_default().phase = Some("Pending".to_owned());
        }),
        ("SetDefaultSnapshotClassFailed", |of| of.classes.clear()),
        ("SetDefaultSnapshotClassFailed", |of| of.classes.push(class("two", "d", true))),
        ("GetSnapshotClassFailed", |of| {
            edit(of, |one| one.spec.volume_snapshot_class_name = Some("gone".to_owned()));
        }),
        ("SnapshotContentCreationFailed", |of| {
            edit(of, |one| one.spec.volume_snapshot_class_name = Some("other".to_owned()));
        }),
        ("SnapshotContentMisbound", |of| of.content = Some(content("8", "Delete", json!({}), Value::Null))),
        ("SnapshotValidationError", |of| edit(of, |one| one.spec.source.persistent_volume_claim_name = None)),
        ("SnapshotContentCreationFailed", |of| {
            let volume = of.volume.as_mut().map(Arc::make_mut).expect("the volume");
            volume.spec.get_or_insert_default().csi = None;
        }),
        ("SnapshotContentMismatch", |of| of.content = Some(given("7"))),
        ("SnapshotContentMismatch", |of| {
            ask_for_content(of);
            of.content = Some(content("7", "Delete", json!({}), Value::Null));
        }),
    ];
    for (reason, change) in cases {
        let mut of = facts();
        change(&mut of);
        assert_eq!(told(&of), format!("error {reason}"));
        let Some(Write::SnapshotStatus(with_error)) = step(&of).write else { panic!("it is told") };
        of.snapshot = Arc::new(*with_error);
        assert_eq!(told(&of), "nothing", "{reason}");
    }
}

/// The content of a snapshot that exists, as an administrator wrote it.
fn given(uid: &str) -> Arc<VolumeSnapshotContent> {
    let mut given = Arc::unwrap_or_clone(content(uid, "Delete", json!({}), Value::Null));
    given.spec.source.volume_handle = None;
    given.spec.source.snapshot_handle = Some("id-old".to_owned());
    Arc::new(given)
}

fn ask_for_content(of: &mut Facts) {
    edit(of, |snapshot| {
        snapshot.spec.source.persistent_volume_claim_name = None;
        snapshot.spec.source.volume_snapshot_content_name = Some("snapcontent-7".to_owned());
    });
}

#[test]
fn a_snapshot_that_exists_is_taken_by_whom_it_is_meant_for() {
    let mut of = facts();
    ask_for_content(&mut of);
    assert_eq!(told(&of), "finalizers 1");
    edit(&mut of, |snapshot| snapshot.metadata.finalizers = Some(vec![SNAPSHOT_AS_SOURCE.to_owned()]));
    assert_eq!(told(&of), "error SnapshotContentMissing");
    of.content = Some(given(""));
    let Some(Write::Content(taken)) = step(&of).write else { panic!("it is taken") };
    assert_eq!(taken.spec.volume_snapshot_ref.uid.as_deref(), Some("7"));
    assert_eq!(taken.finalizers(), [SNAPSHOT_CONTENT]);
    of.content = Some(Arc::new(*taken));
    assert_eq!(told(&of), "finalizers 2");
    for (change, why) in [
        ((|of| of.content = Some(given("8"))) as fn(&mut Facts), "another snapshot's by its uid"),
        (|of| edit(of, |one| one.metadata.name = Some("t".to_owned())), "by its name"),
        (|of| edit(of, |one| one.metadata.namespace = Some("dev".to_owned())), "by its namespace"),
    ] {
        let mut of = Facts { snapshot: of.snapshot.clone(), content: of.content.clone(), ..facts() };
        change(&mut of);
        assert_eq!(told(&of), "error SnapshotContentMisbound", "{why}");
    }
}

#[test]
fn no_snapshot_is_begun_of_a_claim_that_goes_and_none_apart_from_its_group() {
    let mut of = facts();
    let claim = of.claim.as_mut().map(Arc::make_mut).expect("the claim");
    claim.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
    let Some(Write::Snapshot(prepared)) = step(&of).write else { panic!("its class is named") };
    of.snapshot = Arc::new(*prepared);
    assert_eq!(told(&of), "error SnapshotContentCreationFailed");
    let mut of = facts();
    edit(&mut of, |snapshot| snapshot.metadata.finalizers = Some(vec![SNAPSHOT_IN_GROUP.to_owned()]));
    assert_eq!(told(&of), "nothing");
}

#[test]
fn a_snapshot_goes_after_its_content() {
    const MARKED: &str = SNAPSHOT_BEING_DELETED;
    let going = |policy: &str, annotations: Value| {
        let mut of = facts();
        edit(&mut of, |snapshot| {
            snapshot.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
            snapshot.metadata.finalizers =
                Some(vec![SNAPSHOT_AS_SOURCE.to_owned(), SNAPSHOT_BOUND.to_owned()]);
        });
        of.content = Some(content("7", policy, annotations, Value::Null));
        of
    };
    assert_eq!(told(&going("Delete", json!({}))), "mark");
    assert_eq!(told(&going("Retain", json!({}))), "mark");
    assert_eq!(told(&going("Delete", json!({MARKED: "yes"}))), "delete");
    assert_eq!(told(&going("Retain", json!({MARKED: "yes"}))), "finalizers 0");
    let mut of = going("Delete", json!({}));
    of.content = None;
    assert_eq!(told(&of), "finalizers 0 unless there is snapcontent-7");
    edit(&mut of, |snapshot| {
        snapshot.metadata.name = Some("snapshot-12".to_owned());
        snapshot.finalizers_mut().push(SNAPSHOT_IN_GROUP.to_owned());
    });
    assert_eq!(told(&of), "finalizers 0 unless there is snapcontent-12", "a group's");
    of.content = Some(content("8", "Delete", json!({}), Value::Null));
    assert_eq!(told(&of), "finalizers 0", "another snapshot's content is not touched");
    let mut of = going("Delete", json!({}));
    edit(&mut of, |snapshot| snapshot.finalizers_mut().push(SNAPSHOT_SOURCE.to_owned()));
    assert_eq!(told(&of), "nothing SnapshotDeletePending");
    let mut of = going("Delete", json!({}));
    of.in_group = true;
    assert_eq!(told(&of), "nothing SnapshotDeletePending");
}

#[test]
fn a_claim_is_needed_while_a_snapshot_of_it_is_taken() {
    let snapshot = |ready: bool, going: bool| -> VolumeSnapshot {
        let mut of = facts();
        edit(&mut of, |snapshot| {
            snapshot.status.get_or_insert_default().ready_to_use = Some(ready);
            snapshot.metadata.deletion_timestamp = going.then_some(Time(Timestamp::UNIX_EPOCH));
        });
        Arc::unwrap_or_clone(of.snapshot)
    };
    let taken = content("7", "Delete", json!({SNAPSHOT_BEING_CREATED: "yes"}), Value::Null);
    for (ready, going, content, claim_is_going, needed) in [
        (false, false, None, false, true),
        (false, false, None, true, false),
        (false, false, Some(&*taken), true, true),
        (true, false, Some(&*taken), false, false),
        (false, true, Some(&*taken), false, true),
        (false, true, None, false, false),
    ] {
        assert_eq!(needs_claim(&snapshot(ready, going), content, claim_is_going), needed);
    }
}
