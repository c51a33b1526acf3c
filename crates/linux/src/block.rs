//! Block devices: what sysfs, the mount table and the swap list know about them.

use std::{fmt, path::Path, path::PathBuf, str::FromStr};

use crate::{Kernel, Result};

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
