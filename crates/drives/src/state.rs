//! What is known in memory: a mirror of the drives, and reservations for changes under way.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use linux::Claim;
use values::Bytes;

use crate::{
    AccessType, BackendKind, Capacity, CreateVolume, Drive, DriveId, DriveSelector, DriveState, OVERCOMMIT,
    Origin, Snapshot, Source, Volume, VolumeId,
    allocate::{Candidate, SMALLEST, unable},
    backend::{Copies, QuotaKey},
    execute::Site,
    record::{Phase, VolumeRecord, without_notes},
};

/// All drives of the machine.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) slots: Vec<Slot>,
    /// Sources that carried nothing of ours.
    pub(crate) blank: Vec<Source>,
    /// Names of the volumes on drives that can't be asked now, as they were last seen.
    pub(crate) out_of_reach: BTreeMap<DriveId, BTreeSet<String>>,
}

/// One source and what it turned out to be.
pub(crate) struct Slot {
    pub(crate) source: Source,
    /// Keeps others from the file behind the drive, if there is one.
    pub(crate) claim: Option<Claim>,
    pub(crate) found: Found,
}

pub(crate) enum Found {
    Serving(Serving),
    Failed {
        id: Option<DriveId>,
        backend: Option<BackendKind>,
        reason: String,
        /// Another process holds it, and may let it go.
        held: bool,
    },
}

impl Found {
    /// The drive, as far as known.
    pub(crate) fn id(&self) -> Option<&DriveId> {
        match self {
            Self::Serving(serving) => Some(&serving.id),
            Self::Failed { id, .. } => id.as_ref(),
        }
    }
}

/// A mounted drive with its volumes.
pub(crate) struct Serving {
    pub(crate) id: DriveId,
    pub(crate) device: PathBuf,
    pub(crate) size: u64,
    /// Bytes that somebody else's files use.
    pub(crate) foreign: u64,
    /// What its device said to the last change, if that was why it failed.
    pub(crate) failing: Option<String>,
    /// What became of the file behind it, where that can't hold it any more.
    pub(crate) gone: Option<Box<str>>,
    /// Its labels are damaged.
    pub(crate) unread: bool,
    /// It is being tried whether it takes writes again.
    pub(crate) tried: bool,
    pub(crate) site: Site,
    /// Keeps others from its file system; given up before that is unmounted.
    pub(crate) claim: Option<Claim>,
    pub(crate) volumes: BTreeMap<String, Entry>,
    pub(crate) labels: BTreeMap<String, String>,
}

/// What a device that is gone, failing or write-protected answers, or the file system that gave it up: EIO, ENXIO,
/// ENODEV, EROFS, ESHUTDOWN, EUCLEAN.
const OF_DEVICES: [i32; 6] = [5, 6, 19, 30, 108, 117];
/// Drives of which it is told why they don't come into question.
const TOLD: usize = 8;

/// What is said of a volume whose directory is gone.
pub(crate) const LOST: &str =
    "the volume's directory is gone from its drive; restore the drive from a backup, or delete the volume";

/// A volume or snapshot in memory. Its size counts from the moment that it is intended until its space is free.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) record: VolumeRecord,
    /// A change is under way.
    pub(crate) busy: bool,
    /// A growth failed half-way: the kernel's limit may be smaller than the recorded size.
    pub(crate) doubtful: bool,
    /// Why it can't be used, in words: its record is damaged, or what it held is gone. It is kept until it is deleted.
    pub(crate) unfit: Option<String>,
    /// It could neither be announced nor undone: its drive may have kept either.
    pub(crate) in_doubt: bool,
    /// How many volumes and snapshots are being made from it.
    pub(crate) readers: usize,
}

impl Entry {
    /// As it is when nothing is going on.
    pub(crate) fn new(record: VolumeRecord) -> Self {
        Self { record, busy: false, doubtful: false, unfit: None, in_doubt: false, readers: 0 }
    }

