//! What only block volumes do: devices that outlive the process, and copies that need their users to stand still.

use std::path::Path;

use linux::Files;

use super::{Ending, IMAGE, Kind, SIZE, World, at_every_call_of, at_flush, kinds};
use crate::{
    AccessType, BackendKind, CreateError, CreateVolume, DeleteError, Drives, MountError, MountFlags, Origin,
    SnapshotError, SourceError, VolumeId, layout::Layout,
};

const STAGING: &str = "/node/staging";
const WRITER: &str = "/node/writer";
const READER: &str = "/node/reader";

fn block_kinds() -> impl Iterator<Item = Kind> {
    kinds().filter(|kind| kind.access == AccessType::Block)
}

fn filled(origin: &Origin, access: AccessType) -> CreateVolume {
    CreateVolume {
        name: "pvc-2".to_owned(),
        required: SIZE * 2,
        access,
        origin: Some(origin.clone()),
        ..CreateVolume::default()
    }
}

async fn show(drives: &Drives, id: &VolumeId) -> Result<(), MountError> {
    drives.stage_block(id).await?;
    drives.publish_block(id, Path::new(STAGING), Path::new(WRITER), false).await?;
    drives.publish_block(id, Path::new(STAGING), Path::new(READER), true).await
}

async fn hide(drives: &Drives, id: &VolumeId) -> Result<(), MountError> {
    drives.unpublish(id, Path::new(READER)).await?;
    drives.unpublish(id, Path::new(WRITER)).await?;
    drives.unstage(id, Path::new(STAGING)).await
}

#[tokio::test]
async fn a_volume_is_shown_as_what_it_was_made() {
    for kind in kinds() {
        let world = World::new(kind).await;
        let id = world.drives.create(kind.request(SIZE)).await.expect("create").id;
        let (as_mount, as_block) = (
            world.drives.stage(&id, Path::new(STAGING), MountFlags::default()).await,
            world.drives.stage_block(&id).await,
        );
        let (right, wrong) = match kind.access {
            AccessType::Mount => (as_mount, as_block),
            AccessType::Block => (as_block, as_mount),
        };
        right.expect("as it was made");
        let refused = wrong.expect_err("as something else").to_string();
        assert!(refused.contains("is asked for; ask for it as it was made"), "{refused}");
        let access = match kind.access {
            AccessType::Mount => AccessType::Block,
            AccessType::Block => AccessType::Mount,
        };
        let other = CreateVolume { access, ..kind.request(SIZE) };
        let refused = world.drives.create(other).await.expect_err("the name is taken");
        assert!(matches!(refused, CreateError::Incompatible { .. }), "{refused}");
    }
}

#[tokio::test]
async fn devices_are_found_again_and_neither_doubled_nor_left() {
    for kind in block_kinds() {
        let mut world = World::new(kind).await;
        let id = world.drives.create(kind.request(SIZE)).await.expect("create").id;
        let refused = world.drives.publish_block(&id, Path::new(STAGING), Path::new(WRITER), false).await;
        assert!(matches!(refused, Err(MountError::NotStaged { .. })), "{refused:?}");
        for _ in 0..2 {
            show(&world.drives, &id).await.expect("shown");
            // One is the drive's own.
            assert_eq!((world.host.loops(), world.host.mounts()), (3, 3));
            world.restart(Ending::Crash).await;
        }
        let refused = world.drives.publish_block(&id, Path::new(STAGING), Path::new(WRITER), true).await;
        assert!(matches!(refused, Err(MountError::Taken { .. })), "{refused:?}");
        let refused = world.drives.unstage(&id, Path::new(STAGING)).await;
        assert!(matches!(refused, Err(MountError::Published { .. })), "{refused:?}");
        let refused = world.drives.delete(&id).await.expect_err("in use");
        assert!(matches!(refused, DeleteError::InUse { .. }), "{refused}");
        world.drives.close().await.expect_err("in use");
        hide(&world.drives, &id).await.expect("hidden");
        assert_eq!((world.host.loops(), world.host.mounts()), (1, 1));
        world.drives.delete(&id).await.expect("delete");
        world.check(&[], "after all");
    }
}

