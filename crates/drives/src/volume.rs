//! Volumes as their users see them.

use std::{collections::BTreeMap, fmt, str::FromStr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{BackendKind, DriveId, DriveSelector, FILESYSTEM, Throttle};

/// Names a volume for good: `<drive id>/<key>`, where the key is the volume's name if it is a plain one. At most
/// 101 bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeId {
    pub(crate) drive: DriveId,
    pub(crate) key: String,
}

impl VolumeId {
    /// The drive that the volume is on.
    pub fn drive(&self) -> &DriveId {
        &self.drive
    }

    /// What names the volume on its drive.
    pub fn key(&self) -> &str {
        &self.key
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.drive, self.key)
    }
}

/// Text that names no volume of ours, and never did.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not the identity of a volume: expected <drive id>/<key>")]
pub struct InvalidVolumeId(pub String);

impl FromStr for VolumeId {
    type Err = InvalidVolumeId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = |part: &str| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
        };
        match text.split_once('/') {
            Some((drive, key)) if text.len() <= 128 && plain(drive) && plain(key) => {
                Ok(Self { drive: DriveId(drive.to_owned()), key: key.to_owned() })
            }
            _ => Err(InvalidVolumeId(text.to_owned())),
        }
    }
}

impl TryFrom<String> for VolumeId {
    type Error = InvalidVolumeId;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<VolumeId> for String {
    fn from(id: VolumeId) -> Self {
        id.to_string()
    }
}

/// Names a snapshot for good. Volumes and snapshots share one space of identities.
pub type SnapshotId = VolumeId;

/// What a volume is filled with when it is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Origin {
    /// What this volume holds at that moment.
    Volume(VolumeId),
    /// This snapshot.
    Snapshot(SnapshotId),
}

impl Origin {
    /// The volume or snapshot.
    pub fn id(&self) -> &VolumeId {
        match self {
            Self::Volume(id) | Self::Snapshot(id) => id,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Volume(id) => write!(formatter, "volume {id}"),
            Self::Snapshot(id) => write!(formatter, "snapshot {id}"),
        }
    }
}

/// What a volume shows its users.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccessType {
    /// A directory.
    #[default]
    Mount,
    /// A block device.
    Block,
}

impl fmt::Display for AccessType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Mount => "a file-system volume",
            Self::Block => "a block volume",
        })
    }
}

/// What is asked for. The same name asked again gives the same volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CreateVolume {
    /// Any text of 1 to 128 bytes without control characters.
    pub name: String,
    /// Bytes at least; 0 asks for the smallest volume.
    pub required: u64,
    /// Bytes at most.
    pub limit: Option<u64>,
    /// What it is to show.
    pub access: AccessType,
    /// Only drives of this backend.
    pub backend: Option<BackendKind>,
    /// Kept with the volume; asked again with other parameters, the volume is not the same.
    pub parameters: BTreeMap<String, String>,
    /// Kept with the volume for whoever finds its drive one day, such as the claim that it was made for. Not compared.
    pub notes: BTreeMap<String, String>,
    /// What it is filled with; without, it is empty.
    pub origin: Option<Origin>,
    /// Only drives like this.
    pub drives: DriveSelector,
    /// Volumes of one group lie on different drives.
    pub spread: Option<String>,
    /// How fast its users may be.
    pub throttle: Throttle,
    /// It goes with its user: one that is mounted nowhere when its drives are opened is of no use to anyone.
    pub ephemeral: bool,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Identity.
    pub id: VolumeId,
    /// The name that it was asked for by.
    pub name: String,
    /// Bytes that it can hold, exactly enforced.
    pub size: u64,
    /// What it shows its users.
    pub access: AccessType,
    /// What enforces the size.
    pub backend: BackendKind,
    /// When it was made.
    pub created: Timestamp,
    /// Parameters that it was made with.
    pub parameters: BTreeMap<String, String>,
    /// What was noted about it when it was made.
    pub notes: BTreeMap<String, String>,
    /// What it was filled with, which may be gone since.
    pub origin: Option<Origin>,
    /// How fast its users may be.
    pub throttle: Throttle,
    /// Whether it goes with its user.
    pub ephemeral: bool,
    /// What is wrong with it, and what to do.
    pub trouble: Option<String>,
}

impl Volume {
    /// What its users see it as: `xfs`, `btrfs` or `ext4`.
    pub fn filesystem(&self) -> &str {
        match self.backend {
            BackendKind::Lvm | BackendKind::LvmThin => {
                self.parameters.get(FILESYSTEM).map_or("ext4", String::as_str)
            }
            other => other.name(),
        }
    }
}

/// A snapshot: a full copy of what a volume held at one moment. It lives on when the volume is deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Identity.
    pub id: SnapshotId,
    /// The name that it was asked for by.
    pub name: String,
    /// The volume, which may be gone since.
    pub source: VolumeId,
    /// What its volume showed its users, and a volume that is made from it shows.
    pub access: AccessType,
    /// Bytes that a volume needs to be made from it: the size of its volume then.
    pub restore_size: u64,
    /// Bytes that it takes of its drive.
    pub size: u64,
    /// When it was taken.
    pub created: Timestamp,
    /// The group that it was taken with; it goes with the group alone.
    pub group: Option<SnapshotId>,
}

/// Snapshots that were taken together: all of them are there, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupSnapshot {
    /// Identity.
    pub id: SnapshotId,
    /// The name that it was asked for by.
    pub name: String,
    /// Its snapshots, one for each volume.
    pub snapshots: Vec<Snapshot>,
    /// When the first was taken.
    pub created: Timestamp,
}

/// What a volume holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// What it shows; of a block volume the size alone is known.
    pub access: AccessType,
    /// Bytes it can hold.
    pub size: u64,
    /// Bytes it holds.
    pub used: u64,
    /// Bytes it can still take.
    pub available: u64,
    /// Inodes, where they are counted.
    pub inodes: Option<Inodes>,
}

/// Inodes of a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Inodes {
    /// At most.
    pub total: u64,
    /// In use.
    pub used: u64,
    /// Free.
    pub free: u64,
}
