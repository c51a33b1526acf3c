//! What can go wrong, one enum per thing asked for. Messages say what was refused, why, and what to do.

use std::path::PathBuf;

use values::Bytes;

use crate::{
    AccessType, BackendKind, DriveId, Interrupted, Snapshot, Source, UnsupportedFlag, Volume, VolumeId,
};

/// Drives that could not be opened at all. (A single drive that can't serve is a failed drive, not an error.)
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory to mount drives in can't be made.
    #[error("cannot use {root} for mounting drives: {source}; choose a writable directory")]
    Root {
        /// The directory.
        root: PathBuf,
        /// The kernel's word.
        source: linux::Error,
    },
    /// One source, listed twice.
    #[error("{0} is listed twice; list each drive once")]
    Repeated(Source),
    /// The blocking work was dropped or panicked.
    #[error("opening the drives was interrupted: {0}; try again")]
    Interrupted(String),
}

/// A device that is not made a drive.
#[derive(Debug, thiserror::Error)]
pub enum InitialiseError {
    /// Nothing there, or no block device.
    #[error("{source_path} can't be used: {error}; name an existing block device")]
    NoDevice {
        /// The device named.
        source_path: Source,
        /// The kernel's word.
        error: linux::Error,
    },
    /// Mounted.
    #[error("{device} is mounted at {at}; unmount it first")]
    Mounted {
        /// The device.
        device: PathBuf,
        /// Where.
        at: PathBuf,
    },
    /// Partitioned.
    #[error("{device} has partitions ({partitions}); name a partition, or remove them first")]
    Partitioned {
        /// The device.
        device: PathBuf,
        /// Their names.
        partitions: String,
    },
    /// Part of something bigger.
    #[error("{device} is held by {holders}; take it out of there first")]
    Held {
        /// The device.
        device: PathBuf,
        /// Names of the holders.
        holders: String,
    },
    /// Swapped to.
    #[error("{0} is swap space; run swapoff first")]
    Swap(PathBuf),
    /// Read-only.
    #[error("{0} is read-only; a drive must be writable")]
    ReadOnly(PathBuf),
    /// Too small.
    #[error("{device} has {}; a drive needs at least {}", Bytes(*size), Bytes(*smallest))]
    TooSmall {
        /// The device.
        device: PathBuf,
        /// Its size.
        size: u64,
        /// The smallest size.
        smallest: u64,
    },
    /// Carries something.
    #[error("{device} carries {signature}; to give that up, ask for it explicitly (force)")]
    Carries {
        /// The device.
        device: PathBuf,
        /// What.
        signature: linux::Signature,
    },
    /// Is a drive of ours already.
    #[error("{device} is the drive {id} already; it is opened, not formatted")]
    AlreadyDrive {
        /// The device.
        device: PathBuf,
        /// Its identity.
        id: DriveId,
    },
    /// Is a drive of ours, and can't be read.
    #[error(
        "{device} is the drive {id}, or was to become one, and can't be read: {error}; check it, or give up what it holds explicitly (force)"
    )]
    Unreadable {
        /// The device.
        device: PathBuf,
        /// Its identity.
        id: DriveId,
        /// The kernel's word.
        error: linux::Error,
    },
    /// The source's drive is missing.
    #[error(
        "{source_path} held the drive {id}, which is gone; bring it back, or forget the drive {id} before making a new one here"
    )]
    Missing {
        /// The device or file.
        source_path: Source,
        /// What was there.
        id: DriveId,
    },
    /// In exclusive use.
    #[error("{device} is in use: {error}; find its user with lsof or lsblk")]
    InUse {
        /// The device.
        device: PathBuf,
        /// The kernel's word.
        error: linux::Error,
    },
    /// Another process's drive.
    #[error("{source_path} can't become a drive here: {reason}")]
    Taken {
        /// The device or file.
        source_path: Source,
        /// Who has it, and what to do.
        reason: String,
    },
    /// Not the same device any more.
    #[error("{0} changed while it was looked at; look again and retry")]
    Changed(PathBuf),
    /// The backend can't serve here.
    #[error("backend {backend} can't serve here: {reason}")]
    Backend {
        /// Which.
        backend: BackendKind,
        /// Why.
        reason: String,
    },
    /// No backend can serve here.
    #[error("no backend can serve here: {0}")]
    NoBackend(String),
    /// Formatting or mounting failed.
    #[error(
        "making a drive of {source_path} failed: {error}; put that right and try again (with force, where formatting had begun)"
    )]
    Failed {
        /// The device or file.
        source_path: Source,
        /// The cause.
        error: linux::Error,
    },
    /// The blocking work was dropped or panicked.
    #[error("interrupted: {0}; try again")]
    Interrupted(String),
}

