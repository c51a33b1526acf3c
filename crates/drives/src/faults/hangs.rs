//! Every change hung at every call it makes, on one drive of two: the other one serves meanwhile, the drive says so, and
//! when it answers again all is as if nothing had been.

use std::time::Duration;

use tokio::{task::JoinSet, time::timeout};

use super::{
    SIZE,
    groups::{World, request},
};
use crate::{
    CreateVolume, DeleteError, Drive, Drives, Origin, VolumeId, change,
    fake::Fault,
    record::VolumeRecord,
    reservation::{Intended, Reservation},
};

const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Change {
    Create,
    Expand,
    Throttle,
    Label,
    Delete,
    Snapshot,
}

impl Change {
    const ALL: [Change; 6] =
        [Self::Create, Self::Expand, Self::Throttle, Self::Label, Self::Delete, Self::Snapshot];

    async fn make(self, drives: Drives, id: VolumeId) -> Result<(), String> {
        match self {
            Self::Create => drives.create(request("new")).await.map(drop).map_err(|error| error.to_string()),
            Self::Expand => {
                drives.expand(&id, 2 * SIZE, None).await.map(drop).map_err(|error| error.to_string())
            }
            Self::Throttle => {
                let throttle = crate::Throttle { read_bps: Some(1 << 20), ..Default::default() };
                drives.throttle(&id, throttle).await.map_err(|error| error.to_string())
            }
            Self::Label => {
                let labels = [("colour".to_owned(), "blue".to_owned())].into();
                drives.label(&id.drive, labels).await.map_err(|error| error.to_string())
            }
            Self::Delete => drives.delete(&id).await.map_err(|error| error.to_string()),
            Self::Snapshot => {
                drives.create_snapshot(&id, "shot").await.map(drop).map_err(|error| error.to_string())
            }
        }
    }
}

/// Waits until the drives are as they should be.
async fn until(drives: &Drives, what: &str, holds: impl Fn(&[Drive]) -> bool) {
    let mut changed = drives.changed();
    let held = async {
        while !holds(&drives.drives()) {
            changed.changed().await.expect("the drives are open");
        }
    };
    timeout(PATIENCE, held).await.unwrap_or_else(|_| panic!("{what}: {:?}", drives.drives()));
}

/// Whether the change made the call of this number.
async fn hangs_at(change: Change, at: usize) -> bool {
    let (world, ids) = World::written().await;
    let drives = &world.drives;
    world.host.arm(Some(Fault::Stall(at)));
    let mut changing = tokio::spawn(change.make(drives.clone(), ids[0].clone()));
    let begun = async {
        while world.host.stalled().is_none() && !changing.is_finished() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, begun).await.expect("it hangs or ends");
    let when = format!("{change:?} at call {at}");
    if world.host.stalled().is_none() {
        changing.await.expect("no panic").unwrap_or_else(|error| panic!("{when}: {error}"));
        return false;
    }
    let hangs = |drive: &Drive| drive.trouble.as_deref().is_some_and(|why| why.contains("hangs"));
    until(drives, &when, |all| all.iter().any(hangs)).await;
    // Which one, a creation has chosen.
    let hung = drives.drives().into_iter().find(hangs).and_then(|drive| drive.id).expect("it is marked");
    assert!(change == Change::Create || hung == ids[0].drive, "{when}");
    let well = ids.iter().find(|id| id.drive != hung).expect("two drives");
    let neighbour = async {
        drives.expand(well, 3 * SIZE, None).await.map_err(|error| error.to_string())?;
        let other = drives.create(request("other")).await.map_err(|error| error.to_string())?;
        assert_eq!(other.id.drive, well.drive, "{when}: a drive that hangs gets no volume");
        drives.delete(&other.id).await.map_err(|error| error.to_string())
    };
    let served =
        timeout(PATIENCE, neighbour).await.unwrap_or_else(|_| panic!("{when}: the other drive waits"));
    served.unwrap_or_else(|error| panic!("{when}: {error}"));
    assert!(!changing.is_finished(), "{when}: it hangs all the while");

    world.host.release();
    let ended = timeout(PATIENCE, &mut changing).await.expect("it goes on").expect("no panic");
    ended.unwrap_or_else(|error| panic!("{when}: {error}"));
    until(drives, &when, |all| all.iter().all(|drive| drive.trouble.is_none())).await;
    // Asked again, it is found as it should be, and nothing else is there.
    change.make(drives.clone(), ids[0].clone()).await.unwrap_or_else(|error| panic!("{when}: {error}"));
    let expected = match change {
        Change::Create => 3,
        Change::Delete => 1,
        _ => 2,
    };
    assert_eq!(drives.volumes().len(), expected, "{when}");
    assert_eq!(drives.snapshots().len(), usize::from(change == Change::Snapshot), "{when}");
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drive_that_hangs_delays_no_other_and_says_so() {
    for change in Change::ALL {
        let mut at = 0;
        while hangs_at(change, at).await {
            at += 1;
        }
        assert!(at >= 1, "{change:?} hung");
    }
}

/// More work than a lane has places for waits for a drive that hangs.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_lane_is_nobody_elses() {
    let (world, ids) = World::written().await;
    let drives = &world.drives;
    world.host.arm(Some(Fault::Stall(0)));
    let mut hanging = JoinSet::new();
    for number in 0..100 {
        let (drives, drive) = (drives.clone(), ids[0].drive.clone());
        let labels = [("number".to_owned(), number.to_string())].into();
        hanging.spawn(async move { drives.label(&drive, labels).await });
    }
    until(drives, "it is marked", |all| all.iter().any(|drive| drive.trouble.is_some())).await;
    let other = async {
        drives.expand(&ids[1], 2 * SIZE, None).await.expect("expand");
        let made = drives.create(request("other")).await.expect("create");
        assert_eq!(made.id.drive, ids[1].drive);
    };
    timeout(PATIENCE, other).await.expect("the other drive has places of its own");
    world.host.release();
    while let Some(ended) = hanging.join_next().await {
        ended.expect("no panic").expect("it goes on");
    }
}

