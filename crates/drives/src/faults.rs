//! Every change failed, crashed, cut off from power and repeated at every call it makes: after a restart the drives
//! must tell one consistent story, and the same change asked again must complete.

mod adopted;
mod block;
mod copies;
mod damage;
mod groups;
mod hangs;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use linux::{Files, Kernel, LoopDevices, Mounts, Unmount};
use tokio::time::timeout;

use crate::{
    AccessType, BackendKind, CreateVolume, DriveState, Drives, Force, Source, VolumeId,
    backend::Copies,
    backend::QuotaKey,
    execute::Site,
    fake::{FakeHost, Fault},
    layout::Layout,
    plan,
    record::{Phase, VolumeRecord},
};

const SIZE: u64 = 64 << 20;
const IMAGE: &str = "/loop/a.img";

/// How the machine comes back after a fault.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ending {
    /// The call fails; the process goes on.
    Goes,
    /// The process is killed and started again.
    Crash,
    /// Everything is switched off and on again.
    PowerLoss,
}

/// What is made: volumes of one access type on a drive of one backend.
#[derive(Clone, Copy, Debug)]
struct Kind {
    backend: BackendKind,
    access: AccessType,
}

impl From<BackendKind> for Kind {
    fn from(backend: BackendKind) -> Self {
        Self { backend, access: AccessType::Mount }
    }
}

impl Kind {
    fn request(self, size: u64) -> CreateVolume {
        CreateVolume { access: self.access, ..request(size) }
    }

    /// What the kernel holds a volume of this size to.
    fn held(self, size: u64) -> u64 {
        VolumeRecord { access: self.access, size, ..record(None) }.held()
    }
}

struct World {
    host: Arc<FakeHost>,
    drives: Drives,
    kind: Kind,
}

fn source() -> Source {
    Source::LoopFile { path: IMAGE.into(), size: 1 << 30 }
}

fn request(size: u64) -> CreateVolume {
    CreateVolume { name: "pvc-1".to_owned(), required: size, ..CreateVolume::default() }
}

/// As a process that was just begun; the one before is gone.
async fn open(host: &Arc<FakeHost>) -> Drives {
    host.kill();
    Drives::open(host.clone(), PathBuf::from("/drives"), vec![source()]).await.expect("open")
}

/// Whether the process may have ended between an announcement and the flush that makes it durable: then what was
/// announced is there, as the kernel has it, though nobody was told.
fn at_flush(ending: Ending, error: &impl std::fmt::Display) -> bool {
    ending == Ending::Crash && error.to_string().contains("cannot commit")
}

/// What is on the drive.
fn disk(host: &FakeHost) -> crate::fake::View {
    host.disk(Path::new(IMAGE))
}

/// Whether something half made or half deleted is still to be removed.
fn unsettled(drives: &Drives) -> bool {
    let drive = &drives.drives()[0];
    drive.volumes != drives.volumes().len() || drive.snapshots != drives.snapshots().len()
}

impl World {
    async fn new(kind: impl Into<Kind>) -> Self {
        let kind = kind.into();
        let host = Arc::new(FakeHost::new());
        let drives = open(&host).await;
        drives.initialise(source(), Some(kind.backend), Force::No).await.expect("initialise");
        Self { host, drives, kind }
    }

    /// Arms the fault; `at` counts the changing calls from here.
    fn arm(&self, ending: Ending, at: usize) {
        self.host.arm(Some(match ending {
            Ending::Goes => Fault::Fail(at),
            Ending::Crash | Ending::PowerLoss => Fault::Crash(at),
        }));
    }

    /// Brings the machine back, and waits until what was half deleted is gone.
    async fn restart(&mut self, ending: Ending) {
        match ending {
            Ending::Goes => return self.host.arm(None),
            Ending::Crash => self.host.arm(None),
            Ending::PowerLoss => self.host.lose_power(),
        }
        self.drives = open(&self.host).await;
        assert_eq!(self.drives.drives()[0].state, DriveState::Ready);
        let mut changed = self.drives.changed();
        let settled = async {
            while unsettled(&self.drives) {
                changed.changed().await.expect("the drives are open");
            }
        };
        timeout(Duration::from_secs(10), settled).await.expect("what was half deleted goes away");
    }