/// Why a drive was passed over for a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excluded {
    /// The drive, or the source of a failed one.
    pub drive: String,
    /// Why.
    pub why: String,
}

/// A volume that was not made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The name is taken by another volume.
    #[error("volume {} exists with {} and other properties than asked for now: {why}", existing.name, Bytes(existing.size))]
    Incompatible {
        /// The volume that has the name.
        existing: Box<Volume>,
        /// What differs.
        why: String,
    },
    /// No drive suits and has room.
    #[error(
        "no drive has room for {}: the largest free space on one drive is {}{}{}; ask for less, delete volumes or add a drive",
        Bytes(*asked).beside(Bytes(*largest_free)),
        Bytes(*largest_free).beside(Bytes(*asked)),
        largest_drive.as_ref().map(|drive| format!(" on {drive}")).unwrap_or_default(),
        list(drives)
    )]
    NoSpace {
        /// Bytes asked for.
        asked: u64,
        /// Bytes that the emptiest drive has left.
        largest_free: u64,
        /// The emptiest drive.
        largest_drive: Option<String>,
        /// Each drive and why it was passed over.
        drives: Vec<Excluded>,
    },
    /// A drive that had a volume of this name can't be asked; a second one must not come into being.
    #[error(
        "volume {name} is on drive {drive}, which can't serve: {reason}; once it is back the same call finds the volume, or forget the drive"
    )]
    OutOfReach {
        /// The volume.
        name: String,
        /// The drive.
        drive: DriveId,
        /// What is wrong with it.
        reason: String,
    },
    /// The volume of that name is there, and can't be used.
    #[error("volume {id} is there already and can't be used: {reason}")]
    Unfit {
        /// The volume.
        id: VolumeId,
        /// Why, and what to do.
        reason: String,
    },
    /// The sizes make no sense.
    #[error("{0}")]
    OutOfRange(String),
    /// The name, or the source's backend, makes no sense.
    #[error("{0}")]
    Refused(String),
    /// What it should be filled with can't be had.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The kernel does not tell whether the source is in use.
    #[error(transparent)]
    Host(linux::Error),
    /// Another call for this volume is under way.
    #[error("volume {0} is being made or deleted; try again in a moment")]
    Busy(String),
    /// The drive refused.
    #[error("drive {drive} could not make volume {name}: {error}; it is retried from where it stopped")]
    Drive {
        /// Which.
        drive: DriveId,
        /// The volume.
        name: String,
        /// The cause.
        error: linux::Error,
    },
    /// The drive did not answer in time, or the work broke off.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

fn list(drives: &[Excluded]) -> String {
    if drives.is_empty() {
        return " (there is no drive)".to_owned();
    }
    let each: Vec<String> =
        drives.iter().map(|excluded| format!("{}: {}", excluded.drive, excluded.why)).collect();
    format!(" ({})", each.join("; "))
}

/// A volume or snapshot that nothing can be made from.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// There is none.
    #[error("the source {0} does not exist on this machine")]
    NotFound(VolumeId),
    /// Being made, grown or deleted.
    #[error("the source {0} is being changed; try again in a moment")]
    Busy(VolumeId),
    /// Its drive can't serve now.
    #[error("the source {id} can't be read: {reason}")]
    NoDrive {
        /// The volume or snapshot.
        id: VolumeId,
        /// What is wrong.
        reason: String,
    },
    /// A block volume whose device somebody has.
    #[error(
        "nothing can be made from the block volume {id} while it is staged (as {device}), because its bytes change under the copy; stop its users first"
    )]
    InUse {
        /// The volume.
        id: VolumeId,
        /// Its device.
        device: PathBuf,
    },
    /// Its own file system can't.
    #[error(
        "nothing can be made from {id}: copies of its own btrfs would be taken for it; use ext4 or xfs in it"
    )]
    OwnBtrfs {
        /// The volume.
        id: VolumeId,
    },
    /// Its backend can't.
    #[error(
        "nothing can be made from {id}: its backend {backend} has no snapshots and clones; use xfs, btrfs or lvm-thin"
    )]
    Unserved {
        /// The volume.
        id: VolumeId,
        /// Its backend.
        backend: BackendKind,
    },
}