    /// What its users should know, in words.
    fn trouble(&self) -> Option<String> {
        match (&self.unfit, self.doubtful) {
            (Some(why), _) => Some(why.clone()),
            (_, true) => {
                Some("it grew half-way: its limit may be smaller than its size; expand it again".to_owned())
            }
            _ => None,
        }
    }

    /// Whether it is what somebody calls a volume or a snapshot. What a damaged record was about nobody knows.
    pub(crate) fn may_be(&self, snapshot: bool) -> bool {
        self.record.is_snapshot() == snapshot || self.unfit.is_some()
    }

    /// Whether it may be used.
    pub(crate) fn live(&self) -> bool {
        self.record.phase == Phase::Ready
    }
}

impl Serving {
    pub(crate) fn capacity(&self) -> u64 {
        // The file system's own needs are among what is used already.
        self.site.backend.usable(self.size).min(self.size.saturating_sub(self.foreign))
    }

    pub(crate) fn allocated(&self) -> u64 {
        // A record can claim any size.
        self.volumes.values().fold(0, |sum, entry| sum.saturating_add(entry.record.held()))
    }

    pub(crate) fn free(&self) -> u64 {
        if self.gone.is_some() {
            return 0;
        }
        self.capacity().saturating_sub(self.allocated())
    }

    /// What a new volume could have, given how it is used and what its parameters allow.
    pub(crate) fn room(&self, access: AccessType, parameters: &BTreeMap<String, String>) -> u64 {
        let free = self.promised(parameters).saturating_sub(self.allocated());
        match access {
            AccessType::Block if !self.site.backend.kind().has_filesystems() => without_notes(free),
            _ => free,
        }
    }

    /// The bytes that volumes with such parameters may have in sum.
    fn promised(&self, parameters: &BTreeMap<String, String>) -> u64 {
        match parameters.get(OVERCOMMIT).and_then(|times| times.parse::<f64>().ok()) {
            Some(times) if times > 1.0 && self.site.backend.copies() == Copies::Blocks => {
                (self.capacity() as f64 * times) as u64
            }
            _ => self.capacity(),
        }
    }

    /// Sets space aside for a volume or snapshot, which is busy from now on: a new one, one that was half made, or one
    /// that grows. Whoever chose the drive has seen to it that there is room; that is checked once more here, because
    /// more than there is must never be promised.
    ///
    /// # Errors
    /// There is less than that. Nothing has changed.
    pub(crate) fn set_aside(&mut self, record: &VolumeRecord) -> linux::Result<()> {
        let before = self.volumes.get(&record.key).map_or(0, |entry| entry.record.held());
        let others = self.allocated().saturating_sub(before);
        let promised = self.promised(&record.parameters);
        // What is smaller than before fits, whatever others have come to.
        if record.held() > before && others.checked_add(record.held()).is_none_or(|sum| sum > promised) {
            let why = format!(
                "{} for {} on top of {} would be more than its {}: a fault of Orlop, so nothing was changed",
                Bytes(record.held()),
                record.key,
                Bytes(others),
                Bytes(promised)
            );
            tracing::error!(drive = %self.id, why, "space is not set aside");
            return Err(linux::Error::because("set space aside on drive", &self.id, why));
        }
        let entry = self.volumes.entry(record.key.clone()).or_insert_with(|| Entry::new(record.clone()));
        entry.busy = true;
        entry.record.size = record.size;
        Ok(())
    }

    /// Whether a change of this has its space set aside.
    pub(crate) fn is_set_aside(&self, record: &VolumeRecord) -> bool {
        let entry = self.volumes.get(&record.key);
        entry.is_some_and(|entry| entry.busy && entry.record.held() >= record.held())
    }

    /// Quota keys that are in use on this drive.
    pub(crate) fn quota_keys(&self) -> Vec<QuotaKey> {
        self.volumes.values().filter_map(|entry| entry.record.quota).collect()
    }

