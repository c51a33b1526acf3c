//! The same for a drive that DirectPV formatted: what it made stays as it is, whatever happens to a change of ours.

use std::{path::Path, sync::Arc};

use linux::Files;

use super::{ENDINGS, Ending, IMAGE, World, at_flush, disk, open, request, source};
use crate::{BackendKind, DriveState, Drives, Force, InitialiseError, MountFlags, VolumeId, fake::FakeHost};

const UUID: &str = "6d9b8d5b-8a6e-4b9c-9a3e-2f6f2f3f4a5b";
const OLD: &str = "pvc-1b94751e-f97a-4cd0-89b6-af2c7657a8e7";
const OTHER: &str = "pvc-other";
const MIB: u64 = 1 << 20;

/// What DirectPV left: two volumes, one that it stopped deleting, and one whose limit it lost.
const LEFT: [(&str, u32, Option<u64>); 4] = [
    (OLD, 578_818_258, Some(64 * MIB)),
    (OTHER, 77, Some(100 * MIB + 512)),
    ("pvc-gone.deleted", 78, None),
    ("pvc-unlimited", 0, None),
];

async fn adopted(label: &str) -> World {
    let host = Arc::new(FakeHost::new());
    host.furnish(Path::new(IMAGE), label, UUID, &LEFT);
    let drives = open(&host).await;
    host.arm(None);
    World { host, drives, kind: BackendKind::Xfs.into() }
}

fn id(key: &str) -> VolumeId {
    format!("{UUID}/{key}").parse().expect("well-formed")
}

fn sizes(drives: &Drives) -> Vec<(String, u64)> {
    drives.volumes().into_iter().map(|volume| (volume.name, volume.size)).collect()
}

#[tokio::test]
async fn its_volumes_appear_and_nothing_is_changed() {
    for label in ["DIRECTPV", "DIRECTCSI"] {
        let host = Arc::new(FakeHost::new());
        host.furnish(Path::new(IMAGE), label, UUID, &LEFT);
        let before = disk(&host);
        let drives = open(&host).await;
        let drive = drives.drives().remove(0);
        assert_eq!((drive.state, drive.backend), (DriveState::Ready, Some(BackendKind::Xfs)));
        assert_eq!(drive.id.as_ref().map(|id| id.as_str()), Some(UUID));
        assert_eq!(sizes(&drives), [(OLD.to_owned(), 64 * MIB), (OTHER.to_owned(), 100 * MIB + 512)]);
        assert_eq!(drive.allocated, 164 * MIB + 512);
        assert_eq!(drives.of_key(OLD), [id(OLD)]);

        let (staging, target) = (Path::new("/node/staging"), Path::new("/node/pod/target"));
        drives.stage(&id(OLD), staging, MountFlags::default()).await.expect("stage");
        drives.publish(&id(OLD), staging, target, true, MountFlags::default()).await.expect("publish");
        assert_eq!(host.read(&target.join("data")).expect("read").as_deref(), Some(OLD.as_bytes()));
        drives.unpublish(&id(OLD), target).await.expect("unpublish");
        drives.unstage(&id(OLD), staging).await.expect("unstage");
        assert_eq!(drives.expand(&id(OLD), 64 * MIB, None).await.expect("large enough"), 64 * MIB);
        assert!(drives.delete(&id("pvc-unlimited")).await.is_ok(), "no volume of that name");
        drives.close().await.expect("close");
        assert_eq!(disk(&host), before, "{label}");
    }
}

#[tokio::test]
async fn it_is_not_formatted_unless_its_content_is_given_up() {
    let world = adopted("DIRECTPV").await;
    let before = disk(&world.host);
    world.drives.close().await.expect("close");
    let refused = world.drives.initialise(source(), Some(BackendKind::Xfs), Force::No).await;
    assert!(matches!(refused, Err(InitialiseError::AlreadyDrive { .. })), "{refused:?}");
    assert_eq!(disk(&world.host), before);
}

#[tokio::test]
async fn one_that_says_it_is_another_is_refused_untouched() {
    let host = Arc::new(FakeHost::new());
    host.furnish(Path::new(IMAGE), "DIRECTPV", UUID, &LEFT);
    let drives = open(&host).await;
    let meta = drives.drives()[0].mount.clone().expect("mounted").join(".directpv/meta.info");
    host.write_durable(&meta, b"FSUUID=ffff\n", 0o640).expect("write");
    drives.close().await.expect("close");
    let before = disk(&host);
    let drives = open(&host).await;
    let DriveState::Failed { reason } = &drives.drives()[0].state else { panic!("it serves") };
    assert!(reason.contains("ffff") && reason.contains(UUID), "{reason}");
    assert_eq!(disk(&host), before);
}

