//! The file systems that volumes have for themselves.

use std::{ffi::OsStr, path::Path, time::Duration};

use linux::{Attributes, Error, FilesystemMount, Host, Result, filesystem_size, probe_superblock};

use super::EXTENT;

/// Making a file system discards all its blocks first.
const DEADLINE: Duration = Duration::from_secs(300);

/// A file system that volumes can have.
pub(super) struct Filesystem {
    name: &'static str,
    make: &'static [&'static str],
    /// Grows it to its device, in use; the device or the place where it is mounted comes last.
    grow: &'static [&'static str],
    grows_by_device: bool,
    smallest: u64,
}

/// The first is the default.
const FILESYSTEMS: [Filesystem; 3] = [
    Filesystem {
        name: "ext4",
        // With smaller blocks, which it would choose for small ones, persistent memory could not be mapped.
        make: &["mkfs.ext4", "-q", "-F", "-m", "0", "-b", "4096"],
        grow: &["resize2fs"],
        grows_by_device: true,
        smallest: 4 * EXTENT,
    },
    Filesystem {
        name: "xfs",
        make: &["mkfs.xfs", "-q", "-f"],
        grow: &["xfs_growfs"],
        grows_by_device: false,
        smallest: 300 << 20,
    },
    Filesystem {
        name: "btrfs",
        make: &["mkfs.btrfs", "-q", "-f"],
        grow: &["btrfs", "filesystem", "resize", "max"],
        grows_by_device: false,
        smallest: 128 << 20,
    },
];

pub(super) fn filesystem(name: Option<&str>) -> Result<&'static Filesystem> {
    let Some(name) = name else { return Ok(&FILESYSTEMS[0]) };
    let found = FILESYSTEMS.iter().find(|filesystem| filesystem.name == name);
    found.ok_or_else(|| Error::because("use file system", name, "volumes have ext4, xfs or btrfs"))
}

fn run(host: &dyn Host, words: &[&str], object: &Path) -> Result<()> {
    let [program, arguments @ ..] = words else { return Ok(()) };
    let arguments: Vec<&OsStr> = arguments.iter().map(OsStr::new).chain([object.as_os_str()]).collect();
    host.run(program, &arguments, DEADLINE).map(drop)
}

/// Whether a volume's file system is mounted at its place. A device has several names, and btrfs takes any.
pub(super) fn is_shown(host: &dyn Host, device: &Path, volume: &Path) -> Result<bool> {
    let table = host.mount_table()?;
    let Some(mount) = table.at(volume) else { return Ok(false) };
    Ok(mount.source == device || host.block_device(&mount.source)?.path == host.block_device(device)?.path)
}

/// Shows a volume's file system at its place, unless it is there, and lets it be as large as its device.
pub(super) fn show(host: &dyn Host, device: &Path, volume: &Path) -> Result<()> {
    let (first, _) = host.read_edges(device)?;
    let kind = probe_superblock(&first, &[]).map(|signature| signature.kind);
    let filesystem = filesystem(Some(kind.unwrap_or("nothing")))?;
    let facts = host.block_device(device)?;
    if !is_shown(host, device, volume)? {
        let source = device.to_string_lossy();
        let mut options = Vec::new();
        if facts.dax && filesystem.name != "btrfs" {
            options.push(("dax", Some("always")));
        }
        if filesystem.name == "xfs" {
            // A copy of a drive may be looked at beside it.
            options.push(("nouuid", None));
        }
        let attributes = Attributes { no_atime: true, ..Attributes::default() };
        let mount = FilesystemMount { filesystem: filesystem.name, source: &source, options, attributes };
        host.mount(&mount, volume)?;
    }
    match filesystem_size(&first) {
        Some(size) if size + EXTENT > facts.size => Ok(()),
        _ => grow(host, filesystem, device, volume),
    }
}

fn grow(host: &dyn Host, filesystem: &Filesystem, device: &Path, volume: &Path) -> Result<()> {
    run(host, filesystem.grow, if filesystem.grows_by_device { device } else { volume })
}

impl Filesystem {
    /// Makes it on a device; what that carried is lost.
    pub(super) fn make(&self, host: &dyn Host, device: &Path) -> Result<()> {
        run(host, self.make, device)
    }

    /// Bytes of the smallest device that takes one.
    pub(super) fn smallest(&self) -> u64 {
        self.smallest
    }
}