    pub(crate) fn volume(&self, entry: &Entry) -> Volume {
        Volume {
            id: VolumeId { drive: self.id.clone(), key: entry.record.key.clone() },
            name: entry.record.name.clone(),
            size: entry.record.size,
            access: entry.record.access,
            backend: self.site.backend.kind(),
            created: entry.record.created,
            parameters: entry.record.parameters.clone(),
            notes: entry.record.notes.clone(),
            origin: entry.record.origin.clone(),
            throttle: entry.record.throttle,
            ephemeral: entry.record.ephemeral,
            trouble: self.trouble().or_else(|| entry.trouble()),
        }
    }

    /// What people should know of it although it serves, in words.
    fn condition(&self) -> Option<String> {
        const NAMED: usize = 8;
        let unfit: Vec<&str> = self
            .volumes
            .iter()
            .filter(|(_, entry)| entry.unfit.is_some())
            .map(|(key, _)| key.as_str())
            .collect();
        let volumes = (!unfit.is_empty()).then(|| {
            let named = unfit[..unfit.len().min(NAMED)].join(", ");
            let more = if unfit.len() > NAMED { ", …" } else { "" };
            format!(
                "{} of its volumes can't be used ({named}{more}); the condition of each says why",
                unfit.len()
            )
        });
        let labels = self.unread.then(|| "its labels are damaged: label it again".to_owned());
        let all: Vec<String> = [self.trouble(), volumes, labels].into_iter().flatten().collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// What users of its volumes should know, in words.
    fn trouble(&self) -> Option<String> {
        if let Some(gone) = &self.gone {
            return Some(format!(
                "drive {} is about to be lost: {gone}. What it holds can be read as long as Orlop runs: copy it elsewhere",
                self.id
            ));
        }
        let error = self.failing.as_ref()?;
        Some(format!(
            "drive {} fails ({error}); check {} and its cable. It is tried again every few minutes; restart Orlop if it \
             is well and is not used",
            self.id,
            self.device.display()
        ))
    }

    /// None for a volume.
    pub(crate) fn snapshot(&self, entry: &Entry) -> Option<Snapshot> {
        let Some(Origin::Volume(source)) = &entry.record.origin else { return None };
        Some(Snapshot {
            id: VolumeId { drive: self.id.clone(), key: entry.record.key.clone() },
            name: entry.record.name.clone(),
            source: source.clone(),
            access: entry.record.access,
            restore_size: entry.record.restore_size?,
            size: entry.record.size,
            created: entry.record.created,
            group: entry.record.group.as_ref().map(|group| group.id.clone()),
        })
    }
}

impl State {
    pub(crate) fn serving(&self) -> impl Iterator<Item = &Serving> {
        self.slots.iter().filter_map(|slot| match &slot.found {
            Found::Serving(serving) => Some(serving),
            Found::Failed { .. } => None,
        })
    }

    pub(crate) fn serving_mut(&mut self) -> impl Iterator<Item = &mut Serving> {
        self.slots.iter_mut().filter_map(|slot| match &mut slot.found {
            Found::Serving(serving) => Some(serving),
            Found::Failed { .. } => None,
        })
    }

    pub(crate) fn slot_mut(&mut self, source: &Source) -> Option<&mut Slot> {
        self.slots.iter_mut().find(|slot| slot.source.path() == source.path())
    }

    pub(crate) fn drive(&self, id: &DriveId) -> Option<&Serving> {
        self.serving().find(|serving| serving.id == *id)
    }

    pub(crate) fn drive_mut(&mut self, id: &DriveId) -> Option<&mut Serving> {
        self.serving_mut().find(|serving| serving.id == *id)
    }

    /// Remembers of a drive how a change on it went.
    pub(crate) fn changed(&mut self, id: &DriveId, outcome: &linux::Result<()>) {
        let Some(drive) = self.drive_mut(id) else { return };
        match outcome {
            Ok(()) => drive.failing = None,
            Err(error) if error.errno().is_some_and(|errno| OF_DEVICES.contains(&errno)) => {
                drive.failing = Some(error.to_string());
            }
            Err(_) => {}
        }
    }

