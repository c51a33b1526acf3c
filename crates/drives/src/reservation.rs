//! Guards of what is under way: however a change ends, by an error, a panic, or because nobody came to it, memory is put
//! right. Nothing stays busy, no space stays taken, no source stays read.

use std::sync::Arc;

use crate::{
    VolumeId,
    drives::Inner,
    execute::Site,
    plan::{self, Content},
    record::{Phase, VolumeRecord},
};

/// A volume or snapshot that is to be made. Memory has it, busy, with its space.
pub(crate) struct Intended {
    pub(crate) id: VolumeId,
    pub(crate) site: Site,
    pub(crate) record: VolumeRecord,
    pub(crate) content: Option<Content>,
    /// Nothing of it is on the drive yet; otherwise an earlier try may have left something.
    pub(crate) fresh: bool,
}

/// What is intended, until it is made. If that is given up, because no worker came to it or by a panic, memory is put
/// right: nothing stays busy, no source stays read.
pub(crate) struct Reservation {
    inner: Arc<Inner>,
    intended: Intended,
    begun: bool,
    settled: bool,
}

impl Reservation {
    pub(crate) fn new(inner: Arc<Inner>, intended: Intended) -> Self {
        Self { inner, intended, begun: false, settled: false }
    }

    /// What it will be.
    pub(crate) fn intended(&self) -> &Intended {
        &self.intended
    }

    /// Carries it out, and settles in memory what became of it.
    pub(crate) fn make(mut self) -> linux::Result<()> {
        let Intended { id, site, record, content, .. } = &self.intended;
        let is_set_aside =
            self.inner.state.lock().drive(&id.drive).is_some_and(|drive| drive.is_set_aside(record));
        if !is_set_aside {
            let why = "no space is set aside for it: a fault of Orlop, so nothing was changed";
            tracing::error!(volume = %id, why, "it is not made");
            return Err(linux::Error::because("make", id, why));
        }
        self.inner.notify();
        let steps = plan::create(record, content.as_ref());
        let (preparation, announcement) = steps.split_at(steps.len() - 1);
        self.begun = true;
        let prepared = site.execute(preparation);
        let in_doubt = prepared.is_ok();
        let made = prepared.and_then(|()| site.execute(announcement));
        let undone = match &made {
            Ok(()) => false,
            // Never announced, so it may go; what can't go now is done again by the next call or at the next start.
            Err(_) => {
                site.observe(record).and_then(|found| site.execute(&plan::delete(record, found))).is_ok()
            }
        };
        let mut state = self.inner.state.lock();
        state.changed(&id.drive, &made);
        state.let_source_go(record);
        if undone {
            state.forget(id);
        } else if let Some(entry) = state.entry_mut(id) {
            entry.busy = false;
            match made {
                Ok(()) => entry.record.phase = Phase::Ready,
                Err(_) => entry.in_doubt |= in_doubt,
            }
        }
        drop(state);
        self.settled = true;
        self.inner.notify();
        made
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        let Intended { id, record, fresh, .. } = &self.intended;
        let mut state = self.inner.state.lock();
        state.let_source_go(record);
        if *fresh && !self.begun {
            state.forget(id);
        } else if let Some(entry) = state.entry_mut(id) {
            entry.busy = false;
            entry.in_doubt |= self.begun;
        }
        drop(state);
        self.inner.notify();
    }
}

/// A change of a volume that is under way: the volume is busy until the change has told how it ended, or broke off by a
/// panic.
pub(crate) struct Busy<'a> {
    inner: &'a Inner,
    id: &'a VolumeId,
}

impl<'a> Busy<'a> {
    /// Of a volume that was marked busy, under the same lock.
    pub(crate) fn new(inner: &'a Inner, id: &'a VolumeId) -> Self {
        Self { inner, id }
    }

    pub(crate) fn inner(&self) -> &'a Inner {
        self.inner
    }

    pub(crate) fn id(&self) -> &'a VolumeId {
        self.id
    }

    /// The change has told how it ended.
    pub(crate) fn settled(self) {
        std::mem::forget(self);
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        if let Some(entry) = self.inner.state.lock().entry_mut(self.id) {
            entry.busy = false;
        }
    }
}
