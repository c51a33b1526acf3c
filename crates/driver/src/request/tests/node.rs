//! Requests of the Node service.

use super::*;

#[test]
fn staging_and_publishing() {
    let good = v1::NodeStageVolumeRequest {
        volume_id: VOLUME.into(),
        staging_target_path: "/staging".into(),
        volume_capability: Some(capability(Mode::SingleNodeWriter)),
        ..Default::default()
    };
    let cases: Vec<Case<v1::NodeStageVolumeRequest>> = vec![
        (|_| {}, Ok(())),
        (|r| r.volume_id = String::new(), Err((BAD, "volume_id is missing"))),
        (|r| r.volume_id = "x".into(), Err((Code::NotFound, "x does not exist"))),
        (|r| r.staging_target_path = String::new(), Err((BAD, "staging_target_path is missing"))),
        (|r| r.staging_target_path = "staging".into(), Err((BAD, "not an absolute path"))),
        (|r| r.staging_target_path = "/a\0b".into(), Err((BAD, "zero byte"))),
        (|r| r.staging_target_path = format!("/{}", "x".repeat(4095)), Err((BAD, "4096 bytes"))),
        (|r| r.staging_target_path = format!("/{}", "x".repeat(1000)), Ok(())),
        (|r| r.volume_capability = None, Err((BAD, "volume_capability is missing"))),
        (|r| r.volume_capability = Some(capability(Mode::MultiNodeMultiWriter)), Err((BAD, "MULTI_NODE"))),
    ];
    for (change, expected) in cases {
        expect(&good, change, |request| Stage::check(&request), expected);
    }

    let good = v1::NodePublishVolumeRequest {
        volume_id: VOLUME.into(),
        staging_target_path: "/staging".into(),
        target_path: "/target".into(),
        volume_capability: Some(capability(Mode::SingleNodeWriter)),
        ..Default::default()
    };
    let cases: Vec<Case<v1::NodePublishVolumeRequest>> = vec![
        (|_| {}, Ok(())),
        (|r| r.volume_id = String::new(), Err((BAD, "volume_id is missing"))),
        (|r| r.target_path = String::new(), Err((BAD, "target_path is missing"))),
        (|r| r.target_path = "target".into(), Err((BAD, "not an absolute path"))),
        (|r| r.volume_capability = None, Err((BAD, "volume_capability is missing"))),
        (
            |r| r.staging_target_path = String::new(),
            Err((Code::FailedPrecondition, "staging_target_path is missing")),
        ),
    ];
    for (change, expected) in cases {
        expect(&good, change, |request| Publish::check(&request), expected);
    }
    let read_only = |change: Change<v1::NodePublishVolumeRequest>| {
        let mut request = good.clone();
        change(&mut request);
        Publish::check(&request).expect("well-formed").read_only
    };
    assert!(!read_only(|_| {}));
    assert!(read_only(|r| r.readonly = true));
    assert!(read_only(|r| r.volume_capability = Some(capability(Mode::SingleNodeReaderOnly))));
}

