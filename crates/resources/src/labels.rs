//! Labels and topology keys. Keys are wire format.

/// On a node, its host name; the key by which volumes of local drives are bound to nodes in general.
pub const HOSTNAME: &str = "kubernetes.io/hostname";
/// On a node, its failure zone.
pub const ZONE: &str = "topology.kubernetes.io/zone";
/// On a node, its region.
pub const REGION: &str = "topology.kubernetes.io/region";
/// On a node, its id in the driver [`crate::orlop::DRIVER`]: the one topology key of its volumes.
pub const ORLOP_NODE: &str = "topology.orlop.dev/node";
/// On a CSIStorageCapacity, the driver.
pub const CAPACITY_DRIVER: &str = "csi.storage.k8s.io/drivername";
/// On a CSIStorageCapacity, who keeps it up to date.
pub const CAPACITY_MANAGED_BY: &str = "csi.storage.k8s.io/managed-by";
/// On a snapshot's content, the only node that has the snapshot and its source: its driver takes care of it.
pub const SNAPSHOT_MANAGED_BY: &str = "snapshot.storage.kubernetes.io/managed-by";