/// A snapshot that was not taken.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The name is taken by a snapshot of another volume.
    #[error("snapshot {} exists, and is of volume {}; choose another name", existing.name, existing.source)]
    Incompatible {
        /// The snapshot that has the name.
        existing: Box<Snapshot>,
    },
    /// The name is taken by a group snapshot of other volumes.
    #[error("group snapshot {name} exists, and is of the volumes {}; choose another name", sources.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))]
    IncompatibleGroup {
        /// The group's name.
        name: String,
        /// What it is of.
        sources: Vec<VolumeId>,
    },
    /// The volume can't be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A snapshot lies on its volume's drive, and takes as much as the volume holds.
    #[error(
        "a snapshot of volume {id} takes {}, and its drive has {} left; delete volumes or snapshots on that drive",
        Bytes(*needed).beside(Bytes(*free)),
        Bytes(*free).beside(Bytes(*needed))
    )]
    NoSpace {
        /// The volume.
        id: VolumeId,
        /// Bytes that the snapshot takes.
        needed: u64,
        /// What the drive has left.
        free: u64,
    },
    /// The copy came out larger than what the volume held.
    #[error(
        "a copy of volume {id} takes more than {}: it was written to just then (try again), or its files share data among themselves (reflinks), which a copy can't",
        Bytes(*size)
    )]
    Overflows {
        /// The volume.
        id: VolumeId,
        /// Bytes that were set aside.
        size: u64,
    },
    /// The name makes no sense.
    #[error("{0}")]
    Refused(String),
    /// Another call for this snapshot is under way.
    #[error("snapshot {0} is being taken or deleted; try again in a moment")]
    Busy(String),
    /// The drive refused.
    #[error("snapshot {name} of volume {id} could not be taken: {error}; it is taken anew at the next try")]
    Drive {
        /// The volume.
        id: VolumeId,
        /// The snapshot.
        name: String,
        /// The cause.
        error: linux::Error,
    },
    /// The drive did not answer in time, or the work broke off.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// A volume or snapshot that was not deleted.
