//! The drives of one machine: the façade. Here are locks, threads and deadlines; what to do is decided elsewhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use linux::Host;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use crate::{
    BackendKind, Capacity, Confines, CreateError, CreateVolume, DeleteError, Drive, DriveId, DriveSelector,
    ExpandError, Force, GroupSnapshot, InitialiseError, MountError, MountFlags, OpenError, Snapshot,
    SnapshotError, SnapshotId, Source, Stats, StatsError, Throttle, Volume, VolumeId,
    backend::Copies,
    backing, change, expected, failing, group, initialise,
    inventory::{self, Removals},
    label, show, snapshot,
    state::{Found, Serving, Slot, State},
    waiting,
    work::{self, Interrupted, Lane, Pace},
};

/// How long mounting may take on a machine that is well.
const PATIENCE: Duration = Duration::from_secs(10);

/// The drives of one machine and the volumes on them. Cloning gives another handle.
#[derive(Clone)]
pub struct Drives {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) host: Arc<dyn Host>,
    pub(crate) root: PathBuf,
    /// Where volumes may be shown.
    pub(crate) confines: RwLock<Confines>,
    pub(crate) state: Mutex<State>,
    changed: watch::Sender<u64>,
    /// For what concerns no drive, several, or one that is not known yet.
    common: Lane,
    /// One drive is made at a time.
    initialising: Mutex<()>,
    /// One mount is tried at a time.
    pub(crate) trying: Mutex<()>,
}

impl Inner {
    /// Tells everyone who watches that capacity, drives or volumes changed.
    pub(crate) fn notify(&self) {
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Removes in the background what a crash left half deleted: a large volume takes its time.
    pub(crate) fn finish(self: &Arc<Self>, removals: Removals) {
        for (id, steps) in removals {
            let (inner, lane) = (self.clone(), self.lane(&id.drive));
            let remove = move |tries| change::remove(&inner, &id, &steps, tries);
            match lane {
                Some(lane) => lane.detach(remove),
                None => self.common.detach(remove),
            }
        }
    }

    /// The lane of a drive that serves.
    fn lane(&self, drive: &DriveId) -> Option<Arc<Lane>> {
        Some(self.state.lock().drive(drive)?.site.lane.clone())
    }

    /// Runs work on the lane of its drive. When it takes long, the drive is tried.
    pub(crate) async fn on<T: Send + 'static>(
        self: &Arc<Self>,
        drive: &DriveId,
        pace: Pace,
        work: impl FnOnce(&Arc<Inner>) -> T + Send + 'static,
    ) -> Result<T, Interrupted> {
        let Some(lane) = self.lane(drive) else { return self.anywhere(pace, work).await };
        let inner = self.clone();
        lane.run(pace, move || work(&inner), failing::suspect(Arc::downgrade(self), drive.clone())).await
    }

    /// Runs work that is not of one drive. What hangs there is told by the drives' own work.
    async fn anywhere<T: Send + 'static>(
        self: &Arc<Self>,
        pace: Pace,
        work: impl FnOnce(&Arc<Inner>) -> T + Send + 'static,
    ) -> Result<T, Interrupted> {
        let inner = self.clone();
        self.common.run(pace, move || work(&inner), std::future::ready(())).await
    }
}

