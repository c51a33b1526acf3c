use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;

const API: &str = "groupsnapshot.storage.k8s.io/v1";

fn object<K: DeserializeOwned>(value: Value) -> Arc<K> {
    Arc::new(serde_json::from_value(value).expect("an object"))
}

/// A bound claim of a driver, and its volume.
fn bound(claim: &str, driver: &str) -> (Arc<PersistentVolumeClaim>, Option<Arc<PersistentVolume>>) {
    let (volume, id) = (format!("pv-{claim}"), format!("id-{claim}"));
    let claim = json!({
        "metadata": {"name": claim, "namespace": "shop", "uid": claim},
        "spec": {"volumeName": volume}, "status": {"phase": "Bound"},
    });
    let volume = json!({
        "metadata": {"name": volume},
        "spec": {"csi": {"driver": driver, "volumeHandle": id},
                 "claimRef": {"name": claim["metadata"]["name"], "namespace": "shop"}},
    });
    (object(claim), Some(object(volume)))
}

fn class(name: &str, driver: &str, is_default: bool) -> Arc<VolumeGroupSnapshotClass> {
    let mut class = VolumeGroupSnapshotClass::new(name, driver);
    if is_default {
        class.metadata.annotations = Some([(IS_DEFAULT_GROUP_CLASS.to_owned(), "true".to_owned())].into());
    }
    Arc::new(class)
}

/// A group of two bound claims as the user wrote it, and all that it takes.
fn facts() -> Facts {
    Facts {
        group: object(json!({
            "apiVersion": API, "kind": "VolumeGroupSnapshot",
            "metadata": {"name": "g", "namespace": "shop", "uid": "7"},
            "spec": {"source": {"selector": {"matchLabels": {"app": "shop"}}}},
        })),
        content: None,
        classes: vec![class("one", "d", true), class("other", "e", true), class("plain", "d", false)],
        selected: vec![bound("data", "d"), bound("logs", "d")],
        only_nodes: ["n1".to_owned()].into(),
        members: Vec::new(),
    }
}

fn content(uid: &str, policy: &str, annotations: Value, status: Value) -> Arc<VolumeGroupSnapshotContent> {
    object(json!({
        "apiVersion": API, "kind": "VolumeGroupSnapshotContent",
        "metadata": {"name": "groupsnapcontent-7", "annotations": annotations},
        "spec": {"driver": "d", "deletionPolicy": policy, "source": {"volumeHandles": ["id-data"]},
                 "volumeGroupSnapshotRef": {"name": "g", "namespace": "shop", "uid": uid}},
        "status": status,
    }))
}

fn edit(facts: &mut Facts, change: impl FnOnce(&mut VolumeGroupSnapshot)) {
    change(Arc::make_mut(&mut facts.group));
}

