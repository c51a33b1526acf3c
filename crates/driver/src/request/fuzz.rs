//! Requests as bytes, mangled: each is carried out as it says, or refused in words that fit into an answer.

use csi::v1::{self, volume_capability::access_mode::Mode};
use proptest::prelude::*;
use prost::Message;
use tonic::Status;

use super::tests::{capability, map, mounted, of_snapshot, of_volume, places, range, segments};
use super::*;

const VOLUME: &str = "0a1b/pvc-1";

/// Good requests. Any request is read from the bytes of any: their fields lie alike.
fn corpus_of() -> Vec<Vec<u8>> {
    let create = v1::CreateVolumeRequest {
        name: "pvc-1".into(),
        capacity_range: range(1 << 30, 1 << 31),
        volume_capabilities: vec![
            mounted("btrfs", &["noatime", "nodev"]),
            capability(Mode::SingleNodeWriter),
        ],
        parameters: map(&[("orlop.dev/backend", "btrfs"), ("csi.storage.k8s.io/pvc/name", "data")]),
        accessibility_requirements: places(&["n1", "n2"], &["n1"]),
        volume_content_source: of_snapshot("0a1b/snapshot-1"),
        ..Default::default()
    };
    let clone = v1::CreateVolumeRequest { volume_content_source: of_volume(VOLUME), ..create.clone() };
    let stage = v1::NodeStageVolumeRequest {
        volume_id: VOLUME.into(),
        staging_target_path: "/var/lib/kubelet/plugins/x/globalmount".into(),
        volume_capability: Some(mounted("xfs", &["noexec"])),
        volume_context: map(&[("drive", "d1")]),
        ..Default::default()
    };
    let publish = v1::NodePublishVolumeRequest {
        volume_id: VOLUME.into(),
        staging_target_path: "/var/lib/kubelet/plugins/x/globalmount".into(),
        target_path: "/var/lib/kubelet/pods/u/volumes/mount".into(),
        volume_capability: Some(capability(Mode::SingleNodeSingleWriter)),
        readonly: true,
        ..Default::default()
    };
    let expand = v1::ControllerExpandVolumeRequest {
        volume_id: VOLUME.into(),
        capacity_range: range(1 << 31, 0),
        volume_capability: Some(capability(Mode::SingleNodeReaderOnly)),
        ..Default::default()
    };
    let snapshot = v1::CreateSnapshotRequest {
        source_volume_id: VOLUME.into(),
        name: "snapshot-1".into(),
        ..Default::default()
    };
    let list = v1::ListVolumesRequest { max_entries: 10, starting_token: VOLUME.into() };
    vec![
        create.encode_to_vec(),
        clone.encode_to_vec(),
        stage.encode_to_vec(),
        publish.encode_to_vec(),
        expand.encode_to_vec(),
        snapshot.encode_to_vec(),
        list.encode_to_vec(),
    ]
}

/// A refusal that a caller can be told.
fn refused<T>(checked: Result<T, Refusal>) -> Result<Option<T>, TestCaseError> {
    match checked {
        Ok(accepted) => Ok(Some(accepted)),
        Err(refusal) => {
            let status = Status::from(refusal);
            prop_assert!(!status.message().is_empty());
            prop_assert!(status.message().len() <= 4096, "{} bytes", status.message().len());
            Ok(None)
        }
    }
}

/// The request in these bytes, if they are one of this kind, checked.
fn check<M: Message + Default, T>(
    bytes: &[u8],
    check: impl Fn(M) -> Result<T, Refusal>,
) -> Result<Option<T>, TestCaseError> {
    match M::decode(bytes) {
        Ok(request) => refused(check(request)),
        Err(_) => Ok(None),
    }
}

fn mountable(path: &Path) -> Result<(), TestCaseError> {
    prop_assert!(path.is_absolute() && !path.as_os_str().as_encoded_bytes().contains(&0), "{path:?}");
    Ok(())
}

fn requests(bytes: &[u8]) -> Result<(), TestCaseError> {
    if let Some(Create(wanted)) = check(bytes, |request| Create::check(request, &segments()))? {
        prop_assert!((1..=128).contains(&wanted.name.len()));
        prop_assert!(wanted.required <= i64::MAX as u64);
        prop_assert!(wanted.limit.is_none_or(|limit| limit >= wanted.required));
    }
    check(bytes, |request| Delete::check(&request))?;
    check(bytes, |request| Get::check(&request))?;
    check(bytes, Expand::check)?;
    check(bytes, |request| Validate::check(&request))?;
    check(bytes, |request| List::check(&request))?;
    check(bytes, |request| Capacity::check(&request, &segments()))?;
    check(bytes, |request| CreateSnapshot::check(request, &segments()))?;
    check(bytes, ListSnapshots::check)?;
    if let Some(Stage { staging, .. }) = check(bytes, |request| Stage::check(&request))? {
        mountable(&staging)?;
    }
    if let Some(Unstage { staging, .. }) = check(bytes, |request| Unstage::check(&request))? {
        mountable(&staging)?;
    }
    if let Some(Publish { staging, target, .. }) = check(bytes, |request| Publish::check(&request))? {
        mountable(&staging)?;
        mountable(&target)?;
    }
    if let Some(Unpublish { target, .. }) = check(bytes, |request| Unpublish::check(&request))? {
        mountable(&target)?;
    }
    check(bytes, |request| Stats::check(&request))?;
    check(bytes, |request| ExpandOnNode::check(&request))?;
    Ok(())
}

proptest! {
    #![proptest_config(corpus::cases(3_000))]

    #[test]
    fn mangled_requests(bytes in corpus::near(corpus_of())) {
        requests(&bytes)?;
    }
}

#[test]
fn a_refusal_of_something_huge_is_short() {
    let huge = "é".repeat(1 << 20);
    let capability = mounted(&huge, &[&huge]);
    let request = v1::NodeStageVolumeRequest {
        volume_id: VOLUME.into(),
        staging_target_path: "/staging".into(),
        volume_capability: Some(capability),
        ..Default::default()
    };
    requests(&request.encode_to_vec()).expect("told in a few words");
    let request = v1::NodeStageVolumeRequest { volume_capability: Some(mounted(&huge, &[])), ..request };
    requests(&request.encode_to_vec()).expect("told in a few words");
}
