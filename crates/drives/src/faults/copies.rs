//! The same for snapshots, and for volumes that are filled from them or from volumes.

use super::{
    Ending, IMAGE, RealDrive, SIZE, World, at_every_call_of, at_flush, kinds, real_kinds, record, request,
};
use crate::{
    AccessType, BackendKind, CreateVolume, Drives, Origin, VolumeId,
    backend::{Copies, QuotaKey},
    execute::Site,
    fake::FakeHost,
    layout::Layout,
    plan::{self, Content},
    record::VolumeRecord,
};
use linux::{Files, Kernel};
use std::{path::Path, sync::Arc};

const CONTENT: &[u8] = b"what was there";

impl World {
    /// A volume with a file in it.
    async fn written(kind: BackendKind) -> (World, VolumeId) {
        let world = World::new(kind).await;
        let id = world.drives.create(request(SIZE)).await.expect("create").id;
        world.host.write_durable(&data(&world.drives, &id), CONTENT, 0o600).expect("write");
        world.host.arm(None);
        (world, id)
    }

    /// Memory, records and file system agree: these volumes and snapshots, and nothing else.
    fn check_copies(&self, volumes: &[&str], snapshots: &[&str], when: &str) {
        let found = self.drives.volumes();
        assert_eq!(found.iter().map(|volume| volume.name.as_str()).collect::<Vec<_>>(), volumes, "{when}");
        let taken = self.drives.snapshots();
        assert_eq!(taken.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), snapshots, "{when}");
        let sizes = found.iter().map(|volume| volume.size).chain(taken.iter().map(|one| one.size));
        let mut sizes: Vec<Option<u64>> = sizes.map(Some).collect();
        sizes.sort_unstable();
        let drive = &self.drives.drives()[0];
        assert_eq!(Some(drive.allocated), sizes.iter().copied().sum::<Option<u64>>(), "{when}");
        let disk = self.host.disk(Path::new(IMAGE));
        let (directories, mut limits) = disk.volumes();
        limits.sort_unstable();
        assert_eq!(directories.len(), sizes.len(), "{when}: {disk:?}");
        assert_eq!(limits, sizes, "{when}: {disk:?}");
        assert!(disk.nothing_half_done(), "{when}: {disk:?}");
    }

    fn holds_content(&self, id: &VolumeId, when: &str) {
        let found = self.host.read(&data(&self.drives, id)).expect("read");
        assert_eq!(found.as_deref(), Some(CONTENT), "{when}");
    }
}

fn data(drives: &Drives, id: &VolumeId) -> std::path::PathBuf {
    let mount = drives.drives()[0].mount.clone().expect("mounted");
    mount.join("volumes").join(&id.key).join("data")
}

fn filled(origin: &Origin) -> CreateVolume {
    CreateVolume {
        name: "pvc-2".to_owned(),
        required: SIZE * 2,
        origin: Some(origin.clone()),
        ..CreateVolume::default()
    }
}

async fn at_every_call<Fut: Future<Output = bool>>(case: impl Fn(BackendKind, Ending, usize) -> Fut) {
    let mounted = kinds().filter(|kind| kind.access == AccessType::Mount);
    at_every_call_of(mounted, |kind, ending, at| case(kind.backend, ending, at)).await;
}

#[tokio::test]
async fn a_snapshot_that_breaks_off_leaves_one_or_none() {
    at_every_call(|kind, ending, at| async move {
        let (mut world, source) = World::written(kind).await;
        world.arm(ending, at);
        let answer = world.drives.create_snapshot(&source, "snap-1").await;
        let happened = world.host.calls() > at;
        world.restart(ending).await;
        let when = format!("{kind} {ending:?} at call {at}: {answer:?}");
        match &answer {
            Ok(_) => world.check_copies(&["pvc-1"], &["snap-1"], &when),
            Err(error) if at_flush(ending, error) => {
                world.check_copies(&["pvc-1"], &["snap-1"][..world.drives.snapshots().len()], &when);
            }
            Err(_) if ending != Ending::Goes => world.check_copies(&["pvc-1"], &[], &when),
            Err(_) => {}
        }
        let snapshot = world.drives.create_snapshot(&source, "snap-1").await.expect(&when);
        world.check_copies(&["pvc-1"], &["snap-1"], &when);
        world.holds_content(&snapshot.id, &when);
        world.drives.delete(&source).await.expect("nothing is made from it any more");
        world.holds_content(&snapshot.id, &when);
        world.check_copies(&[], &["snap-1"], &when);
        happened
    })
    .await;
}

#[tokio::test]
async fn a_deletion_of_a_snapshot_that_breaks_off_can_be_completed() {
    at_every_call(|kind, ending, at| async move {
        let (mut world, source) = World::written(kind).await;
        let id = world.drives.create_snapshot(&source, "snap-1").await.expect("snapshot").id;
        world.host.arm(None);
        world.arm(ending, at);
        let answer = world.drives.delete_snapshot(&id).await;
        let happened = world.host.calls() > at;
        world.restart(ending).await;
        let when = format!("{kind} {ending:?} at call {at}: {answer:?}");
        world.drives.delete_snapshot(&id).await.expect("again");
        world.check_copies(&["pvc-1"], &[], &when);
        happened
    })
    .await;
}

