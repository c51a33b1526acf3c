//! The executor of plans: one step, one or two calls.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Arc,
};

use linux::{Host, LoopDevice, Result};

use crate::{
    backend::{Backend, Copies, Place},
    block,
    layout::{Layout, Maker, image_in},
    plan::{Content, Observed, Step},
    record::{Phase, VolumeRecord, render},
    work::Lane,
};

/// Where steps are carried out: one mounted drive.
#[derive(Clone)]
pub(crate) struct Site {
    pub(crate) host: Arc<dyn Host>,
    pub(crate) backend: &'static dyn Backend,
    pub(crate) layout: Layout,
    pub(crate) lane: Arc<Lane>,
}

impl Site {
    pub(crate) fn new(host: Arc<dyn Host>, backend: &'static dyn Backend, layout: Layout) -> Self {
        Self { host, backend, layout, lane: Arc::default() }
    }

    /// Carries out steps in order, up to the first that fails; each may be repeated. What the steps promise is durable
    /// when this returns, and before anybody else can see it. In between nothing has to be: what is done later does not
    /// become durable without what was done before, but where the backend says otherwise.
    pub(crate) fn execute(&self, steps: &[Step]) -> Result<()> {
        let mut promised = false;
        for step in steps {
            if promised && matches!(step, Step::Resize { .. }) {
                self.flush()?;
                promised = false;
            }
            self.perform(step)?;
            promised |= matches!(step, Step::Record(_) | Step::Forget { .. } | Step::Commit);
            if !self.backend.is_ordered() && matches!(step, Step::Intend(_) | Step::Record(_)) {
                self.flush()?;
                promised = false;
            }
        }
        match promised {
            true => self.flush(),
            false => Ok(()),
        }
    }

    /// Makes all changes so far survive power loss, together with those of all who wait for the same.
    fn flush(&self) -> Result<()> {
        let (host, mount) = (self.host.as_ref(), self.layout.mount());
        self.lane.flushes.share(|| self.backend.flush(host, mount, &self.layout.records()))
    }

    /// Carries out one step.
    fn perform(&self, step: &Step) -> Result<()> {
        let (host, mount) = (self.host.as_ref(), self.layout.mount());
        match step {
            Step::Intend(record) | Step::Record(record) => {
                self.make_room_for_records()?;
                host.write_ordered(&self.layout.record(&record.key), &render(record), 0o600)
            }
            Step::Create { key, new } => {
                let volume = self.layout.volume(key);
                self.backend.create(host, self.place(&volume), new)
            }
            Step::Limit { key, bytes } => {
                let volume = self.layout.volume(key);
                let place = self.place(&volume);
                let quota = self.backend.quota_key(host, place)?.ok_or_else(|| {
                    linux::Error::because("limit", volume.display(), "the kernel does not count it")
                })?;
                self.backend.limit(host, place, quota, *bytes)
            }
            Step::Freeze { from, key } => {
                // Of an earlier moment, if there is one: a copy that broke off is begun anew.
                self.backend.thaw(host, mount, &self.layout.frozen(key))?;
                host.make_directory(&self.layout.all_frozen(), 0o700)?;
                self.backend.freeze(host, &self.layout.volume(from), &self.layout.frozen(key))
            }
            Step::Fill { key, from } => {
                let volume = self.layout.volume(key);
                for name in host.list(&volume)? {
                    host.remove_tree(&volume.join(name))?;
                }
                match from {
                    Content::Volume { key: source } => {
                        let (source, frozen) = (self.layout.volume(source), self.layout.frozen(key));
                        self.backend.fill(host, &source, &frozen, &volume)
                    }
                    Content::Still { directory } => {
                        // Who stages it from now on finds that it is being read.
                        if let Some(user) = host.loops_of(&image_in(directory))?.first() {
                            let why = format!("it is in use as {}", user.device.display());
                            return Err(linux::Error::because("copy", directory.display(), why));
                        }
                        self.backend.restore(host, mount, directory, &volume)
                    }
                    // It began with them.
                    Content::Blocks { .. } => Ok(()),
                }
            }
            Step::Thaw { key } => self.backend.thaw(host, mount, &self.layout.frozen(key)),
            Step::Allocate { key, bytes } => host.allocate(&self.layout.image(key), *bytes),
            Step::Cut { key, bytes } => host.cut(&self.layout.image(key), *bytes),
            Step::Resize { key } => {
                let loops = host.loops_of(&self.layout.image(key))?;
                loops.iter().try_for_each(|one| host.refresh_loop(&one.device))
            }
            // All is kept in order; see `execute`.
            Step::Keep { .. } | Step::Commit => Ok(()),
            Step::Sync => self.lane.syncs.share(|| host.sync_filesystem(mount)),
            Step::SetAside { key } => {
                self.backend.withdraw(host, &self.layout.volume(key))?;
                match host.rename(&self.layout.volume(key), &self.layout.discarded(key)) {
                    Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
                    other => other,
                }
            }
            Step::Destroy { key } => self.backend.destroy(host, mount, &self.layout.discarded(key)),
            Step::Reclaim { quota } => self.backend.reclaim(host, mount, *quota, &|| self.flush()),
            Step::Forget { key } => host.remove_ordered(&self.layout.record(key)).map(drop),
        }
    }

