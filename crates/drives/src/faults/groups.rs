//! The same for snapshots that are taken together, over two drives; and what many drives mean for creations.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use linux::Files;
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{ENDINGS, Ending, SIZE};
use crate::{
    BackendKind, CreateError, CreateVolume, DeleteError, DriveSelector, DriveState, Drives, Force, Origin,
    SnapshotError, Source, VolumeId,
    fake::{FakeHost, Fault},
};

fn sources(count: usize) -> Vec<Source> {
    let image = |at| Source::LoopFile { path: format!("/loop/{at}.img").into(), size: 1 << 30 };
    (0..count).map(image).collect()
}

pub(super) struct World {
    pub(super) host: Arc<FakeHost>,
    pub(super) drives: Drives,
    count: usize,
}

/// Threads that hang would keep a test that failed from ending.
impl Drop for World {
    fn drop(&mut self) {
        self.host.release();
    }
}

impl World {
    async fn new(count: usize) -> Self {
        let host = Arc::new(FakeHost::new());
        let drives = open(&host, sources(count)).await;
        for source in sources(count) {
            drives.initialise(source, Some(BackendKind::Btrfs), Force::No).await.expect("initialise");
        }
        Self { host, drives, count }
    }

    /// Two volumes of one group, and so on two drives, each with a file in it.
    pub(super) async fn written() -> (Self, Vec<VolumeId>) {
        let world = Self::new(2).await;
        let mut ids = Vec::new();
        for name in ["pvc-1", "pvc-2"] {
            let request = CreateVolume { spread: Some("g".to_owned()), ..request(name) };
            let id = world.drives.create(request).await.expect("create").id;
            world.host.write_durable(&world.data(&id), name.as_bytes(), 0o600).expect("write");
            ids.push(id);
        }
        assert_ne!(ids[0].drive, ids[1].drive);
        world.host.arm(None);
        (world, ids)
    }

    fn data(&self, id: &VolumeId) -> PathBuf {
        let drives = self.drives.drives();
        let drive = drives.iter().find(|drive| drive.id.as_ref() == Some(&id.drive)).expect("known");
        drive.mount.clone().expect("mounted").join("volumes").join(&id.key).join("data")
    }

    fn arm(&self, ending: Ending, at: usize) {
        self.host.arm(Some(match ending {
            Ending::Goes => Fault::Fail(at),
            Ending::Crash | Ending::PowerLoss => Fault::Crash(at),
        }));
    }

    async fn restart(&mut self, ending: Ending) {
        match ending {
            Ending::Goes => return self.host.arm(None),
            Ending::Crash => self.host.arm(None),
            Ending::PowerLoss => self.host.lose_power(),
        }
        self.drives = open(&self.host, sources(self.count)).await;
        let mut changed = self.drives.changed();
        let settled = async {
            let unsettled = || {
                let all: usize =
                    self.drives.drives().iter().map(|drive| drive.snapshots + drive.volumes).sum();
                all != self.drives.snapshots().len() + self.drives.volumes().len()
            };
            while unsettled() {
                changed.changed().await.expect("the drives are open");
            }
        };
        timeout(Duration::from_secs(10), settled).await.expect("what was half done goes away");
    }

    fn snapshots(&self) -> usize {
        self.drives.snapshots().len()
    }
}

async fn open(host: &Arc<FakeHost>, sources: Vec<Source>) -> Drives {
    host.kill();
    Drives::open(host.clone(), PathBuf::from("/drives"), sources).await.expect("open")
}

pub(super) fn request(name: &str) -> CreateVolume {
    CreateVolume { name: name.to_owned(), required: SIZE, ..CreateVolume::default() }
}

async fn at_every_call<Fut: Future<Output = bool>>(case: impl Fn(Ending, usize) -> Fut) {
    for ending in ENDINGS {
        let mut at = 0;
        while case(ending, at).await {
            at += 1;
        }
        assert!(at >= 6, "{ending:?}: faults happened");
    }
}