/// A volume from `origin`, broken off at every call.
async fn fill_at_every_call(from_snapshot: bool) {
    let snapshots: &[&str] = if from_snapshot { &["snap-1"] } else { &[] };
    at_every_call(|kind, ending, at| async move {
        let (mut world, source) = World::written(kind).await;
        let origin = match from_snapshot {
            true => {
                Origin::Snapshot(world.drives.create_snapshot(&source, "snap-1").await.expect("taken").id)
            }
            false => Origin::Volume(source),
        };
        world.host.arm(None);
        world.arm(ending, at);
        let answer = world.drives.create(filled(&origin)).await;
        let happened = world.host.calls() > at;
        world.restart(ending).await;
        let when = format!("{kind} {ending:?} at call {at}: {answer:?}");
        match &answer {
            Ok(_) => world.check_copies(&["pvc-1", "pvc-2"], snapshots, &when),
            Err(error) if at_flush(ending, error) => {
                let volumes = world.drives.volumes().len();
                world.check_copies(&["pvc-1", "pvc-2"][..volumes], snapshots, &when);
            }
            Err(_) if ending != Ending::Goes => world.check_copies(&["pvc-1"], snapshots, &when),
            Err(_) => {}
        }
        let volume = world.drives.create(filled(&origin)).await.expect(&when);
        world.check_copies(&["pvc-1", "pvc-2"], snapshots, &when);
        world.holds_content(&volume.id, &when);
        world.drives.delete(&volume.id).await.expect("delete");
        world.check_copies(&["pvc-1"], snapshots, &when);
        happened
    })
    .await;
}

#[tokio::test]
async fn a_restoration_that_breaks_off_leaves_one_volume_or_none() {
    fill_at_every_call(true).await;
}

#[tokio::test]
async fn a_cloning_that_breaks_off_leaves_one_volume_or_none() {
    fill_at_every_call(false).await;
}

#[tokio::test]
async fn a_copy_begun_anew_holds_nothing_of_the_first_attempt() {
    let (world, source) = World::written(BackendKind::Btrfs).await;
    let host: Arc<FakeHost> = world.host.clone();
    // The last step of a snapshot, and every step of the clean-up after it, fail: what was copied stays.
    world.drives.create_snapshot(&source, "count").await.expect("snapshot");
    let calls = host.calls();
    host.arm(Some(crate::fake::Fault::Crash(calls - 1)));
    world.drives.create_snapshot(&source, "snap-1").await.expect_err("crashed");
    host.arm(None);
    host.remove_file(&data(&world.drives, &source)).expect("changed since");
    let snapshot = world.drives.create_snapshot(&source, "snap-1").await.expect("taken anew");
    assert_eq!(host.read(&data(&world.drives, &snapshot.id)).expect("read"), None);
}

#[tokio::test]
async fn a_real_drive_recovers_from_every_step_of_a_copy() {
    for kind in real_kinds() {
        if crate::backend::of(kind).copies() == Copies::None {
            continue;
        }
        let Some(real) = RealDrive::new(kind).await else { continue };
        recovers_from_every_step_of_a_copy(&real).await;
    }
}

async fn recovers_from_every_step_of_a_copy(real: &RealDrive) {
    for done in 0.. {
        let drives = real.open().await;
        let drive = drives.drives().remove(0);
        let layout = Layout::new(drive.mount.expect("mounted"));
        let site = Site::new(Arc::new(Kernel), crate::backend::of(real.kind), layout);
        let source = drives.create(request(SIZE)).await.expect("create");
        let (source, size) = (source.id, source.size);
        let data = site.layout.volume(&source.key).join("data");
        std::fs::write(&data, CONTENT).expect("write");
        let copy = VolumeRecord {
            key: "copy".to_owned(),
            name: "copy".to_owned(),
            size,
            origin: Some(Origin::Volume(source.clone())),
            ..record(site.backend.choose_key(&[QuotaKey::Project(1)]))
        };
        let key = source.key.clone();
        let content = match site.backend.copies() {
            Copies::Blocks => Content::Blocks { key },
            _ => Content::Volume { key },
        };
        let steps = plan::create(&copy, Some(&content));
        if done > steps.len() {
            break;
        }
        site.execute(&steps[..done]).unwrap_or_else(|error| panic!("up to step {done}: {error}"));
        drop(drives);
        let drives = real.restart().await;
        let found: Vec<String> = drives.volumes().into_iter().map(|volume| volume.name).collect();
        match done == steps.len() {
            true => {
                assert_eq!(found, ["copy", "pvc-1"]);
                let copied = std::fs::read(site.layout.volume("copy").join("data")).expect("read");
                assert_eq!(copied, CONTENT);
            }
            false => assert_eq!(found, ["pvc-1"], "up to step {done}"),
        }
        for volume in drives.volumes() {
            drives.delete(&volume.id).await.expect("delete");
        }
        let layout = &site.layout;
        for place in [layout.records(), layout.volumes(), layout.trash(), layout.all_frozen()] {
            let left = Kernel.exists(&place).expect("look").then(|| Kernel.list(&place).expect("list"));
            assert_eq!(left.unwrap_or_default(), [""; 0], "up to step {done}");
        }
    }
}
