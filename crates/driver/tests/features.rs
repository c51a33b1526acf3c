//! Group snapshots, volumes for one pod, groups of files, limits and conditions over a real socket, on a real btrfs
//! drive. Needs root.

mod world;

use csi::v1::group_controller_client::GroupControllerClient;
use csi::v1::volume_capability::{AccessType, MountVolume, access_mode::Mode};
use csi::v1::{self, volume_usage::Unit};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use tonic::Code;
use world::{GI, MI, World, capability, code};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_snapshot_s_life() {
    let Some(mut world) = World::with_drive(GI).await else { return };
    let before = world.capacity().await;
    let mut volumes = Vec::new();
    for name in ["pvc-1", "pvc-2"] {
        volumes.push(world.create(name, 32 * MI).await.expect("created").volume_id);
    }
    let mut groups = GroupControllerClient::new(world.channel.clone());
    let create = |sources: &[String]| v1::CreateVolumeGroupSnapshotRequest {
        name: "backup".into(),
        source_volume_ids: sources.to_vec(),
        ..Default::default()
    };
    let first = groups.create_volume_group_snapshot(create(&volumes)).await.expect("taken").into_inner();
    let again = groups.create_volume_group_snapshot(create(&volumes)).await.expect("there").into_inner();
    assert_eq!(first, again);
    assert_eq!(code(groups.create_volume_group_snapshot(create(&volumes[..1])).await), Code::AlreadyExists);
    let group = first.group_snapshot.expect("a group");
    assert!(group.ready_to_use && group.snapshots.len() == 2, "{group:?}");
    let members: Vec<String> = group.snapshots.iter().map(|one| one.snapshot_id.clone()).collect();
    assert!(group.snapshots.iter().all(|one| one.group_snapshot_id == group.group_snapshot_id));

    let alone = v1::DeleteSnapshotRequest { snapshot_id: members[0].clone(), ..Default::default() };
    assert_eq!(code(world.controller.delete_snapshot(alone).await), Code::FailedPrecondition);
    let mut world = world.restart().await;
    let mut groups = GroupControllerClient::new(world.channel.clone());
    let get = |members: &[String]| v1::GetVolumeGroupSnapshotRequest {
        group_snapshot_id: group.group_snapshot_id.clone(),
        snapshot_ids: members.to_vec(),
        ..Default::default()
    };
    let found = groups.get_volume_group_snapshot(get(&members)).await.expect("found").into_inner();
    assert_eq!(found.group_snapshot.as_ref(), Some(&group), "it outlives the driver");
    assert_eq!(code(groups.get_volume_group_snapshot(get(&members[..1])).await), Code::InvalidArgument);
    let delete = |members: &[String]| v1::DeleteVolumeGroupSnapshotRequest {
        group_snapshot_id: group.group_snapshot_id.clone(),
        snapshot_ids: members.to_vec(),
        ..Default::default()
    };
    assert_eq!(code(groups.delete_volume_group_snapshot(delete(&members[..1])).await), Code::InvalidArgument);
    for _ in 0..2 {
        groups.delete_volume_group_snapshot(delete(&members)).await.expect("deleted");
    }
    assert_eq!(code(groups.get_volume_group_snapshot(get(&members)).await), Code::NotFound);
    for id in &volumes {
        world.delete(id).await.expect("deleted");
    }
    assert_eq!(world.capacity().await, before);
    world.end().await;
}

