//! The table of mounts of this mount namespace, as `/proc/self/mountinfo` gives it.

use std::{
    ffi::OsString,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

use crate::DeviceNumber;

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The kernel's number of this mount.
    pub id: u64,
    /// The mount that this one lies on.
    pub parent: u64,
    /// Device of the file system (for btrfs an anonymous one; see `source` for the block device).
    pub device: DeviceNumber,
    /// What of the file system is mounted: `/`, or the directory, subvolume or file that was bound.
    pub root: PathBuf,
    /// Where it is mounted.
    pub target: PathBuf,
    /// `ro`, `nosuid`, `nodev`, … of this mount (not of its file system).
    pub options: Vec<String>,
    /// `xfs`, `btrfs`, `tmpfs`, …
    pub filesystem: String,
    /// The device or name that the file system was mounted from.
    pub source: PathBuf,
    /// Options of the file system: `prjquota`, `subvolid=256`, …
    pub super_options: Vec<String>,
}

impl Mount {
    /// Whether the mount refuses writes.
    pub fn read_only(&self) -> bool {
        self.has_option("ro")
    }

    /// Whether the mount carries an option like `nodev`.
    pub fn has_option(&self, name: &str) -> bool {
        self.options.iter().any(|option| option == name)
    }
}

/// All mounts of the namespace, in the order of the kernel (later mounts hide earlier ones at the same target).
#[derive(Clone, Debug, Default)]
pub struct MountTable {
    mounts: Vec<Mount>,
}

impl MountTable {
    /// A table of these mounts.
    pub fn new(mounts: Vec<Mount>) -> Self {
        Self { mounts }
    }

    /// Reads the text of `/proc/<pid>/mountinfo`. A line that makes no sense is left out: one odd mount must not blind
    /// us to the others.
    pub fn parse(mountinfo: &[u8]) -> Self {
        Self { mounts: mountinfo.split(|byte| *byte == b'\n').filter_map(parse_line).collect() }
    }

    /// The visible (last) mount exactly at `target`, compared as text: the target itself is never looked at, so a dead
    /// file system there can't block us. `target` must be absolute and without symbolic links.
    pub fn at(&self, target: &Path) -> Option<&Mount> {
        self.mounts.iter().rev().find(|mount| mount.target == target)
    }

    /// The mounts at or below `directory`, deepest and newest first: the order to unmount in.
    pub fn below(&self, directory: &Path) -> Vec<&Mount> {
        let mut found: Vec<&Mount> =
            self.mounts.iter().rev().filter(|mount| mount.target.starts_with(directory)).collect();
        found.sort_by_key(|mount| std::cmp::Reverse(mount.target.components().count()));
        found
    }

    /// Whether `mount` shows what lies at `path`: a bind mount of it. `path` must be absolute and without symbolic links.
    pub fn shows(&self, mount: &Mount, path: &Path) -> bool {
        let holds = |(_, other): &(usize, &Mount)| path.starts_with(&other.target);
        let deepest = |(index, other): &(usize, &Mount)| (other.target.components().count(), *index);
        let holder = self.mounts.iter().enumerate().filter(holds).max_by_key(deepest);
        holder.is_some_and(|(_, holder)| {
            let inside = path.strip_prefix(&holder.target).unwrap_or(path);
            holder.device == mount.device && holder.root.join(inside) == mount.root
        })
    }

    /// All mounts.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Mount> {
        self.mounts.iter()
    }
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let mut next = || fields.next();
    let id = number(next()?)?;
    let parent = number(next()?)?;
    let device = std::str::from_utf8(next()?).ok()?.parse().ok()?;
    let root = unescape(next()?);
    let target = unescape(next()?);
    let options = option_list(next()?);
    // Optional fields ("shared:1", …) end with a lone hyphen.
    while next()? != b"-" {}
    let filesystem = String::from_utf8_lossy(next()?).into_owned();
    let source = unescape(next()?);
    let super_options = option_list(next().unwrap_or_default());
    Some(Mount { id, parent, device, root, target, options, filesystem, source, super_options })
}

fn number(field: &[u8]) -> Option<u64> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn option_list(field: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(field).split(',').map(str::to_owned).collect()
}

/// The kernel writes space, tab, newline and backslash as `\ooo`.
fn unescape(field: &[u8]) -> PathBuf {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        if let [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..] = rest {
            plain.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
            rest = tail;
        } else {
            plain.push(*first);
            rest = tail;
        }
    }
    PathBuf::from(OsString::from_vec(plain))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &[u8] = b"21 1 254:0 / / rw,relatime - ext4 /dev/root rw\n\
        nonsense\n\
        60 21 0:44 /volumes/pvc-1 /node/with\\040space/mount ro,nodev shared:7 master:2 - btrfs /dev/loop0 rw,subvolid=256\n\
        61 60 0:45 / /node/with\\040space/mount rw - tmpfs tmpfs rw\n\
        62 61 0:46 / /node/with\\040space/mount/inner rw - tmpfs tmp\\134fs rw\n";

    #[test]
    fn lines_are_read_as_the_kernel_means_them() {
        let table = MountTable::parse(TEXT);
        assert_eq!(table.iter().count(), 4);
        let volume = table.iter().nth(1).expect("second");
        assert_eq!(volume.root, Path::new("/volumes/pvc-1"));
        assert_eq!(volume.device, DeviceNumber { major: 0, minor: 44 });
        assert!(volume.read_only() && volume.has_option("nodev") && volume.filesystem == "btrfs");
        assert_eq!(table.iter().last().expect("last").source, Path::new("tmp\\fs"));
    }

    #[test]
    fn the_newest_mount_is_the_visible_one() {
        let table = MountTable::parse(TEXT);
        assert_eq!(table.at(Path::new("/node/with space/mount")).map(|mount| mount.id), Some(61));
        assert_eq!(table.at(Path::new("/node")), None);
        let order: Vec<u64> = table.below(Path::new("/node")).iter().map(|mount| mount.id).collect();
        assert_eq!(order, [62, 61, 60]);
    }

    #[test]
    fn a_bind_mount_shows_its_source() {
        let text = b"1 0 254:0 / / rw - ext4 /dev/root rw\n2 1 0:5 / /dev rw - devtmpfs dev rw\n\
            3 1 0:5 /loop3 /target rw - devtmpfs dev rw\n";
        let table = MountTable::parse(text);
        let bound = table.at(Path::new("/target")).expect("mounted");
        for (path, expected) in
            [("/dev/loop3", true), ("/dev/loop33", false), ("/loop3", false), ("/dev", false)]
        {
            assert_eq!(table.shows(bound, Path::new(path)), expected, "{path}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[ -~\\n\\\\]{0,300}") {
            MountTable::parse(text.as_bytes());
        }
    }
}