impl Drives {
    /// For tests of what goes on below.
    #[cfg(test)]
    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    /// Finds the drives among `sources` by what is recorded on them, mounts them at `root/<drive id>` and finishes or
    /// rolls back what a crash left half done. Nothing is ever formatted: a source that carries nothing of ours is in
    /// [`uninitialised`](Self::uninitialised), a drive that can't serve is there as [failed](crate::DriveState::Failed).
    ///
    /// # Errors
    /// When a source is listed twice, or `root` can't be used.
    pub async fn open(host: Arc<dyn Host>, root: PathBuf, sources: Vec<Source>) -> Result<Self, OpenError> {
        let mut seen = BTreeSet::new();
        if let Some(twice) = sources.iter().find(|source| !seen.insert(source.path())) {
            return Err(OpenError::Repeated(twice.clone()));
        }
        let found = work::alone(initialise::DEADLINE, {
            let host = host.clone();
            move || {
                host.make_directory(&root, 0o700)
                    .and_then(|()| host.real_path(&root))
                    .map(|root| (inventory::take(&host, &root, sources), root.clone()))
                    .map_err(|source| OpenError::Root { root, source })
            }
        })
        .await
        .map_err(|interrupted| OpenError::Interrupted(interrupted.to_string()))?;
        let ((state, removals), root) = found?;
        let drives = Self {
            inner: Arc::new(Inner {
                host,
                confines: RwLock::new(Confines { below: Vec::new(), never: vec![root.clone()] }),
                root,
                state: Mutex::new(state),
                changed: watch::Sender::new(0),
                common: Lane::default(),
                initialising: Mutex::new(()),
                trying: Mutex::new(()),
            }),
        };
        drives.inner.finish(removals);
        tokio::spawn(backing::watch(Arc::downgrade(&drives.inner)));
        tokio::spawn(waiting::watch(Arc::downgrade(&drives.inner)));
        tokio::spawn(failing::watch(Arc::downgrade(&drives.inner), drives.changed()));
        Ok(drives)
    }

    /// The sources that carried nothing of ours when opened: to be given to [`initialise`](Self::initialise), if that
    /// is meant.
    pub fn uninitialised(&self) -> Vec<Source> {
        self.inner.state.lock().blank.clone()
    }

    /// Formats a device (or makes and formats a file) and takes it in as a drive. Without a backend the first that the
    /// kernel can serve is taken.
    ///
    /// # Errors
    /// When the device is in use or carries something; each case has its own variant.
    pub async fn initialise(
        &self,
        source: Source,
        backend: Option<BackendKind>,
        force: Force,
    ) -> Result<DriveId, InitialiseError> {
        let inner = self.inner.clone();
        work::alone(initialise::DEADLINE, move || {
            let _one_at_a_time = inner.initialising.lock();
            // One that failed has its file claimed already.
            let mut claim = inner.state.lock().slot_mut(&source).and_then(|slot| slot.claim.take());
            let made = initialise::initialise(&inner.host, &inner.root, &source, backend, force, &mut claim);
            let serving = match made {
                Ok(serving) => serving,
                Err(refusal) => {
                    if let Some(slot) = inner.state.lock().slot_mut(&source) {
                        slot.claim = claim;
                    }
                    return Err(refusal);
                }
            };
            let id = serving.id.clone();
            let mut state = inner.state.lock();
            state.blank.retain(|blank| blank.path() != source.path());
            state.slots.retain(|slot| slot.source.path() != source.path());
            state.slots.push(Slot { source: source.clone(), claim, found: Found::Serving(serving) });
            drop(state);
            inner.notify();
            Ok(id)
        })
        .await
        .map_err(|interrupted| InitialiseError::Interrupted(interrupted.to_string()))?
    }

    /// Stops expecting a missing drive at the place where it was last seen.
    ///
    /// # Errors
    /// When that can't be written.
    pub async fn forget(&self, id: &DriveId) -> Result<(), linux::Error> {
        let (inner, id) = (self.inner.clone(), id.clone());
        work::alone(work::DEADLINE, move || {
            expected::forget(inner.host.as_ref(), &inner.root, &id)?;
            inner.state.lock().out_of_reach.remove(&id);
            Ok(())
        })
        .await
        .map_err(|interrupted| {
            linux::Error::because("forget drive", self.inner.root.display(), interrupted.to_string())
        })?
    }

    /// All drives, ready and failed.
    pub fn drives(&self) -> Vec<Drive> {
        self.inner.state.lock().drives()
    }