#[derive(Debug, thiserror::Error)]
pub enum DeleteError {
    /// Staged or published.
    #[error("{id} is mounted at {at}; unpublish and unstage it first")]
    InUse {
        /// The volume.
        id: VolumeId,
        /// Where.
        at: PathBuf,
    },
    /// Its drive can't serve now.
    #[error("{id} can't be deleted: drive {drive} is not there or failed; bring the drive back")]
    NoDrive {
        /// The volume.
        id: VolumeId,
        /// Its drive.
        drive: DriveId,
    },
    /// Another call for it is under way.
    #[error("{0} is being changed; try again in a moment")]
    Busy(VolumeId),
    /// Something is being made from it.
    #[error("{0} is being copied to a new volume or snapshot; delete it when that is complete")]
    Copied(VolumeId),
    /// One of several that were taken together.
    #[error("{id} is one of the group snapshot {group}; delete that as a whole")]
    Member {
        /// The snapshot.
        id: VolumeId,
        /// Its group.
        group: VolumeId,
    },
    /// The drive refused.
    #[error("{id} could not be deleted: {error}; it is retried from where it stopped")]
    Drive {
        /// The volume.
        id: VolumeId,
        /// The cause.
        error: linux::Error,
    },
    /// The drive did not answer in time, or the work broke off.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// A volume that was not staged, published, unpublished or unstaged.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// No such volume.
    #[error("volume {0} does not exist on this machine")]
    NotFound(VolumeId),
    /// Its drive can't serve now.
    #[error("volume {id} can't be mounted: drive {drive} failed: {reason}")]
    NoDrive {
        /// The volume.
        id: VolumeId,
        /// Its drive.
        drive: DriveId,
        /// What is wrong with it.
        reason: String,
    },
    /// Being deleted or made.
    #[error("volume {0} is being changed; try again in a moment")]
    Busy(VolumeId),
    /// The volume shows something else.
    #[error("volume {id} is {is}, and {asked} is asked for; ask for it as it was made")]
    OtherAccess {
        /// The volume.
        id: VolumeId,
        /// What it is.
        is: AccessType,
        /// What it can't be.
        asked: AccessType,
    },
    /// A block volume is shown at this place still.
    #[error("block volume {id} is published at {at}; unpublish it there first")]
    Published {
        /// The volume.
        id: VolumeId,
        /// Where.
        at: PathBuf,
    },
    /// Somebody has the device of a block volume open.
    #[error(
        "{device}, the device of block volume {id}, is still open; end its user (find it with lsof or fuser)"
    )]
    Open {
        /// The volume.
        id: VolumeId,
        /// Its device.
        device: PathBuf,
    },
    /// Publish without stage.
    #[error("volume {id} is not staged at {staging}; stage it first")]
    NotStaged {
        /// The volume.
        id: VolumeId,
        /// Where it should be.
        staging: PathBuf,
    },
    /// Something else is mounted there.
    #[error("{at} is taken: {why}; unmount it first")]
    Taken {
        /// Where.
        at: PathBuf,
        /// By what.
        why: String,
    },
    /// An option that a volume can't have.
    #[error(transparent)]
    Flag(#[from] UnsupportedFlag),
    /// What is there is not empty, or of another kind.
    #[error("{at} can't show a volume: {by} is there; name a new or empty place")]
    Occupied {
        /// Where.
        at: PathBuf,
        /// What is there.
        by: linux::Obstacle,
    },
    /// No volume is shown there, whatever is there.
    #[error("{at} can't show a volume: {why}; name another place")]
    Place {
        /// Where.
        at: PathBuf,
        /// Whose place it is, or which places there are.
        why: String,
    },
    /// A path that nothing can be at.
    #[error("{path} can't be used: {why}")]
    Path {
        /// The path as it was given.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The kernel refused.
    #[error(transparent)]
    Host(#[from] linux::Error),
    /// The drive did not answer in time, or the work broke off.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// Use of a volume that could not be told.
#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    /// No such volume.
    #[error("volume {0} does not exist on this machine")]
    NotFound(VolumeId),
    /// The volume is not at that path.
    #[error("volume {id} is not mounted at {path}")]
    NotMounted {
        /// The volume.
        id: VolumeId,
        /// The path asked about.
        path: PathBuf,
    },
    /// Its drive can't serve now.
    #[error("drive {drive} failed: {reason}")]
    NoDrive {
        /// The drive.
        drive: DriveId,
        /// What is wrong with it.
        reason: String,
    },
    /// The kernel refused.
    #[error(transparent)]
    Host(#[from] linux::Error),
    /// The drive did not answer in time, or the work broke off.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// A volume that did not grow.
#[derive(Debug, thiserror::Error)]
pub enum ExpandError {
    /// No such volume.
    #[error("volume {0} does not exist on this machine")]
    NotFound(VolumeId),
    /// The drive has not that much left.
    #[error(
        "volume {id} can't grow to {}: its drive has {} left for it; ask for less or delete volumes on that drive",
        Bytes(*asked).beside(Bytes(*free)),
        Bytes(*free).beside(Bytes(*asked))
    )]
    NoSpace {
        /// The volume.
        id: VolumeId,
        /// Size asked for.
        asked: u64,
        /// What the drive has left.
        free: u64,
    },
    /// The sizes make no sense.
    #[error("{0}")]
    OutOfRange(String),
    /// Its drive can't serve now.
    #[error("drive {drive} failed: {reason}")]
    NoDrive {
        /// The drive.
        drive: DriveId,
        /// What is wrong with it.
        reason: String,
    },
    /// Another call for this volume is under way.
    #[error("volume {0} is being changed; try again in a moment")]
    Busy(VolumeId),
    /// The kernel refused.
    #[error(transparent)]
    Host(#[from] linux::Error),
    /// The drive did not answer in time, or the work broke off.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}
