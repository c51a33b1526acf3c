//! Gives a whole volume to a group, or labels it for SELinux.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    path::Path,
};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, XattrFlags, chmod, chownat, fgetxattr, fstat, openat,
    setxattr,
};

/// When the whole tree is walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangePolicy {
    /// Every time.
    Always,
    /// Only if the root of the volume is not as it should be.
    OnRootMismatch,
}

const DIRECTORY_BITS: u32 = 0o2110;
/// Where a file's label is.
const LABEL: &str = "security.selinux";

/// Makes everything in the volume belong to `group` and accessible to it. Symbolic links are given away themselves,
/// never followed; other file systems mounted inside are left alone. The root comes last, so that an interrupted
/// walk is done again. Takes as long as there are files.
///
/// # Errors
/// At the first entry that can't be changed.
pub fn apply(root: &Path, group: u32, read_only: bool, policy: ChangePolicy) -> io::Result<()> {
    let bits = if read_only { 0o440 } else { 0o660 };
    let directory = openat(CWD, root, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let stat = fstat(&directory)?;
    let wanted = bits | DIRECTORY_BITS;
    if policy == ChangePolicy::OnRootMismatch && stat.st_gid == group && stat.st_mode & wanted == wanted {
        return Ok(());
    }
    each(directory.as_fd(), stat.st_dev, &|file, mode| give(file, mode, group, bits))?;
    give(directory.as_fd(), stat.st_mode, group, bits)
}

/// Labels everything in the volume for SELinux, unless its root has that label already; a mount option can't, where
/// volumes share a file system. Links, other file systems and the root are treated as by [`apply`]. Takes as long as
/// there are files.
///
/// # Errors
/// At the first entry that can't be labelled.
pub fn relabel(root: &Path, label: &str) -> io::Result<()> {
    let directory = openat(CWD, root, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    // The kernel's own end with a zero byte, as do those that programs set.
    let wanted = [label.as_bytes(), b"\0"].concat();
    let mut has = vec![0; wanted.len() + 1];
    if fgetxattr(&directory, LABEL, &mut has[..]).is_ok_and(|length| has[..length] == wanted) {
        return Ok(());
    }
    let set = |file: BorrowedFd<'_>| setxattr(by_descriptor(file), LABEL, &wanted, XattrFlags::empty());
    each(directory.as_fd(), fstat(&directory)?.st_dev, &|file, _| Ok(set(file)?))?;
    Ok(set(directory.as_fd())?)
}

/// Visits all below a directory with its mode, what is in a directory before that.
fn each(
    directory: BorrowedFd<'_>,
    device: u64,
    visit: &impl Fn(BorrowedFd<'_>, u32) -> io::Result<()>,
) -> io::Result<()> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        // A path descriptor is not fooled by a name that is swapped meanwhile.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match openat(directory, name, flags, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => continue,
            other => other?,
        };
        let stat = fstat(&file)?;
        if stat.st_dev != device {
            continue;
        }
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
            each(openat(&file, ".", flags, Mode::empty())?.as_fd(), device, visit)?;
        }
        visit(file.as_fd(), stat.st_mode)?;
    }
    Ok(())
}

fn give(file: BorrowedFd<'_>, mode: u32, group: u32, bits: u32) -> io::Result<()> {
    chownat(file, "", None, Some(Gid::from_raw(group)), AtFlags::EMPTY_PATH)?;
    match FileType::from_raw_mode(mode) {
        FileType::Symlink => Ok(()),
        FileType::Directory => set_mode(file, mode | bits | DIRECTORY_BITS),
        _ => set_mode(file, mode | bits),
    }
}

fn set_mode(file: BorrowedFd<'_>, mode: u32) -> io::Result<()> {
    Ok(chmod(by_descriptor(file), Mode::from_raw_mode(mode & 0o7777))?)
}

/// A path for calls that take no path descriptor; leads to the file itself, even to a symbolic link.
fn by_descriptor(file: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs,
        os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    };

    #[test]
    fn the_tree_is_given_and_links_are_not_followed() {
        let outside = tempfile::NamedTempFile::new().unwrap();
        let volume = tempfile::tempdir().unwrap();
        let at = |name: &str| volume.path().join(name);
        fs::create_dir(at("d")).unwrap();
        fs::write(at("d/f"), "x").unwrap();
        fs::set_permissions(at("d/f"), fs::Permissions::from_mode(0o600)).unwrap();
        symlink(outside.path(), at("link")).unwrap();

        apply(volume.path(), 4321, false, ChangePolicy::OnRootMismatch).unwrap();
        let of = |name: &str| fs::symlink_metadata(at(name)).map(|m| (m.gid(), m.mode() & 0o7777)).unwrap();
        assert_eq!(of("d/f"), (4321, 0o660));
        assert_eq!(of("d"), (4321, 0o2775));
        assert_eq!(of("link").0, 4321);
        assert_ne!(outside.as_file().metadata().unwrap().gid(), 4321);

        fs::write(at("new"), "x").unwrap();
        apply(volume.path(), 4321, false, ChangePolicy::OnRootMismatch).unwrap();
        assert_eq!(of("new").1 & 0o020, 0, "a matching root ends the walk");
        apply(volume.path(), 4321, false, ChangePolicy::Always).unwrap();
        assert_eq!(of("new").1 & 0o660, 0o660);
    }

    #[test]
    fn what_is_in_a_volume_is_labelled_until_its_root_is() {
        const OURS: &str = "system_u:object_r:container_file_t:s0:c1,c2";
        let outside = tempfile::NamedTempFile::new().unwrap();
        let volume = tempfile::tempdir().unwrap();
        let at = |name: &str| volume.path().join(name);
        fs::create_dir(at("d")).unwrap();
        fs::write(at("d/f"), "x").unwrap();
        symlink(outside.path(), at("link")).unwrap();
        let of = |path: &Path| {
            let mut value = [0; 99];
            let length = rustix::fs::lgetxattr(path, LABEL, &mut value[..]).unwrap_or_default();
            String::from_utf8_lossy(&value[..length]).into_owned()
        };
        if rustix::process::geteuid().is_root() {
            relabel(volume.path(), OURS).unwrap();
            for path in [volume.path(), &at("d"), &at("d/f"), &at("link")] {
                assert_eq!(of(path), format!("{OURS}\0"), "{path:?}");
            }
            assert_ne!(of(outside.path()), format!("{OURS}\0"));
            fs::write(at("new"), "x").unwrap();
            relabel(volume.path(), OURS).unwrap();
            assert_ne!(of(&at("new")), format!("{OURS}\0"), "a matching root ends the walk");
        } else {
            eprintln!("SKIPPED: labels: root is needed");
            assert!(std::env::var_os("CI").is_none());
        }
    }
}