/// A creation to which no worker comes, because all wait for a drive that hangs, is given up without a trace.
#[tokio::test]
async fn what_was_never_begun_leaves_nothing_behind() {
    let (world, ids) = World::written().await;
    let drives = &world.drives;
    let before = drives.drives();
    let copy = CreateVolume { origin: Some(Origin::Volume(ids[0].clone())), ..request("copy") };
    let reserved = change::reserve(drives.inner(), &copy).expect("there is room");
    assert_ne!(drives.drives(), before, "its space counts");
    assert!(matches!(drives.delete(&ids[0]).await, Err(DeleteError::Copied(_))));
    drop(reserved);
    assert_eq!(drives.drives(), before);
    drives.delete(&ids[0]).await.expect("nobody reads it any more");
}

/// A panic in the middle of a change leaves nothing busy.
#[tokio::test]
async fn a_panic_leaves_no_volume_busy() {
    let (world, ids) = World::written().await;
    let drives = &world.drives;
    for change in [Change::Expand, Change::Throttle, Change::Delete, Change::Snapshot, Change::Create] {
        world.host.arm(Some(Fault::Panic(1)));
        let broken = change.make(drives.clone(), ids[0].clone()).await.expect_err("it panics");
        assert!(broken.contains("broke off") && broken.contains("on purpose"), "{change:?}: {broken}");
        world.host.arm(None);
        change
            .make(drives.clone(), ids[0].clone())
            .await
            .unwrap_or_else(|error| panic!("{change:?}: {error}"));
        if change == Change::Delete {
            let again = CreateVolume { spread: Some("g".to_owned()), ..request("pvc-1") };
            let id = drives.create(again).await.expect("the name is free").id;
            assert_eq!(id, ids[0]);
        }
    }
}

/// Whatever goes wrong above, no drive promises more than it has, and nothing is made without its space.
#[tokio::test]
async fn more_than_there_is_is_never_set_aside() {
    let (world, ids) = World::written().await;
    let drives = &world.drives;
    let before = drives.drives();
    let calls = world.host.calls();
    let free = before[0].free;
    let (id, site) = {
        let mut state = drives.inner().state.lock();
        let drive = state.drive_mut(&ids[0].drive).expect("it serves");
        let record = |size| VolumeRecord::intended("big".to_owned(), "big", size);
        let refused = drive.set_aside(&record(free + 1)).expect_err("there is less").to_string();
        assert!(refused.contains("set space aside") && refused.contains("a fault of Orlop"), "{refused}");
        assert!(drive.set_aside(&record(u64::MAX)).is_err());
        (VolumeId { drive: drive.id.clone(), key: "big".to_owned() }, drive.site.clone())
    };
    let record = VolumeRecord::intended("big".to_owned(), "big", SIZE);
    let intended = Intended { id, site, record, content: None, fresh: true };
    let refused = Reservation::new(drives.inner().clone(), intended).make().expect_err("it has no space");
    assert!(refused.to_string().contains("no space is set aside"), "{refused}");
    assert_eq!((drives.drives(), world.host.calls()), (before, calls), "nothing was changed");
}