    /// Memory, records and file system agree: these sizes and nothing else.
    fn check(&self, sizes: &[u64], when: &str) {
        let found: Vec<u64> = self.drives.volumes().iter().map(|volume| volume.size).collect();
        assert_eq!(found, sizes, "{when}");
        let drive = &self.drives.drives()[0];
        let held: Vec<u64> = sizes.iter().map(|size| self.kind.held(*size)).collect();
        assert_eq!(drive.allocated, held.iter().sum::<u64>(), "{when}");
        let disk = self.host.disk(Path::new(IMAGE));
        let (directories, limits) = disk.volumes();
        assert_eq!(directories.len(), sizes.len(), "{when}: {disk:?}");
        assert_eq!(limits, held.into_iter().map(Some).collect::<Vec<_>>(), "{when}: {disk:?}");
        let bytes: &[u64] = if self.kind.access == AccessType::Block { sizes } else { &[] };
        assert_eq!(disk.images(), bytes, "{when}: {disk:?}");
        if sizes.is_empty() {
            assert!(disk.is_empty_drive(), "{when}: {disk:?}");
        }
    }
}

/// The machine in memory has no device mapper; that is tried on a real one below.
const IN_MEMORY: [BackendKind; 2] = [BackendKind::Xfs, BackendKind::Btrfs];
const ENDINGS: [Ending; 3] = [Ending::Goes, Ending::Crash, Ending::PowerLoss];

/// Runs a case at each call of a change, until the change needs no further call.
async fn at_every_call<Fut: Future<Output = bool>>(case: impl Fn(Kind, Ending, usize) -> Fut) {
    at_every_call_of(kinds(), case).await;
}

async fn at_every_call_of<Fut: Future<Output = bool>>(
    kinds: impl Iterator<Item = Kind>,
    case: impl Fn(Kind, Ending, usize) -> Fut,
) {
    for kind in kinds {
        for ending in ENDINGS {
            let mut at = 0;
            while case(kind, ending, at).await {
                at += 1;
            }
            assert!(at >= 2, "{kind:?} {ending:?}: faults happened");
        }
    }
}

fn kinds() -> impl Iterator<Item = Kind> {
    let accesses = |backend| [AccessType::Mount, AccessType::Block].map(|access| Kind { backend, access });
    IN_MEMORY.into_iter().flat_map(accesses)
}

#[tokio::test]
async fn a_creation_that_breaks_off_leaves_one_volume_or_none() {
    at_every_call(|kind, ending, at| async move {
        let mut world = World::new(kind).await;
        world.arm(ending, at);
        let answer = world.drives.create(kind.request(SIZE)).await;
        let happened = world.host.calls() > at;
        world.restart(ending).await;
        let when = format!("{kind:?} {ending:?} at call {at}: {answer:?}");
        match &answer {
            Ok(_) => world.check(&[SIZE], &when),
            Err(error) if at_flush(ending, error) => {
                world.check(&[SIZE][..world.drives.volumes().len()], &when);
            }
            // Only a clean-up that could not be done may leave it, and then it counts.
            Err(_) if ending != Ending::Goes => world.check(&[], &when),
            Err(_) => {}
        }
        world.drives.create(kind.request(SIZE)).await.expect("again");
        world.check(&[SIZE], &when);
        happened
    })
    .await;
}

/// A creation broke off, and the call of this number failed after the restart. None where the fault comes before the
/// removal: then the drive does not serve, or there are none.
async fn broken_off_and_restarted(at: usize) -> Option<World> {
    let mut world = World::new(BackendKind::Btrfs).await;
    world.arm(Ending::Crash, 3);
    world.drives.create(request(SIZE)).await.expect_err("it broke off");
    world.host.arm(Some(Fault::Fail(at)));
    world.host.kill();
    let opened = Drives::open(world.host.clone(), PathBuf::from("/drives"), vec![source()]).await.ok()?;
    opened.drives().iter().any(|drive| drive.state == DriveState::Ready).then(|| {
        world.drives = opened;
        world
    })
}

