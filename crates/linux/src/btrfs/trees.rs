//! Looking things up in the trees of a btrfs file system.

use std::{
    ffi::OsStr,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use linux_raw_sys::ioctl::{BTRFS_IOC_GET_SUBVOL_ROOTREF, BTRFS_IOC_INO_LOOKUP, BTRFS_IOC_TREE_SEARCH};
use rustix::io::Errno;

use super::{
    SubvolumeId, open,
    wire::{
        InodeLookup, QUOTA_RELATION, QUOTA_TREE, ROOT_ITEM, ROOT_TREE, RootReference, RootReferences,
        TreeSearch,
    },
};
use crate::{Result, error::Context, ioctl};

/// Paths of the subvolumes directly inside one.
pub(super) fn subvolumes_inside(path: &Path, id: SubvolumeId) -> Result<Vec<PathBuf>> {
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

pub(super) fn subvolume_remains(fd: BorrowedFd<'_>, id: SubvolumeId) -> Result<bool, Errno> {
    Ok(!search(fd, ROOT_TREE, [id.0, id.0], ROOT_ITEM, [0, u64::MAX])?.is_empty())
}

/// The members of a quota group.
pub(super) fn members(fd: BorrowedFd<'_>, group: u64) -> Result<Vec<u64>, Errno> {
    let found = search(fd, QUOTA_TREE, [group, group], QUOTA_RELATION, [0, u64::MAX])?;
    Ok(found.into_iter().map(|item| item.offset).filter(|member| *member < group).collect())
}
