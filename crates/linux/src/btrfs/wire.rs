//! The kernel's structures and numbers for btrfs, as far as they are needed.

use std::{
    ffi::OsStr,
    os::{
        fd::{AsRawFd, BorrowedFd},
        unix::ffi::OsStrExt,
    },
};

use rustix::io::Errno;

use crate::SubvolumeId;

/// How often subvolumes may appear inside one that is being deleted.
pub(super) const NESTING: usize = 16;
/// Inode number of every subvolume's root.
pub(super) const FIRST_INODE: u64 = 256;
pub(super) const NO_LIMIT: u64 = u64::MAX;
pub(super) const LIMIT_REFERENCED: u64 = 1;
pub(super) const ENABLE_SIMPLE_QUOTA: u64 = 4;
pub(super) const ROOT_TREE: u64 = 1;
pub(super) const QUOTA_TREE: u64 = 8;
pub(super) const ROOT_ITEM: u32 = 132;
pub(super) const QUOTA_RELATION: u32 = 246;
/// The group `1/<subvolume>`.
pub(super) fn volume_group(id: SubvolumeId) -> u64 {
    1 << 48 | id.0
}

/// `btrfs_ioctl_vol_args`.
#[repr(C)]
pub(super) struct VolumeArguments {
    pub(super) fd: i64,
    pub(super) name: [u8; 4088],
}
const _: () = assert!(size_of::<VolumeArguments>() == 4096);

impl VolumeArguments {
    pub(super) fn named(name: &OsStr) -> Result<Self, Errno> {
        let mut arguments = Self { fd: 0, name: [0; 4088] };
        let bytes = name.as_bytes();
        arguments.name.get_mut(..bytes.len()).ok_or(Errno::NAMETOOLONG)?.copy_from_slice(bytes);
        Ok(arguments)
    }
}

/// `btrfs_ioctl_vol_args_v2`.
#[repr(C)]
pub(super) struct SnapshotArguments {
    fd: i64,
    transaction: u64,
    flags: u64,
    unused: [u64; 4],
    name: [u8; 4040],
}
const _: () = assert!(size_of::<SnapshotArguments>() == 4096);

impl SnapshotArguments {
    /// Of this subvolume, under this name.
    pub(super) fn read_only(source: BorrowedFd<'_>, name: &OsStr) -> Result<Self, Errno> {
        const READ_ONLY: u64 = 2;
        let fd = source.as_raw_fd().into();
        let mut arguments = Self { fd, transaction: 0, flags: READ_ONLY, unused: [0; 4], name: [0; 4040] };
        let bytes = name.as_bytes();
        // The last byte stays 0.
        arguments.name[..4039].get_mut(..bytes.len()).ok_or(Errno::NAMETOOLONG)?.copy_from_slice(bytes);
        Ok(arguments)
    }
}

/// `btrfs_ioctl_ino_lookup_args`.
#[repr(C)]
pub(super) struct InodeLookup {
    pub(super) tree: u64,
    pub(super) object: u64,
    pub(super) name: [u8; 4080],
}
const _: () = assert!(size_of::<InodeLookup>() == 4096);

/// `btrfs_ioctl_quota_ctl_args`.
#[repr(C)]
pub(super) struct QuotaControl {
    pub(super) command: u64,
    pub(super) status: u64,
}
const _: () = assert!(size_of::<QuotaControl>() == 16);

/// `btrfs_ioctl_qgroup_create_args`.
#[repr(C)]
pub(super) struct QuotaGroupCreate {
    pub(super) create: u64,
    pub(super) group: u64,
}
const _: () = assert!(size_of::<QuotaGroupCreate>() == 16);

/// `btrfs_ioctl_qgroup_assign_args`.
#[repr(C)]
pub(super) struct QuotaGroupAssign {
    pub(super) assign: u64,
    pub(super) member: u64,
    pub(super) group: u64,
}
const _: () = assert!(size_of::<QuotaGroupAssign>() == 24);

/// `btrfs_ioctl_qgroup_limit_args`.
#[repr(C)]
#[derive(Default)]
pub(super) struct QuotaGroupLimit {
    pub(super) group: u64,
    pub(super) flags: u64,
    pub(super) max_referenced: u64,
    pub(super) max_exclusive: u64,
    pub(super) reserved_referenced: u64,
    pub(super) reserved_exclusive: u64,
}
const _: () = assert!(size_of::<QuotaGroupLimit>() == 48);

/// `btrfs_ioctl_get_subvol_rootref_args`.
#[repr(C)]
pub(super) struct RootReferences {
    pub(super) from: u64,
    pub(super) found: [RootReference; 255],
    pub(super) count: u8,
    pub(super) align: [u8; 7],
}
const _: () = assert!(size_of::<RootReferences>() == 4096);

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct RootReference {
    pub(super) subvolume: u64,
    pub(super) directory: u64,
}

/// `btrfs_ioctl_fs_info_args`.
#[repr(C)]
pub(super) struct FilesystemInfo {
    pub(super) max_id: u64,
    pub(super) devices: u64,
    pub(super) uuid: [u8; 16],
    pub(super) rest: [u8; 992],
}
const _: () = assert!(size_of::<FilesystemInfo>() == 1024);

/// `btrfs_ioctl_search_args`: the key, and room for what is found.
#[repr(C)]
pub(super) struct TreeSearch {
    pub(super) tree: u64,
    pub(super) objects: [u64; 2],
    pub(super) offsets: [u64; 2],
    pub(super) transactions: [u64; 2],
    pub(super) kinds: [u32; 2],
    pub(super) items: u32,
    pub(super) unused: u32,
    pub(super) reserved: [u64; 4],
    pub(super) buffer: [u8; 3992],
}
const _: () = assert!(size_of::<TreeSearch>() == 4096);