fn ephemeral(name: &str, target: &Path, size: &str) -> v1::NodePublishVolumeRequest {
    let context = [("csi.storage.k8s.io/ephemeral", "true"), ("orlop.dev/size", size)];
    v1::NodePublishVolumeRequest {
        volume_id: name.into(),
        target_path: target.display().to_string(),
        volume_capability: Some(capability(Mode::SingleNodeWriter)),
        volume_context: context.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_for_one_pod_goes_with_it() {
    let Some(mut world) = World::with_drive(GI).await else { return };
    let before = world.capacity().await;
    let (kept, orphan) = (world.path("pods/1/kept"), world.path("pods/1/orphan"));
    for _ in 0..2 {
        world.node.node_publish_volume(ephemeral("csi-kept", &kept, "32Mi")).await.expect("published");
    }
    world.node.node_publish_volume(ephemeral("csi-orphan", &orphan, "32Mi")).await.expect("published");
    fs::write(kept.join("data"), "while the pod lives").expect("writable");
    let stats = world.stats("csi-kept", &kept).await.expect("stats");
    let bytes = stats.usage.iter().find(|usage| usage.unit() == Unit::Bytes).expect("bytes");
    assert_eq!(bytes.total, 32 * MI as i64);
    assert!(!stats.volume_condition.expect("told").abnormal);
    let larger = world.node.node_publish_volume(ephemeral("csi-kept", &kept, "64Mi")).await;
    assert_eq!(code(larger), Code::AlreadyExists);

    // The driver is gone for a while, and one of the pods with all that its node knew.
    assert!(std::process::Command::new("umount").arg(&orphan).status().expect("umount").success());
    let mut world = world.restart().await;
    let list = world.controller.list_volumes(v1::ListVolumesRequest::default()).await.expect("listed");
    let list = list.into_inner().entries;
    assert_eq!(list.len(), 1, "what no pod has is removed: {list:?}");
    assert!(!list[0].status.clone().expect("told").volume_condition.expect("told").abnormal);
    assert_eq!(fs::read_to_string(kept.join("data")).expect("readable"), "while the pod lives");
    for _ in 0..2 {
        world.unpublish("csi-kept", &kept).await.expect("unpublished");
    }
    world.unpublish("csi-none", &world.path("pods/2/never")).await.expect("nothing to do");
    assert!(!kept.exists());
    assert_eq!(world.capacity().await, before);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_is_given_to_its_group_once() {
    let Some(mut world) = World::with_drive(GI).await else { return };
    let id = world.create("pvc-1", 64 * MI).await.expect("created").volume_id;
    let (staging, target) = (world.path("staging"), world.path("target"));
    world.stage(&id, &staging).await.expect("staged");
    fs::write(staging.join("old"), "").expect("written");
    fs::set_permissions(staging.join("old"), fs::Permissions::from_mode(0o600)).expect("changed");
    let mount = MountVolume { volume_mount_group: "4321".into(), ..MountVolume::default() };
    let request = v1::NodePublishVolumeRequest {
        volume_id: id.clone(),
        staging_target_path: staging.display().to_string(),
        target_path: target.display().to_string(),
        volume_capability: Some(v1::VolumeCapability {
            access_type: Some(AccessType::Mount(mount)),
            ..capability(Mode::SingleNodeWriter)
        }),
        ..Default::default()
    };
    world.node.node_publish_volume(request.clone()).await.expect("published");
    let of =
        |name: &str| fs::metadata(target.join(name)).map(|it| (it.gid(), it.mode() & 0o7777)).expect("there");
    assert_eq!(of("old"), (4321, 0o660));
    assert_eq!((of(".").0, of(".").1 & 0o2770), (4321, 0o2770));
    fs::write(target.join("new"), "").expect("written");
    assert_eq!(of("new").0, 4321, "the root hands its group on");
    // A root that is as it should be saves the walk.
    fs::set_permissions(target.join("old"), fs::Permissions::from_mode(0o600)).expect("changed");
    world.node.node_publish_volume(request).await.expect("published");
    assert_eq!(of("old"), (4321, 0o600));
    world.unpublish(&id, &target).await.expect("unpublished");
    world.unstage(&id, &staging).await.expect("unstaged");
    world.delete(&id).await.expect("deleted");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_is_labelled_for_selinux() {
    let Some(mut world) = World::with_drive(GI).await else { return };
    let id = world.create("pvc-1", 64 * MI).await.expect("created").volume_id;
    let (staging, file) = (world.path("staging"), world.path("staging/old"));
    world.stage(&id, &staging).await.expect("staged");
    fs::write(&file, "").expect("written");
    let request = |options: &[&str], mode: Mode| {
        let mount_flags = options.iter().map(|&option| option.to_owned()).collect();
        v1::NodeStageVolumeRequest {
            volume_id: id.clone(),
            staging_target_path: staging.display().to_string(),
            volume_capability: Some(v1::VolumeCapability {
                access_type: Some(AccessType::Mount(MountVolume { mount_flags, ..MountVolume::default() })),
                ..capability(mode)
            }),
            ..Default::default()
        }
    };
    let label = || {
        let mut value = [0; 99];
        let length = rustix::fs::lgetxattr(&file, "security.selinux", &mut value[..]).unwrap_or_default();
        String::from_utf8_lossy(&value[..length]).trim_end_matches('\0').to_owned()
    };
    for (level, mode) in [("s0:c1,c2", Mode::SingleNodeWriter), ("s0:c3,c4", Mode::SingleNodeReaderOnly)] {
        world.unstage(&id, &staging).await.expect("unstaged");
        let wanted = format!("system_u:object_r:container_file_t:{level}");
        let option = format!("context=\"{wanted}\"");
        world.node.node_stage_volume(request(&["noatime", &option], mode)).await.expect("staged");
        assert_eq!(label(), wanted);
    }
    for wrong in [&["context=\"\""][..], &["context=a b:c:d"], &["context=a:b:c", "context=a:b:c"]] {
        let refused = world.node.node_stage_volume(request(wrong, Mode::SingleNodeWriter)).await;
        assert_eq!(refused.expect_err("refused").code(), Code::InvalidArgument, "{wrong:?}");
    }
    world.unstage(&id, &staging).await.expect("unstaged");
    world.delete(&id).await.expect("deleted");
    world.end().await;
}

/// The control group of a pod, as a node agent makes it before the pod's volumes.
struct Group {
    uid: String,
    path: std::path::PathBuf,
}

impl Group {
    fn new() -> Group {
        let uid = format!("00000000-0000-0000-0000-{:012}", std::process::id());
        let path = Path::new("/sys/fs/cgroup").join(format!("orlop-test-{uid}"));
        fs::create_dir(&path).expect("made");
        Group { uid, path }
    }

    fn limits(&self) -> String {
        fs::read_to_string(self.path.join("io.max")).expect("the controller is on")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.path);
    }
}

/// On a kernel without the controller what matters is that nobody believes in a limit that isn't there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_are_kept_with_the_volume_or_refused_with_a_reason() {
    let Some(mut world) = World::with_drive(GI).await else { return };
    let id = world.create("pvc-1", 64 * MI).await.expect("created").volume_id;
    let modify = |of: &[(&str, &str)]| v1::ControllerModifyVolumeRequest {
        volume_id: id.clone(),
        mutable_parameters: of
            .iter()
            .map(|(key, value)| ((*key).into(), (*value).into()))
            .collect::<BTreeMap<_, _>>(),
        ..Default::default()
    };
    let mut controller = world.controller.clone();
    let unknown = controller.controller_modify_volume(modify(&[("iops", "9")])).await;
    assert_eq!(code(unknown), Code::InvalidArgument);
    controller.controller_modify_volume(modify(&[])).await.expect("no limits are always kept");
    let limits = [("orlop.dev/write-bps", "10Mi"), ("orlop.dev/read-iops", "500")];
    match controller.controller_modify_volume(modify(&limits)).await {
        Ok(_) => {
            let mut world = world.restart().await;
            world.controller.controller_modify_volume(modify(&limits)).await.expect("the same again");
            let group = Group::new();
            let staging = world.path("staging");
            let target = world.path("pods").join(&group.uid).join("volumes/mount");
            world.stage(&id, &staging).await.expect("staged");
            world.publish(&id, &staging, &target, false).await.expect("published");
            let held = group.limits();
            assert!(held.contains("wbps=10485760") && held.contains("riops=500"), "{held}");
            world.controller.controller_modify_volume(modify(&[])).await.expect("no limits");
            assert_eq!(group.limits(), "");
            world.unpublish(&id, &target).await.expect("unpublished");
            world.unstage(&id, &staging).await.expect("unstaged");
            world.delete(&id).await.expect("deleted");
            world.end().await;
        }
        Err(refused) => {
            eprintln!("SKIPPED: limits of bandwidth and operations: {}", refused.message());
            assert_eq!(refused.code(), Code::InvalidArgument);
            assert!(
                refused.message().contains("io controller") || refused.message().contains("cgroup version 2")
            );
            let mut request = world.request("pvc-2", 64 * MI);
            request.mutable_parameters = modify(&limits).mutable_parameters;
            assert_eq!(code(world.controller.create_volume(request).await), Code::InvalidArgument);
            world.delete(&id).await.expect("deleted");
            world.end().await;
        }
    }
}
