//! What Orlop asks of the Linux kernel: mounts, quotas, loop devices, superblocks, durable files.
//!
//! The only crate with unsafe code; its types are safe to use. Everything blocks, so async callers go through
//! `spawn_blocking`. [`Host`] is the seam: [`Kernel`] is the running kernel, tests put a machine in memory behind it.

pub mod beneath;
mod block;
mod btrfs;
mod claim;
mod copy;
mod error;
mod files;
#[cfg(test)]
mod fuzz;
mod ioctl;
mod loops;
mod lvm;
mod mount_table;
mod mounts;
pub mod ownership;
mod program;
mod project_quota;
mod superblock;
mod targets;

pub use block::{BlockDevice, BlockDevices, DeviceNumber};
pub use btrfs::{Btrfs, SubvolumeId, SubvolumeQuota};
pub use claim::{Claim, Claimed, Claims};
pub use error::{Error, Result, in_words};
pub use files::{Files, Space, draft_of, is_draft};
pub use loops::{LoopDevice, LoopDevices};
pub use lvm::{COMING, LogicalVolume, LogicalVolumes, Making, VolumeGroup, logical_device};
pub use mount_table::{Mount, MountTable};
pub use mounts::{Attributes, BindSource, FilesystemMount, Mounts, Unmount};
pub use program::{Output, Programs, run_to_end};
pub use project_quota::{ProjectId, ProjectQuota, ProjectUsage};
pub use superblock::{Signature, filesystem_size, probe_superblock};
pub use targets::{Obstacle, Target, TargetKind, Targets};

/// One machine: its files, mounts, block devices, file-system features and programs. All calls block.
pub trait Host:
    Files
    + Mounts
    + Targets
    + Claims
    + BlockDevices
    + LoopDevices
    + Btrfs
    + ProjectQuota
    + LogicalVolumes
    + Programs
    + Send
    + Sync
    + 'static
{
}

impl<T> Host for T where
    T: Files
        + Mounts
        + Targets
        + Claims
        + BlockDevices
        + LoopDevices
        + Btrfs
        + ProjectQuota
        + LogicalVolumes
        + Programs
        + Send
        + Sync
        + 'static
{
}

/// The running kernel.
#[derive(Clone, Copy, Debug, Default)]
pub struct Kernel;