#[tokio::test]
async fn hiding_that_breaks_off_can_be_repeated() {
    at_every_call_of(block_kinds(), |kind, ending, at| async move {
        let mut world = World::new(kind).await;
        let id = world.drives.create(kind.request(SIZE)).await.expect("create").id;
        show(&world.drives, &id).await.expect("shown");
        world.host.arm(None);
        world.arm(ending, at);
        let answer = hide(&world.drives, &id).await;
        let happened = world.host.calls() > at;
        world.restart(ending).await;
        hide(&world.drives, &id).await.unwrap_or_else(|error| panic!("{ending:?} at {at}: {error}"));
        assert_eq!((world.host.loops(), world.host.mounts()), (1, 1), "{answer:?}");
        happened
    })
    .await;
}

#[tokio::test]
async fn a_copy_is_made_of_a_block_volume_that_nobody_has() {
    for kind in block_kinds() {
        let world = World::new(kind).await;
        let id = world.drives.create(kind.request(SIZE)).await.expect("create").id;
        let origin = Origin::Volume(id.clone());
        world.drives.stage_block(&id).await.expect("staged");
        let refused = world.drives.create_snapshot(&id, "snap-1").await.expect_err("in use");
        assert!(matches!(refused, SnapshotError::Source(SourceError::InUse { .. })), "{refused}");
        let refused = world.drives.create(filled(&origin, AccessType::Block)).await.expect_err("in use");
        assert!(matches!(refused, CreateError::Source(SourceError::InUse { .. })), "{refused}");
        world.check(&[SIZE], "nothing was made");

        world.drives.unstage(&id, Path::new(STAGING)).await.expect("unstaged");
        let snapshot = world.drives.create_snapshot(&id, "snap-1").await.expect("snapshot");
        assert_eq!((snapshot.access, snapshot.restore_size), (AccessType::Block, SIZE));
        let origin = Origin::Snapshot(snapshot.id.clone());
        let refused =
            world.drives.create(filled(&origin, AccessType::Mount)).await.expect_err("not the same");
        assert!(refused.to_string().contains("ask for the same"), "{refused}");
        let restored = world.drives.create(filled(&origin, AccessType::Block)).await.expect("restored");
        world.drives.delete_snapshot(&snapshot.id).await.expect("delete");
        world.check(&[SIZE, SIZE * 2], "source and copy");
        world.drives.stage_block(&restored.id).await.expect("of use");
    }
}

#[tokio::test]
async fn a_copy_that_breaks_off_leaves_one_or_none() {
    at_every_call_of(block_kinds(), |kind, ending, at| async move {
        let mut world = World::new(kind).await;
        let id = world.drives.create(kind.request(SIZE)).await.expect("create").id;
        let request = filled(&Origin::Volume(id), AccessType::Block);
        world.host.arm(None);
        world.arm(ending, at);
        let answer = world.drives.create(request.clone()).await;
        let happened = world.host.calls() > at;
        world.restart(ending).await;
        let when = format!("{kind:?} {ending:?} at call {at}: {answer:?}");
        match &answer {
            Ok(_) => world.check(&[SIZE, SIZE * 2], &when),
            Err(error) if at_flush(ending, error) => {
                world.check(&[SIZE, SIZE * 2][..world.drives.volumes().len()], &when);
            }
            Err(_) if ending != Ending::Goes => world.check(&[SIZE], &when),
            Err(_) => {}
        }
        world.drives.create(request).await.expect(&when);
        world.check(&[SIZE, SIZE * 2], &when);
        happened
    })
    .await;
}

#[tokio::test]
async fn bytes_that_are_gone_are_not_made_up() {
    let kind = Kind { backend: BackendKind::Btrfs, access: AccessType::Block };
    let mut world = World::new(kind).await;
    let id = world.drives.create(kind.request(SIZE)).await.expect("create").id;
    let layout = Layout::new(world.drives.drives()[0].mount.clone().expect("mounted"));
    world.host.remove_file(&layout.image(&id.key)).expect("removed");
    world.restart(Ending::Crash).await;
    let refused = world.drives.stage_block(&id).await.expect_err("lost").to_string();
    assert!(refused.contains("is gone"), "{refused}");
    assert_eq!(world.host.disk(Path::new(IMAGE)).images(), [0; 0]);
    world.drives.delete(&id).await.expect("delete");
    world.check(&[], "deleted");
}