#[tokio::test]
async fn what_a_restart_could_not_remove_it_removes_soon() {
    let mut later = 0;
    for at in 0..40 {
        let Some(world) = broken_off_and_restarted(at).await else { continue };
        let mut changed = world.drives.changed();
        let settled = async {
            while unsettled(&world.drives) {
                changed.changed().await.expect("the drives are open");
            }
        };
        timeout(Duration::from_secs(10), settled).await.expect("it goes away");
        world.check(&[], &format!("failing at call {at}"));
        match world.host.calls() > at {
            true => later += 1,
            false => break,
        }
    }
    assert!(later > 1, "removals failed and were tried again");
}

#[tokio::test(start_paused = true)]
async fn what_is_made_anew_is_not_removed_for_what_a_restart_could_not() {
    let mut tried = 0;
    for at in 0..40 {
        let Some(world) = broken_off_and_restarted(at).await else { continue };
        let drive = world.drives.drives()[0].id.clone().expect("known");
        let id = VolumeId { drive, key: "pvc-1".to_owned() };
        // Busy while the first try is under way.
        while world.drives.delete(&id).await.is_err() {
            tokio::task::yield_now().await;
        }
        tried += usize::from(world.host.calls() > at);
        world.host.arm(None);
        let made = world.drives.create(request(SIZE)).await.expect("made anew");
        tokio::time::sleep(Duration::from_secs(300)).await;
        assert_eq!(world.drives.volumes(), [made], "failing at call {at}");
    }
    assert!(tried > 1, "removals failed");
}

#[tokio::test]
async fn a_deletion_that_breaks_off_can_be_completed() {
    at_every_call(|kind, ending, at| async move {
        let mut world = World::new(kind).await;
        let id = world.drives.create(kind.request(SIZE)).await.expect("create").id;
        world.host.arm(None);
        world.arm(ending, at);
        let answer = world.drives.delete(&id).await;
        let happened = world.host.calls() > at;
        world.restart(ending).await;
        let when = format!("{kind:?} {ending:?} at call {at}: {answer:?}");
        if answer.is_ok() {
            world.check(&[], &when);
        }
        world.drives.delete(&id).await.expect("again");
        world.check(&[], &when);
        world.drives.create(kind.request(SIZE)).await.expect("the name is free");
        world.check(&[SIZE], &when);
        happened
    })
    .await;
}

#[tokio::test]
async fn a_growth_that_breaks_off_leaves_the_old_or_the_new_size() {
    at_every_call(|kind, ending, at| async move {
        let mut world = World::new(kind).await;
        let id = world.drives.create(kind.request(SIZE)).await.expect("create").id;
        world.host.arm(None);
        world.arm(ending, at);
        let answer = world.drives.expand(&id, SIZE * 2, None).await;
        let happened = world.host.calls() > at;
        world.restart(ending).await;
        let when = format!("{kind:?} {ending:?} at call {at}: {answer:?}");
        let size = world.drives.volume(&id).expect("it is live").size;
        assert!(size == SIZE || size == SIZE * 2, "{when}: {size}");
        assert!(answer.is_err() || size == SIZE * 2, "{when}: {size}");
        if ending != Ending::Goes {
            world.check(&[size], &when);
        }
        assert_eq!(world.drives.expand(&id, SIZE * 2, None).await.expect("again"), SIZE * 2);
        world.check(&[SIZE * 2], &when);
        happened
    })
    .await;
}

/// Calls at once, which share flushes.
const AT_ONCE: usize = 6;

