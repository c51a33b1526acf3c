//! Project quotas: limits on directory trees, as XFS (and ext4) have them.

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
};

use linux_raw_sys::{
    general::{FS_XFLAG_PROJINHERIT, fsxattr},
    ioctl::{FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR},
};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};

use crate::{Kernel, Result, error::Context, ioctl};

/// The number that ties files to a limit. 0 means "no project".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProjectId(pub u32);

/// What a project uses and may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProjectUsage {
    /// Bytes used.
    pub used: u64,
    /// Bytes that may be used; `None` is no limit.
    pub limit: Option<u64>,
    /// Inodes used.
    pub inodes: u64,
}

/// Project quotas of a file system; `mount` is its mount point.
pub trait ProjectQuota {
    /// Puts a directory, and what is made in it from now on, into a project.
    ///
    /// # Errors
    /// When the file system has no projects.
    fn set_project(&self, directory: &Path, project: ProjectId) -> Result<()>;

    /// The project of a directory.
    ///
    /// # Errors
    /// When the file system has no projects.
    fn project(&self, directory: &Path) -> Result<ProjectId>;

    /// Limits what a project may use, in bytes (rounded up to 512); `None` lifts the limit.
    ///
    /// # Errors
    /// When the file system was not mounted with project quotas, or the kernel has none.
    fn limit_project(&self, mount: &Path, project: ProjectId, limit: Option<u64>) -> Result<()>;

    /// What a project uses and may use; all zero for a project that never was.
    ///
    /// # Errors
    /// When the file system was not mounted with project quotas, or the kernel has none.
    fn project_usage(&self, mount: &Path, project: ProjectId) -> Result<ProjectUsage>;
}

impl ProjectQuota for Kernel {
    fn set_project(&self, directory: &Path, project: ProjectId) -> Result<()> {
        let open = open(directory)?;
        let mut attributes = attributes(open.as_fd()).context("read the project of", directory.display())?;
        attributes.fsx_projid = project.0;
        attributes.fsx_xflags |= FS_XFLAG_PROJINHERIT;
        // SAFETY: FS_IOC_FSSETXATTR reads an fsxattr.
        unsafe { ioctl::with::<FS_IOC_FSSETXATTR, _>(open.as_fd(), &mut attributes) }
            .context("set the project of", directory.display())
    }

    fn project(&self, directory: &Path) -> Result<ProjectId> {
        let open = open(directory)?;
        let attributes = attributes(open.as_fd()).context("read the project of", directory.display())?;
        Ok(ProjectId(attributes.fsx_projid))
    }

    fn limit_project(&self, mount: &Path, project: ProjectId, limit: Option<u64>) -> Result<()> {
        let blocks = limit.map_or(0, |bytes| bytes.div_ceil(BLOCK));
        let mut request = DiskQuota {
            version: 1,
            flags: PROJECT_QUOTA as i8,
            fields: SOFT_BLOCKS | HARD_BLOCKS,
            id: project.0,
            hard_blocks: blocks,
            soft_blocks: blocks,
            ..DiskQuota::default()
        };
        quotactl(open(mount)?.as_fd(), SET_LIMIT, project, &mut request)
            .context("limit a project on", mount.display())
    }

    fn project_usage(&self, mount: &Path, project: ProjectId) -> Result<ProjectUsage> {
        let mut answer = DiskQuota::default();
        match quotactl(open(mount)?.as_fd(), GET_QUOTA, project, &mut answer) {
            Ok(()) => Ok(ProjectUsage {
                used: answer.blocks.saturating_mul(BLOCK),
                limit: (answer.hard_blocks != 0).then_some(answer.hard_blocks.saturating_mul(BLOCK)),
                inodes: answer.inodes,
            }),
            Err(Errno::NOENT) => Ok(ProjectUsage::default()),
            Err(error) => Err(error).context("read the use of a project on", mount.display()),
        }
    }
}

/// Unit of the kernel's quota calls.
const BLOCK: u64 = 512;
const PROJECT_QUOTA: u32 = 2;
const SOFT_BLOCKS: u16 = 1 << 2;
const HARD_BLOCKS: u16 = 1 << 3;
/// `Q_XGETQUOTA` and `Q_XSETQLIM`.
const GET_QUOTA: u32 = 0x5803;
const SET_LIMIT: u32 = 0x5804;

/// `fs_disk_quota`.
#[repr(C)]
#[derive(Default)]
struct DiskQuota {
    version: i8,
    flags: i8,
    fields: u16,
    id: u32,
    hard_blocks: u64,
    soft_blocks: u64,
    hard_inodes: u64,
    soft_inodes: u64,
    blocks: u64,
    inodes: u64,
    timers: [i32; 2],
    warnings: [u16; 2],
    timers_high: [i8; 4],
    realtime_hard: u64,
    realtime_soft: u64,
    realtime_blocks: u64,
    realtime_timer: i32,
    realtime_warnings: u16,
    padding: [u8; 10],
}
const _: () = assert!(size_of::<DiskQuota>() == 112);

fn open(directory: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(directory, flags, Mode::empty()).context("open", directory.display())
}

fn attributes(directory: BorrowedFd<'_>) -> Result<fsxattr, Errno> {
    let mut attributes = fsxattr {
        fsx_xflags: 0,
        fsx_extsize: 0,
        fsx_nextents: 0,
        fsx_projid: 0,
        fsx_cowextsize: 0,
        fsx_pad: [0; 8],
    };
    // SAFETY: FS_IOC_FSGETXATTR fills an fsxattr; any bytes make a valid one.
    unsafe { ioctl::with::<FS_IOC_FSGETXATTR, _>(directory, &mut attributes) }?;
    Ok(attributes)
}

fn quotactl(
    mount: BorrowedFd<'_>,
    command: u32,
    project: ProjectId,
    quota: &mut DiskQuota,
) -> Result<(), Errno> {
    // SAFETY: both commands used take a pointer to an fs_disk_quota, which lives through the call; any bytes make a
    // valid one.
    let result = unsafe {
        libc::syscall(
            libc::SYS_quotactl_fd,
            mount.as_raw_fd(),
            command << 8 | PROJECT_QUOTA,
            project.0,
            std::ptr::from_mut(quota),
        )
    };
    if result == 0 { Ok(()) } else { Err(ioctl::last_error()) }
}