    /// Makes a volume on the emptiest drive that fits. Idempotent by name.
    ///
    /// # Errors
    /// See [`CreateError`].
    pub async fn create(&self, request: CreateVolume) -> Result<Volume, CreateError> {
        // A drive whose file proves to be gone is not chosen again.
        loop {
            let wanted = request.clone();
            let reserve = move |inner: &Arc<Inner>| change::reserve(inner, &wanted);
            let reservation = match self.inner.anywhere(Pace::Quick, reserve).await?? {
                change::Reserved::Existing(volume) => return Ok(*volume),
                change::Reserved::New(reservation) => *reservation,
            };
            let drive = reservation.intended().id.drive.clone();
            let pace = if request.origin.is_some() { Pace::Copying } else { Pace::Quick };
            let create = move |inner: &Arc<Inner>| change::create(inner, reservation);
            if let Some(volume) = self.inner.on(&drive, pace, create).await?? {
                return Ok(volume);
            }
        }
    }

    /// Deletes a volume; its space is free when this returns. One that is not there is deleted.
    ///
    /// # Errors
    /// [`DeleteError::InUse`] while it is mounted anywhere outside its drive.
    pub async fn delete(&self, id: &VolumeId) -> Result<(), DeleteError> {
        let (drive, id) = (id.drive.clone(), id.clone());
        self.inner.on(&drive, Pace::Slow, move |inner| change::delete(inner, &id, false)).await?
    }

