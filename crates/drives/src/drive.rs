//! Drives as their users see them.

use std::{collections::BTreeMap, fmt, path::PathBuf, str::FromStr};

use serde::{Deserialize, Serialize};

/// Names a drive for good: the UUID of its file system.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DriveId(pub(crate) String);

impl DriveId {
    /// The identity as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a drive can have this identity. Text of another form was never given to one, nor to a volume on it.
    pub fn is_possible(&self) -> bool {
        uuid::Uuid::try_parse(&self.0).is_ok_and(|uuid| uuid.hyphenated().to_string() == self.0)
    }
}

impl fmt::Display for DriveId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// What holds the volumes of a drive apart and to their sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendKind {
    /// Directories with project quotas.
    Xfs,
    /// Subvolumes with quota groups.
    Btrfs,
    /// Logical volumes with space of their own, each with a file system of its own.
    Lvm,
    /// The same with space from a pool, which they share with their copies.
    #[serde(rename = "lvm-thin")]
    LvmThin,
}

impl BackendKind {
    /// All, the preferred first.
    pub const ALL: [Self; 4] = [Self::Xfs, Self::Btrfs, Self::Lvm, Self::LvmThin];

    /// The name, as in records and parameters.
    pub fn name(self) -> &'static str {
        match self {
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Lvm => "lvm",
            Self::LvmThin => "lvm-thin",
        }
    }

    /// Whether its volumes have file systems of their own, of the type that is asked for.
    pub fn has_filesystems(self) -> bool {
        matches!(self, Self::Lvm | Self::LvmThin)
    }
}

impl fmt::Display for BackendKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// A backend that we don't have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown backend \"{0}\": use xfs, btrfs, lvm or lvm-thin")]
pub struct UnknownBackend(pub String);

impl FromStr for BackendKind {
    type Err = UnknownBackend;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| UnknownBackend(name.to_owned()))
    }
}

/// Where a drive is found.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Source {
    /// A block device.
    Device(PathBuf),
    /// A file that is attached to a loop device.
    #[serde(rename_all = "camelCase")]
    LoopFile {
        /// The file.
        path: PathBuf,
        /// Its size in bytes, if it has to be made.
        size: u64,
    },
}

impl Source {
    /// The device or file.
    pub fn path(&self) -> &std::path::Path {
        match self {
            Self::Device(path) | Self::LoopFile { path, .. } => path,
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.path().display())
    }
}

/// Whether formatting may destroy something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Force {
    /// Only a device that carries nothing known is formatted.
    No,
    /// What file system the device carries is given up. A device in use is refused all the same.
    OverwriteFileSystem,
}

/// Whether a drive serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DriveState {
    /// Mounted, its quotas enforced.
    Ready,
    /// Serves nothing; the others go on.
    Failed {
        /// What is wrong and what to do.
        reason: String,
    },
}

/// A drive at one moment. Sizes are in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drive {
    /// Identity; for a failed drive that could not be read, the one last seen at this source, or none.
    pub id: Option<DriveId>,
    /// The device or file that it was opened from.
    pub source: Source,
    /// The block device, while there is one.
    pub device: Option<PathBuf>,
    /// Where it is mounted; none for a failed drive.
    pub mount: Option<PathBuf>,
    /// Its backend, as far as known.
    pub backend: Option<BackendKind>,
    /// Whether it serves.
    pub state: DriveState,
    /// Size of the device.
    pub size: u64,
    /// What volumes can have altogether: the size less what the file system needs for itself.
    pub capacity: u64,
    /// Sum of the sizes of its volumes and snapshots.
    pub allocated: u64,
    /// What a new volume could have; 0 for a failed drive.
    pub free: u64,
    /// Number of its volumes.
    pub volumes: usize,
    /// Number of its snapshots.
    pub snapshots: usize,
    /// Its labels; none known of a failed drive.
    pub labels: BTreeMap<String, String>,
    /// Of a drive that serves: what its device said when something was last changed on it, if that failed. New volumes
    /// go to other drives while one fits.
    pub trouble: Option<String>,
}

/// What can be had now, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Sum over the drives.
    pub available: u64,
    /// The largest volume that fits some drive.
    pub largest_volume: u64,
    /// The largest block volume that fits some drive.
    pub largest_block_volume: u64,
    /// The smallest volume that is made.
    pub smallest_volume: u64,
    /// Why no drive comes into question, if none does.
    pub why_none: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::DriveId;

    #[test]
    fn an_identity_is_what_a_file_system_can_have() {
        for (text, expected) in [
            ("6d9b8d5b-8a6e-4b9c-9a3e-2f6f2f3f4a5b", true),
            ("6D9B8D5B-8A6E-4B9C-9A3E-2F6F2F3F4A5B", false),
            ("6d9b8d5b8a6e4b9c9a3e2f6f2f3f4a5b", false),
            ("x", false),
            ("", false),
        ] {
            assert_eq!(DriveId(text.to_owned()).is_possible(), expected, "{text}");
        }
    }
}
