//! Block devices: what sysfs, the mount table and the swap list know about them.

use std::{
    fmt,
    fs::File,
    io::{Read, Seek, SeekFrom},
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    str::FromStr,
};

use rustix::fs::{Mode, OFlags};

use crate::{Error, Kernel, Mounts, Result, error::Context};

/// `major:minor` of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceNumber {
    /// Driver.
    pub major: u32,
    /// Device of that driver.
    pub minor: u32,
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.major, self.minor)
    }
}

impl FromStr for DeviceNumber {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (major, minor) = text.split_once(':').unwrap_or((text, ""));
        Ok(Self { major: major.parse()?, minor: minor.parse()? })
    }
}

/// Facts about a block device at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockDevice {
    /// `/dev/sdb`.
    pub path: PathBuf,
    /// Its number.
    pub number: DeviceNumber,
    /// Bytes.
    pub size: u64,
    /// Bytes of the smallest unit it reads and writes.
    pub logical_block: u32,
    /// Whether it refuses writes.
    pub read_only: bool,
    /// Whether it spins.
    pub rotational: bool,
    /// Whether its bytes can be mapped as memory (DAX).
    pub dax: bool,
    /// Vendor's model name, if it tells.
    pub model: Option<String>,
    /// Serial number or world-wide name, if it tells.
    pub serial: Option<String>,
    /// Names of its partitions: `sdb1`, …
    pub partitions: Vec<String>,
    /// Names of the devices built upon it: `dm-0`, `md127`, …
    pub holders: Vec<String>,
    /// Where it is mounted.
    pub mounted_at: Vec<PathBuf>,
    /// Whether it is swapped to.
    pub swap: bool,
    /// For a loop device its file.
    pub backing_file: Option<PathBuf>,
}

/// Looking at block devices.
pub trait BlockDevices {
    /// The facts about the device at `path` (symbolic links such as `/dev/disk/by-id/…` are followed).
    ///
    /// # Errors
    /// `NotFound` when nothing is there; an error when it is no block device.
    fn block_device(&self, path: &Path) -> Result<BlockDevice>;

    /// The first and last mebibyte of a device, for [`probe_superblock`](crate::probe_superblock).
    ///
    /// # Errors
    /// When it can't be read.
    fn read_edges(&self, device: &Path) -> Result<(Vec<u8>, Vec<u8>)>;

    /// Fails with `EBUSY` when anything has the device in exclusive use: a mount, a RAID or LVM holder, swap.
    ///
    /// # Errors
    /// `EBUSY`, or when it can't be opened for writing.
    fn check_exclusive(&self, device: &Path) -> Result<()>;
}

impl BlockDevices for Kernel {
    fn block_device(&self, path: &Path) -> Result<BlockDevice> {
        let path = std::fs::canonicalize(path).context("find", path.display())?;
        let number = number_of(&path)?;
        let facts = PathBuf::from(format!("/sys/dev/block/{number}"));
        // A partition's queue and maker are its disk's.
        let disk = if facts.join("partition").exists() { facts.join("..") } else { facts.clone() };
        let sectors: u64 = number_in(&facts.join("size"))
            .ok_or_else(|| Error::because("read the size of", path.display(), "sysfs does not tell"))?;
        let backing_file = word_in(&facts.join("loop/backing_file")).map(PathBuf::from);
        Ok(BlockDevice {
            size: sectors.saturating_mul(512),
            logical_block: number_in(&disk.join("queue/logical_block_size")).unwrap_or(512),
            read_only: number_in(&facts.join("ro")) == Some(1_u8),
            dax: number_in(&disk.join("queue/dax")) == Some(1_u8),
            rotational: number_in(&disk.join("queue/rotational")) == Some(1_u8),
            model: word_in(&disk.join("device/model")),
            serial: ["device/serial", "wwid", "device/wwid"]
                .iter()
                .find_map(|name| word_in(&disk.join(name))),
            partitions: names_in(&facts, |entry| entry.join("partition").exists()),
            holders: names_in(&facts.join("holders"), |_| true),
            mounted_at: self
                .mount_table()?
                .iter()
                .filter(|mount| {
                    // btrfs shows a number of its own, so its source has to be looked at.
                    mount.device == number
                        || mount.source == path
                        || (mount.source.starts_with("/dev")
                            && number_of(&mount.source).is_ok_and(|it| it == number))
                })
                .map(|mount| mount.target.clone())
                .collect(),
            swap: swaps()?.iter().any(|swap| number_of(swap).is_ok_and(|it| it == number)),
            backing_file,
            number,
            path,
        })
    }

    fn read_edges(&self, device: &Path) -> Result<(Vec<u8>, Vec<u8>)> {
        let read = || {
            let mut open = File::open(device)?;
            let size = open.seek(SeekFrom::End(0))?;
            let mut first = Vec::new();
            open.seek(SeekFrom::Start(0))?;
            open.by_ref().take(EDGE).read_to_end(&mut first)?;
            let mut last = Vec::new();
            open.seek(SeekFrom::Start(size.saturating_sub(EDGE)))?;
            open.take(EDGE).read_to_end(&mut last)?;
            Ok::<_, std::io::Error>((first, last))
        };
        read().context("read", device.display())
    }

    fn check_exclusive(&self, device: &Path) -> Result<()> {
        rustix::fs::open(device, OFlags::RDWR | OFlags::EXCL | OFlags::CLOEXEC, Mode::empty())
            .map(drop)
            .context("take for ourselves", device.display())
    }
}

const EDGE: u64 = 1 << 20;

fn number_of(device: &Path) -> Result<DeviceNumber> {
    let metadata = device.metadata().context("look at", device.display())?;
    if !metadata.file_type().is_block_device() {
        return Err(Error::because("use", device.display(), "it is not a block device"));
    }
    let number = metadata.rdev();
    Ok(DeviceNumber { major: rustix::fs::major(number), minor: rustix::fs::minor(number) })
}

/// The text of a sysfs file; nothing when it is missing or empty.
fn word_in(file: &Path) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn number_in<T: FromStr>(file: &Path) -> Option<T> {
    word_in(file)?.parse().ok()
}

fn names_in(directory: &Path, keep: impl Fn(&Path) -> bool) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| keep(&entry.path()))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Devices and files that are swapped to. Without `/proc/swaps` the kernel has no swap.
fn swaps() -> Result<Vec<PathBuf>> {
    let text = match std::fs::read_to_string("/proc/swaps") {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).context("read", "/proc/swaps"),
    };
    Ok(text.lines().skip(1).filter_map(|line| line.split_whitespace().next()).map(PathBuf::from).collect())
}