/// The write and the events, in short.
fn told(facts: &Facts) -> String {
    let step = step(facts);
    let write = match &step.write {
        None => "nothing".to_owned(),
        Some(Write::Group(one)) => format!("finalizers {}", one.finalizers().len()),
        Some(Write::ReleaseGroup { group, without }) => {
            format!("finalizers {} unless there is {without}", group.finalizers().len())
        }
        Some(Write::GroupStatus(one)) => {
            let status = one.status.clone().unwrap_or_default();
            let error = status.error.and_then(|error| error.message);
            error.map_or(format!("ready {:?}", status.ready_to_use == Some(true)), |_| "error".to_owned())
        }
        Some(Write::CreateGroupContent(_)) => "create".to_owned(),
        Some(Write::GroupContent(_)) => "mark".to_owned(),
        Some(Write::DeleteGroupContent(_)) => "delete".to_owned(),
        Some(Write::CreateSnapshot(_)) => "create member".to_owned(),
        Some(Write::CreateContent(_)) => "create member's content".to_owned(),
        Some(Write::ContentStatus(_)) => "fill member's content".to_owned(),
        Some(Write::SnapshotStatus(_)) => "name member's content".to_owned(),
        Some(other) => format!("{other:?}"),
    };
    let reasons = step.events.iter().map(|event| event.reason);
    std::iter::once(write.as_str()).chain(reasons).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_group_comes_to_be_member_by_member() {
    let mut of = facts();
    let Some(Write::Group(prepared)) = step(&of).write else { panic!("its class is named") };
    assert_eq!(prepared.spec.volume_group_snapshot_class_name.as_deref(), Some("one"));
    assert_eq!(prepared.finalizers(), [GROUP_BOUND]);
    of.group = Arc::new(*prepared);
    assert_eq!(told(&of), "create CreatingGroupSnapshot");
    let Some(Write::CreateGroupContent(made)) = step(&of).write else { panic!("it is created") };
    assert_eq!(made.spec.source.volume_handles.as_deref(), Some(&["id-data".into(), "id-logs".into()][..]));
    assert_eq!(
        (made.name_any().as_str(), made.finalizers()),
        ("groupsnapcontent-7", &[GROUP_CONTENT.into()][..])
    );
    assert_eq!(made.labels()[SNAPSHOT_MANAGED_BY], "n1", "who alone can take it");
    let mut apart = facts();
    apart.group.clone_from(&of.group);
    apart.only_nodes.insert("n2".to_owned());
    let Some(Write::CreateGroupContent(made)) = step(&apart).write else { panic!("it is created") };
    assert!(made.labels().is_empty(), "nobody in particular");

    let info = VolumeSnapshotInfo {
        volume_handle: Some("id-data".to_owned()),
        snapshot_handle: Some("id-s".to_owned()),
        ready_to_use: Some(true),
        ..VolumeSnapshotInfo::default()
    };
    let status = json!({"volumeGroupSnapshotHandle": "id-g", "readyToUse": true,
                        "creationTime": "2026-01-01T00:00:00Z", "volumeSnapshotInfoList": [info]});
    of.content = Some(content("7", "Delete", json!({}), status));
    let (_, volume) = bound("data", "d");
    let only_node = Some("n1".to_owned());
    of.members = vec![Member { info, snapshot: None, content: None, volume, only_node }];
    assert_eq!(told(&of), "create member");
    let Some(Write::CreateSnapshot(snapshot)) = step(&of).write else { panic!("a member") };
    assert_eq!(snapshot.spec.source.persistent_volume_claim_name.as_deref(), Some("data"));
    assert_eq!(snapshot.finalizers(), [SNAPSHOT_IN_GROUP]);
    assert_eq!(snapshot.owner_references()[0].controller, Some(true));
    of.members[0].snapshot = Some(Arc::new(*snapshot));
    assert_eq!(told(&of), "create member's content");
    let Some(Write::CreateContent(of_member)) = step(&of).write else { panic!("its content") };
    assert_eq!(of_member.labels()[SNAPSHOT_MANAGED_BY], "n1");
    assert_eq!(of_member.annotations()[GROUP_HANDLE], "id-g");
    of.members[0].content = Some(Arc::new(*of_member));
    assert_eq!(told(&of), "fill member's content");
    let Some(Write::ContentStatus(filled)) = step(&of).write else { panic!("the driver's word") };
    of.members[0].content = Some(Arc::new(*filled));
    assert_eq!(told(&of), "name member's content");
    let Some(Write::SnapshotStatus(named)) = step(&of).write else { panic!("the tie") };
    of.members[0].snapshot = Some(Arc::new(*named));
    assert_eq!(told(&of), "ready true GroupSnapshotCreated GroupSnapshotReady");
    let Some(Write::GroupStatus(done)) = step(&of).write else { panic!("it is shown") };
    of.group = Arc::new(*done);
    assert_eq!(told(&of), "nothing");
    of.content = None;
    assert_eq!(told(&of), "error GroupSnapshotContentMissing");
    let Some(Write::GroupStatus(missing)) = step(&of).write else { panic!("it is told") };
    of.group = Arc::new(*missing);
    assert_eq!(told(&of), "nothing", "it is not taken anew");
}

#[test]
fn what_can_not_be_taken_is_told_once() {
    type Change = fn(&mut Facts);
    let cases: [(&str, Change); 11] = [
        ("GroupSnapshotContentCreationFailed", |of| of.selected.clear()),
        ("GroupSnapshotContentCreationFailed", |of| of.selected[1].1 = None),
        ("GroupSnapshotContentCreationFailed", |of| of.selected[1] = bound("logs", "e")),
        ("GroupSnapshotContentCreationFailed", |of| {
            let volume = of.selected[0].1.as_mut().map(Arc::make_mut).expect("the volume");
            volume.spec.get_or_insert_default().csi = None;
        }),
        ("GroupSnapshotContentCreationFailed", |of| {
            edit(of, |one| one.spec.volume_group_snapshot_class_name = Some("other".to_owned()));
        }),
        ("SetDefaultGroupSnapshotClassFailed", |of| of.classes.clear()),
        ("SetDefaultGroupSnapshotClassFailed", |of| of.classes.push(class("two", "d", true))),
        ("GetGroupSnapshotClassFailed", |of| {
            edit(of, |one| one.spec.volume_group_snapshot_class_name = Some("gone".to_owned()));
        }),
        ("GroupSnapshotContentMisbound", |of| {
            of.content = Some(content("8", "Delete", json!({}), Value::Null));
        }),
        ("GroupSnapshotContentMismatch", |of| {
            edit(of, |one| {
                one.spec.source.selector = None;
                one.spec.source.volume_group_snapshot_content_name = Some("groupsnapcontent-7".to_owned());
            });
            of.content = Some(content("7", "Delete", json!({}), Value::Null));
        }),
        ("GroupSnapshotValidationError", |of| edit(of, |one| one.spec.source.selector = None)),
    ];
    for (at, (reason, change)) in cases.into_iter().enumerate() {
        let mut of = facts();
        change(&mut of);
        assert_eq!(told(&of), format!("error {reason}"), "case {at}");
        let Some(Write::GroupStatus(with_error)) = step(&of).write else { panic!("it is told") };
        of.group = Arc::new(*with_error);
        assert_eq!(told(&of), "nothing", "case {at}");
    }
}

#[test]
fn a_group_goes_after_its_content_and_not_while_it_is_restored() {
    const MARKED: &str = GROUP_BEING_DELETED;
    let going = |policy: &str, annotations: Value| {
        let mut of = facts();
        edit(&mut of, |group| {
            group.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
            group.metadata.finalizers = Some(vec![GROUP_BOUND.to_owned()]);
        });
        of.content = Some(content("7", policy, annotations, Value::Null));
        of
    };
    assert_eq!(told(&going("Delete", json!({}))), "mark");
    assert_eq!(told(&going("Delete", json!({MARKED: "yes"}))), "delete");
    assert_eq!(told(&going("Retain", json!({MARKED: "yes"}))), "finalizers 0");
    let mut of = going("Delete", json!({}));
    of.content = Some(content("8", "Delete", json!({}), Value::Null));
    assert_eq!(told(&of), "finalizers 0", "another group's content is not touched");
    of.content = None;
    assert_eq!(told(&of), "finalizers 0 unless there is groupsnapcontent-7");
    let mut of = going("Delete", json!({}));
    let restored = object(json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot",
        "metadata": {"name": "m", "finalizers": [resources::finalizers::SNAPSHOT_SOURCE]},
        "spec": {"source": {"persistentVolumeClaimName": "data"}},
    }));
    of.members = vec![Member {
        info: VolumeSnapshotInfo::default(),
        snapshot: Some(restored),
        content: None,
        volume: None,
        only_node: None,
    }];
    assert_eq!(told(&of), "nothing SnapshotDeletePending");
    edit(&mut of, |group| group.metadata.finalizers = None);
    assert_eq!(told(&of), "nothing", "let go already");
}

#[test]
fn a_later_group_of_the_name_does_not_hold_the_snapshots_of_the_one_before() {
    let of_group = |uid: &str| -> Arc<VolumeSnapshot> {
        object(
            json!({"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot", "metadata": {"name": "s",
            "ownerReferences": [{"apiVersion": API, "kind": "VolumeGroupSnapshot", "name": "g", "uid": uid}]},
            "spec": {"source": {}}}),
        )
    };
    let group = facts().group;
    assert!(has_member(&group, &of_group("7")));
    assert!(!has_member(&group, &of_group("6")));
}