/// The volumes in memory, their directories and their limits agree; what DirectPV made is there unless it is `gone`.
fn check(world: &World, expected: &[(&str, u64)], when: &str) {
    let mut expected: Vec<(String, u64)> =
        expected.iter().map(|(name, size)| ((*name).to_owned(), *size)).collect();
    expected.sort();
    assert_eq!(sizes(&world.drives), expected, "{when}");
    let (mut directories, limits) = disk(&world.host).adopted();
    directories.retain(|name| !["pvc-gone.deleted", "pvc-unlimited"].contains(&name.as_str()));
    assert_eq!(directories, expected.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>(), "{when}");
    let mut limits: Vec<Option<u64>> = limits.into_values().collect();
    let mut sizes: Vec<Option<u64>> = expected.iter().map(|(_, size)| Some(*size)).collect();
    limits.sort_unstable();
    sizes.sort_unstable();
    assert_eq!(limits, sizes, "{when}");
    assert!(disk(&world.host).nothing_half_done(), "{when}");
    let mount = world.drives.drives()[0].mount.clone().expect("mounted");
    for (name, _) in LEFT.iter().filter(|(name, ..)| sizes_hold(&expected, name)).map(|left| (left.0, left.1))
    {
        let held = world.host.read(&mount.join(name).join("data")).expect("read");
        assert_eq!(held.as_deref(), Some(name.as_bytes()), "{when}");
    }
}

fn sizes_hold(expected: &[(String, u64)], name: &str) -> bool {
    expected.iter().any(|(other, _)| other == name)
}

/// Runs a change, broken off at each call that it makes, and then once more.
async fn at_every_call<Fut: Future<Output = bool>>(case: impl Fn(Ending, usize) -> Fut) {
    for ending in ENDINGS {
        let mut at = 0;
        while case(ending, at).await {
            at += 1;
        }
        assert!(at >= 3, "{ending:?}: faults happened");
    }
}

const THERE: [(&str, u64); 2] = [(OLD, 64 * MIB), (OTHER, 100 * MIB + 512)];

#[tokio::test]
async fn a_creation_beside_its_volumes_leaves_one_or_none() {
    at_every_call(|ending, at| async move {
        let mut world = adopted("DIRECTPV").await;
        world.arm(ending, at);
        let answer = world.drives.create(request(32 * MIB)).await;
        let happened = world.host.calls() > at;
        world.restart(ending).await;
        let when = format!("{ending:?} at call {at}: {answer:?}");
        let made = [THERE[0], THERE[1], ("pvc-1", 32 * MIB)];
        match &answer {
            Ok(_) => check(&world, &made, &when),
            Err(error) if at_flush(ending, error) && world.drives.volumes().len() > THERE.len() => {
                check(&world, &made, &when);
            }
            Err(_) if ending != Ending::Goes => check(&world, &THERE, &when),
            Err(_) => {}
        }
        world.drives.create(request(32 * MIB)).await.expect("again");
        check(&world, &made, &when);
        happened
    })
    .await;
}

#[tokio::test]
async fn a_deletion_of_its_volume_can_be_completed() {
    at_every_call(|ending, at| async move {
        let mut world = adopted("DIRECTCSI").await;
        world.arm(ending, at);
        let answer = world.drives.delete(&id(OLD)).await;
        let happened = world.host.calls() > at;
        world.restart(ending).await;
        let when = format!("{ending:?} at call {at}: {answer:?}");
        if answer.is_ok() {
            check(&world, &THERE[1..], &when);
        }
        world.drives.delete(&id(OLD)).await.expect("again");
        check(&world, &THERE[1..], &when);
        happened
    })
    .await;
}

#[tokio::test]
async fn a_growth_of_its_volume_leaves_the_old_or_the_new_size() {
    at_every_call(|ending, at| async move {
        let mut world = adopted("DIRECTPV").await;
        world.arm(ending, at);
        let answer = world.drives.expand(&id(OLD), 96 * MIB, None).await;
        let happened = world.host.calls() > at;
        world.restart(ending).await;
        let when = format!("{ending:?} at call {at}: {answer:?}");
        let size = world.drives.volume(&id(OLD)).expect("it is live").size;
        assert!(size == 96 * MIB || (size == 64 * MIB && answer.is_err()), "{when}: {size}");
        if ending != Ending::Goes {
            check(&world, &[(OLD, size), THERE[1]], &when);
        }
        assert_eq!(world.drives.expand(&id(OLD), 96 * MIB, None).await.expect("again"), 96 * MIB);
        check(&world, &[(OLD, 96 * MIB), THERE[1]], &when);
        happened
    })
    .await;
}
