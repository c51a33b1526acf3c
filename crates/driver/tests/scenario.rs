//! The driver over a real socket, on a real btrfs drive: a file on a loop device. Needs root.

mod world;

use csi::v1::group_controller_client::GroupControllerClient;
use csi::v1::volume_capability::access_mode::Mode;
use csi::v1::{self, volume_usage::Unit};
use driver::Name;
use futures::future::join_all;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;
use tonic::Code;
use world::{GI, MI, NODE, World, capability, code, node_segment};

/// Writes until the file has `bytes`, or the file system says no.
fn fill(path: &Path, bytes: u64) -> io::Result<()> {
    let mut file = fs::File::create(path)?;
    let piece = vec![0x5a; 1 << 20];
    for _ in 0..bytes / MI {
        file.write_all(&piece)?;
    }
    file.sync_all()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_s_life_with_every_call_made_twice() {
    let Some(mut world) = World::with_drive(GI).await else { return };
    let before = world.capacity().await;

    let first = world.create("pvc-1", 64 * MI).await.expect("created");
    let again = world.create("pvc-1", 64 * MI).await.expect("there already");
    assert_eq!(first, again);
    let id = first.volume_id.clone();
    assert_eq!(first.accessible_topology, [v1::Topology { segments: node_segment() }]);
    assert_eq!(code(world.create("pvc-1", 65 * MI).await), Code::AlreadyExists);
    assert!(world.capacity().await.available_capacity <= before.available_capacity - 64 * MI as i64);

    // Out of order.
    let (staging, target) = (world.path("staging"), world.path("pods/1/mount"));
    fs::create_dir_all(&staging).expect("staging directory");
    fs::create_dir_all(target.parent().expect("parent")).expect("parent of the target");
    assert_eq!(code(world.publish(&id, &staging, &target, false).await), Code::FailedPrecondition);
    assert_eq!(code(world.stats(&id, &target).await), Code::NotFound);
    world.unpublish(&id, &target).await.expect("nothing to do");

    for _ in 0..2 {
        world.stage(&id, &staging).await.expect("staged");
    }
    for _ in 0..2 {
        world.publish(&id, &staging, &target, false).await.expect("published");
    }
    assert_eq!(code(world.delete(&id).await), Code::FailedPrecondition);
    assert_eq!(code(world.publish(&id, &staging, &target, true).await), Code::AlreadyExists);

    // The size holds.
    let data = target.join("data");
    fill(&data, 32 * MI).expect("half of the size fits");
    let refused = fill(&target.join("more"), 128 * MI).expect_err("beyond the size");
    assert!(matches!(refused.kind(), io::ErrorKind::QuotaExceeded | io::ErrorKind::StorageFull), "{refused}");
    fs::remove_file(target.join("more")).expect("removed");

    // Read-only is read-only, at its own place alone.
    let reader = world.path("pods/2/mount");
    fs::create_dir_all(reader.parent().expect("parent")).expect("parent of the target");
    for _ in 0..2 {
        world.publish(&id, &staging, &reader, true).await.expect("published");
    }
    let refused = fs::write(reader.join("x"), "x").expect_err("read-only");
    assert_eq!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem);
    fs::write(target.join("x"), "x").expect("the other is writable");
    assert_eq!(fs::read_to_string(reader.join("x")).expect("readable"), "x");

    let usage = world.stats(&id, &target).await.expect("stats").usage;
    let bytes = usage.iter().find(|usage| usage.unit() == Unit::Bytes).expect("bytes");
    assert_eq!(bytes.total, 64 * MI as i64);
    assert!(bytes.available <= 64 * MI as i64 && bytes.used >= 0, "{bytes:?}");

    // Growing, while in use.
    for _ in 0..2 {
        let grown = world.expand(&id, 96 * MI).await.expect("grown");
        assert_eq!((grown.capacity_bytes, grown.node_expansion_required), (96 * MI as i64, false));
        let request = v1::NodeExpandVolumeRequest {
            volume_id: id.clone(),
            volume_path: target.display().to_string(),
            ..Default::default()
        };
        let answer = world.node.node_expand_volume(request).await.expect("nothing to do").into_inner();
        assert_eq!(answer.capacity_bytes, 96 * MI as i64);
    }
    fill(&target.join("more"), 48 * MI).expect("fits now");
    assert_eq!(code(world.expand(&id, 100 * GI).await), Code::ResourceExhausted);

    for at in [&reader, &target] {
        for _ in 0..2 {
            world.unpublish(&id, at).await.expect("unpublished");
        }
        assert!(!at.exists(), "the target is removed");
    }
    for _ in 0..2 {
        world.unstage(&id, &staging).await.expect("unstaged");
    }
    for _ in 0..2 {
        world.stage(&id, &staging).await.expect("staged once more");
    }
    world.publish(&id, &staging, &target, false).await.expect("published");
    assert_eq!(fs::metadata(&data).expect("still there").len(), 32 * MI);
    world.unpublish(&id, &target).await.expect("unpublished");
    world.unstage(&id, &staging).await.expect("unstaged");

    for _ in 0..2 {
        world.delete(&id).await.expect("deleted");
    }
    assert_eq!(world.capacity().await, before, "the space is given back");
    assert_eq!(code(world.stage(&id, &staging).await), Code::NotFound);
    assert_eq!(code(world.get(&id).await), Code::NotFound);
    assert_eq!(code(world.expand(&id, GI).await), Code::NotFound);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_for_one_workload_is_published_once() {
    let Some(mut world) = World::with_drive(GI).await else { return };
    let id = world.create("pvc-1", 64 * MI).await.expect("created").volume_id;
    let staging = world.path("staging");
    world.stage(&id, &staging).await.expect("staged");
    let request = |pod: &str| v1::NodePublishVolumeRequest {
        volume_id: id.clone(),
        staging_target_path: staging.display().to_string(),
        target_path: world.path(pod).display().to_string(),
        volume_capability: Some(capability(Mode::SingleNodeSingleWriter)),
        ..Default::default()
    };
    let (first, second) = (request("pod-1"), request("pod-2"));
    for _ in 0..2 {
        world.node.node_publish_volume(first.clone()).await.expect("published");
    }
    let refused = world.node.node_publish_volume(second.clone()).await.expect_err("published already");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("pod-1"), "{}", refused.message());

    world.unpublish(&id, &world.path("pod-1")).await.expect("unpublished");
    world.node.node_publish_volume(second).await.expect("free again");
    world.unpublish(&id, &world.path("pod-2")).await.expect("unpublished");
    world.unstage(&id, &staging).await.expect("unstaged");
    world.delete(&id).await.expect("deleted");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_driver_knows_everything_from_the_drive() {
    let Some(mut world) = World::with_drive(GI).await else { return };
    let before = world.capacity().await;
    let volume = world.create("pvc-1", 64 * MI).await.expect("created");
    let id = volume.volume_id.clone();
    let (staging, target) = (world.path("staging"), world.path("target"));
    world.stage(&id, &staging).await.expect("staged");
    world.publish(&id, &staging, &target, false).await.expect("published");
    fs::write(target.join("data"), "kept").expect("writable");
    let taken = world.capacity().await;

    // A caller that connected and never says a word doesn't keep the old driver.
    let silent = tokio::net::UnixStream::connect(world.path("csi.sock")).await.expect("connected");
    let ground = world.halt().await;
    // Where the old driver is another process, its connections end with it.
    drop(silent);
    let mut world = ground.serve_again(Name::Orlop).await;
    assert_eq!(world.capacity().await, taken);
    assert_eq!(world.create("pvc-1", 64 * MI).await.expect("there already"), volume);
    assert_eq!(world.get(&id).await.expect("found"), volume);
    world.stage(&id, &staging).await.expect("staged already");
    world.publish(&id, &staging, &target, false).await.expect("published already");
    assert_eq!(fs::read_to_string(target.join("data")).expect("readable"), "kept");
    assert_eq!(code(world.delete(&id).await), Code::FailedPrecondition);
    world.unpublish(&id, &target).await.expect("unpublished");
    world.unstage(&id, &staging).await.expect("unstaged");
    world.delete(&id).await.expect("deleted");
    assert_eq!(world.capacity().await, before);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_whose_caller_hangs_up_is_finished_once() {
    let Some(mut world) = World::with_drive(GI).await else { return };
    for patience in [0, 1, 2, 5, 10, 20] {
        let call = world.creation("pvc-1", 64 * MI);
        let _ = tokio::time::timeout(Duration::from_millis(patience), call).await;
        let again = async {
            loop {
                match world.create("pvc-1", 64 * MI).await {
                    Err(status) if status.code() == Code::Aborted => {}
                    answer => return answer.expect("made"),
                }
            }
        };
        let volume = tokio::time::timeout(Duration::from_secs(30), again).await.expect("the first call ends");
        let all = v1::ListVolumesRequest::default();
        let list = world.controller.list_volumes(all).await.expect("listed").into_inner();
        assert_eq!(list.entries.len(), 1);
        world.delete(&volume.volume_id).await.expect("deleted");
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_change_nothing() {
    let Some(mut world) = World::with_drive(GI).await else { return };
    let before = world.capacity().await;

    let too_large = world.create("large", 100 * GI).await.expect_err("no drive is that large");
    assert_eq!(too_large.code(), Code::ResourceExhausted);
    assert!(too_large.message().contains("free"), "names what there is: {}", too_large.message());

    let mut request = world.request("elsewhere", 64 * MI);
    let elsewhere = v1::Topology { segments: [("topology.orlop.dev/node".into(), "other".into())].into() };
    request.accessibility_requirements =
        Some(v1::TopologyRequirement { requisite: vec![elsewhere.clone()], preferred: vec![] });
    assert_eq!(code(world.controller.create_volume(request).await), Code::ResourceExhausted);

    let mut request = world.request("shared", 64 * MI);
    request.volume_capabilities = vec![capability(Mode::MultiNodeMultiWriter)];
    assert_eq!(code(world.controller.create_volume(request).await), Code::InvalidArgument);

    let mut request = world.request("tight", 64 * MI);
    request.capacity_range = Some(v1::CapacityRange { required_bytes: 1, limit_bytes: 2 });
    assert_eq!(code(world.controller.create_volume(request).await), Code::OutOfRange);

    // Text that no drive could have given, and what may lie on a drive that is only away.
    let away = "6d9b8d5b-8a6e-4b9c-9a3e-2f6f2f3f4a5b/none";
    let never = ["none", "0a1b/none", "x/y", "ü/†", &"x".repeat(3000)].map(str::to_owned);
    for snapshot in never.iter().map(String::as_str).chain([away]) {
        let request = v1::DeleteSnapshotRequest { snapshot_id: snapshot.into(), ..Default::default() };
        let answer = world.controller.delete_snapshot(request).await;
        let group =
            v1::DeleteVolumeGroupSnapshotRequest { group_snapshot_id: snapshot.into(), ..Default::default() };
        let of_group =
            GroupControllerClient::new(world.channel.clone()).delete_volume_group_snapshot(group).await;
        let of_volume = world.delete(snapshot).await;
        match snapshot == away {
            true => assert_eq!([code(answer), code(of_group), code(of_volume)], [Code::Unavailable; 3]),
            false => {
                answer.expect("what never was is deleted");
                of_group.expect("what never was is deleted");
                of_volume.expect("what never was is deleted");
            }
        }
    }

    let request = v1::GetCapacityRequest { accessible_topology: Some(elsewhere), ..Default::default() };
    let none = world.controller.get_capacity(request).await.expect("answered").into_inner();
    assert_eq!(none.available_capacity, 0);
    let all = v1::ListVolumesRequest::default();
    let list = world.controller.list_volumes(all).await.expect("listed").into_inner();
    assert_eq!(list.entries, [], "nothing was made");
    assert_eq!(world.capacity().await, before);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_driver_says_of_itself() {
    let Some(mut world) = World::with_drive(GI).await else { return };
    let mut identity = v1::identity_client::IdentityClient::new(world.channel.clone());
    let info = identity.get_plugin_info(v1::GetPluginInfoRequest {}).await.expect("answered").into_inner();
    assert_eq!((info.name.as_str(), info.vendor_version.as_str()), ("orlop.dev", env!("CARGO_PKG_VERSION")));
    let probe = identity.probe(v1::ProbeRequest {}).await.expect("well").into_inner();
    assert_eq!(probe.ready, Some(true));
    let node = world.node.node_get_info(v1::NodeGetInfoRequest {}).await.expect("answered").into_inner();
    assert_eq!((node.node_id.as_str(), node.max_volumes_per_node), (NODE, 9));
    assert_eq!(node.accessible_topology, Some(v1::Topology { segments: node_segment() }));

    let capacity = world.capacity().await;
    let (largest, smallest) =
        (capacity.maximum_volume_size.expect("told"), capacity.minimum_volume_size.expect("told"));
    assert!(0 < smallest && smallest < largest && largest <= capacity.available_capacity, "{capacity:?}");
    let whole = world.create("whole", largest as u64).await.expect("the largest volume can be made");
    assert_eq!(whole.capacity_bytes, largest);
    assert_eq!(code(world.create("one-more", smallest as u64).await), Code::ResourceExhausted);
    world.delete(&whole.volume_id).await.expect("deleted");
    assert_eq!(world.capacity().await, capacity);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_volume_by_many_calls_and_many_volumes_at_once() {
    let Some(mut world) = World::with_drive(4 * GI).await else { return };
    let before = world.capacity().await;

    // One name, many calls: each is answered with the one volume, or sent away.
    let calls = (0..16).map(|_| world.creation("same", 16 * MI));
    let mut ids: Vec<String> = Vec::new();
    for answer in join_all(calls).await {
        match answer {
            Ok(volume) => ids.push(volume.volume_id),
            Err(status) => assert_eq!(status.code(), Code::Aborted, "{status}"),
        }
    }
    ids.dedup();
    assert_eq!(ids.len(), 1, "at least one call is answered, and none with a second volume: {ids:?}");
    let id = ids.remove(0);

    let deletions = (0..8).map(|_| world.deletion(&id));
    let ended = join_all(deletions).await;
    assert!(ended.iter().any(Result::is_ok));
    for status in ended.into_iter().filter_map(Result::err) {
        assert_eq!(status.code(), Code::Aborted, "{status}");
    }
    world.delete(&id).await.expect("deleted");
    assert_eq!(world.capacity().await, before);

    // A hundred volumes at once: each made once, counted once.
    const SIZE: u64 = 16 * MI;
    let made: Vec<v1::Volume> =
        join_all((0..100).map(|number| world.creation(&format!("pvc-{number}"), SIZE)))
            .await
            .into_iter()
            .collect::<Result<_, _>>()
            .expect("all fit");
    let left = world.capacity().await.available_capacity;
    assert_eq!(before.available_capacity - left, 100 * SIZE as i64);

    // Page by page, while the last of a page goes away.
    let mut listed = Vec::new();
    let mut token = String::new();
    loop {
        let request = v1::ListVolumesRequest { max_entries: 7, starting_token: token };
        let page = world.controller.list_volumes(request).await.expect("listed").into_inner();
        assert!(page.entries.len() <= 7);
        listed
            .extend(page.entries.into_iter().filter_map(|entry| entry.volume).map(|volume| volume.volume_id));
        if listed.len() == 14 {
            world.delete(&listed[13]).await.expect("deleted");
        }
        token = page.next_token;
        if token.is_empty() {
            break;
        }
    }
    let mut expected: Vec<String> = made.iter().map(|volume| volume.volume_id.clone()).collect();
    expected.sort();
    assert_eq!(listed, expected);

    let deletions = made.iter().map(|volume| world.deletion(&volume.volume_id));
    join_all(deletions).await.into_iter().collect::<Result<Vec<_>, _>>().expect("all deleted");
    assert_eq!(world.capacity().await, before);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_s_life_and_what_is_made_from_it() {
    let Some(mut world) = World::with_drive(GI).await else { return };
    let before = world.capacity().await;
    let id = world.create("pvc-1", 64 * MI).await.expect("created").volume_id;
    let staging = world.path("staging");
    world.stage(&id, &staging).await.expect("staged");
    fs::write(staging.join("data"), "of then").expect("writable");

    let request = |name: &str, source: &str| v1::CreateSnapshotRequest {
        name: name.into(),
        source_volume_id: source.into(),
        ..Default::default()
    };
    let mut controller = world.controller.clone();
    let missing = controller.create_snapshot(request("snap-1", &format!("{id}-no"))).await;
    assert_eq!(code(missing), Code::NotFound);
    let mut taken = Vec::new();
    for _ in 0..2 {
        let answer = controller.create_snapshot(request("snap-1", &id)).await.expect("taken").into_inner();
        taken.push(answer.snapshot.expect("a snapshot"));
    }
    assert_eq!(taken[0], taken[1]);
    let snapshot = taken.remove(0);
    assert!(snapshot.ready_to_use && snapshot.size_bytes == 64 * MI as i64, "{snapshot:?}");
    fs::write(staging.join("data"), "of now").expect("writable");
    world.unstage(&id, &staging).await.expect("unstaged");
    // A snapshot is no volume.
    assert_eq!(code(world.stage(&snapshot.snapshot_id, &staging).await), Code::NotFound);
    world.delete(&snapshot.snapshot_id).await.expect("no such volume");

    let kind = v1::volume_content_source::Type::Snapshot(v1::volume_content_source::SnapshotSource {
        snapshot_id: snapshot.snapshot_id.clone(),
    });
    let source = Some(v1::VolumeContentSource { r#type: Some(kind) });
    let mut small = world.request("small", 32 * MI);
    small.volume_content_source = source.clone();
    assert_eq!(code(controller.create_volume(small).await), Code::OutOfRange);
    let mut larger = world.request("pvc-2", 96 * MI);
    larger.volume_content_source = source.clone();
    let restored = controller.create_volume(larger).await.expect("restored").into_inner();
    let restored = restored.volume.expect("a volume");
    assert_eq!((restored.content_source.clone(), restored.capacity_bytes), (source, 96 * MI as i64));
    world.stage(&restored.volume_id, &staging).await.expect("staged");
    assert_eq!(fs::read_to_string(staging.join("data")).expect("readable"), "of then");
    world.unstage(&restored.volume_id, &staging).await.expect("unstaged");

    let other = controller.create_snapshot(request("snap-1", &restored.volume_id)).await;
    assert_eq!(code(other), Code::AlreadyExists);
    for volume in [&id, &restored.volume_id] {
        world.delete(volume).await.expect("deleted");
    }
    let mut world = world.restart().await;
    let get = v1::GetSnapshotRequest { snapshot_id: snapshot.snapshot_id.clone(), ..Default::default() };
    let found = world.controller.get_snapshot(get.clone()).await.expect("found").into_inner();
    assert_eq!(found.snapshot.as_ref(), Some(&snapshot), "it outlives its volume and the driver");
    let list = v1::ListSnapshotsRequest { source_volume_id: id, ..Default::default() };
    let listed = world.controller.list_snapshots(list).await.expect("listed").into_inner();
    assert_eq!(listed.entries.len(), 1);
    let delete =
        v1::DeleteSnapshotRequest { snapshot_id: snapshot.snapshot_id.clone(), ..Default::default() };
    for _ in 0..2 {
        world.controller.delete_snapshot(delete.clone()).await.expect("deleted");
    }
    assert_eq!(code(world.controller.get_snapshot(get).await), Code::NotFound);
    assert_eq!(world.capacity().await, before);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_the_name_of_another_driver_its_handles_are_understood() {
    let Some(world) = World::with_drive(GI).await else { return };
    let own = world.create("pvc-1", 16 * MI).await.expect("created").volume_id;
    let mut world = world.restart_as(Name::DirectPv).await;

    let found = world.get("pvc-1").await.expect("by its name");
    assert_eq!(found.volume_id, "pvc-1");
    let segments = &found.accessible_topology[0].segments;
    assert_eq!(segments.len(), 5);
    assert_eq!(segments["directpv.min.io/node"], NODE);
    assert_eq!(world.get(&own).await.expect("by its identity"), found);
    let clone = v1::CreateVolumeRequest {
        volume_content_source: Some(v1::VolumeContentSource {
            r#type: Some(v1::volume_content_source::Type::Volume(v1::volume_content_source::VolumeSource {
                volume_id: "pvc-1".into(),
            })),
        }),
        ..world.request("pvc-2", 16 * MI)
    };
    let made = world.controller.create_volume(clone.clone()).await.expect("a clone").into_inner();
    assert_eq!(made.volume.expect("a volume").content_source, clone.volume_content_source);

    let (staging, target) = (world.path("staging"), world.path("pods/1/mount"));
    world.stage("pvc-1", &staging).await.expect("staged");
    world.publish("pvc-1", &staging, &target, false).await.expect("published");
    assert!(world.stats("pvc-1", &target).await.is_ok());
    assert_eq!(code(world.delete("pvc-1").await), Code::FailedPrecondition);
    assert_eq!(world.expand("pvc-1", 32 * MI).await.expect("grown").capacity_bytes, 32 * MI as i64);
    assert_eq!(code(world.get("pvc-9").await), Code::NotFound);
    assert_eq!(code(world.stage("pvc-9", &world.path("other")).await), Code::NotFound);
    world.unpublish("pvc-9", &world.path("other")).await.expect("nothing is there");
    for _ in 0..2 {
        world.unpublish("pvc-1", &target).await.expect("unpublished");
        world.unstage("pvc-1", &staging).await.expect("unstaged");
        world.delete("pvc-1").await.expect("deleted, and once more");
    }
    world.delete("pvc-2").await.expect("deleted");
    world.end().await;
}
