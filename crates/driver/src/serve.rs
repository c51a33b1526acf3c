//! Serving all services on one socket.

use crate::call::Calls;
use crate::ephemeral;
use crate::flight::Flights;
use crate::name::Name;
use crate::throttle::Throttles;
use csi::v1::controller_server::ControllerServer;
use csi::v1::group_controller_server::GroupControllerServer;
use csi::v1::identity_server::IdentityServer;
use csi::v1::node_server::NodeServer;
use drives::Drives;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The specification's limit for a node's identity, in bytes.
const LONGEST_NODE_ID: usize = 256;
/// The specification's limit for a topology value, in bytes.
const LONGEST_SEGMENT: usize = 63;
/// Calls that one connection may have open; more wait at the caller.
const OPEN_CALLS: u32 = 256;
/// How long calls under way are waited for at the end. Every step below has a deadline of its own, and whatever is cut
/// off here is taken up again from the drives' records.
const LAST_CALLS: Duration = Duration::from_secs(30);

/// Changes within this time are noted together.
const GATHER: Duration = Duration::from_secs(1);

/// How long answers may take to get out, when nothing is under way any more.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// The node that the driver serves, as it tells the orchestrator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeInfo {
    /// Name of the driver, which volumes' handles and the node's segments go by.
    pub name: Name,
    /// Identity of the node, 1 to 256 bytes.
    pub node_id: String,
    /// Topology segments that stand for this node, such as `topology.orlop.dev/node` to the node's identity.
    pub segments: BTreeMap<String, String>,
    /// How many volumes the node takes; without a number, as many as fit.
    pub max_volumes: Option<u32>,
}

/// A node that can't be told to an orchestrator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidNode {
    /// The specification's limits for identities.
    #[error("the node's identity has {0} bytes; give it 1 to {LONGEST_NODE_ID}")]
    Identity(usize),
    /// Volumes would be reachable from everywhere.
    #[error("the node has no topology segment; give it at least one that no other node has")]
    NoSegments,
    /// The specification's limits for values.
    #[error("the topology segment {key} has a value of {length} bytes; give it 1 to {LONGEST_SEGMENT}")]
    Segment {
        /// Its key.
        key: String,
        /// Length of its value.
        length: usize,
    },
}

impl NodeInfo {
    /// Whether an orchestrator can be told these facts; [`serve`] checks it too.
    ///
    /// # Errors
    /// The specification's limits.
    pub fn check(&self) -> Result<(), InvalidNode> {
        if self.node_id.is_empty() || self.node_id.len() > LONGEST_NODE_ID {
            return Err(InvalidNode::Identity(self.node_id.len()));
        }
        if self.segments.is_empty() {
            return Err(InvalidNode::NoSegments);
        }
        let unfit = |value: &String| value.is_empty() || value.len() > LONGEST_SEGMENT;
        match self.segments.iter().find(|(_, value)| unfit(value)) {
            Some((key, value)) => Err(InvalidNode::Segment { key: key.clone(), length: value.len() }),
            None => Ok(()),
        }
    }
}

/// Why the driver doesn't serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// What it was told of its node.
    #[error(transparent)]
    Node(#[from] InvalidNode),
    /// The socket can't be had.
    #[error(transparent)]
    Listen(#[from] csi::ListenError),
    /// Serving broke off.
    #[error("the driver stopped serving: {0}; start it again")]
    Transport(#[from] tonic::transport::Error),
}

/// What all services share. Cloning gives another handle.
#[derive(Clone)]
pub(crate) struct Driver {
    pub(crate) drives: Drives,
    pub(crate) node: Arc<NodeInfo>,
    pub(crate) flights: Flights,
    pub(crate) throttles: Throttles,
    pub(crate) calls: Calls,
}

/// Serves the driver on the unix socket `socket` (mode 0600) until `shutdown`, and counts its calls. Then no call is taken any more, those
/// under way are finished, and the socket is removed.
///
/// # Errors
/// When the node's facts are out of the specification's limits, or the socket is in use or can't be made.
pub async fn serve(
    socket: &Path,
    drives: Drives,
    node: NodeInfo,
    calls: Calls,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    node.check()?;
    let incoming = csi::listen(socket)?;
    ephemeral::sweep(&drives).await;
    let noting = note_names(drives.clone());
    let driver = Driver {
        drives,
        node: Arc::new(node),
        flights: Flights::default(),
        throttles: Throttles::find(),
        calls,
    };
    let flights = driver.flights.clone();
    tracing::info!(driver = %driver.node.name, node = driver.node.node_id, socket = %socket.display(), "serving");

    let served = tonic::transport::Server::builder()
        .max_concurrent_streams(OPEN_CALLS)
        .add_service(IdentityServer::new(driver.clone()))
        .add_service(ControllerServer::new(driver.clone()))
        .add_service(GroupControllerServer::new(driver.clone()))
        .add_service(NodeServer::new(driver))
        .serve_with_incoming_shutdown(incoming, shutdown.cancelled());
    let patience = async {
        shutdown.cancelled().await;
        flights.landed(LAST_CALLS).await;
        tokio::time::sleep(LAST_ANSWERS).await;
    };
    let ended = tokio::select! {
        ended = served => ended,
        () = noting => Ok(()),
        // A caller that neither speaks nor hangs up holds nobody up.
        () = patience => Ok(()),
    };
    flights.landed(LAST_CALLS).await;
    Ok(ended?)
}

/// Notes beside the drives which volumes they have, some time after that changed. Never ends.
async fn note_names(drives: Drives) {
    let mut changed = drives.changed();
    loop {
        changed.mark_unchanged();
        if let Err(error) = drives.note_names().await {
            tracing::warn!(%error, "it is not noted which volumes the drives have");
        }
        tokio::time::sleep(GATHER).await;
        if changed.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{InvalidNode, Name, NodeInfo};
    use std::collections::BTreeMap;

    #[test]
    fn a_node_keeps_to_the_limits_of_the_specification() {
        let node = |id: &str, segments: &[(&str, &str)]| NodeInfo {
            name: Name::Orlop,
            node_id: id.into(),
            segments: segments
                .iter()
                .map(|(key, value)| ((*key).into(), (*value).into()))
                .collect::<BTreeMap<_, _>>(),
            max_volumes: None,
        };
        let key = "topology.orlop.dev/node";
        assert_eq!(node("n1", &[(key, "n1")]).check(), Ok(()));
        assert_eq!(node("", &[(key, "n1")]).check(), Err(InvalidNode::Identity(0)));
        assert_eq!(node(&"n".repeat(257), &[(key, "n1")]).check(), Err(InvalidNode::Identity(257)));
        assert_eq!(node("n1", &[]).check(), Err(InvalidNode::NoSegments));
        let long = "n".repeat(64);
        assert_eq!(
            node(&long, &[(key, &long)]).check(),
            Err(InvalidNode::Segment { key: key.into(), length: 64 })
        );
    }
}
