//! Drives and the volumes on them: pure plans and their executor.
//!
//! A drive is a block device, or a file on a loop device, with a file system of ours, mounted at `<root>/<drive id>`.
//! The drive is the truth: what volumes there are, their names and sizes, is recorded on the drive itself, before it is
//! told to anyone. This crate knows nothing of Kubernetes.

mod allocate;
mod backend;
mod backing;
mod block;
mod change;
mod claim;
mod content;
mod directpv;
mod drive;
mod drives;
mod error;
mod execute;
mod expected;
mod failing;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod faults;
mod flush;
#[cfg(test)]
mod fuzz;
mod group;
mod idle;
mod initialise;
mod inventory;
mod label;
mod layout;
mod mount_flags;
mod open;
mod plan;
mod record;
mod reservation;
mod show;
mod snapshot;
mod staging;
mod state;
mod stock;
mod target;
mod throttle;
mod volume;
mod waiting;
mod work;

pub use allocate::{ACCESS_TIER, DriveSelector};
/// The parameter of a volume that names its file system, on backends where each has its own: `ext4`, `xfs` or `btrfs`.
pub const FILESYSTEM: &str = "filesystem";

/// The parameter of a volume that lets its drive promise more than it has: how many times, such as `1.5`. Only drives
/// whose volumes take their space from a pool as they are written can.
pub const OVERCOMMIT: &str = "overcommit";

pub use drive::{BackendKind, Capacity, Drive, DriveId, DriveState, Force, Source, UnknownBackend};
pub use drives::Drives;
pub use error::{
    CreateError, DeleteError, Excluded, ExpandError, InitialiseError, MountError, OpenError, SnapshotError,
    SourceError, StatsError,
};
pub use mount_flags::{MountFlags, UnsupportedFlag};
pub use target::Confines;
pub use throttle::Throttle;
pub use volume::{
    AccessType, CreateVolume, GroupSnapshot, Inodes, InvalidVolumeId, Origin, Snapshot, SnapshotId, Stats,
    Volume, VolumeId,
};
pub use work::{DEADLINE, Interrupted};