/// The power goes at some call of many that share flushes: what was answered is there, and nothing by halves.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_of_many_at_once_survives_power_loss_between_shared_flushes() {
    for backend in IN_MEMORY {
        for at in (0..200).step_by(3) {
            let mut world = World::new(backend).await;
            let name = |number: usize| format!("pvc-{number}");
            let wanted = |number| CreateVolume { name: name(number), ..request(SIZE / 8) };
            // Some go while others come.
            let mut going = Vec::new();
            for number in 0..AT_ONCE {
                going.push(world.drives.create(wanted(number)).await.expect("create"));
            }
            world.arm(Ending::PowerLoss, at);
            let (mut coming, mut leaving) = (tokio::task::JoinSet::new(), tokio::task::JoinSet::new());
            for (number, volume) in going.iter().enumerate() {
                let (drives, id) = (world.drives.clone(), volume.id.clone());
                leaving.spawn(async move { (number, drives.delete(&id).await) });
                let (drives, wanted) = (world.drives.clone(), wanted(number + AT_ONCE));
                coming.spawn(async move { (number + AT_ONCE, drives.create(wanted).await) });
            }
            let (coming, leaving) = (coming.join_all().await, leaving.join_all().await);
            let happened = world.host.calls() > at;
            world.restart(Ending::PowerLoss).await;
            let there: Vec<String> = world.drives.volumes().into_iter().map(|volume| volume.name).collect();
            for (number, made) in coming.into_iter().filter(|(_, made)| made.is_ok()) {
                assert!(there.contains(&name(number)), "{backend} at {at}: {number} was made: {made:?}");
            }
            for (number, gone) in leaving.into_iter().filter(|(_, gone)| gone.is_ok()) {
                assert!(!there.contains(&name(number)), "{backend} at {at}: {number} was deleted: {gone:?}");
            }
            world.check(&vec![SIZE / 8; there.len()], &format!("{backend} at {at}"));
            if !happened {
                break;
            }
        }
    }
}

/// A child process that is being started holds the files that are open in this one.
#[tokio::test]
async fn a_drive_that_is_held_for_a_moment_is_opened_all_the_same() {
    for backend in IN_MEMORY {
        let World { host, drives, .. } = World::new(backend).await;
        drives.close().await.expect("close");
        host.arm(Some(Fault::Hold));
        assert_eq!(open(&host).await.drives()[0].state, DriveState::Ready);
    }
}

#[tokio::test]
async fn an_initialisation_that_breaks_off_is_finished_without_force() {
    for kind in IN_MEMORY {
        // Trying out the backend is no part of this.
        World::new(kind).await;
    }
    at_every_call(|kind, ending, at| async move {
        let host = Arc::new(FakeHost::new());
        let drives = open(&host).await;
        let mut world = World { host, drives, kind };
        world.host.arm(None);
        world.arm(ending, at);
        let answer = world.drives.initialise(source(), Some(kind.backend), Force::No).await;
        let happened = world.host.calls() > at;
        match ending {
            Ending::PowerLoss => world.host.lose_power(),
            Ending::Goes | Ending::Crash => world.host.arm(None),
        }
        world.drives = open(&world.host).await;
        let when = format!("{kind:?} {ending:?} at call {at}: {answer:?}");
        if answer.is_err() {
            for source in world.drives.uninitialised() {
                world.drives.initialise(source, Some(kind.backend), Force::No).await.expect(&when);
            }
        }
        let drives = world.drives.drives();
        assert_eq!(drives.len(), 1, "{when}");
        assert_eq!(drives[0].state, DriveState::Ready, "{when}");
        world.drives.create(kind.request(SIZE)).await.expect("create");
        world.check(&[SIZE], &when);
        happened
    })
    .await;
}

#[tokio::test]
async fn staging_that_breaks_off_can_be_repeated_and_undone() {
    at_every_call(|kind, ending, at| async move {
        let mut world = World::new(kind).await;
        let id = world.drives.create(kind.request(SIZE)).await.expect("create").id;
        world.host.arm(None);
        world.arm(ending, at);
        let (staging, target) = (Path::new("/node/staging"), Path::new("/node/pod/target"));
        let flags = crate::MountFlags::default();
        let go = |drives: Drives, id: VolumeId| async move {
            match kind.access {
                AccessType::Mount => {
                    drives.stage(&id, staging, flags).await?;
                    drives.publish(&id, staging, target, true, flags).await?;
                }
                AccessType::Block => {
                    drives.stage_block(&id).await?;
                    drives.publish_block(&id, staging, target, true).await?;
                }
            }
            drives.unpublish(&id, target).await?;
            drives.unstage(&id, staging).await
        };
        let answer = go(world.drives.clone(), id.clone()).await;
        let happened = world.host.calls() > at;
        world.restart(ending).await;
        go(world.drives.clone(), id.clone())
            .await
            .unwrap_or_else(|error| panic!("{ending:?} at {at}: {error}"));
        assert_eq!((world.host.mounts(), world.host.loops()), (1, 1), "{answer:?}");
        world.drives.delete(&id).await.expect("nothing holds it");
        world.check(&[], "after all");
        happened
    })
    .await;
}

