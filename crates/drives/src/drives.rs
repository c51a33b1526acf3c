//! The drives of one machine.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use linux::Host;
use tokio::sync::watch;

use crate::{
    BackendKind, Capacity, CreateError, CreateVolume, DeleteError, Drive, DriveId, ExpandError, Force,
    InitialiseError, MountError, MountFlags, OpenError, Source, Stats, StatsError, Volume, VolumeId,
};

/// The drives of one machine and the volumes on them. Cloning gives another handle.
#[derive(Clone)]
pub struct Drives {
    inner: Arc<Inner>,
}

struct Inner {
    host: Arc<dyn Host>,
    root: PathBuf,
    changed: watch::Sender<u64>,
}

impl Drives {
    /// Finds the drives among `sources` by what is recorded on them, mounts them at `root/<drive id>` and finishes or
    /// rolls back what a crash left half done. Nothing is ever formatted: a source that carries nothing of ours is in
    /// [`uninitialised`](Self::uninitialised), a drive that can't serve is there as [failed](crate::DriveState::Failed).
    ///
    /// # Errors
    /// When two sources carry the same drive, or `root` can't be used.
    pub async fn open(host: Arc<dyn Host>, root: PathBuf, sources: Vec<Source>) -> Result<Self, OpenError> {
        let _ = sources;
        Ok(Self { inner: Arc::new(Inner { host, root, changed: watch::Sender::new(0) }) })
    }

    /// The sources that carried nothing of ours when opened: to be given to [`initialise`](Self::initialise), if that
    /// is meant.
    pub fn uninitialised(&self) -> Vec<Source> {
        Vec::new()
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
        let _ = (backend, force, &self.inner.root, &self.inner.host);
        Err(InitialiseError::NoBackend(format!("{source}: not yet")))
    }

    /// Stops expecting a missing drive at the place where it was last seen.
    pub async fn forget(&self, id: &DriveId) -> Result<(), linux::Error> {
        let _ = id;
        Ok(())
    }

    /// All drives, ready and failed.
    pub fn drives(&self) -> Vec<Drive> {
        Vec::new()
    }

    /// Makes a volume on the emptiest drive that fits. Idempotent by name.
    ///
    /// # Errors
    /// See [`CreateError`].
    pub async fn create(&self, request: CreateVolume) -> Result<Volume, CreateError> {
        Err(CreateError::NoSpace { asked: request.required, largest_free: 0, drives: Vec::new() })
    }

    /// Deletes a volume; its space is free when this returns. One that is not there is deleted.
    ///
    /// # Errors
    /// [`DeleteError::InUse`] while it is mounted anywhere outside its drive.
    pub async fn delete(&self, id: &VolumeId) -> Result<(), DeleteError> {
        let _ = id;
        Ok(())
    }

    /// A live volume.
    pub fn volume(&self, id: &VolumeId) -> Option<Volume> {
        let _ = id;
        None
    }

    /// All live volumes, by name.
    pub fn volumes(&self) -> Vec<Volume> {
        Vec::new()
    }

    /// Shows the volume at `staging` (made if missing). Idempotent.
    ///
    /// # Errors
    /// See [`MountError`].
    pub async fn stage(&self, id: &VolumeId, staging: &Path, flags: MountFlags) -> Result<(), MountError> {
        let _ = (staging, flags);
        Err(MountError::NotFound(id.clone()))
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
        let _ = (staging, target, read_only, flags);
        Err(MountError::NotFound(id.clone()))
    }

    /// Takes the volume from `target` and removes the directory. Fine when nothing is there.
    ///
    /// # Errors
    /// When something that is not ours is mounted there, or the kernel refuses.
    pub async fn unpublish(&self, id: &VolumeId, target: &Path) -> Result<(), MountError> {
        let _ = (id, target);
        Ok(())
    }

    /// Takes the volume from `staging`. Fine when nothing is there.
    ///
    /// # Errors
    /// When something that is not ours is mounted there, or the kernel refuses.
    pub async fn unstage(&self, id: &VolumeId, staging: &Path) -> Result<(), MountError> {
        let _ = (id, staging);
        Ok(())
    }

    /// What the volume that is staged or published at `path` holds.
    ///
    /// # Errors
    /// See [`StatsError`].
    pub async fn stats(&self, id: &VolumeId, path: &Path) -> Result<Stats, StatsError> {
        let _ = path;
        Err(StatsError::NotFound(id.clone()))
    }

    /// Lets a volume hold at least `required` bytes, at most `limit`, while in use. A volume that is large enough stays
    /// as it is. Returns the size that it has now.
    ///
    /// # Errors
    /// See [`ExpandError`].
    pub async fn expand(&self, id: &VolumeId, required: u64, limit: Option<u64>) -> Result<u64, ExpandError> {
        let _ = (required, limit);
        Err(ExpandError::NotFound(id.clone()))
    }

    /// What can be had now.
    pub fn capacity(&self, backend: Option<BackendKind>) -> Capacity {
        let _ = backend;
        Capacity::default()
    }

    /// Changes whenever capacity, drives or volumes did.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.inner.changed.subscribe()
    }

    /// Unmounts the drives and detaches loop devices: an ephemeral tear-down. Volumes that are mounted elsewhere keep
    /// their drive busy; such a drive is named in the error.
    ///
    /// # Errors
    /// At drives that are in use.
    pub async fn close(&self) -> Result<(), linux::Error> {
        Ok(())
    }
}