    /// What was made from a source is made, or is not: the source is not read for it any more.
    pub(crate) fn let_source_go(&mut self, made: &VolumeRecord) {
        if let Some(origin) = &made.origin
            && let Some(source) = self.entry_mut(origin.id())
        {
            source.readers -= 1;
        }
    }

    /// Nothing is left of a volume, and its space is free.
    pub(crate) fn forget(&mut self, id: &VolumeId) {
        if let Some(drive) = self.drive_mut(&id.drive) {
            drive.volumes.remove(&id.key);
        }
    }

    /// Whether the device of a drive failed when something was last changed on it.
    pub(crate) fn is_failing(&self, id: &DriveId) -> bool {
        self.drive(id).is_some_and(|drive| drive.failing.is_some())
    }

    /// Whether the drive is on this machine, if only as a failed one.
    pub(crate) fn knows(&self, id: &DriveId) -> bool {
        self.slots.iter().any(|slot| match &slot.found {
            Found::Serving(serving) => serving.id == *id,
            Found::Failed { id: failed, .. } => failed.as_ref() == Some(id),
        })
    }

    /// Why a drive can't be asked, for messages.
    pub(crate) fn why_not(&self, id: &DriveId) -> String {
        self.slots
            .iter()
            .find_map(|slot| match &slot.found {
                Found::Failed { id: Some(failed), reason, .. } if failed == id => Some(reason.clone()),
                _ => None,
            })
            .unwrap_or_else(|| "it is not on this machine".to_owned())
    }

    pub(crate) fn entry(&self, id: &VolumeId) -> Option<(&Serving, &Entry)> {
        let serving = self.drive(&id.drive)?;
        Some((serving, serving.volumes.get(&id.key)?))
    }

    pub(crate) fn entry_mut(&mut self, id: &VolumeId) -> Option<&mut Entry> {
        self.drive_mut(&id.drive)?.volumes.get_mut(&id.key)
    }

    /// The volumes, live or not, that have this key on their drives.
    pub(crate) fn of_key(&self, key: &str) -> Vec<VolumeId> {
        let is_volume = |entry: &&Entry| !entry.record.is_snapshot();
        self.serving()
            .filter(|serving| serving.volumes.get(key).filter(is_volume).is_some())
            .map(|serving| VolumeId { drive: serving.id.clone(), key: key.to_owned() })
            .collect()
    }

    /// A volume, live or not.
    pub(crate) fn volume(&self, id: &VolumeId) -> Option<(&Serving, &Entry)> {
        self.entry(id).filter(|(_, entry)| !entry.record.is_snapshot())
    }

    pub(crate) fn by_name(&self, name: &str) -> Option<(&Serving, &Entry)> {
        self.named(name, false)
    }

    pub(crate) fn snapshot_by_name(&self, name: &str) -> Option<(&Serving, &Entry)> {
        self.named(name, true)
    }

    fn named(&self, name: &str, snapshot: bool) -> Option<(&Serving, &Entry)> {
        let wanted = |entry: &&Entry| entry.record.name == name && entry.record.is_snapshot() == snapshot;
        self.serving().find_map(|serving| {
            // A plain name is its own key, mostly.
            let entry = serving.volumes.get(name).filter(wanted);
            let entry = entry.or_else(|| serving.volumes.values().find(wanted));
            Some((serving, entry?))
        })
    }

    /// The drive that can't be asked now and had a volume of that name when it was last seen.
    pub(crate) fn out_of_reach(&self, name: &str) -> Option<&DriveId> {
        self.out_of_reach.iter().find(|(_, names)| names.contains(name)).map(|(id, _)| id)
    }

