//! btrfs: subvolumes, and the quotas that limit them.
//!
//! A volume's subvolume `N` is a member of a quota group of its own, `1/N`, and the limit lies there: with simple
//! quotas, subvolumes and snapshots that a container makes inside its volume join the same group by themselves, so
//! that nothing escapes the limit.

mod trees;
mod wire;

use std::{
    ffi::OsStr,
    fs::Permissions,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use linux_raw_sys::ioctl::{
    BTRFS_IOC_FS_INFO, BTRFS_IOC_INO_LOOKUP, BTRFS_IOC_QGROUP_ASSIGN, BTRFS_IOC_QGROUP_CREATE,
    BTRFS_IOC_QGROUP_LIMIT, BTRFS_IOC_QUOTA_CTL, BTRFS_IOC_RESIZE, BTRFS_IOC_SNAP_CREATE_V2,
    BTRFS_IOC_SNAP_DESTROY, BTRFS_IOC_START_SYNC, BTRFS_IOC_SUBVOL_CREATE, BTRFS_IOC_WAIT_SYNC,
};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};

use trees::{members, subvolume_remains, subvolumes_inside};
use wire::{
    ENABLE_SIMPLE_QUOTA, FIRST_INODE, FilesystemInfo, InodeLookup, LIMIT_REFERENCED, NESTING, NO_LIMIT,
    QuotaControl, QuotaGroupAssign, QuotaGroupCreate, QuotaGroupLimit, SnapshotArguments, VolumeArguments,
    volume_group,
};

use crate::{Error, Kernel, Result, error::Context, ioctl};

/// The kernel's number of a subvolume; its quota group is `0/<number>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SubvolumeId(pub u64);

/// What a subvolume uses and may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SubvolumeQuota {
    /// Bytes it holds: data and the metadata of its own tree.
    pub used: u64,
    /// Bytes it may hold; `None` is no limit.
    pub limit: Option<u64>,
}

/// Subvolumes and their quotas. `mount` is any directory of the file system.
pub trait Btrfs {
    /// Creates the empty subvolume `path` with this mode.
    ///
    /// # Errors
    /// `AlreadyExists` among others.
    fn create_subvolume(&self, path: &Path, mode: u32) -> Result<SubvolumeId>;

    /// Makes the read-only subvolume `to` of what the subvolume `source` holds at this moment, written or only cached.
    /// Subvolumes inside it are left out. What the two share counts for `source`, even what it overwrites later.
    ///
    /// # Errors
    /// `AlreadyExists` among others.
    fn freeze_subvolume(&self, source: &Path, to: &Path) -> Result<SubvolumeId>;

    /// Deletes the subvolume `path` with all in it; the kernel gives its space back in the background (see
    /// [`wait_for_cleaning`](Self::wait_for_cleaning)). `None` when there was none.
    ///
    /// # Errors
    /// When it holds another subvolume, or is no subvolume.
    fn delete_subvolume(&self, path: &Path) -> Result<Option<SubvolumeId>>;

    /// The number of the subvolume that `path` is the root of.
    ///
    /// # Errors
    /// When it is no subvolume's root.
    fn subvolume_id(&self, path: &Path) -> Result<SubvolumeId>;

    /// Makes all changes so far of the file system's tree durable, with small files that were written out. What other
    /// files hold is not waited for.
    ///
    /// # Errors
    /// When the drive refuses.
    fn commit_transaction(&self, mount: &Path) -> Result<()>;

    /// Waits until the space of a deleted subvolume is free; the kernel begins with that when the deletion is committed.
    ///
    /// # Errors
    /// When the kernel can't wait for it.
    fn wait_for_cleaning(&self, mount: &Path, id: SubvolumeId) -> Result<()>;

    /// Turns simple quotas on, if they are not: each extent counts for the subvolume that wrote it. Only they can bind
    /// subvolumes that a user makes inside a volume to the volume's limit.
    ///
    /// # Errors
    /// When the kernel has none (before Linux 6.7), or the file system counts in the older way.
    fn enable_simple_quota(&self, mount: &Path) -> Result<()>;

