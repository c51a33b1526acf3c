//! Gives a whole volume to a group.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    path::Path,
};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, chmod, chownat, fchown, openat, statat};

/// When the whole tree is walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangePolicy {
    /// Every time.
    Always,
    /// Only if the root of the volume is not as it should be.
    OnRootMismatch,
}

const DIRECTORY_BITS: u32 = 0o2110;

/// Makes everything in the volume belong to `group` and accessible to it. Symbolic links are given away themselves,
/// never followed; other file systems mounted inside are left alone. The root comes last, so that an interrupted
/// walk is done again. Takes as long as there are files.
///
/// # Errors
/// At the first entry that can't be changed.
pub fn apply(root: &Path, group: u32, read_only: bool, policy: ChangePolicy) -> io::Result<()> {
    let bits = if read_only { 0o440 } else { 0o660 };
    let directory = openat(CWD, root, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let stat = rustix::fs::fstat(&directory)?;
    let wanted = bits | DIRECTORY_BITS;
    if policy == ChangePolicy::OnRootMismatch && stat.st_gid == group && stat.st_mode & wanted == wanted {
        return Ok(());
    }
    walk(directory.as_fd(), stat.st_dev, group, bits)?;
    give_directory(directory.as_fd(), stat.st_mode, group, bits)
}

fn walk(directory: BorrowedFd<'_>, device: u64, group: u32, bits: u32) -> io::Result<()> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(rustix::io::Errno::NOENT) => continue,
            other => other?,
        };
        if stat.st_dev != device {
            continue;
        }
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let child = openat(directory, name, flags, Mode::empty())?;
                walk(child.as_fd(), device, group, bits)?;
                give_directory(child.as_fd(), stat.st_mode, group, bits)?;
            }
            FileType::Symlink => {
                chownat(directory, name, None, Some(Gid::from_raw(group)), AtFlags::SYMLINK_NOFOLLOW)?;
            }
            _ => {
                // A path descriptor is not fooled by a name that is swapped meanwhile.
                let file = openat(
                    directory,
                    name,
                    OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                    Mode::empty(),
                )?;
                chownat(&file, "", None, Some(Gid::from_raw(group)), AtFlags::EMPTY_PATH)?;
                set_mode(file.as_fd(), stat.st_mode | bits)?;
            }
        }
    }
    Ok(())
}

fn give_directory(directory: BorrowedFd<'_>, mode: u32, group: u32, bits: u32) -> io::Result<()> {
    fchown(directory, None, Some(Gid::from_raw(group)))?;
    set_mode(directory, mode | bits | DIRECTORY_BITS)
}

fn set_mode(file: BorrowedFd<'_>, mode: u32) -> io::Result<()> {
    Ok(chmod(format!("/proc/self/fd/{}", file.as_raw_fd()), Mode::from_raw_mode(mode & 0o7777))?)
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
}