    /// All drives, for a volume of this group.
    pub(crate) fn candidates(&self, request: &CreateVolume) -> Vec<Candidate> {
        let spread = request.spread.as_deref();
        let room = |slot: &Slot| match &slot.found {
            Found::Serving(serving) => serving.room(request.access, &request.parameters),
            Found::Failed { .. } => 0,
        };
        let taken = |slot: &Slot| match &slot.found {
            Found::Serving(serving) => {
                spread.is_some()
                    && serving.volumes.values().any(|entry| entry.record.spread.as_deref() == spread)
            }
            Found::Failed { .. } => false,
        };
        self.slots
            .iter()
            .map(|slot| (slot, taken(slot), room(slot), slot.drive()))
            .map(|(slot, taken, free, drive)| Candidate {
                taken,
                failing: matches!(&slot.found, Found::Serving(serving) if serving.failing.is_some()),
                labels: drive.labels,
                label: drive.id.as_ref().map_or_else(|| drive.source.to_string(), ToString::to_string),
                drive: drive.id,
                backend: drive.backend,
                free,
                failed: match drive.state {
                    DriveState::Ready => match &slot.found {
                        Found::Serving(serving) => serving.gone.as_deref().map(str::to_owned),
                        Found::Failed { .. } => None,
                    },
                    DriveState::Failed { reason } => Some(reason),
                },
            })
            .collect()
    }

    pub(crate) fn drives(&self) -> Vec<Drive> {
        self.slots.iter().map(|slot| slot.drive()).collect()
    }

    pub(crate) fn capacity(
        &self,
        backend: Option<BackendKind>,
        selector: &DriveSelector,
        parameters: &BTreeMap<String, String>,
    ) -> Capacity {
        let objection = |serving: &Serving| {
            if serving.failing.is_some() || serving.gone.is_some() {
                return Some("it is failing".to_owned());
            }
            let kind = serving.site.backend.kind();
            let other = backend.filter(|asked| *asked != kind);
            other
                .map(|asked| format!("its backend is {kind}, not {asked}"))
                .or_else(|| unable(Some(kind), parameters).map(str::to_owned))
                .or_else(|| selector.objection(&serving.labels))
        };
        let fitting = || self.serving().filter(|serving| objection(serving).is_none());
        let room = |access| fitting().map(|serving| serving.room(access, parameters)).max().unwrap_or(0);
        Capacity {
            available: fitting().map(Serving::free).sum(),
            largest_volume: room(AccessType::Mount),
            largest_block_volume: room(AccessType::Block),
            smallest_volume: SMALLEST,
            why_none: fitting().next().is_none().then(|| {
                let each = self.serving().filter_map(|serving| Some((&serving.id, objection(serving)?)));
                let each: Vec<_> = each.map(|(id, why)| format!("drive {id}: {why}")).take(TOLD).collect();
                match each.is_empty() {
                    true => "no drive of the node serves".to_owned(),
                    false => format!("no drive of the node suits ({})", each.join("; ")),
                }
            }),
        }
    }
}

impl Slot {
    fn drive(&self) -> Drive {
        match &self.found {
            Found::Serving(serving) => Drive {
                id: Some(serving.id.clone()),
                source: self.source.clone(),
                device: Some(serving.device.clone()),
                mount: Some(serving.site.layout.mount().to_owned()),
                backend: Some(serving.site.backend.kind()),
                state: DriveState::Ready,
                size: serving.size,
                capacity: serving.capacity(),
                allocated: serving.allocated(),
                free: serving.free(),
                volumes: serving.volumes.values().filter(|entry| !entry.record.is_snapshot()).count(),
                snapshots: serving.volumes.values().filter(|entry| entry.record.is_snapshot()).count(),
                labels: serving.labels.clone(),
                trouble: serving.condition(),
            },
            Found::Failed { id, backend, reason, .. } => Drive {
                id: id.clone(),
                source: self.source.clone(),
                device: None,
                mount: None,
                backend: *backend,
                state: DriveState::Failed { reason: reason.clone() },
                size: 0,
                capacity: 0,
                allocated: 0,
                free: 0,
                volumes: 0,
                snapshots: 0,
                labels: BTreeMap::new(),
                trouble: None,
            },
        }
    }
}