#[tokio::test]
async fn a_group_that_breaks_off_is_whole_or_not_there() {
    at_every_call(|ending, at| async move {
        let (mut world, ids) = World::written().await;
        world.arm(ending, at);
        let answer = world.drives.create_group(&ids, "backup").await;
        let happened = world.host.calls() > at;
        world.restart(ending).await;
        let when = format!("{ending:?} at call {at}: {answer:?}");
        match &answer {
            Ok(_) => assert_eq!(world.snapshots(), 2, "{when}"),
            Err(_) if ending == Ending::PowerLoss || ending == Ending::Crash => {
                assert!([0, 2].contains(&world.snapshots()), "{when}");
            }
            Err(_) => assert_eq!(world.snapshots(), 0, "{when}"),
        }
        let group = world.drives.create_group(&ids, "backup").await.expect(&when);
        assert_eq!(world.drives.group(&group.id).as_ref(), Some(&group), "{when}");
        assert_eq!((group.snapshots.len(), world.snapshots()), (2, 2), "{when}");
        for (snapshot, name) in group.snapshots.iter().zip(["pvc-1", "pvc-2"]) {
            let content = world.host.read(&world.data(&snapshot.id)).expect("read");
            assert_eq!(content.as_deref(), Some(name.as_bytes()), "{when}");
        }
        happened
    })
    .await;
}

#[tokio::test]
async fn a_deletion_of_a_group_that_breaks_off_can_be_completed() {
    at_every_call(|ending, at| async move {
        let (mut world, ids) = World::written().await;
        let group = world.drives.create_group(&ids, "backup").await.expect("taken").id;
        world.host.arm(None);
        world.arm(ending, at);
        let answer = world.drives.delete_group(&group).await;
        let happened = world.host.calls() > at;
        world.restart(ending).await;
        let when = format!("{ending:?} at call {at}: {answer:?}");
        assert!([0, 2].contains(&world.snapshots()), "{when}: never a part");
        assert_eq!(world.drives.group(&group).is_some(), world.snapshots() == 2, "{when}");
        world.drives.delete_group(&group).await.expect(&when);
        assert_eq!(world.drives.drives().iter().map(|drive| drive.snapshots).sum::<usize>(), 0, "{when}");
        for id in &ids {
            world.drives.delete(id).await.expect("nothing holds it");
        }
        happened
    })
    .await;
}

#[tokio::test]
async fn a_group_keeps_its_name_and_its_members() {
    let (world, ids) = World::written().await;
    let group = world.drives.create_group(&ids, "backup").await.expect("taken");
    let turned: Vec<_> = ids.iter().rev().cloned().collect();
    assert_eq!(world.drives.create_group(&turned, "backup").await.expect("there").id, group.id);
    let other = world.drives.create_group(&ids[..1], "backup").await.expect_err("of others");
    assert!(matches!(other, SnapshotError::IncompatibleGroup { .. }), "{other}");
    for wrong in [&[][..], &[ids[0].clone(), ids[0].clone()][..]] {
        let refused = world.drives.create_group(wrong, "other").await.expect_err("no such group");
        assert!(matches!(refused, SnapshotError::Refused(_)), "{refused}");
    }
    let alone = world.drives.delete_snapshot(&group.snapshots[0].id).await.expect_err("a member");
    assert!(matches!(alone, DeleteError::Member { .. }), "{alone}");

    // A full drive refuses all of it.
    let filling = CreateVolume { required: world.drives.drives()[1].free - (2 << 20), ..request("filling") };
    let filled = world.drives.create(filling).await.expect("fits").id;
    let refused = world.drives.create_group(&ids, "second").await.expect_err("no room");
    assert!(matches!(refused, SnapshotError::NoSpace { .. } | SnapshotError::Refused(_)), "{refused}");
    assert_eq!(world.snapshots(), 2, "on {filled}");
    world.drives.delete(&filled).await.expect("deleted");

    // With one drive away nothing is concluded, and nothing is deleted in part.
    let left = open(&world.host, sources(1)).await;
    assert_eq!(left.snapshots().len(), 1);
    let origin = Origin::Snapshot(left.snapshots()[0].id.clone());
    left.create(CreateVolume { origin: Some(origin), ..request("restored") }).await.expect("it is complete");
    let refused = left.delete_group(&group.id).await.expect_err("half of it is away");
    assert!(matches!(refused, DeleteError::NoDrive { .. }), "{refused}");
}