    /// Limits what a subvolume, with all that is made inside it, may hold; `None` lifts the limit.
    ///
    /// # Errors
    /// When quotas are off.
    fn limit_subvolume(&self, mount: &Path, id: SubvolumeId, limit: Option<u64>) -> Result<()>;

    /// What a subvolume uses and may use; `None` when the kernel has no quota group for it.
    ///
    /// # Errors
    /// When quotas are off.
    fn subvolume_quota(&self, mount: &Path, id: SubvolumeId) -> Result<Option<SubvolumeQuota>>;

    /// Removes the quota groups of a deleted subvolume and of what was made inside it, if they are still there.
    ///
    /// # Errors
    /// `EBUSY` while the subvolume is not cleaned up, or that is not committed.
    fn remove_subvolume_quota(&self, mount: &Path, id: SubvolumeId) -> Result<()>;

    /// Grows the file system to the size of its device.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn grow_btrfs(&self, mount: &Path) -> Result<()>;
}

impl Btrfs for Kernel {
    fn create_subvolume(&self, path: &Path, mode: u32) -> Result<SubvolumeId> {
        let (parent, mut arguments) = in_parent(path)?;
        // SAFETY: BTRFS_IOC_SUBVOL_CREATE reads a btrfs_ioctl_vol_args.
        unsafe { ioctl::with::<BTRFS_IOC_SUBVOL_CREATE, _>(parent.as_fd(), &mut arguments) }
            .context("create subvolume", path.display())?;
        std::fs::set_permissions(path, Permissions::from_mode(mode))
            .context("set the mode of", path.display())?;
        self.subvolume_id(path)
    }

    fn freeze_subvolume(&self, source: &Path, to: &Path) -> Result<SubvolumeId> {
        let frozen = open(source)?;
        let (Some(parent), Some(name)) = (to.parent(), to.file_name()) else {
            return Err(Error::new("use subvolume", to.display(), Errno::INVAL));
        };
        let parent = open(parent)?;
        let mut arguments =
            SnapshotArguments::read_only(frozen.as_fd(), name).context("use subvolume", to.display())?;
        // SAFETY: BTRFS_IOC_SNAP_CREATE_V2 reads a btrfs_ioctl_vol_args_v2; the descriptor in it is open.
        unsafe { ioctl::with::<BTRFS_IOC_SNAP_CREATE_V2, _>(parent.as_fd(), &mut arguments) }
            .context("freeze subvolume", source.display())?;
        self.subvolume_id(to)
    }

