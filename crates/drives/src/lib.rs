//! Drives and the volumes on them: pure plans and their executor.
//!
//! A drive is a block device, or a file on a loop device, with a file system of ours, mounted at `<root>/<drive id>`.
//! The drive is the truth: what volumes there are, their names and sizes, is recorded on the drive itself, before it is
//! told to anyone. This crate knows nothing of Kubernetes.

mod allocate;
mod backend;
mod block;
mod change;
mod content;
mod directpv;
mod drive;
mod drives;
mod error;
mod execute;
mod expected;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod fuzz;
mod group;
mod initialise;
mod inventory;
mod label;
mod layout;
mod mount_flags;
mod open;
mod plan;
mod record;
mod show;
mod snapshot;
mod staging;
mod state;
mod throttle;
mod volume;
mod work;

pub use allocate::{ACCESS_TIER, DriveSelector};
pub use drive::{BackendKind, Capacity, Drive, DriveId, DriveState, Force, Source, UnknownBackend};
pub use drives::Drives;
pub use error::{
    CreateError, DeleteError, Excluded, ExpandError, InitialiseError, MountError, OpenError, SnapshotError,
    SourceError, StatsError,
};
pub use mount_flags::{MountFlags, UnsupportedFlag};
pub use throttle::Throttle;
pub use volume::{
    AccessType, CreateVolume, GroupSnapshot, Inodes, InvalidVolumeId, Origin, Snapshot, SnapshotId, Stats,
    Volume, VolumeId,
};
