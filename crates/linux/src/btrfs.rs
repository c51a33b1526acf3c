//! btrfs: subvolumes, and the quotas that limit them.
//!
//! A volume's subvolume `N` is a member of a quota group of its own, `1/N`, and the limit lies there: with simple
//! quotas, subvolumes and snapshots that a container makes inside its volume join the same group by themselves, so
//! that nothing escapes the limit.

use std::{
    ffi::OsStr,
    fs::Permissions,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::PermissionsExt},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use linux_raw_sys::ioctl::{
    BTRFS_IOC_FS_INFO, BTRFS_IOC_GET_SUBVOL_ROOTREF, BTRFS_IOC_INO_LOOKUP, BTRFS_IOC_QGROUP_ASSIGN,
    BTRFS_IOC_QGROUP_CREATE, BTRFS_IOC_QGROUP_LIMIT, BTRFS_IOC_QUOTA_CTL, BTRFS_IOC_RESIZE,
    BTRFS_IOC_SNAP_DESTROY, BTRFS_IOC_SUBVOL_CREATE, BTRFS_IOC_SYNC, BTRFS_IOC_TREE_SEARCH,
};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
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

    /// Waits until the space of a deleted subvolume is free.
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
    /// `EBUSY` while the subvolume is not cleaned up.
    fn remove_subvolume_quota(&self, mount: &Path, id: SubvolumeId) -> Result<()>;

    /// Grows the file system to the size of its device.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn grow_btrfs(&self, mount: &Path) -> Result<()>;

    /// Commits everything written so far.
    ///
    /// # Errors
    /// When the drive refuses.
    fn sync_filesystem(&self, mount: &Path) -> Result<()>;
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

    fn wait_for_cleaning(&self, mount: &Path, id: SubvolumeId) -> Result<()> {
        let directory = open(mount)?;
        // A commit wakes the thread that cleans up.
        // SAFETY: BTRFS_IOC_SYNC takes no argument.
        unsafe { ioctl::plain::<BTRFS_IOC_SYNC>(directory.as_fd()) }.context("sync", mount.display())?;
        // There is no event for its end: the kernel's own waiting call (Linux 6.13) looks once per second.
        let mut pause = Duration::from_millis(1);
        while subvolume_remains(directory.as_fd(), id).context("look for subvolumes of", mount.display())? {
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(100));
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

    fn sync_filesystem(&self, mount: &Path) -> Result<()> {
        let directory =
            rustix::fs::open(mount, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .context("open", mount.display())?;
        rustix::fs::syncfs(&directory).context("sync", mount.display())
    }
}

/// How often subvolumes may appear inside one that is being deleted.
const NESTING: usize = 16;
/// Inode number of every subvolume's root.
const FIRST_INODE: u64 = 256;
const NO_LIMIT: u64 = u64::MAX;
const LIMIT_REFERENCED: u64 = 1;
const ENABLE_SIMPLE_QUOTA: u64 = 4;
const ROOT_TREE: u64 = 1;
const QUOTA_TREE: u64 = 8;
const ROOT_ITEM: u32 = 132;
const QUOTA_RELATION: u32 = 246;
/// The group `1/<subvolume>`.
fn volume_group(id: SubvolumeId) -> u64 {
    1 << 48 | id.0
}

/// `btrfs_ioctl_vol_args`.
#[repr(C)]
struct VolumeArguments {
    fd: i64,
    name: [u8; 4088],
}
const _: () = assert!(size_of::<VolumeArguments>() == 4096);

impl VolumeArguments {
    fn named(name: &OsStr) -> Result<Self, Errno> {
        let mut arguments = Self { fd: 0, name: [0; 4088] };
        let bytes = name.as_bytes();
        arguments.name.get_mut(..bytes.len()).ok_or(Errno::NAMETOOLONG)?.copy_from_slice(bytes);
        Ok(arguments)
    }
}

/// `btrfs_ioctl_ino_lookup_args`.
#[repr(C)]
struct InodeLookup {
    tree: u64,
    object: u64,
    name: [u8; 4080],
}
const _: () = assert!(size_of::<InodeLookup>() == 4096);

/// `btrfs_ioctl_quota_ctl_args`.
#[repr(C)]
struct QuotaControl {
    command: u64,
    status: u64,
}
const _: () = assert!(size_of::<QuotaControl>() == 16);

/// `btrfs_ioctl_qgroup_create_args`.
#[repr(C)]
struct QuotaGroupCreate {
    create: u64,
    group: u64,
}
const _: () = assert!(size_of::<QuotaGroupCreate>() == 16);

/// `btrfs_ioctl_qgroup_assign_args`.
#[repr(C)]
struct QuotaGroupAssign {
    assign: u64,
    member: u64,
    group: u64,
}
const _: () = assert!(size_of::<QuotaGroupAssign>() == 24);

/// `btrfs_ioctl_qgroup_limit_args`.
#[repr(C)]
#[derive(Default)]
struct QuotaGroupLimit {
    group: u64,
    flags: u64,
    max_referenced: u64,
    max_exclusive: u64,
    reserved_referenced: u64,
    reserved_exclusive: u64,
}
const _: () = assert!(size_of::<QuotaGroupLimit>() == 48);

/// `btrfs_ioctl_get_subvol_rootref_args`.
#[repr(C)]
struct RootReferences {
    from: u64,
    found: [RootReference; 255],
    count: u8,
    align: [u8; 7],
}
const _: () = assert!(size_of::<RootReferences>() == 4096);

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RootReference {
    subvolume: u64,
    directory: u64,
}

/// `btrfs_ioctl_fs_info_args`.
#[repr(C)]
struct FilesystemInfo {
    max_id: u64,
    devices: u64,
    uuid: [u8; 16],
    rest: [u8; 992],
}
const _: () = assert!(size_of::<FilesystemInfo>() == 1024);

/// `btrfs_ioctl_search_args`: the key, and room for what is found.
#[repr(C)]
struct TreeSearch {
    tree: u64,
    objects: [u64; 2],
    offsets: [u64; 2],
    transactions: [u64; 2],
    kinds: [u32; 2],
    items: u32,
    unused: u32,
    reserved: [u64; 4],
    buffer: [u8; 3992],
}
const _: () = assert!(size_of::<TreeSearch>() == 4096);

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

/// Removes a quota group. What it counted is taken off with a commit, so one that still counts is asked again after it.
fn remove_group(fd: BorrowedFd<'_>, group: u64) -> Result<(), Errno> {
    const COMMITS: usize = 8;
    let mut remove = QuotaGroupCreate { create: 0, group };
    for _ in 0..COMMITS {
        // SAFETY: BTRFS_IOC_QGROUP_CREATE reads a btrfs_ioctl_qgroup_create_args.
        match unsafe { ioctl::with::<BTRFS_IOC_QGROUP_CREATE, _>(fd, &mut remove) } {
            // SAFETY: BTRFS_IOC_SYNC takes no argument.
            Err(Errno::BUSY) => unsafe { ioctl::plain::<BTRFS_IOC_SYNC>(fd) }?,
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Err(Errno::BUSY)
}

/// Paths of the subvolumes directly inside one.
fn subvolumes_inside(path: &Path, id: SubvolumeId) -> Result<Vec<PathBuf>> {
    let directory = open(path)?;
    let mut references =
        Box::new(RootReferences { from: 0, found: [RootReference::default(); 255], count: 0, align: [0; 7] });
    // SAFETY: BTRFS_IOC_GET_SUBVOL_ROOTREF reads and fills a btrfs_ioctl_get_subvol_rootref_args.
    match unsafe { ioctl::with::<BTRFS_IOC_GET_SUBVOL_ROOTREF, _>(directory.as_fd(), &mut *references) } {
        // Overflow: more than 255; the caller asks again after having deleted these.
        Ok(()) | Err(Errno::OVERFLOW) => {}
        Err(error) => return Err(error).context("list the subvolumes inside", path.display()),
    }
    let mut inside = Vec::new();
    for reference in references.found.iter().take(references.count.into()) {
        let name = root_reference_name(directory.as_fd(), id, reference.subvolume)
            .context("list the subvolumes inside", path.display())?;
        let Some(name) = name else { continue };
        let mut lookup = Box::new(InodeLookup { tree: id.0, object: reference.directory, name: [0; 4080] });
        // SAFETY: BTRFS_IOC_INO_LOOKUP reads and fills a btrfs_ioctl_ino_lookup_args.
        unsafe { ioctl::with::<BTRFS_IOC_INO_LOOKUP, _>(directory.as_fd(), &mut *lookup) }
            .context("find a directory of", path.display())?;
        // The directory's path within the subvolume, ending in a slash; empty for its root.
        let length = lookup.name.iter().position(|byte| *byte == 0).unwrap_or(0);
        inside.push(path.join(OsStr::from_bytes(&lookup.name[..length])).join(OsStr::from_bytes(&name)));
    }
    Ok(inside)
}

/// The name by which `parent` holds the subvolume `child`.
fn root_reference_name(
    fd: BorrowedFd<'_>,
    parent: SubvolumeId,
    child: u64,
) -> Result<Option<Vec<u8>>, Errno> {
    const ROOT_REFERENCE: u32 = 156;
    let found = search(fd, ROOT_TREE, [parent.0, parent.0], ROOT_REFERENCE, [child, child])?;
    // btrfs_root_ref: directory, sequence, length of the name, the name.
    Ok(found.into_iter().find_map(|item| {
        let length = u16::from_le_bytes(item.content.get(16..18)?.try_into().ok()?);
        Some(item.content.get(18..18 + usize::from(length))?.to_vec())
    }))
}

struct Item {
    offset: u64,
    content: Vec<u8>,
}

/// The items of one kind in a tree, as many as fit one answer.
fn search(
    fd: BorrowedFd<'_>,
    tree: u64,
    objects: [u64; 2],
    kind: u32,
    offsets: [u64; 2],
) -> Result<Vec<Item>, Errno> {
    const HEADER: usize = 32;
    let mut search = Box::new(TreeSearch {
        tree,
        objects,
        offsets,
        transactions: [0, u64::MAX],
        kinds: [kind, kind],
        items: u32::MAX,
        unused: 0,
        reserved: [0; 4],
        buffer: [0; 3992],
    });
    // SAFETY: BTRFS_IOC_TREE_SEARCH reads and fills a btrfs_ioctl_search_args.
    unsafe { ioctl::with::<BTRFS_IOC_TREE_SEARCH, _>(fd, &mut *search) }?;
    let mut found = Vec::new();
    let mut rest = &search.buffer[..];
    for _ in 0..search.items {
        // btrfs_ioctl_search_header: transaction, object, offset, kind, length.
        let Some((header, content)) = rest.split_at_checked(HEADER) else { break };
        let number = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&header[at..at + 8]);
            u64::from_ne_bytes(bytes)
        };
        let (object, offset) = (number(8), number(16));
        let (item_kind, length) = ((number(24) & 0xffff_ffff) as u32, (number(24) >> 32) as usize);
        let Some((content, after)) = content.split_at_checked(length) else { break };
        // Keys are ordered as a whole, so a range may hold items of other kinds between.
        if item_kind == kind && (objects[0]..=objects[1]).contains(&object) {
            found.push(Item { offset, content: content.to_vec() });
        }
        rest = after;
    }
    Ok(found)
}

fn subvolume_remains(fd: BorrowedFd<'_>, id: SubvolumeId) -> Result<bool, Errno> {
    Ok(!search(fd, ROOT_TREE, [id.0, id.0], ROOT_ITEM, [0, u64::MAX])?.is_empty())
}

/// The members of a quota group.
fn members(fd: BorrowedFd<'_>, group: u64) -> Result<Vec<u64>, Errno> {
    let found = search(fd, QUOTA_TREE, [group, group], QUOTA_RELATION, [0, u64::MAX])?;
    Ok(found.into_iter().map(|item| item.offset).filter(|member| *member < group).collect())
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