    fn delete_subvolume(&self, path: &Path) -> Result<Option<SubvolumeId>> {
        match path.symlink_metadata() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.context("look at", path.display())?,
        };
        let id = self.subvolume_id(path)?;
        // What was made inside goes first, innermost first: the kernel deletes no subvolume that holds another.
        for _ in 0..NESTING {
            let inside = subvolumes_inside(path, id)?;
            if inside.is_empty() {
                destroy(path)?;
                return Ok(Some(id));
            }
            for inner in inside {
                self.delete_subvolume(&inner)?;
            }
        }
        Err(Error::because("delete subvolume", path.display(), "subvolumes keep appearing inside it"))
    }

    fn subvolume_id(&self, path: &Path) -> Result<SubvolumeId> {
        let directory = open(path)?;
        let inode = rustix::fs::fstat(&directory).context("look at", path.display())?.st_ino;
        if inode != FIRST_INODE {
            return Err(Error::because(
                "identify subvolume",
                path.display(),
                "it is not the root of a subvolume",
            ));
        }
        let mut lookup = InodeLookup { tree: 0, object: FIRST_INODE, name: [0; 4080] };
        // SAFETY: BTRFS_IOC_INO_LOOKUP reads and fills a btrfs_ioctl_ino_lookup_args.
        unsafe { ioctl::with::<BTRFS_IOC_INO_LOOKUP, _>(directory.as_fd(), &mut lookup) }
            .context("identify subvolume", path.display())?;
        Ok(SubvolumeId(lookup.tree))
    }

    fn commit_transaction(&self, mount: &Path) -> Result<()> {
        let directory = open(mount)?;
        let mut transaction = 0_u64;
        // SAFETY: BTRFS_IOC_START_SYNC writes a u64, the number of the transaction.
        unsafe { ioctl::with::<BTRFS_IOC_START_SYNC, _>(directory.as_fd(), &mut transaction) }
            .context("commit", mount.display())?;
        // SAFETY: BTRFS_IOC_WAIT_SYNC reads a u64, the same number.
        unsafe { ioctl::with::<BTRFS_IOC_WAIT_SYNC, _>(directory.as_fd(), &mut transaction) }
            .context("commit", mount.display())
    }

    fn wait_for_cleaning(&self, mount: &Path, id: SubvolumeId) -> Result<()> {
        let directory = open(mount)?;
        // There is no event for its end: the kernel's own waiting call (Linux 6.13) looks once per second.
        let mut pause = Duration::from_millis(1);
        while subvolume_remains(directory.as_fd(), id).context("look for subvolumes of", mount.display())? {
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(8));
        }
        Ok(())
    }

    fn enable_simple_quota(&self, mount: &Path) -> Result<()> {
        let groups = quota_directory(mount)?;
        match std::fs::read_to_string(groups.join("mode")) {
            Ok(mode) if mode.trim() == "squota" => return Ok(()),
            Ok(mode) => {
                let why =
                    format!("its quota mode is {}, which lets subvolumes escape their limit", mode.trim());
                return Err(Error::because("enable simple quotas on", mount.display(), why));
            }
            Err(_) => {}
        }
        let directory = open(mount)?;
        let mut control = QuotaControl { command: ENABLE_SIMPLE_QUOTA, status: 0 };
        // SAFETY: BTRFS_IOC_QUOTA_CTL reads and fills a btrfs_ioctl_quota_ctl_args.
        match unsafe { ioctl::with::<BTRFS_IOC_QUOTA_CTL, _>(directory.as_fd(), &mut control) } {
            Ok(()) => Ok(()),
            Err(Errno::INVAL) => Err(Error::because(
                "enable simple quotas on",
                mount.display(),
                "this kernel has none; they came with Linux 6.7",
            )),
            Err(error) => Err(error).context("enable simple quotas on", mount.display()),
        }
    }

    fn limit_subvolume(&self, mount: &Path, id: SubvolumeId, limit: Option<u64>) -> Result<()> {
        let directory = open(mount)?;
        let object = || format!("subvolume {} of {}", id.0, mount.display());
        let mut create = QuotaGroupCreate { create: 1, group: volume_group(id) };
        // SAFETY: BTRFS_IOC_QGROUP_CREATE reads a btrfs_ioctl_qgroup_create_args.
        match unsafe { ioctl::with::<BTRFS_IOC_QGROUP_CREATE, _>(directory.as_fd(), &mut create) } {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error).context("make a quota group for", object()),
        }
        // The limit comes before the member, so that no write is ever counted without it.
        let mut request = QuotaGroupLimit {
            group: volume_group(id),
            flags: LIMIT_REFERENCED,
            max_referenced: limit.unwrap_or(NO_LIMIT),
            ..Default::default()
        };
        // SAFETY: BTRFS_IOC_QGROUP_LIMIT reads a btrfs_ioctl_qgroup_limit_args.
        unsafe { ioctl::with::<BTRFS_IOC_QGROUP_LIMIT, _>(directory.as_fd(), &mut request) }
            .context("limit", object())?;
        let mut assign = QuotaGroupAssign { assign: 1, member: id.0, group: volume_group(id) };
        // SAFETY: BTRFS_IOC_QGROUP_ASSIGN reads a btrfs_ioctl_qgroup_assign_args.
        match unsafe { ioctl::with::<BTRFS_IOC_QGROUP_ASSIGN, _>(directory.as_fd(), &mut assign) } {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(error).context("put under its limit", object()),
        }
    }

    fn subvolume_quota(&self, mount: &Path, id: SubvolumeId) -> Result<Option<SubvolumeQuota>> {
        let group = quota_directory(mount)?.join(format!("1_{}", id.0));
        let value = |name: &str| match std::fs::read_to_string(group.join(name)) {
            Ok(text) => text
                .trim()
                .parse::<u64>()
                .map(Some)
                .map_err(|error| Error::because("read", group.join(name).display(), error.to_string())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).context("read", group.join(name).display()),
        };
        // What is reserved for writes under way counts against the limit too.
        let (Some(referenced), Some(reserved), Some(flags), Some(limit)) =
            (value("referenced")?, value("rsv_data")?, value("limit_flags")?, value("max_referenced")?)
        else {
            return Ok(None);
        };
        let limited = flags & LIMIT_REFERENCED != 0 && limit != NO_LIMIT;
        Ok(Some(SubvolumeQuota {
            used: referenced.saturating_add(reserved),
            limit: limited.then_some(limit),
        }))
    }

    fn remove_subvolume_quota(&self, mount: &Path, id: SubvolumeId) -> Result<()> {
        let directory = open(mount)?;
        let object = || format!("subvolume {} of {}", id.0, mount.display());
        let mut groups = members(directory.as_fd(), volume_group(id))
            .context("list the members of the quota group of", object())?;
        groups.extend([id.0, volume_group(id)]);
        for group in groups {
            remove_group(directory.as_fd(), group).context("remove the quota group of", object())?;
        }
        Ok(())
    }

    fn grow_btrfs(&self, mount: &Path) -> Result<()> {
        let directory = open(mount)?;
        let mut arguments = VolumeArguments::named(OsStr::new("max")).context("grow", mount.display())?;
        // SAFETY: BTRFS_IOC_RESIZE reads a btrfs_ioctl_vol_args.
        unsafe { ioctl::with::<BTRFS_IOC_RESIZE, _>(directory.as_fd(), &mut arguments) }
            .context("grow", mount.display())
    }
}