#[tokio::test]
async fn a_hundred_creations_at_once_fill_the_drives_exactly() {
    const DRIVES: usize = 4;
    const EACH: u64 = 25;
    let world = World::new(DRIVES).await;
    let size = world.drives.drives()[0].free / EACH / 4096 * 4096;
    let mut creations = JoinSet::new();
    for number in 0..DRIVES as u64 * EACH {
        let drives = world.drives.clone();
        let name = format!("pvc-{number}");
        creations
            .spawn(async move { drives.create(CreateVolume { required: size, ..request(&name) }).await });
    }
    let made = creations.join_all().await;
    assert!(made.iter().all(Result::is_ok), "no spurious failure");
    for drive in world.drives.drives() {
        assert_eq!((drive.volumes as u64, drive.allocated), (EACH, EACH * size), "no drive over-committed");
    }
    let refused = world.drives.create(CreateVolume { required: size, ..request("more") }).await;
    assert!(matches!(refused, Err(CreateError::NoSpace { .. })), "{refused:?}");
}

#[tokio::test]
async fn volumes_of_a_group_never_share_a_drive() {
    let world = World::new(3).await;
    let mut creations = JoinSet::new();
    for number in 0..8 {
        let drives = world.drives.clone();
        let request =
            CreateVolume { spread: Some("shop/app=db".to_owned()), ..request(&format!("pvc-{number}")) };
        creations.spawn(async move { drives.create(request).await });
    }
    let (made, refused): (Vec<_>, Vec<_>) = creations.join_all().await.into_iter().partition(Result::is_ok);
    let mut on: Vec<_> = made.into_iter().map(|made| made.expect("made").id.drive).collect();
    on.sort();
    on.dedup();
    assert_eq!((on.len(), refused.len()), (3, 5));
    for refusal in refused {
        let message = refusal.expect_err("refused").to_string();
        assert!(message.contains("it holds a volume of the group shop/app=db"), "{message}");
    }
}

#[tokio::test]
async fn labels_are_on_the_drive_and_capacity_heeds_them() {
    let mut world = World::new(2).await;
    let first = world.drives.drives()[0].id.clone().expect("known");
    let labels = BTreeMap::from([("medium".to_owned(), "nvme".to_owned())]);
    world.drives.label(&first, labels.clone()).await.expect("labelled");
    world.restart(Ending::PowerLoss).await;
    let drives = world.drives.drives();
    assert_eq!((&drives[0].labels, &drives[1].labels), (&labels, &BTreeMap::new()));
    let nvme = DriveSelector {
        labels: values::LabelSelector::parse("medium=nvme").expect("a selector"),
        tier: None,
    };
    assert_eq!(world.drives.capacity(None, &nvme, &Default::default()).available, drives[0].free);
    assert_eq!(
        world.drives.capacity(None, &DriveSelector::default(), &Default::default()).available,
        2 * drives[0].free
    );
    for name in ["pvc-1", "pvc-2"] {
        let made = world.drives.create(CreateVolume { drives: nvme.clone(), ..request(name) }).await;
        assert_eq!(made.expect("made").id.drive, first);
    }
}

