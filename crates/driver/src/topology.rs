//! Where a volume can be had: on this node alone.

use csi::v1::{Topology, TopologyRequirement};
use std::collections::BTreeMap;

/// Whether a volume on this node, which is all of `segments`, meets the requirement. Only the requisite places bind; the
/// preferred ones are an order among them, or a wish.
pub(crate) fn admits(requirement: &TopologyRequirement, segments: &BTreeMap<String, String>) -> bool {
    requirement.requisite.is_empty() || requirement.requisite.iter().any(|place| covers(place, segments))
}

/// Whether the place, which may be larger than a node, holds this one.
pub(crate) fn covers(place: &Topology, segments: &BTreeMap<String, String>) -> bool {
    place.segments.iter().all(|(key, value)| segments.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::{admits, covers};
    use csi::v1::{Topology, TopologyRequirement};
    use std::collections::BTreeMap;

    fn segments(of: &[(&str, &str)]) -> BTreeMap<String, String> {
        of.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn place(of: &[(&str, &str)]) -> Topology {
        Topology { segments: segments(of) }
    }

    #[test]
    fn a_requirement_is_met_by_one_requisite_place_that_holds_the_node() {
        let node = segments(&[("node", "n1"), ("zone", "z1")]);
        let (here, zone, elsewhere) =
            (place(&[("node", "n1")]), place(&[("zone", "z1")]), place(&[("node", "n2")]));
        let cases: [(&[&Topology], &[&Topology], bool); 7] = [
            (&[], &[], true),
            (&[&here], &[], true),
            (&[&zone], &[], true),
            (&[&elsewhere, &here], &[&elsewhere], true),
            (&[&elsewhere], &[], false),
            (&[&elsewhere], &[&here], false),
            (&[], &[&elsewhere], true),
        ];
        for (requisite, preferred, expected) in cases {
            let requirement = TopologyRequirement {
                requisite: requisite.iter().copied().cloned().collect(),
                preferred: preferred.iter().copied().cloned().collect(),
            };
            assert_eq!(admits(&requirement, &node), expected, "{requirement:?}");
        }
        assert!(
            !covers(&place(&[("node", "n1"), ("rack", "r1")]), &node),
            "a segment that the node doesn't have"
        );
    }
}
