//! What the driver is called, and with it how volumes and nodes are named to the orchestrator.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use drives::{DriveState, VolumeId};
use serde::{Deserialize, Serialize};
use tonic::Status;

use crate::serve::Driver;

/// A driver's name. Names in PersistentVolumes can't be changed: to serve those of another driver is to bear its name,
/// and to speak of volumes and nodes as it did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Name {
    /// Ours. A volume's handle is its identity.
    #[default]
    #[serde(rename = "orlop.dev")]
    Orlop,
    /// DirectPV v4's. A volume's handle is its name.
    #[serde(rename = "directpv-min-io")]
    DirectPv,
    /// That of DirectCSI, from which DirectPV came.
    #[serde(rename = "direct-csi-min-io")]
    DirectCsi,
}

/// A name that this driver can't bear.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no driver is called \"{0}\" here: use orlop.dev, directpv-min-io or direct-csi-min-io")]
pub struct UnknownName(pub String);

/// The rack, zone and region of nodes under DirectPV, which its installer never set otherwise.
const NOWHERE: &str = "default";

/// Stands for the drive of a handle that no drive here has.
const NO_DRIVE: &str = "no-drive";

impl Name {
    /// All names.
    pub const ALL: [Self; 3] = [Self::Orlop, Self::DirectPv, Self::DirectCsi];

    /// The name as CSI's GetPluginInfo gives it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Orlop => "orlop.dev",
            Self::DirectPv => "directpv-min-io",
            Self::DirectCsi => "direct-csi-min-io",
        }
    }

    /// The topology segments that stand for a node.
    pub fn segments(self, node_id: &str) -> BTreeMap<String, String> {
        let group = match self {
            Self::Orlop => return [("topology.orlop.dev/node".to_owned(), node_id.to_owned())].into(),
            Self::DirectPv => "directpv.min.io",
            Self::DirectCsi => "direct.csi.min.io",
        };
        let segments = [
            ("identity", self.as_str()),
            ("node", node_id),
            ("rack", NOWHERE),
            ("zone", NOWHERE),
            ("region", NOWHERE),
        ];
        segments.map(|(key, value)| (format!("{group}/{key}"), value.to_owned())).into()
    }

    /// What the orchestrator is told as a volume's handle.
    pub(crate) fn handle(self, id: &VolumeId) -> String {
        match self {
            Self::Orlop => id.to_string(),
            Self::DirectPv | Self::DirectCsi => id.key().to_owned(),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl FromStr for Name {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|name| name.as_str() == text).ok_or_else(|| UnknownName(text.to_owned()))
    }
}

impl Driver {
    /// The identity that a handle stands for, as text that is still to be checked. Identities are always understood; a
    /// bare name under a name that gives such handles only, and of a volume that no drive has it gives an identity that
    /// none has either.
    pub(crate) fn identity(&self, handle: String) -> Result<String, Status> {
        if self.node.name == Name::Orlop || handle.is_empty() || handle.contains('/') {
            return Ok(handle);
        }
        match &self.drives.of_key(&handle)[..] {
            [] => Ok(format!("{NO_DRIVE}/{handle}")),
            [id] => Ok(id.to_string()),
            several => {
                let ids: Vec<String> = several.iter().map(ToString::to_string).collect();
                Err(Status::failed_precondition(format!(
                    "volume {handle} lies on more than one drive, and which is in use only its former driver knew: \
                     {}; take the stale directory away and restart",
                    ids.join(", ")
                )))
            }
        }
    }

    /// Whether a handle that no drive has can be answered for: only while all drives serve.
    pub(crate) fn nowhere(&self, id: &VolumeId) -> Option<Result<(), Status>> {
        if id.drive().as_str() != NO_DRIVE {
            return None;
        }
        let failed = self.drives.drives().into_iter().find_map(|drive| match drive.state {
            DriveState::Ready => None,
            DriveState::Failed { reason } => Some(format!("{}: {reason}", drive.source)),
        });
        Some(match failed {
            None => Ok(()),
            Some(failed) => Err(Status::unavailable(format!(
                "volume {} is on no drive that serves, and one does not ({failed}); bring that drive back",
                id.key()
            ))),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for name in Name::ALL {
            assert_eq!(name.as_str().parse(), Ok(name));
        }
        assert!("rook.io".parse::<Name>().is_err_and(|error| error.to_string().contains("directpv-min-io")));
    }

    #[test]
    fn nodes_have_the_segments_that_existing_volumes_ask_for() {
        let segments = Name::DirectPv.segments("n1");
        let expected = [
            ("directpv.min.io/identity", "directpv-min-io"),
            ("directpv.min.io/node", "n1"),
            ("directpv.min.io/rack", "default"),
            ("directpv.min.io/region", "default"),
            ("directpv.min.io/zone", "default"),
        ];
        assert!(segments.iter().map(|(key, value)| (key.as_str(), value.as_str())).eq(expected));
        assert_eq!(Name::DirectCsi.segments("n1")["direct.csi.min.io/identity"], "direct-csi-min-io");
        assert_eq!(Name::Orlop.segments("n1").len(), 1);
    }

    #[test]
    fn a_handle_is_the_identity_or_the_name() {
        let id: VolumeId = "0a1b/pvc-1".parse().expect("well-formed");
        assert_eq!(Name::Orlop.handle(&id), "0a1b/pvc-1");
        assert_eq!(Name::DirectPv.handle(&id), "pvc-1");
    }
}