fn record(quota: Option<QuotaKey>) -> VolumeRecord {
    VolumeRecord {
        phase: Phase::Ready,
        created: jiff::Timestamp::UNIX_EPOCH,
        quota,
        ..VolumeRecord::intended("pvc-1".to_owned(), "pvc-1", SIZE)
    }
}

#[tokio::test]
async fn every_step_of_every_plan_may_be_repeated() {
    for kind in kinds() {
        let world = World::new(kind).await;
        let drive = world.drives.drives().remove(0);
        let backend = crate::backend::of(kind.backend);
        let layout = Layout::new(drive.mount.expect("mounted"));
        let site = Site::new(world.host.clone(), backend, layout);
        let record = VolumeRecord { access: kind.access, ..record(backend.choose_key(&[])) };
        let twice = |steps: &[plan::Step]| {
            for step in steps {
                let step = std::slice::from_ref(step);
                site.execute(step).unwrap_or_else(|error| panic!("{kind:?} {step:?}: {error}"));
                site.execute(step).unwrap_or_else(|error| panic!("{kind:?} {step:?} again: {error}"));
            }
        };
        if backend.copies() != Copies::None {
            let source = VolumeRecord { key: "source".to_owned(), ..record.clone() };
            twice(&plan::create(&source, None));
            let quota = backend.choose_key(&record.quota.into_iter().collect::<Vec<_>>());
            let clone = VolumeRecord { key: "clone".to_owned(), quota, ..record.clone() };
            let origin = VolumeId { drive: drive.id.clone().expect("known"), key: source.key.clone() };
            let clone = VolumeRecord { origin: Some(crate::Origin::Volume(origin)), ..clone };
            let content = match kind.access {
                AccessType::Mount => plan::Content::Volume { key: source.key.clone() },
                AccessType::Block => plan::Content::Still { directory: site.layout.volume(&source.key) },
            };
            twice(&plan::create(&clone, Some(&content)));
            twice(&plan::delete(&clone, site.observe(&clone).expect("observe")));
            twice(&plan::delete(&source, site.observe(&source).expect("observe")));
        }
        twice(&plan::create(&record, None));
        assert_eq!(world.host.disk(Path::new(IMAGE)).volumes().1, [Some(kind.held(SIZE))]);
        twice(&plan::expand(&record, SIZE * 2));
        assert_eq!(world.host.disk(Path::new(IMAGE)).volumes().1, [Some(kind.held(SIZE * 2))]);
        twice(&plan::shrink_back(&record));
        assert_eq!(world.host.disk(Path::new(IMAGE)).volumes().1, [Some(kind.held(SIZE))]);
        twice(&plan::delete(&record, site.observe(&record).expect("observe")));
        assert!(world.host.disk(Path::new(IMAGE)).is_empty_drive());
    }
}

/// The backend that `$ORLOP_BACKEND` names, or all.
fn real_kinds() -> Vec<BackendKind> {
    match std::env::var("ORLOP_BACKEND") {
        Ok(name) => vec![name.parse().expect("a backend")],
        Err(_) => BackendKind::ALL.to_vec(),
    }
}

/// A drive on a loop device that goes away with the test.
struct RealDrive {
    kind: BackendKind,
    directory: tempfile::TempDir,
    source: Source,
}

impl RealDrive {
    /// None, told loudly, without root or where the kernel can't serve the backend.
    async fn new(kind: BackendKind) -> Option<Self> {
        if std::fs::metadata("/proc/self").is_ok_and(|it| std::os::unix::fs::MetadataExt::uid(&it) != 0) {
            eprintln!("SKIPPED: drives on loop devices need root");
            assert!(std::env::var_os("CI").is_none(), "CI has to run this as root");
            return None;
        }
        let directory = tempfile::tempdir().expect("temporary directory");
        let source = Source::LoopFile { path: directory.path().join("a.img"), size: 512 << 20 };
        let drive = Self { kind, directory, source };
        // What the machine in memory can serve says nothing of this one.
        let verdict = crate::backend::trial(&Kernel, crate::backend::of(kind), drive.directory.path());
        if let Err(reason) = verdict.expect("a trial") {
            eprintln!("SKIPPED: {kind} on this kernel: {reason}");
            assert!(std::env::var_os("ORLOP_BACKEND").is_none(), "it was asked for: {reason}");
            return None;
        }
        drive.open().await.initialise(drive.source.clone(), Some(kind), Force::No).await.expect("initialise");
        Some(drive)
    }