    /// Takes a snapshot of a volume, in use or not: what it holds at one moment, written or only cached, without the
    /// subvolumes that were made inside it. It lies on the volume's drive. Idempotent by name.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub async fn create_snapshot(&self, source: &VolumeId, name: &str) -> Result<Snapshot, SnapshotError> {
        let (drive, source, name) = (source.drive.clone(), source.clone(), name.to_owned());
        self.inner.on(&drive, Pace::Copying, move |inner| snapshot::create(inner, &source, &name)).await?
    }

    /// Deletes a snapshot; its space is free when this returns. One that is not there is deleted.
    ///
    /// # Errors
    /// See [`DeleteError`].
    pub async fn delete_snapshot(&self, id: &SnapshotId) -> Result<(), DeleteError> {
        let (drive, id) = (id.drive.clone(), id.clone());
        self.inner.on(&drive, Pace::Slow, move |inner| change::delete(inner, &id, true)).await?
    }

    /// Takes snapshots of several volumes as near to one moment as there is: all of them, or none. Each is of one
    /// moment; between those of two volumes a write to either may lie. Idempotent by name.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub async fn create_group(
        &self,
        sources: &[VolumeId],
        name: &str,
    ) -> Result<GroupSnapshot, SnapshotError> {
        let (sources, name) = (sources.to_vec(), name.to_owned());
        self.inner.anywhere(Pace::Copying, move |inner| group::create(inner, &name, &sources)).await?
    }

    /// Deletes a group snapshot with all its snapshots; their space is free when this returns. One that is not there
    /// is deleted.
    ///
    /// # Errors
    /// See [`DeleteError`].
    pub async fn delete_group(&self, id: &SnapshotId) -> Result<(), DeleteError> {
        let id = id.clone();
        self.inner.anywhere(Pace::Slow, move |inner| group::delete(inner, &id)).await?
    }

    /// A complete group snapshot, without the members whose drives are not there now.
    pub fn group(&self, id: &SnapshotId) -> Option<GroupSnapshot> {
        group::find(&self.inner.state.lock(), id)
    }

    /// Records how fast the users of a volume may be. Idempotent.
    ///
    /// # Errors
    /// As of [`expand`](Self::expand).
    pub async fn throttle(&self, id: &VolumeId, throttle: Throttle) -> Result<(), ExpandError> {
        let (drive, id) = (id.drive.clone(), id.clone());
        self.inner.on(&drive, Pace::Quick, move |inner| change::throttle(inner, &id, throttle)).await?
    }

    /// Gives a drive these labels instead of those it has. They are kept on the drive.
    ///
    /// # Errors
    /// When the drive is not there or can't be written.
    pub async fn label(&self, id: &DriveId, labels: BTreeMap<String, String>) -> Result<(), linux::Error> {
        let drive = id.clone();
        let labelled = self.inner.on(id, Pace::Quick, move |inner| label::write(inner, &drive, labels)).await;
        labelled.map_err(|why| linux::Error::because("label drive", id, why.to_string()))?
    }

    /// Notes which volumes each drive has, beside the drives: a volume whose drive is away at the next start is then
    /// not made a second time. To be called some time after volumes [changed](Self::changed).
    ///
    /// # Errors
    /// When the notes can't be written; what is on the drives is not affected.
    pub async fn note_names(&self) -> Result<(), linux::Error> {
        let inner = self.inner.clone();
        work::alone(work::DEADLINE, move || inventory::note_names(&inner)).await.map_err(|interrupted| {
            linux::Error::because("note volumes", self.inner.root.display(), interrupted.to_string())
        })?
    }

    /// Whether this process can mount at all, which everything here depends upon.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn can_mount(&self) -> Result<(), linux::Error> {
        let inner = self.inner.clone();
        let tried = work::alone(PATIENCE, move || inventory::try_mounting(&inner)).await;
        tried.map_err(|interrupted| {
            linux::Error::because("mount in", self.inner.root.display(), interrupted.to_string())
        })?
    }

    /// Every volume of a drive that is mounted as a whole, and where.
    ///
    /// # Errors
    /// See [`MountError`].
    pub async fn shown(&self, drive: &DriveId) -> Result<Vec<(VolumeId, PathBuf)>, MountError> {
        let (lane, drive) = (drive.clone(), drive.clone());
        self.inner.on(&lane, Pace::Quick, move |inner| show::shown(inner, &drive)).await?
    }

    /// Gives the volume that is mounted at `at` to a group, with all that is in it. One whose root belongs to the group
    /// already is left as it is: its own new files do.
    ///
    /// # Errors
    /// See [`MountError`].
    pub async fn give(&self, id: &VolumeId, at: &Path, group: u32) -> Result<(), MountError> {
        let (drive, id, at) = (id.drive.clone(), id.clone(), at.to_owned());
        self.inner.on(&drive, Pace::Slow, move |inner| show::give(inner, &id, &at, group)).await?
    }

    /// Labels the volume for SELinux, with all that is in it. One whose root has the label already is left as it is.
    ///
    /// # Errors
    /// See [`MountError`].
    pub async fn relabel(&self, id: &VolumeId, label: &str) -> Result<(), MountError> {
        let (drive, id, label) = (id.drive.clone(), id.clone(), label.to_owned());
        self.inner.on(&drive, Pace::Slow, move |inner| show::relabel(inner, &id, &label)).await?
    }

    /// The live volume of this name.
    pub fn named(&self, name: &str) -> Option<Volume> {
        let state = self.inner.state.lock();
        let (serving, entry) = state.by_name(name)?;
        entry.live().then(|| serving.volume(entry))
    }

    /// Whether the users of any volume of this drive may be only so fast.
    pub fn throttles(&self, drive: &DriveId) -> bool {
        let state = self.inner.state.lock();
        let limited =
            |serving: &Serving| serving.volumes.values().any(|entry| !entry.record.throttle.is_unlimited());
        state.drive(drive).is_some_and(limited)
    }

    /// All finished snapshots, by identity.
    pub fn snapshots(&self) -> Vec<Snapshot> {
        let state = self.inner.state.lock();
        let of = |serving: &Serving| {
            let live = serving.volumes.values().filter(|entry| entry.live());
            live.filter_map(|entry| serving.snapshot(entry)).collect::<Vec<_>>()
        };
        let mut snapshots: Vec<Snapshot> = state.serving().flat_map(of).collect();
        snapshots.sort_by(|one, other| one.id.cmp(&other.id));
        snapshots
    }

    /// A finished snapshot.
    pub fn snapshot(&self, id: &SnapshotId) -> Option<Snapshot> {
        let state = self.inner.state.lock();
        let (serving, entry) = state.entry(id)?;
        serving.snapshot(entry).filter(|_| entry.live())
    }

    /// A live volume.
    pub fn volume(&self, id: &VolumeId) -> Option<Volume> {
        let state = self.inner.state.lock();
        let (serving, entry) = state.volume(id)?;
        entry.live().then(|| serving.volume(entry))
    }

    /// The volumes whose identities end in this key. One, unless drives of another make hold leftovers.
    pub fn of_key(&self, key: &str) -> Vec<VolumeId> {
        self.inner.state.lock().of_key(key)
    }

    /// All live volumes, by name.
    pub fn volumes(&self) -> Vec<Volume> {
        let state = self.inner.state.lock();
        let mut volumes: Vec<Volume> = state
            .serving()
            .flat_map(|serving| {
                serving
                    .volumes
                    .values()
                    .filter(|entry| entry.live() && !entry.record.is_snapshot())
                    .map(|entry| serving.volume(entry))
            })
            .collect();
        volumes.sort_by(|one, other| one.name.cmp(&other.name));
        volumes
    }

    /// From now on volumes are shown within these confines only. What is shown elsewhere already can be taken away.
    pub fn confine(&self, mut confines: Confines) {
        confines.never.push(self.inner.root.clone());
        *self.inner.confines.write() = confines;
    }

    /// Shows the volume at `staging` (made if missing). Idempotent.
    ///
    /// # Errors
    /// See [`MountError`].
    pub async fn stage(&self, id: &VolumeId, staging: &Path, flags: MountFlags) -> Result<(), MountError> {
        let (drive, id, staging) = (id.drive.clone(), id.clone(), staging.to_owned());
        self.inner
            .on(&drive, Pace::Quick, move |inner| show::stage(inner, &id, &staging, flags.attributes))
            .await?
    }

    /// Shows the staged volume at `target` (made if missing), read-only if asked. Idempotent.
    ///
    /// # Errors
    /// See [`MountError`].
    pub async fn publish(
        &self,
        id: &VolumeId,
        staging: &Path,
        target: &Path,
        read_only: bool,
        flags: MountFlags,
    ) -> Result<(), MountError> {
        let (drive, id) = (id.drive.clone(), id.clone());
        let (staging, target) = (staging.to_owned(), target.to_owned());
        let mut attributes = flags.attributes;
        attributes.read_only |= read_only;
        self.inner
            .on(&drive, Pace::Quick, move |inner| show::publish(inner, &id, &staging, &target, attributes))
            .await?
    }

    /// Attaches a block volume to a device. Nothing is put at a staging path. Idempotent.
    ///
    /// # Errors
    /// See [`MountError`].
    pub async fn stage_block(&self, id: &VolumeId) -> Result<(), MountError> {
        let (drive, id) = (id.drive.clone(), id.clone());
        self.inner.on(&drive, Pace::Quick, move |inner| show::stage_block(inner, &id)).await?
    }

    /// Shows the device of a staged block volume at `target`, a file (made if missing); read-only if asked, through a
    /// device of its own that can't write. Idempotent.
    ///
    /// # Errors
    /// See [`MountError`].
    pub async fn publish_block(
        &self,
        id: &VolumeId,
        staging: &Path,
        target: &Path,
        read_only: bool,
    ) -> Result<(), MountError> {
        let (drive, id) = (id.drive.clone(), id.clone());
        let (staging, target) = (staging.to_owned(), target.to_owned());
        self.inner
            .on(&drive, Pace::Quick, move |inner| {
                show::publish_block(inner, &id, &staging, &target, read_only)
            })
            .await?
    }

    /// One of the places, besides its drive and `besides`, where the volume as a whole is mounted.
    ///
    /// # Errors
    /// See [`MountError`].
    pub async fn elsewhere(
        &self,
        id: &VolumeId,
        besides: Vec<PathBuf>,
    ) -> Result<Option<PathBuf>, MountError> {
        let (drive, id) = (id.drive.clone(), id.clone());
        self.inner.on(&drive, Pace::Quick, move |inner| show::elsewhere(inner, &id, &besides)).await?
    }

    /// Takes the volume from `target` and removes the directory or file. Fine when nothing is there; what is not the
    /// volume's is left.
    ///
    /// # Errors
    /// When something that is not ours is mounted there, or the kernel refuses.
    pub async fn unpublish(&self, id: &VolumeId, target: &Path) -> Result<(), MountError> {
        let (drive, id, target) = (id.drive.clone(), id.clone(), target.to_owned());
        self.inner.on(&drive, Pace::Quick, move |inner| show::unpublish(inner, &id, &target)).await?
    }

    /// Removes what a volume that is gone was shown at, if it bears a mark of ours. `false` when something is mounted there.
    ///
    /// # Errors
    /// When the path can't be used, or the kernel refuses.
    pub async fn unpublish_gone(&self, target: &Path) -> Result<bool, MountError> {
        let target = target.to_owned();
        self.inner.anywhere(Pace::Quick, move |inner| show::unpublish_gone(inner, &target)).await?
    }

    /// Takes the volume from `staging` and removes the directory; a block volume is detached. Fine when nothing is
    /// there; what is not the volume's is left.
    ///
    /// # Errors
    /// When something that is not ours is mounted there, or the kernel refuses; for a block volume also
    /// [`MountError::Published`] and [`MountError::Open`].
    pub async fn unstage(&self, id: &VolumeId, staging: &Path) -> Result<(), MountError> {
        let (drive, id, staging) = (id.drive.clone(), id.clone(), staging.to_owned());
        self.inner.on(&drive, Pace::Quick, move |inner| show::unstage(inner, &id, &staging)).await?
    }

    /// What the volume that is staged or published at `path` holds.
    ///
    /// # Errors
    /// See [`StatsError`].
    pub async fn stats(&self, id: &VolumeId, path: &Path) -> Result<Stats, StatsError> {
        let (drive, id, path) = (id.drive.clone(), id.clone(), path.to_owned());
        self.inner.on(&drive, Pace::Quick, move |inner| show::stats(inner, &id, &path)).await?
    }

    /// Lets a volume hold at least `required` bytes, at most `limit`, while in use. A volume that is large enough stays
    /// as it is. Returns the size that it has now.
    ///
    /// # Errors
    /// See [`ExpandError`].
    pub async fn expand(&self, id: &VolumeId, required: u64, limit: Option<u64>) -> Result<u64, ExpandError> {
        let (drive, id) = (id.drive.clone(), id.clone());
        self.inner.on(&drive, Pace::Quick, move |inner| change::expand(inner, &id, required, limit)).await?
    }

    /// Whether snapshots and clones can be made on some drive. As long as there is none, one that can may come.
    pub fn copies(&self) -> bool {
        let state = self.inner.state.lock();
        let mut kinds = state.serving().map(|serving| serving.site.backend.copies()).peekable();
        kinds.peek().is_none() || kinds.any(|copies| copies != Copies::None)
    }

    /// What volumes with such parameters can have now on drives like this.
    pub fn capacity(
        &self,
        backend: Option<BackendKind>,
        drives: &DriveSelector,
        parameters: &BTreeMap<String, String>,
    ) -> Capacity {
        self.inner.state.lock().capacity(backend, drives, parameters)
    }

    /// Changes whenever capacity, drives or volumes did.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.inner.changed.subscribe()
    }

    /// Unmounts the drives and detaches loop devices: an ephemeral tear-down. A drive whose volumes are still mounted
    /// elsewhere stays, and so does one that is busy; the first such error is returned when all have been tried.
    ///
    /// # Errors
    /// At drives that are in use.
    pub async fn close(&self) -> Result<(), linux::Error> {
        let inner = self.inner.clone();
        work::alone(work::DEADLINE, move || inventory::close(&inner)).await.map_err(|interrupted| {
            linux::Error::because("close", self.inner.root.display(), interrupted.to_string())
        })?
    }
}
