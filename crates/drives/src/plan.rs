//! Changes of a volume as lists of steps: pure functions of what is known. Each step may be repeated, and after a crash
//! between any two the records on the drive tell how to go on.

use std::path::PathBuf;

use crate::{
    FILESYSTEM, OVERCOMMIT,
    backend::{New, QuotaKey, Use},
    record::{FORMAT, Phase, VolumeRecord},
};

/// One step of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Write the record of a volume that is about to be made: power loss may take it only with all that follows.
    Intend(Box<VolumeRecord>),
    /// Write the volume's record, durably.
    Record(Box<VolumeRecord>),
    /// Make its directory.
    Create { key: String, new: New },
    /// Hold it to its size.
    Limit { key: String, bytes: u64 },
    /// Freeze what another volume holds now, for this one to be filled with.
    Freeze { from: String, key: String },
    /// Fill it with a copy; what it held before goes.
    Fill { key: String, from: Content },
    /// Remove what was frozen for it.
    Thaw { key: String },
    /// Set space aside for the bytes of a block volume.
    Allocate { key: String, bytes: u64 },
    /// Give back what was set aside beyond this.
    Cut { key: String, bytes: u64 },
    /// Show its size to those who have its device.
    Resize { key: String },
    /// Let nothing that follows survive power loss without its directory.
    Keep { key: String },
    /// Let nothing that follows survive power loss without all so far; what files hold is not meant.
    Commit,
    /// Make all so far survive power loss, with what files hold.
    Sync,
    /// Take its directory out of sight.
    SetAside { key: String },
    /// Remove that directory.
    Destroy { key: String },
    /// Wait for its space and remove its quota.
    Reclaim { quota: QuotaKey },
    /// Remove its record, durably.
    Forget { key: String },
}

impl Step {
    pub(crate) fn record(record: VolumeRecord) -> Self {
        Self::Record(Box::new(record))
    }
}

/// What a new volume is filled with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// What the volume of this key, on the same drive, holds when it is frozen.
    Volume { key: String },
    /// A directory that nobody writes, on any drive: a snapshot's, or that of a block volume that nobody has.
    Still { directory: PathBuf },
    /// The blocks of the volume or snapshot of this key, on the same drive, as they are at one moment.
    Blocks { key: String },
}

/// The limit under which so many bytes can be copied: a copy's own tree may be laid out larger than that of its source.
pub(crate) fn with_headroom(bytes: u64) -> u64 {
    bytes.saturating_add(bytes / 64).saturating_add(4 << 20)
}

/// What is found on the drive under a volume's key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Observed {
    /// The directory is there, counted by this.
    pub(crate) quota: Option<QuotaKey>,
    /// What the kernel limits it to.
    pub(crate) limit: Option<u64>,
    /// The bytes of a block volume that there are.
    pub(crate) bytes: Option<u64>,
}

/// Intent first; the announcement last, when all is durable.
pub(crate) fn create(record: &VolumeRecord, content: Option<&Content>) -> Vec<Step> {
    let key = || record.key.clone();
    let intended = VolumeRecord { phase: Phase::Creating, ..record.clone() };
    let mut steps = vec![Step::Intend(Box::new(intended))];
    if let Some(Content::Volume { key: from }) = content {
        steps.push(Step::Freeze { from: from.clone(), key: key() });
    }
    steps.push(Step::Create { key: key(), new: new(record, content) });
    if let Some(from @ (Content::Volume { .. } | Content::Still { .. })) = content {
        // Sharing inside the source is not kept by the copy: the limit bounds what that can cost.
        steps.push(Step::Limit { key: key(), bytes: with_headroom(record.size) });
        steps.push(Step::Fill { key: key(), from: from.clone() });
        steps.push(Step::Thaw { key: key() });
    }
    if !(record.is_snapshot() && matches!(content, Some(Content::Blocks { .. }))) {
        steps.extend(hold(record));
    }
    // To write what files hold takes as long as all that the drive's users have left to write. A lost limit is put back.
    let is_copied = matches!(content, Some(Content::Volume { .. } | Content::Still { .. }));
    steps.push(if is_copied { Step::Sync } else { Step::Keep { key: key() } });
    steps.push(Step::record(VolumeRecord { phase: Phase::Ready, ..record.clone() }));
    steps
}

fn new(record: &VolumeRecord, content: Option<&Content>) -> New {
    New {
        quota: record.quota,
        size: record.held(),
        use_as: match (record.is_snapshot(), record.is_block()) {
            (true, _) => Use::Kept,
            (false, true) => Use::Block,
            (false, false) => Use::Filesystem(record.parameters.get(FILESYSTEM).cloned()),
        },
        of: match content {
            Some(Content::Blocks { key }) => Some(key.clone()),
            _ => None,
        },
        overcommitted: record.parameters.contains_key(OVERCOMMIT),
    }
}

/// Holds a volume to its size; a block volume has it, too.
fn hold(record: &VolumeRecord) -> Vec<Step> {
    let mut steps = vec![Step::Limit { key: record.key.clone(), bytes: record.held() }];
    if record.is_in_file() {
        steps.push(Step::Allocate { key: record.key.clone(), bytes: record.size });
    }
    steps
}