    async fn open(&self) -> Drives {
        let root = self.directory.path().join("drives");
        Drives::open(Arc::new(Kernel), root, vec![self.source.clone()]).await.expect("open")
    }

    /// Starts anew, as after kill -9, and waits until what was half done is settled.
    async fn restart(&self) -> Drives {
        let drives = self.open().await;
        let mut changed = drives.changed();
        let settled = async {
            while unsettled(&drives) {
                changed.changed().await.expect("the drives are open");
            }
        };
        timeout(Duration::from_secs(30), settled).await.expect("what was half done is settled");
        drives
    }
}

impl Drop for RealDrive {
    fn drop(&mut self) {
        for mount in Kernel.mount_table().expect("mount table").below(self.directory.path()) {
            let _ = Kernel.unmount(&mount.target, Unmount::Detach);
        }
        if let Ok(Some(device)) = Kernel.loop_of(self.source.path()) {
            let _ = Kernel.detach_loop(&device);
        }
    }
}

#[tokio::test]
async fn a_real_drive_recovers_from_every_step_of_every_plan() {
    for kind in real_kinds() {
        let Some(real) = RealDrive::new(kind).await else { continue };
        recovers_from_every_step(&real).await;
    }
}

async fn recovers_from_every_step(real: &RealDrive) {
    let drive = real.open().await.drives().remove(0);
    let layout = Layout::new(drive.mount.expect("mounted"));
    let site = Site::new(Arc::new(Kernel), crate::backend::of(real.kind), layout);
    for access in [AccessType::Mount, AccessType::Block] {
        let size = SIZE.max(site.backend.smallest(None));
        let record = VolumeRecord { access, size, ..record(site.backend.choose_key(&[])) };
        recovers_as(real, &site, &record).await;
    }
}

async fn recovers_as(real: &RealDrive, site: &Site, record: &VolumeRecord) {
    let plans = |site: &Site| {
        let observed = site.observe(record).expect("observe");
        [
            ("create", false, plan::create(record, None)),
            ("expand", true, plan::expand(record, record.size * 2)),
            ("delete", true, plan::delete(record, observed)),
        ]
    };
    for plan in 0..3 {
        for done in 0.. {
            let exists = plans(site)[plan].1;
            if exists {
                site.execute(&plan::create(record, None)).expect("create");
            }
            let (name, _, steps) = &plans(site)[plan];
            if done > steps.len() {
                let left = site.observe(record).expect("observe");
                site.execute(&plan::delete(record, left)).expect("delete");
                break;
            }
            site.execute(&steps[..done]).unwrap_or_else(|error| panic!("{name} up to {done}: {error}"));
            let drives = real.restart().await;
            let sizes: Vec<u64> = drives.volumes().iter().map(|volume| volume.size).collect();
            let expected = match (*name, done) {
                ("create", done) if done < steps.len() => vec![],
                ("create", _) | ("expand" | "delete", 0) => vec![record.size],
                ("expand", _) => vec![record.size * 2],
                (_, _) => vec![],
            };
            assert_eq!(sizes, expected, "{name} up to step {done}");
            for volume in drives.volumes() {
                let seen = site.observe(record).expect("observe");
                let whole = VolumeRecord { size: volume.size, ..record.clone() };
                assert_eq!(seen.limit, Some(whole.held()), "{name} up to step {done}");
                let bytes = record.is_in_file().then_some(volume.size);
                assert_eq!(seen.bytes, bytes, "{name} up to step {done}");
                drives.delete(&volume.id).await.expect("delete");
            }
            for place in [site.layout.records(), site.layout.volumes(), site.layout.trash()] {
                assert_eq!(Kernel.list(&place).expect("list"), [""; 0], "{name} up to step {done}");
            }
        }
    }
}
