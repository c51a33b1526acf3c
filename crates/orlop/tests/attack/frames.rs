//! What is no CSI on the driver's socket, and CSI calls whose content is nonsense.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use csi::v1::controller_client::ControllerClient;
use csi::v1::node_client::NodeClient;
use csi::v1::{self, CapacityRange};
use tonic::Code;

use crate::common::caller::{self, Caller, Running, capability};
use crate::common::{Place, Random, seed};
use crate::tally::Tally;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "an attack: cargo xtask attack"]
async fn the_driver_outlives_every_frame_and_call() {
    let place = Place::new();
    let running = Running::start(&place, &["--loop-drive", "512Mi"]);
    let mut tally = Tally::new("frames and calls");
    frames(&place, &mut tally);
    calls(&place, &mut tally).await;
    let caller = Caller::connect(&caller::socket(&place), place.path()).await;
    let volume = caller.create("after", 16 << 20).await.expect("a volume");
    caller.show(&volume, "after").await.expect("staged and published");
    caller.hide(&volume, "after").await.expect("unpublished and unstaged");
    caller.delete(&volume).await.expect("deleted");
    running.stop();
    assert_eq!(place.leftovers(), Vec::<String>::new());
}

/// Bytes after, or instead of, the preface of HTTP/2.
fn frames(place: &Place, tally: &mut Tally) {
    let mut random = Random(seed());
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    for number in 0..600 {
        let mut stream = UnixStream::connect(caller::socket(place)).expect("the driver listens");
        stream.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
        stream.set_write_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        let mut bytes = if number % 5 == 0 { Vec::new() } else { preface.to_vec() };
        for _ in 0..random.below(6) {
            let length = random.below(64);
            let claimed = if number % 7 == 0 { 0x00ff_ffff } else { length };
            bytes.extend_from_slice(&claimed.to_be_bytes()[5..]);
            bytes.extend([random.below(12) as u8, random.below(256) as u8, 0, 0, 0, random.below(9) as u8]);
            bytes.extend((0..length).map(|_| random.below(256) as u8));
        }
        let sent = stream.write_all(&bytes).is_ok();
        let mut answer = [0; 4096];
        let _ = stream.read(&mut answer);
        tally.count(if sent { "frames sent" } else { "frames refused" });
    }
}

/// Every request with a field that makes no sense.
async fn calls(place: &Place, tally: &mut Tally) {
    let channel = csi::connect(&caller::socket(place)).await.expect("a connection");
    let (mut controller, mut node) = (ControllerClient::new(channel.clone()), NodeClient::new(channel));
    let ids = ids();
    let mut judge = |what: String, code: Option<Code>| {
        let fault =
            [Code::Internal, Code::Unknown, Code::DataLoss, Code::Unavailable, Code::DeadlineExceeded];
        assert!(code.is_none_or(|code| !fault.contains(&code)), "{what} was answered {code:?}");
        tally.count(if code.is_none() { "calls answered" } else { "calls refused" });
    };
    let code = |answer: Result<(), tonic::Status>| answer.err().map(|status| status.code());
    for id in &ids {
        let what = |call: &str| format!("{call} of {:?}", id.chars().take(60).collect::<String>());
        for (required_bytes, limit_bytes) in
            [(16 << 20, 0), (-1, 0), (i64::MAX, 0), (2, 1), (i64::MIN, i64::MAX), (0, -5)]
        {
            let request = v1::CreateVolumeRequest {
                name: id.clone(),
                capacity_range: Some(CapacityRange { required_bytes, limit_bytes }),
                volume_capabilities: vec![capability()],
                parameters: [(id.clone(), id.clone())].into(),
                ..Default::default()
            };
            judge(what("CreateVolume"), code(controller.create_volume(request).await.map(drop)));
            let request = v1::ControllerExpandVolumeRequest {
                volume_id: id.clone(),
                capacity_range: Some(CapacityRange { required_bytes, limit_bytes }),
                ..Default::default()
            };
            judge(what("Expand"), code(controller.controller_expand_volume(request).await.map(drop)));
        }
        let request = v1::DeleteVolumeRequest { volume_id: id.clone(), ..Default::default() };
        judge(what("DeleteVolume"), code(controller.delete_volume(request).await.map(drop)));
        let request = v1::CreateSnapshotRequest {
            source_volume_id: id.clone(),
            name: id.clone(),
            ..Default::default()
        };
        judge(what("CreateSnapshot"), code(controller.create_snapshot(request).await.map(drop)));
        let request = v1::DeleteSnapshotRequest { snapshot_id: id.clone(), ..Default::default() };
        judge(what("DeleteSnapshot"), code(controller.delete_snapshot(request).await.map(drop)));
        let request = v1::ListVolumesRequest { max_entries: -1, starting_token: id.clone() };
        judge(what("ListVolumes"), code(controller.list_volumes(request).await.map(drop)));
        let request = v1::ValidateVolumeCapabilitiesRequest {
            volume_id: id.clone(),
            volume_capabilities: vec![capability()],
            ..Default::default()
        };
        judge(what("Validate"), code(controller.validate_volume_capabilities(request).await.map(drop)));
        let request = v1::NodeGetVolumeStatsRequest {
            volume_id: id.clone(),
            volume_path: id.clone(),
            ..Default::default()
        };
        judge(what("Stats"), code(node.node_get_volume_stats(request).await.map(drop)));
        let request = v1::NodeExpandVolumeRequest {
            volume_id: id.clone(),
            volume_path: id.clone(),
            ..Default::default()
        };
        judge(what("NodeExpand"), code(node.node_expand_volume(request).await.map(drop)));
        for path in
            [id.clone(), format!("/{id}"), place.path().join("staging").join("x").display().to_string()]
        {
            let request = v1::NodeStageVolumeRequest {
                volume_id: id.clone(),
                staging_target_path: path.clone(),
                volume_capability: Some(capability()),
                ..Default::default()
            };
            judge(what("Stage"), code(node.node_stage_volume(request).await.map(drop)));
            let request = v1::NodePublishVolumeRequest {
                volume_id: id.clone(),
                staging_target_path: path.clone(),
                target_path: path.clone(),
                volume_capability: Some(capability()),
                ..Default::default()
            };
            judge(what("Publish"), code(node.node_publish_volume(request).await.map(drop)));
        }
    }
}

fn ids() -> Vec<String> {
    let mut ids = [
        "",
        " ",
        ".",
        "..",
        "/",
        "x/y",
        "../../etc",
        "a:b",
        "-",
        "*",
        "\n",
        "a\0b",
        "%00",
        "ü",
        "\u{202e}x",
        "orlop",
        "v\\1",
    ]
    .map(str::to_owned)
    .to_vec();
    for length in [64, 128, 129, 255, 256, 3_000, 70_000] {
        ids.push("a".repeat(length));
        ids.push("ß".repeat(length));
        ids.push(format!("{}/{}", "a".repeat(length), "b".repeat(length)));
    }
    ids.extend((0..12).map(|number| format!("pvc-{number:08x}-0000-4000-8000-000000000000/../{number}")));
    ids
}
