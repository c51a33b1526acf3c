//! Ports of the node that pods take for themselves.

use k8s_openapi::api::core::v1::Pod;
use resources::requests::is_sidecar;

/// A port of a node: address, protocol, number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostPort {
    address: String,
    protocol: String,
    number: i32,
}

/// The address that stands for all others. (Not so `::`.)
const ANY: &str = "0.0.0.0";

impl HostPort {
    /// Whether two pods can't have these ports on one node.
    pub(crate) fn conflicts(&self, other: &Self) -> bool {
        let overlap = self.address == other.address || self.address == ANY || other.address == ANY;
        overlap && self.number == other.number && self.protocol == other.protocol
    }
}

/// The node's ports that a pod takes while it runs: those of its containers, and of init containers that keep running.
pub(crate) fn of_pod(pod: &Pod) -> Vec<HostPort> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let sidecars = spec.init_containers.iter().flatten().filter(|container| is_sidecar(container));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    let or = |text: &Option<String>, default: &str| match text.as_deref() {
        None | Some("") => default.to_owned(),
        Some(text) => text.to_owned(),
    };
    let taken = ports.filter_map(|port| {
        let number = port.host_port.filter(|number| *number > 0)?;
        Some(HostPort { address: or(&port.host_ip, ANY), protocol: or(&port.protocol, "TCP"), number })
    });
    taken.collect()
}