fn open(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).context("open", path.display())
}

fn in_parent(path: &Path) -> Result<(OwnedFd, VolumeArguments)> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::new("use subvolume", path.display(), Errno::INVAL));
    };
    Ok((open(parent)?, VolumeArguments::named(name).context("use subvolume", path.display())?))
}

fn destroy(path: &Path) -> Result<()> {
    let (parent, mut arguments) = in_parent(path)?;
    // SAFETY: BTRFS_IOC_SNAP_DESTROY reads a btrfs_ioctl_vol_args.
    match unsafe { ioctl::with::<BTRFS_IOC_SNAP_DESTROY, _>(parent.as_fd(), &mut arguments) } {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error).context("delete subvolume", path.display()),
    }
}

/// Removes a quota group. What it counted is taken off with a commit.
fn remove_group(fd: BorrowedFd<'_>, group: u64) -> Result<(), Errno> {
    let mut remove = QuotaGroupCreate { create: 0, group };
    // SAFETY: BTRFS_IOC_QGROUP_CREATE reads a btrfs_ioctl_qgroup_create_args.
    match unsafe { ioctl::with::<BTRFS_IOC_QGROUP_CREATE, _>(fd, &mut remove) } {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Where sysfs shows the quota groups of a file system: the numbers as they are now, not as last committed.
fn quota_directory(mount: &Path) -> Result<PathBuf> {
    let directory = open(mount)?;
    let mut info = Box::new(FilesystemInfo { max_id: 0, devices: 0, uuid: [0; 16], rest: [0; 992] });
    // SAFETY: BTRFS_IOC_FS_INFO reads and fills a btrfs_ioctl_fs_info_args.
    unsafe { ioctl::with::<BTRFS_IOC_FS_INFO, _>(directory.as_fd(), &mut *info) }
        .context("identify", mount.display())?;
    Ok(PathBuf::from(format!("/sys/fs/btrfs/{}/qgroups", crate::superblock::uuid(&info.uuid))))
}
