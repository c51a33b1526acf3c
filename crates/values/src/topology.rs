//! Where a volume can be reached from: topology segments as CSI and node labels know them.

use std::collections::BTreeMap;

/// Topology keys with a value each, as in `topology.kubernetes.io/zone: a`.
pub type Segments = BTreeMap<String, String>;

/// Whether a volume that is accessible from any of `topologies` is accessible from a node that lies in `node`. A
/// volume without topology is accessible from everywhere.
pub fn accessible(topologies: &[Segments], node: &Segments) -> bool {
    let lies_in = |topology: &Segments| topology.iter().all(|(key, value)| node.get(key) == Some(value));
    topologies.is_empty() || topologies.iter().any(lies_in)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_must_lie_in_every_segment_of_one_topology() {
        let segments = |pairs: &[(&str, &str)]| -> Segments {
            pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
        };
        let node = segments(&[("zone", "a"), ("rack", "1")]);
        for (topologies, expected) in [
            (vec![], true),
            (vec![segments(&[])], true),
            (vec![segments(&[("zone", "a")])], true),
            (vec![segments(&[("zone", "b")])], false),
            (vec![segments(&[("zone", "a"), ("rack", "2")])], false),
            (vec![segments(&[("zone", "b")]), segments(&[("rack", "1")])], true),
            (vec![segments(&[("room", "1")])], false),
        ] {
            assert_eq!(accessible(&topologies, &node), expected, "{topologies:?}");
        }
    }
}
