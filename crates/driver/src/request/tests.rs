//! Requests and what becomes of them, as tables. Each case is a good request with one thing changed.

mod node;

use super::*;
use crate::status::refused;
use csi::v1;
use csi::v1::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume, access_mode::Mode};
use csi::v1::volume_content_source::{SnapshotSource, Type, VolumeSource};
use drives::{BackendKind, MountFlags, Throttle};
use std::collections::BTreeMap;
use tonic::Code;

const VOLUME: &str = "0a1b/pvc-1";

type Change<T> = fn(&mut T);
/// The code of a refusal and a word of its message.
type Outcome = Result<(), (Code, &'static str)>;
type Case<T> = (Change<T>, Outcome);

pub(super) fn map(of: &[(&str, &str)]) -> BTreeMap<String, String> {
    of.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

pub(super) fn segments() -> BTreeMap<String, String> {
    map(&[("topology.orlop.dev/node", "n1")])
}

fn place(node: &str) -> v1::Topology {
    v1::Topology { segments: map(&[("topology.orlop.dev/node", node)]) }
}

pub(super) fn places(requisite: &[&str], preferred: &[&str]) -> Option<v1::TopologyRequirement> {
    let all = |nodes: &[&str]| nodes.iter().map(|node| place(node)).collect();
    Some(v1::TopologyRequirement { requisite: all(requisite), preferred: all(preferred) })
}

pub(super) fn capability(mode: Mode) -> v1::VolumeCapability {
    v1::VolumeCapability {
        access_type: Some(AccessType::Mount(MountVolume::default())),
        access_mode: Some(AccessMode { mode: mode.into() }),
    }
}

pub(super) fn mounted(fs_type: &str, flags: &[&str]) -> v1::VolumeCapability {
    let mount_flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
    let mount = MountVolume { fs_type: fs_type.to_owned(), mount_flags, ..MountVolume::default() };
    v1::VolumeCapability { access_type: Some(AccessType::Mount(mount)), ..capability(Mode::SingleNodeWriter) }
}

pub(super) fn block() -> v1::VolumeCapability {
    v1::VolumeCapability {
        access_type: Some(AccessType::Block(BlockVolume {})),
        ..capability(Mode::SingleNodeWriter)
    }
}

pub(super) fn of_snapshot(id: &str) -> Option<v1::VolumeContentSource> {
    let kind = Type::Snapshot(SnapshotSource { snapshot_id: id.into() });
    Some(v1::VolumeContentSource { r#type: Some(kind) })
}

pub(super) fn of_volume(id: &str) -> Option<v1::VolumeContentSource> {
    let kind = Type::Volume(VolumeSource { volume_id: id.into() });
    Some(v1::VolumeContentSource { r#type: Some(kind) })
}

pub(super) fn range(required_bytes: i64, limit_bytes: i64) -> Option<v1::CapacityRange> {
    Some(v1::CapacityRange { required_bytes, limit_bytes })
}

/// Runs one case and compares: `Ok`, or the code and a word of the message.
fn expect<T, R>(good: &T, change: Change<T>, check: impl Fn(T) -> Result<R, Refusal>, expected: Outcome)
where
    T: Clone + std::fmt::Debug,
{
    let mut request = good.clone();
    change(&mut request);
    let shown = format!("{request:?}");
    let got = check(request).map(drop).map_err(|refusal| {
        let status = refused(refusal);
        (status.code(), status.message().to_owned())
    });
    match (&got, expected) {
        (Ok(()), Ok(())) => {}
        (Err((code, message)), Err((expected, word))) if *code == expected && message.contains(word) => {}
        (_, expected) => panic!("{shown}\n gave {got:?}, expected {expected:?}"),
    }
}

const BAD: Code = Code::InvalidArgument;

#[test]
fn creation() {
    let good = v1::CreateVolumeRequest {
        name: "pvc-1".into(),
        capacity_range: range(1 << 30, 0),
        volume_capabilities: vec![capability(Mode::SingleNodeWriter)],
        ..Default::default()
    };
    let cases: Vec<Case<v1::CreateVolumeRequest>> = vec![
        (|_| {}, Ok(())),
        (|r| r.name = String::new(), Err((BAD, "name is missing"))),
        (|r| r.name = "n".repeat(128), Ok(())),
        (|r| r.name = "n".repeat(129), Err((BAD, "name has 129 bytes"))),
        (|r| r.volume_capabilities.clear(), Err((BAD, "volume_capabilities is missing"))),
        // Sizes.
        (|r| r.capacity_range = None, Ok(())),
        (|r| r.capacity_range = range(0, 0), Ok(())),
        (|r| r.capacity_range = range(5, 5), Ok(())),
        (|r| r.capacity_range = range(0, 5), Ok(())),
        (|r| r.capacity_range = range(6, 5), Err((Code::OutOfRange, "at least 6 and at most 5"))),
        (|r| r.capacity_range = range(-1, 0), Err((BAD, "required_bytes"))),
        (|r| r.capacity_range = range(0, -1), Err((BAD, "limit_bytes"))),
        // Access types.
        (|r| r.volume_capabilities = vec![block()], Ok(())),
        (|r| r.volume_capabilities.push(block()), Err((BAD, "ask for one access type"))),
        // Parameters.
        (|r| r.parameters = map(&[("orlop.dev/backend", "btrfs")]), Ok(())),
        (|r| r.parameters = map(&[("orlop.dev/backend", "zfs")]), Err((BAD, "unknown backend \"zfs\""))),
        (
            |r| r.parameters = map(&[("orlop.dev/bakend", "xfs")]),
            Err((BAD, "\"orlop.dev/bakend\" is unknown")),
        ),
        (
            |r| {
                r.parameters = map(&[
                    ("csi.storage.k8s.io/pvc/name", "data"),
                    ("csi.storage.k8s.io/pvc/namespace", "default"),
                    ("csi.storage.k8s.io/pv/name", "pvc-1"),
                ]);
            },
            Ok(()),
        ),
        (|r| r.parameters = map(&[("csi.storage.k8s.io/other", "x")]), Err((BAD, "is unknown"))),
        (|r| r.parameters = map(&[("x", &"y".repeat(4096))]), Err((BAD, "4097 bytes"))),
        (|r| r.parameters = map(&[("fsType", "xfs")]), Ok(())),
        (|r| r.mutable_parameters = map(&[("iops", "9")]), Err((BAD, "\"iops\""))),
        (|r| r.mutable_parameters = map(&[("orlop.dev/read-iops", "9")]), Ok(())),
        (|r| r.mutable_parameters = map(&[("orlop.dev/read-iops", "0")]), Err((BAD, "no number above 0"))),
        (|r| r.mutable_parameters = map(&[("orlop.dev/read-iops", "many")]), Err((BAD, "read-iops"))),
        (|r| r.parameters = map(&[("orlop.dev/spread", "")]), Err((BAD, "names no label"))),
        (|r| r.parameters = map(&[("orlop.dev/drive-selector", "a in (")]), Err((BAD, "drive-selector"))),
        // File-system types choose a backend, if they agree.
        (|r| r.volume_capabilities = vec![mounted("xfs", &[])], Ok(())),
        (|r| r.volume_capabilities = vec![mounted("minix", &[])], Err((BAD, "\"minix\""))),
        (
            |r| r.volume_capabilities = vec![mounted("xfs", &[]), mounted("btrfs", &[])],
            Err((BAD, "both xfs and btrfs")),
        ),
        (
            |r| {
                r.parameters = map(&[("orlop.dev/backend", "btrfs")]);
                r.volume_capabilities = vec![mounted("xfs", &[])];
            },
            Err((BAD, "both btrfs and xfs")),
        ),
        // What it is filled with.
        (
            |r| r.volume_content_source = Some(v1::VolumeContentSource::default()),
            Err((BAD, "volume_content_source.type is missing")),
        ),
        (|r| r.volume_content_source = of_snapshot("0a1b/snapshot-1"), Ok(())),
        (|r| r.volume_content_source = of_snapshot(""), Err((BAD, "snapshot_id is missing"))),
        (|r| r.volume_content_source = of_snapshot("x"), Err((Code::NotFound, "does not exist"))),
        (|r| r.volume_content_source = of_volume(VOLUME), Ok(())),
        (|r| r.volume_content_source = of_volume(""), Err((BAD, "volume_id is missing"))),
        (|r| r.volume_content_source = of_volume("x"), Err((Code::NotFound, "does not exist"))),
        // Places: one of the requisite ones must hold the node.
        (|r| r.accessibility_requirements = places(&[], &[]), Ok(())),
        (|r| r.accessibility_requirements = places(&["n1"], &[]), Ok(())),
        (|r| r.accessibility_requirements = places(&["n2", "n1"], &["n2"]), Ok(())),
        (|r| r.accessibility_requirements = places(&[], &["n2"]), Ok(())),
        (
            |r| r.accessibility_requirements = places(&["n2"], &["n1"]),
            Err((Code::ResourceExhausted, "node=n1")),
        ),
    ];
    for (change, expected) in cases {
        expect(&good, change, |request| Create::check(request, &segments()), expected);
    }
}

#[test]
fn creation_asks_the_drives_for_what_the_request_says() {
    let request = v1::CreateVolumeRequest {
        name: "pvc-1".into(),
        capacity_range: range(10, 20),
        volume_capabilities: vec![mounted("btrfs", &["noatime"])],
        parameters: map(&[("csi.storage.k8s.io/pvc/name", "data"), ("orlop.dev/spread", "zone")]),
        mutable_parameters: map(&[("orlop.dev/read-bps", "10Mi")]),
        ..Default::default()
    };
    let Create(wanted) = Create::check(request, &segments()).expect("well-formed");
    let expected = drives::CreateVolume {
        name: "pvc-1".into(),
        access: drives::AccessType::Mount,
        required: 10,
        limit: Some(20),
        backend: Some(BackendKind::Btrfs),
        parameters: BTreeMap::new(),
        notes: map(&[("csi.storage.k8s.io/pvc/name", "data")]),
        spread: Some("zone".into()),
        throttle: Throttle { read_bps: Some(10 << 20), ..Throttle::default() },
        ..Default::default()
    };
    assert_eq!(wanted, expected);
}

#[test]
fn capabilities() {
    type Served = (bool, Option<BackendKind>);
    let cases: Vec<(v1::VolumeCapability, Result<Served, &str>)> = vec![
        (capability(Mode::SingleNodeWriter), Ok((false, None))),
        (capability(Mode::SingleNodeSingleWriter), Ok((false, None))),
        (capability(Mode::SingleNodeMultiWriter), Ok((false, None))),
        (capability(Mode::SingleNodeReaderOnly), Ok((true, None))),
        (capability(Mode::MultiNodeReaderOnly), Err("MULTI_NODE_READER_ONLY")),
        (capability(Mode::MultiNodeSingleWriter), Err("MULTI_NODE_SINGLE_WRITER")),
        (capability(Mode::MultiNodeMultiWriter), Err("MULTI_NODE_MULTI_WRITER")),
        (capability(Mode::Unknown), Err("access_mode.mode is missing")),
        (v1::VolumeCapability { access_mode: Some(AccessMode { mode: 99 }), ..mounted("", &[]) }, Err("99")),
        (v1::VolumeCapability { access_mode: None, ..mounted("", &[]) }, Err("access_mode is missing")),
        (
            v1::VolumeCapability { access_type: None, ..capability(Mode::SingleNodeWriter) },
            Err("access_type is missing"),
        ),
        (block(), Ok((false, None))),
        (mounted("btrfs", &[]), Ok((false, Some(BackendKind::Btrfs)))),
        (mounted("", &["noatime", "nodev,nosuid"]), Ok((false, None))),
        (mounted("", &["data=journal"]), Err("\"data\"")),
        (
            v1::VolumeCapability {
                access_type: Some(AccessType::Mount(MountVolume {
                    volume_mount_group: "wheel".into(),
                    ..MountVolume::default()
                })),
                ..capability(Mode::SingleNodeWriter)
            },
            Err("volume_mount_group"),
        ),
    ];
    for (capability, expected) in cases {
        let got = Access::check(Some(&capability));
        match (&got, expected) {
            (Ok(access), Ok((read_only, backend))) => {
                assert_eq!((access.read_only, access.backend), (read_only, backend), "{capability:?}");
            }
            (Err(refusal), Err(word)) => {
                assert_eq!(refused(refusal.clone()).code(), BAD);
                assert!(refusal.to_string().contains(word), "{refusal}");
            }
            (_, expected) => panic!("{capability:?}\n gave {got:?}, expected {expected:?}"),
        }
    }
    assert_eq!(Access::check(None), Err(Refusal::Missing { field: "volume_capability" }));
    let flags = Access::check(Some(&mounted("", &["nodev"]))).expect("allowed").flags;
    assert_eq!(flags, MountFlags::parse(&["nodev"]).expect("allowed"));
}

#[test]
fn a_mount_option_s_value_is_not_shown() {
    let refusal = Access::check(Some(&mounted("", &["password=hunter2"]))).expect_err("not on the list");
    assert!(!refusal.to_string().contains("hunter2"), "{refusal}");
}

#[test]
fn other_calls_of_the_controller() {
    let good = v1::ControllerExpandVolumeRequest {
        volume_id: VOLUME.into(),
        capacity_range: range(5, 0),
        ..Default::default()
    };
    let cases: Vec<Case<v1::ControllerExpandVolumeRequest>> = vec![
        (|_| {}, Ok(())),
        (|r| r.volume_capability = Some(mounted("", &[])), Ok(())),
        (|r| r.volume_id = String::new(), Err((BAD, "volume_id is missing"))),
        (|r| r.volume_id = "v".repeat(129), Err((BAD, "volume_id has 129"))),
        (|r| r.volume_id = "someone else's".into(), Err((Code::NotFound, "does not exist"))),
        (|r| r.capacity_range = None, Err((BAD, "capacity_range is missing"))),
        (|r| r.capacity_range = range(0, 0), Err((BAD, "capacity_range is missing"))),
        (|r| r.capacity_range = range(9, 8), Err((Code::OutOfRange, "at least 9"))),
        (|r| r.volume_capability = Some(capability(Mode::MultiNodeMultiWriter)), Err((BAD, "MULTI_NODE"))),
        // A missing field counts before a missing volume.
        (
            |r| {
                r.volume_id = "unknown".into();
                r.capacity_range = None;
            },
            Err((BAD, "capacity_range")),
        ),
    ];
    for (change, expected) in cases {
        expect(&good, change, Expand::check, expected);
    }

    let good = v1::ListVolumesRequest::default();
    let cases: Vec<Case<v1::ListVolumesRequest>> = vec![
        (|_| {}, Ok(())),
        (|r| r.max_entries = -1, Err((BAD, "max_entries"))),
        (|r| r.starting_token = VOLUME.into(), Ok(())),
        (|r| r.starting_token = "invalid-token".into(), Err((Code::Aborted, "invalid-token"))),
    ];
    for (change, expected) in cases {
        expect(&good, change, |request| List::check(&request), expected);
    }

    let good = v1::DeleteVolumeRequest { volume_id: VOLUME.into(), ..Default::default() };
    expect(&good, |_| {}, |request| Delete::check(&request), Ok(()));
    expect(&good, |r| r.volume_id.clear(), |request| Delete::check(&request), Err((BAD, "volume_id")));
    let good = v1::ControllerGetVolumeRequest { volume_id: VOLUME.into() };
    expect(&good, |_| {}, |request| Get::check(&request), Ok(()));
    expect(&good, |r| r.volume_id.clear(), |request| Get::check(&request), Err((BAD, "volume_id")));
}

#[test]
fn validation_tells_an_incomplete_request_from_one_that_can_t_be_met() {
    let good = v1::ValidateVolumeCapabilitiesRequest {
        volume_id: VOLUME.into(),
        volume_capabilities: vec![mounted("btrfs", &[])],
        ..Default::default()
    };
    let verdict = |change: Change<v1::ValidateVolumeCapabilitiesRequest>| {
        let mut request = good.clone();
        change(&mut request);
        Validate::check(&request).map(|checked| checked.verdict)
    };
    assert!(matches!(verdict(|_| {}), Ok(Verdict::Of(drives::AccessType::Mount, Some(BackendKind::Btrfs)))));
    assert!(matches!(
        verdict(|r| r.volume_capabilities = vec![capability(Mode::MultiNodeMultiWriter)]),
        Ok(Verdict::No(Refusal::Unserved { .. }))
    ));
    assert!(matches!(
        verdict(|r| r.parameters = map(&[("x", "y")])),
        Ok(Verdict::No(Refusal::Invalid { .. }))
    ));
    assert!(matches!(verdict(|r| r.volume_capabilities.clear()), Err(Refusal::Missing { .. })));
    assert!(matches!(verdict(|r| r.volume_id.clear()), Err(Refusal::Missing { .. })));
    assert!(matches!(verdict(|r| r.volume_id = "x".into()), Err(Refusal::ForeignVolume(_))));
}

#[test]
fn capacity_is_asked_of_what_could_serve() {
    let asked = |request: v1::GetCapacityRequest| Capacity::check(&request, &segments());
    let of = |capabilities: Vec<v1::VolumeCapability>| v1::GetCapacityRequest {
        volume_capabilities: capabilities,
        ..Default::default()
    };
    assert!(matches!(
        asked(of(vec![])),
        Ok(Capacity::Of(drives::AccessType::Mount, Parameters { backend: None, .. }, _))
    ));
    assert!(matches!(
        asked(of(vec![mounted("xfs", &[])])),
        Ok(Capacity::Of(drives::AccessType::Mount, Parameters { backend: Some(BackendKind::Xfs), .. }, _))
    ));
    assert!(matches!(
        asked(of(vec![block()])),
        Ok(Capacity::Of(drives::AccessType::Block, Parameters { backend: None, .. }, _))
    ));
    let own = [(drives::FILESYSTEM.to_owned(), "ext4".to_owned())].into();
    assert!(matches!(asked(of(vec![mounted("ext4", &[])])), Ok(Capacity::Of(_, _, kept)) if kept == own));
    for (capabilities, reason) in [
        (vec![mounted("", &[]), block()], "ask for one access type"),
        (vec![capability(Mode::MultiNodeMultiWriter)], "ask for a single-node mode"),
        (vec![mounted("zfs", &[])], "file-system type \"zfs\""),
    ] {
        let refused = asked(of(capabilities));
        assert!(matches!(refused, Ok(Capacity::None(Some(why))) if why.contains(reason)), "{reason}");
    }
    let at = |node| v1::GetCapacityRequest { accessible_topology: Some(place(node)), ..Default::default() };
    assert!(matches!(
        asked(at("n1")),
        Ok(Capacity::Of(drives::AccessType::Mount, Parameters { backend: None, .. }, _))
    ));
    assert!(matches!(asked(at("n2")), Ok(Capacity::None(None))));
    let unknown = v1::GetCapacityRequest { parameters: map(&[("x", "y")]), ..Default::default() };
    assert!(matches!(asked(unknown), Err(Refusal::Invalid { .. })));
}

#[test]
fn snapshots() {
    let good = v1::CreateSnapshotRequest {
        name: "snapshot-1".into(),
        source_volume_id: VOLUME.into(),
        ..Default::default()
    };
    let cases: Vec<Case<v1::CreateSnapshotRequest>> = vec![
        (|_| {}, Ok(())),
        (|r| r.name = String::new(), Err((BAD, "name is missing"))),
        (|r| r.source_volume_id = String::new(), Err((BAD, "source_volume_id is missing"))),
        (|r| r.source_volume_id = "x".into(), Err((Code::NotFound, "does not exist"))),
        (|r| r.parameters = map(&[("speed", "fast")]), Err((BAD, "\"speed\" is unknown"))),
        (|r| r.parameters = map(&[("csi.storage.k8s.io/volumesnapshot/name", "s")]), Ok(())),
        (|r| r.accessibility_requirements = places(&["n1"], &[]), Ok(())),
        (
            |r| r.accessibility_requirements = places(&["n2"], &[]),
            Err((Code::ResourceExhausted, "reachable from")),
        ),
    ];
    for (change, expected) in cases {
        expect(&good, change, |request| CreateSnapshot::check(request, &segments()), expected);
    }
    let cases: Vec<Case<v1::ListSnapshotsRequest>> = vec![
        (|_| {}, Ok(())),
        (|r| r.snapshot_id = "x".into(), Ok(())),
        (|r| r.max_entries = -1, Err((BAD, "negative"))),
        (|r| r.starting_token = "x".into(), Err((Code::Aborted, "list again"))),
    ];
    for (change, expected) in cases {
        expect(&v1::ListSnapshotsRequest::default(), change, ListSnapshots::check, expected);
    }
}

#[test]
fn a_class_chooses_drives_and_groups() {
    let checked = |of: &[(&str, &str)]| parameters::check(&map(of)).expect("known");
    let selector =
        checked(&[("orlop.dev/drive-selector", "medium=nvme,rack!=1"), ("orlop.dev/access-tier", "hot")]);
    assert_eq!(selector.drives.labels.requirements().len(), 2);
    assert_eq!(selector.drives.tier.as_deref(), Some("hot"));

    const LABEL: (&str, &str) = ("csi.storage.k8s.io/pvc/labels/app", "db");
    const ANNOTATION: (&str, &str) = ("csi.storage.k8s.io/pvc/annotations/app", "web");
    const NAMESPACE: (&str, &str) = ("csi.storage.k8s.io/pvc/namespace", "shop");
    const SPREAD: (&str, &str) = ("orlop.dev/spread", "app");
    let cases: [(&[(&str, &str)], &str); 6] = [
        (&[SPREAD, NAMESPACE, LABEL, ANNOTATION], "shop/app=db"),
        (&[SPREAD, NAMESPACE, ANNOTATION], "shop/app=web"),
        (&[SPREAD, NAMESPACE], "shop/app"),
        (&[SPREAD, LABEL], "app=db"),
        (&[SPREAD], "app"),
        (&[("directpv.min.io/volume-claim-id", "7"), NAMESPACE], "7"),
    ];
    for (of, group) in cases {
        assert_eq!(checked(of).spread.as_deref(), Some(group), "{of:?}");
    }
    let directpv = checked(&[("directpv.min.io/access-tier", "Warm"), ("directpv.min.io/rack", "1")]);
    assert_eq!(directpv.drives.tier.as_deref(), Some("Warm"));
    assert!(directpv.drives.labels.matches_labels(Some(&map(&[("directpv.min.io/rack", "1")]))));
}

#[test]
fn group_snapshots() {
    let good = v1::CreateVolumeGroupSnapshotRequest {
        name: "backup".into(),
        source_volume_ids: vec![VOLUME.into(), "0a1b/pvc-2".into()],
        ..Default::default()
    };
    let cases: Vec<Case<v1::CreateVolumeGroupSnapshotRequest>> = vec![
        (|_| {}, Ok(())),
        (|r| r.name = String::new(), Err((BAD, "name is missing"))),
        (|r| r.source_volume_ids.clear(), Err((BAD, "source_volume_ids is missing"))),
        (|r| r.source_volume_ids.push(String::new()), Err((BAD, "source_volume_ids is missing"))),
        (|r| r.source_volume_ids.push("other".into()), Err((Code::NotFound, "other does not exist"))),
        (|r| r.parameters = map(&[("speed", "fast")]), Err((BAD, "\"speed\" is unknown"))),
        (|r| r.parameters = map(&[("csi.storage.k8s.io/volumegroupsnapshot/name", "g")]), Ok(())),
    ];
    for (change, expected) in cases {
        expect(&good, change, CreateGroup::check, expected);
    }
    let member = |id: &str| id.parse::<drives::SnapshotId>().expect("an identity");
    let members = [member("0a1b/g-0"), member("0c2d/g-1")];
    for (named, agrees) in [
        (vec![], true),
        (vec!["0c2d/g-1", "0a1b/g-0"], true),
        (vec!["0a1b/g-0"], false),
        (vec!["0a1b/g-0", "0c2d/g-1", "x"], false),
    ] {
        let asked = OneGroup::check("0a1b/g", named.iter().map(|id| (*id).to_owned()).collect())
            .expect("an identity");
        assert_eq!(asked.agrees(members.iter()).is_ok(), agrees, "{named:?}");
    }
}
