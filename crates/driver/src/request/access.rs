//! How a volume is to be used.

use super::Refusal;
use csi::v1::VolumeCapability;
use csi::v1::volume_capability::{AccessType as Asked, MountVolume, access_mode::Mode};
use drives::{AccessType, BackendKind, MountFlags};

const FIELD: &str = "volume_capability";

const CONTEXT: &str = "context=";

/// A capability that this driver serves: a file system or a device, on one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    pub(crate) kind: AccessType,
    pub(crate) flags: MountFlags,
    pub(crate) read_only: bool,
    /// At one place only (`SINGLE_NODE_SINGLE_WRITER`, which is Kubernetes' ReadWriteOncePod).
    pub(crate) exclusive: bool,
    /// The backend that the file-system type stands for, if one was asked for.
    pub(crate) backend: Option<BackendKind>,
    /// The group that its files are to belong to.
    pub(crate) group: Option<u32>,
    /// SELinux's label for its files, from the mount option `context`.
    pub(crate) label: Option<String>,
    /// The file-system type, for backends whose volumes have their own.
    pub(crate) filesystem: Option<&'static str>,
}

impl Access {
    pub(crate) fn check(capability: Option<&VolumeCapability>) -> Result<Self, Refusal> {
        let capability = capability.ok_or(Refusal::Missing { field: FIELD })?;
        let (kind, (flags, label), backend, filesystem, group) = match &capability.access_type {
            None => return Err(Refusal::Missing { field: "volume_capability.access_type" }),
            Some(Asked::Block(_)) => (AccessType::Block, (MountFlags::default(), None), None, None, None),
            Some(Asked::Mount(mount)) => {
                (AccessType::Mount, flags(mount)?, backend(mount)?, filesystem(mount), group(mount)?)
            }
        };
        let mode =
            capability.access_mode.ok_or(Refusal::Missing { field: "volume_capability.access_mode" })?;
        let read_only = match Mode::try_from(mode.mode) {
            Ok(Mode::SingleNodeWriter | Mode::SingleNodeSingleWriter | Mode::SingleNodeMultiWriter) => false,
            Ok(Mode::SingleNodeReaderOnly) => true,
            Ok(
                many @ (Mode::MultiNodeReaderOnly | Mode::MultiNodeSingleWriter | Mode::MultiNodeMultiWriter),
            ) => {
                return Err(Refusal::Unserved {
                    what: format!("access mode {}", many.as_str_name()),
                    instead: "a volume is on one node's drive; ask for a single-node mode (ReadWriteOnce)",
                });
            }
            Ok(Mode::Unknown) => {
                return Err(Refusal::Missing { field: "volume_capability.access_mode.mode" });
            }
            Err(_) => {
                return Err(Refusal::Unserved {
                    what: format!("access mode {}", mode.mode),
                    instead: "this driver doesn't know it; ask for a single-node mode",
                });
            }
        };
        let exclusive = mode.mode() == Mode::SingleNodeSingleWriter;
        Ok(Self { kind, flags, read_only, exclusive, backend, filesystem, group, label })
    }

    /// What all of the capabilities want to be shown.
    ///
    /// # Errors
    /// When some want a device and others a file system: a volume is one of them for good.
    pub(crate) fn one_kind(access: &[Self]) -> Result<AccessType, Refusal> {
        let kind = access.first().map_or(AccessType::Mount, |first| first.kind);
        match access.iter().all(|other| other.kind == kind) {
            true => Ok(kind),
            false => Err(Refusal::Unserved {
                what: "a volume that is both a block device and a file system".to_owned(),
                instead: "ask for one access type",
            }),
        }
    }

    /// All of the capabilities, of which there must be one.
    pub(crate) fn check_all(capabilities: &[VolumeCapability]) -> Result<Vec<Self>, Refusal> {
        if capabilities.is_empty() {
            return Err(Refusal::Missing { field: "volume_capabilities" });
        }
        capabilities.iter().map(|capability| Self::check(Some(capability))).collect()
    }
}

fn group(mount: &MountVolume) -> Result<Option<u32>, Refusal> {
    match mount.volume_mount_group.as_str() {
        "" => Ok(None),
        // The kernel takes the largest number for "leave the group as it is".
        group => match group.parse() {
            Ok(number) if number < u32::MAX => Ok(Some(number)),
            _ => Err(Refusal::Invalid {
                field: "volume_mount_group",
                why: format!("{group:?} is no group's number; give one from 0 to {}", u32::MAX - 1),
            }),
        },
    }
}

/// The options, and SELinux's label, which kubelet gives as one of them: `context="…"`, with commas in it.
fn flags(mount: &MountVolume) -> Result<(MountFlags, Option<String>), Refusal> {
    let invalid = |why: String| Refusal::Invalid { field: "mount_flags", why };
    let (labels, options): (Vec<_>, Vec<_>) =
        mount.mount_flags.iter().partition(|option| option.starts_with(CONTEXT));
    let label = match labels[..] {
        [] => None,
        [option] => Some(option[CONTEXT.len()..].trim_matches('"').to_owned()),
        _ => return Err(invalid("there are several contexts; give one".to_owned())),
    };
    if label.as_ref().is_some_and(|label| !is_label(label)) {
        return Err(invalid("a context is user:role:type or user:role:type:level".to_owned()));
    }
    let flags = MountFlags::parse(&options).map_err(|mut unsupported| {
        // What follows the name may be sensitive.
        if let Some(end) = unsupported.0.find('=') {
            unsupported.0.truncate(end);
        }
        invalid(unsupported.to_string())
    })?;
    Ok((flags, label))
}

fn is_label(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.:,".contains(&byte);
    text.len() <= 1024
        && text.bytes().all(plain)
        && text.split(':').count() >= 3
        && text.split(':').all(|part| !part.is_empty())
}

fn backend(mount: &MountVolume) -> Result<Option<BackendKind>, Refusal> {
    match mount.fs_type.as_str() {
        // Any backend whose volumes have file systems of their own.
        "" | "ext4" => Ok(None),
        "xfs" => Ok(Some(BackendKind::Xfs)),
        "btrfs" => Ok(Some(BackendKind::Btrfs)),
        name => Err(Refusal::Unserved {
            what: format!("file-system type {name:?}"),
            instead: "leave the type out, or ask for xfs, btrfs or (on lvm and lvm-thin) ext4",
        }),
    }
}

fn filesystem(mount: &MountVolume) -> Option<&'static str> {
    ["ext4", "xfs", "btrfs"].into_iter().find(|name| mount.fs_type == *name)
}