#[test]
fn other_calls_of_the_node() {
    let good = v1::NodeUnpublishVolumeRequest { volume_id: VOLUME.into(), target_path: "/target".into() };
    let cases: Vec<Case<v1::NodeUnpublishVolumeRequest>> = vec![
        (|_| {}, Ok(())),
        (|r| r.volume_id = String::new(), Err((BAD, "volume_id"))),
        (|r| r.target_path = String::new(), Err((BAD, "target_path"))),
        // No volume of ours, and what bears our mark at its target goes all the same.
        (|r| r.volume_id = "x".into(), Ok(())),
        (|r| r.volume_id = "x".repeat(3000), Ok(())),
    ];
    for (change, expected) in cases {
        expect(&good, change, |request| Unpublish::check(&request), expected);
    }

    let good =
        v1::NodeUnstageVolumeRequest { volume_id: VOLUME.into(), staging_target_path: "/staging".into() };
    let cases: Vec<Case<v1::NodeUnstageVolumeRequest>> = vec![
        (|_| {}, Ok(())),
        (|r| r.volume_id = String::new(), Err((BAD, "volume_id"))),
        (|r| r.staging_target_path = String::new(), Err((BAD, "staging_target_path"))),
    ];
    for (change, expected) in cases {
        expect(&good, change, |request| Unstage::check(&request), expected);
    }

    let good = v1::NodeGetVolumeStatsRequest {
        volume_id: VOLUME.into(),
        volume_path: "/target".into(),
        ..Default::default()
    };
    let cases: Vec<Case<v1::NodeGetVolumeStatsRequest>> = vec![
        (|_| {}, Ok(())),
        (|r| r.volume_id = String::new(), Err((BAD, "volume_id"))),
        (|r| r.volume_path = String::new(), Err((BAD, "volume_path"))),
        // Not where any volume is, which is for the drives to say.
        (|r| r.volume_path = "some/path".into(), Ok(())),
    ];
    for (change, expected) in cases {
        expect(&good, change, |request| Stats::check(&request), expected);
    }

    let good = v1::NodeExpandVolumeRequest {
        volume_id: VOLUME.into(),
        volume_path: "/target".into(),
        ..Default::default()
    };
    let cases: Vec<Case<v1::NodeExpandVolumeRequest>> = vec![
        (|_| {}, Ok(())),
        (|r| r.volume_id = String::new(), Err((BAD, "volume_id"))),
        (|r| r.volume_path = String::new(), Err((BAD, "volume_path"))),
        (|r| r.capacity_range = range(3, 2), Err((Code::OutOfRange, "at least 3"))),
        (|r| r.volume_capability = Some(capability(Mode::MultiNodeReaderOnly)), Err((BAD, "MULTI_NODE"))),
    ];
    for (change, expected) in cases {
        expect(&good, change, |request| ExpandOnNode::check(&request), expected);
    }
}

#[test]
fn volumes_for_one_pod() {
    let good = v1::NodePublishVolumeRequest {
        volume_id: "csi-1".into(),
        target_path: "/pods/1/mount".into(),
        volume_capability: Some(capability(Mode::SingleNodeWriter)),
        volume_context: map(&[
            ("csi.storage.k8s.io/ephemeral", "true"),
            ("csi.storage.k8s.io/pod.name", "web-0"),
            ("csi.storage.k8s.io/serviceAccount.name", "web"),
            ("orlop.dev/size", "64Mi"),
            ("orlop.dev/backend", "btrfs"),
        ]),
        ..Default::default()
    };
    assert!(Ephemeral::is_meant(&good));
    let wanted = Ephemeral::check(&good).expect("complete").wanted;
    assert_eq!(
        (wanted.required, wanted.backend, wanted.ephemeral),
        (64 << 20, Some(BackendKind::Btrfs), true)
    );
    let cases: Vec<Case<v1::NodePublishVolumeRequest>> = vec![
        (|_| {}, Ok(())),
        (|r| r.volume_id = String::new(), Err((BAD, "volume_id is missing"))),
        (|r| r.target_path = String::new(), Err((BAD, "target_path is missing"))),
        (
            |r| drop(r.volume_context.remove("orlop.dev/size")),
            Err((BAD, "set it in the pod's volumeAttributes")),
        ),
        (
            |r| drop(r.volume_context.insert("orlop.dev/size".into(), "0".into())),
            Err((BAD, "orlop.dev/size")),
        ),
        (|r| drop(r.volume_context.insert("size".into(), "1Gi".into())), Err((BAD, "\"size\" is unknown"))),
        (|r| r.volume_capability = Some(mounted("xfs", &[])), Err((BAD, "both btrfs and xfs"))),
    ];
    for (change, expected) in cases {
        expect(&good, change, |request| Ephemeral::check(&request), expected);
    }
}