#[tokio::test]
async fn a_drive_that_breaks_under_a_creation_is_left_for_another() {
    let (mut at, mut stayed) = (0, 0);
    loop {
        let mut world = World::new(2).await;
        world.host.arm(Some(Fault::Break(at)));
        let first = world.drives.create(request("pvc-1")).await;
        if world.host.calls() <= at {
            break;
        }
        let drives = world.drives.drives();
        let when = format!("broken at call {at}: {first:?}");
        let broken = drives.iter().find(|drive| drive.trouble.is_some()).expect(&when);
        let works = drives.iter().find(|drive| drive.trouble.is_none()).expect(&when);
        let capacity = world.drives.capacity(None, &DriveSelector::default(), &Default::default());
        assert_eq!(capacity.available, works.free, "{when}");
        let other = world.drives.create(request("pvc-2")).await.expect("another volume");
        assert_eq!(Some(&other.id.drive), works.id.as_ref(), "{when}");
        let again = world.drives.create(request("pvc-1")).await;
        match &again {
            Ok(volume) => assert_eq!(Some(&volume.id.drive), works.id.as_ref(), "{when}"),
            // The broken one may have kept its announcement.
            Err(error) => {
                let CreateError::Drive { drive, .. } = error else { panic!("{when}: {error}") };
                assert_eq!(Some(drive), broken.id.as_ref(), "{when}");
                stayed += 1;
            }
        }
        world.restart(Ending::PowerLoss).await;
        let volume = world.drives.create(request("pvc-1")).await.expect(&when);
        let drives = world.drives.drives();
        assert!(drives.iter().all(|drive| drive.trouble.is_none()), "{when}");
        assert_eq!(drives.iter().map(|drive| drive.allocated).sum::<u64>(), 2 * volume.size, "{when}");
        at += 1;
    }
    // To be announced it is written, and flushed.
    assert!(at > 4 && stayed == 2, "{at} calls, {stayed} of them in doubt");
}

#[tokio::test(start_paused = true)]
async fn a_drive_that_failed_is_used_again_when_it_takes_writes() {
    const LONG: Duration = Duration::from_secs(900);
    let world = World::new(1).await;
    let available = || world.drives.capacity(None, &DriveSelector::default(), &Default::default()).available;
    let whole = available();
    for _ in 0..2 {
        world.host.arm(Some(Fault::Break(0)));
        world.drives.create(request("pvc-1")).await.expect_err("its device fails");
        sleep(LONG).await;
        assert_eq!(available(), 0, "it still fails");
        world.host.mend();
        let mut changed = world.drives.changed();
        let well = async {
            while available() == 0 {
                changed.changed().await.expect("the drives are open");
            }
        };
        timeout(LONG, well).await.expect("it is tried");
    }
    let made = world.drives.create(request("pvc-1")).await.expect("made");
    assert_eq!(available(), whole - made.size);
    let view = world.host.disk(Path::new("/loop/0.img"));
    assert!(!format!("{view:?}").contains("trial"), "{view:?}");
}

#[tokio::test]
async fn a_volume_whose_drive_failed_is_not_made_again() {
    let world = World::new(2).await;
    let volume = world.drives.create(request("pvc-1")).await.expect("created");
    let at = world.drives.drives().iter().position(|drive| drive.id.as_ref() == Some(volume.id.drive()));
    world.drives.note_names().await.expect("noted");
    let Source::LoopFile { path, .. } = sources(2).remove(at.expect("known")) else { return };
    let failing = world.host.disk_taken_away(&path);
    let drives = open(&world.host, sources(2)).await;
    assert!(drives.drives().iter().any(|drive| matches!(drive.state, DriveState::Failed { .. })));
    let refused = drives.create(request("pvc-1")).await.expect_err("it may be there");
    assert!(matches!(&refused, CreateError::OutOfReach { .. }), "{refused}");
    drives.create(request("pvc-2")).await.expect("the others go on");

    world.host.disk_given_back(&path, failing);
    let drives = open(&world.host, sources(2)).await;
    assert_eq!(drives.create(request("pvc-1")).await.expect("found").id, volume.id);

    let failing = world.host.disk_taken_away(&path);
    let drives = open(&world.host, sources(2)).await;
    drives.forget(volume.id.drive()).await.expect("forgotten");
    drives.create(request("pvc-1")).await.expect("nothing is known of it any more");
    drop(failing);
}