    /// On the first change on an adopted drive; what it held before stays as it is.
    fn make_room_for_records(&self) -> Result<()> {
        if self.layout.maker() == Maker::Orlop {
            return Ok(());
        }
        self.host.make_directory(&self.layout.records(), 0o700)?;
        self.host.make_directory(&self.layout.trash(), 0o700)
    }

    /// Writes something, durably, and takes it back.
    pub(crate) fn try_writing(&self) -> Result<()> {
        let (host, file) = (self.host.as_ref(), self.layout.trial());
        host.write_durable(&file, b"this can be deleted\n", 0o600)?;
        host.remove_file(&file).map(drop)
    }

    /// The device that the block volume of this key is, unless its bytes are a file's.
    pub(crate) fn device(&self, key: &str) -> Result<Option<PathBuf>> {
        self.backend.device(self.host.as_ref(), self.place(&self.layout.volume(key)))
    }

    /// The devices that the block volume of this key is shown as.
    pub(crate) fn shown_as(&self, key: &str) -> Result<Vec<LoopDevice>> {
        block::devices(self.host.as_ref(), &self.layout, key, self.device(key)?.as_deref())
    }

    fn place<'a>(&'a self, volume: &'a Path) -> Place<'a> {
        Place { mount: self.layout.mount(), volume }
    }

    /// Bytes that a copy of a volume takes.
    pub(crate) fn copied(&self, record: &VolumeRecord) -> Result<u64> {
        let (host, volume) = (self.host.as_ref(), self.layout.volume(&record.key));
        let place = self.place(&volume);
        match self.backend.quota_key(host, place)? {
            Some(quota) => self.backend.copied(host, place, quota),
            None => Ok(record.size),
        }
    }

    /// Bytes that a volume holds.
    pub(crate) fn used(&self, record: &VolumeRecord) -> Result<u64> {
        let (host, volume) = (self.host.as_ref(), self.layout.volume(&record.key));
        let place = self.place(&volume);
        match self.backend.quota_key(host, place)? {
            Some(quota) => Ok(self.backend.usage(host, place, quota)?.used),
            None => Ok(record.size),
        }
    }

    /// Looks at what there is of a volume: where it is used, or for one on its way out where it is put aside, too.
    pub(crate) fn observe(&self, record: &VolumeRecord) -> Result<Observed> {
        let host = self.host.as_ref();
        let mut places = vec![self.layout.volume(&record.key)];
        if record.phase == Phase::Deleting {
            places.push(self.layout.discarded(&record.key));
        }
        for place in places {
            if host.exists(&place)? {
                let bytes = match record.is_in_file() {
                    true => host.length(&image_in(&place))?,
                    false => None,
                };
                let place = self.place(&place);
                let Some(quota) = self.backend.quota_key(host, place)? else { continue };
                // Blocks that are kept don't grow, and count what was written of them.
                let limit = match record.is_snapshot() && self.backend.copies() == Copies::Blocks {
                    true => Some(record.held()),
                    false => self.backend.usage(host, place, quota)?.limit,
                };
                return Ok(Observed { quota: Some(quota), limit, bytes });
            }
        }
        Ok(Observed::default())
    }
}