/// The record goes last: until the space is free, the volume counts. What the kernel counts by is kept in the record,
/// because the directory that tells it goes first.
pub(crate) fn delete(record: &VolumeRecord, observed: Observed) -> Vec<Step> {
    let key = || record.key.clone();
    let quota = observed.quota.or(record.quota);
    let mut steps = vec![
        Step::record(VolumeRecord { phase: Phase::Deleting, quota, ..record.clone() }),
        Step::SetAside { key: key() },
        Step::Destroy { key: key() },
    ];
    steps.extend(quota.map(|quota| Step::Reclaim { quota }));
    if record.origin.is_some() {
        // One that was never finished.
        steps.push(Step::Thaw { key: key() });
    }
    // Without this, power loss could bring the directory or its limit back when nobody remembers them.
    steps.push(Step::Commit);
    steps.push(Step::Forget { key: key() });
    steps
}

/// The record grows before the limit: capacity is never given out twice, and a lost limit is put back at start.
/// Who has a block volume's device sees it grow when all of it is durable.
pub(crate) fn expand(record: &VolumeRecord, size: u64) -> Vec<Step> {
    let record = VolumeRecord { format: FORMAT, size, ..record.clone() };
    let mut steps = vec![Step::record(record.clone())];
    steps.extend(hold(&record));
    steps.push(Step::Commit);
    steps.extend(resize(&record));
    steps
}

/// Lets those who have a block volume's device see its size.
pub(crate) fn resize(record: &VolumeRecord) -> Option<Step> {
    record.is_in_file().then(|| Step::Resize { key: record.key.clone() })
}

/// Takes a growth back that broke off before anybody saw it. The record shrinks last: until then the larger size counts,
/// and a restart completes it.
pub(crate) fn shrink_back(record: &VolumeRecord) -> Vec<Step> {
    let key = || record.key.clone();
    let mut steps = Vec::new();
    if record.is_in_file() {
        steps.push(Step::Cut { key: key(), bytes: record.size });
    }
    steps.push(Step::Limit { key: key(), bytes: record.held() });
    steps.push(Step::Commit);
    steps.push(Step::record(record.clone()));
    steps
}

/// What a restart has to do for a volume.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Recovery {
    /// Nothing.
    Sound,
    /// These steps first; then it is live.
    Repair(Vec<Step>),
    /// It was never announced, or was being deleted: these steps make it gone.
    Remove(Vec<Step>),
    /// It was announced, and its directory or the bytes in it are gone.
    Lost,
}

/// Decides from the record, and what is found beside it, how a volume goes on after a restart.
pub(crate) fn recover(record: &VolumeRecord, observed: Observed) -> Recovery {
    if record.phase != Phase::Ready {
        return Recovery::Remove(delete(record, observed));
    }
    let (limited, gone, whole) = match observed {
        Observed { quota: None, .. } => return Recovery::Lost,
        Observed { limit, bytes, .. } => (
            limit == Some(record.held()),
            record.is_in_file() && bytes.is_none(),
            !record.is_in_file() || bytes >= Some(record.size),
        ),
    };
    match (limited && whole, gone) {
        (_, true) => Recovery::Lost,
        (true, false) => Recovery::Sound,
        (false, false) => {
            let mut steps = hold(record);
            steps.push(Step::Commit);
            steps.extend(resize(record));
            Recovery::Repair(steps)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::AccessType;

    #[test]
    fn a_restart_keeps_what_was_announced_and_removes_what_was_not() {
        let record = |phase| VolumeRecord {
            phase,
            created: jiff::Timestamp::UNIX_EPOCH,
            quota: None,
            ..VolumeRecord::intended("pvc-1".to_owned(), "pvc-1", 4096)
        };
        let found = |limit| Observed { quota: Some(QuotaKey::Subvolume(256)), limit, bytes: None };
        let ready = record(Phase::Ready);
        assert_eq!(recover(&ready, found(Some(4096))), Recovery::Sound);
        assert_eq!(recover(&ready, Observed::default()), Recovery::Lost);
        let limit = vec![Step::Limit { key: "pvc-1".to_owned(), bytes: 4096 }, Step::Commit];
        for lost in [None, Some(2048), Some(8192)] {
            assert_eq!(recover(&ready, found(lost)), Recovery::Repair(limit.clone()));
        }
        let block = VolumeRecord { access: AccessType::Block, ..ready };
        let bytes = |limit, bytes| Observed { bytes, ..found(limit) };
        let held = Some(block.held());
        assert_eq!(recover(&block, bytes(held, Some(4096))), Recovery::Sound);
        assert_eq!(recover(&block, bytes(held, None)), Recovery::Lost);
        let key = || "pvc-1".to_owned();
        let whole = vec![
            Step::Limit { key: key(), bytes: block.held() },
            Step::Allocate { key: key(), bytes: 4096 },
            Step::Commit,
            Step::Resize { key: key() },
        ];
        for seen in [bytes(held, Some(2048)), bytes(None, Some(4096)), bytes(Some(4096), Some(4096))] {
            assert_eq!(recover(&block, seen), Recovery::Repair(whole.clone()));
        }
        for phase in [Phase::Creating, Phase::Deleting] {
            for seen in [Observed::default(), found(None), found(Some(4096))] {
                assert_eq!(recover(&record(phase), seen), Recovery::Remove(delete(&record(phase), seen)));
            }
        }
    }

    #[test]
    fn what_is_counted_by_outlives_the_directory_in_the_record() {
        let record = VolumeRecord {
            phase: Phase::Deleting,
            created: jiff::Timestamp::UNIX_EPOCH,
            quota: Some(QuotaKey::Subvolume(256)),
            ..VolumeRecord::intended("pvc-1".to_owned(), "pvc-1", 4096)
        };
        let steps = delete(&record, Observed::default());
        assert!(steps.contains(&Step::Reclaim { quota: QuotaKey::Subvolume(256) }), "{steps:?}");
        assert_eq!(steps.last(), Some(&Step::Forget { key: "pvc-1".to_owned() }));
    }
}
