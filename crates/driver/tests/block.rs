//! Block volumes through the driver's socket, on a real btrfs drive. Needs root.

mod world;

use csi::v1::volume_capability::{AccessType, BlockVolume, MountVolume, access_mode::Mode};
use csi::v1::{self, volume_usage::Unit};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, FileTypeExt};
use tonic::Code;
use world::{GI, MI, World, capability, code};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_volume_s_life_with_every_call_made_twice() {
    let Some(mut world) = World::with_drive(GI).await else { return };
    let before = world.capacity().await;
    let (block, mount) = (AccessType::Block(BlockVolume {}), AccessType::Mount(MountVolume::default()));

    world.access = block.clone();
    let volume = world.create("pvc-1", 64 * MI).await.expect("created");
    assert_eq!(world.create("pvc-1", 64 * MI).await.expect("there already"), volume);
    let id = volume.volume_id.clone();
    let taken = i64::try_from(64 * MI).expect("small");
    assert!(world.capacity().await.available_capacity < before.available_capacity - taken);

    // Not as something else.
    let (staging, target) = (world.path("staging"), world.path("pods/1/device"));
    let reader = world.path("pods/2/device");
    fs::create_dir_all(&staging).expect("staging directory");
    world.access = mount;
    assert_eq!(code(world.create("pvc-1", 64 * MI).await), Code::AlreadyExists);
    let refused = world.stage(&id, &staging).await.expect_err("a device is no file system");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("is a block volume"), "{}", refused.message());
    world.access = block.clone();
    for (access, confirmed) in [(&world.access, true), (&AccessType::Mount(MountVolume::default()), false)] {
        let asked =
            v1::VolumeCapability { access_type: Some(access.clone()), ..capability(Mode::SingleNodeWriter) };
        let request = v1::ValidateVolumeCapabilitiesRequest {
            volume_id: id.clone(),
            volume_capabilities: vec![asked],
            ..Default::default()
        };
        let answer = world.controller.validate_volume_capabilities(request).await.expect("answered");
        assert_eq!(answer.get_ref().confirmed.is_some(), confirmed, "{answer:?}");
    }

    // Out of order.
    assert_eq!(code(world.publish(&id, &staging, &target, false).await), Code::FailedPrecondition);
    assert_eq!(code(world.stats(&id, &target).await), Code::NotFound);
    world.unpublish(&id, &target).await.expect("nothing to do");

    for _ in 0..2 {
        world.stage(&id, &staging).await.expect("staged");
    }
    for _ in 0..2 {
        world.publish(&id, &staging, &target, false).await.expect("published");
        world.publish(&id, &staging, &reader, true).await.expect("published");
    }
    assert!(fs::metadata(&target).expect("there").file_type().is_block_device());
    assert_eq!(code(world.publish(&id, &staging, &target, true).await), Code::AlreadyExists);
    assert_eq!(code(world.delete(&id).await), Code::FailedPrecondition);
    assert_eq!(code(world.unstage(&id, &staging).await), Code::FailedPrecondition);
    let device = OpenOptions::new().write(true).open(&target).expect("writable");
    device.write_all_at(b"kept", 4096).and_then(|()| device.sync_all()).expect("written");
    let wrote = OpenOptions::new().write(true).open(&reader).and_then(|device| {
        device.write_all_at(b"lost", 4096)?;
        device.sync_all()
    });
    wrote.expect_err("read-only");

    let usage = world.stats(&id, &target).await.expect("stats").usage;
    let [bytes] = &usage[..] else { panic!("bytes alone: {usage:?}") };
    assert_eq!((bytes.total, bytes.unit()), (taken, Unit::Bytes));

    // Growing, while in use.
    for _ in 0..2 {
        let grown = world.expand(&id, 96 * MI).await.expect("grown");
        assert!(!grown.node_expansion_required);
        let request = v1::NodeExpandVolumeRequest {
            volume_id: id.clone(),
            volume_path: target.display().to_string(),
            ..Default::default()
        };
        world.node.node_expand_volume(request).await.expect("nothing to do");
    }
    device.write_all_at(b"new", 96 * MI - 4096).and_then(|()| device.sync_all()).expect("the new end");
    drop(device);

    let mut world = world.restart().await;
    world.access = block;
    world.stage(&id, &staging).await.expect("staged");
    let mut found = [0; 4];
    File::open(&target).and_then(|device| device.read_exact_at(&mut found, 4096)).expect("readable");
    assert_eq!(&found, b"kept");
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
        world.delete(&id).await.expect("deleted");
    }
    assert_eq!(world.capacity().await, before, "the space is given back");
    world.end().await;
}
