//! Which node makes the volume of a claim that binds at once.
//!
//! Such a claim waits for no pod, so no scheduler chooses its node. Upstream's node-local provisioners race for it,
//! each after a random delay. Here every provisioner computes the same winner from what the API says, and only the
//! winner writes: nobody waits, and no two writes meet. The winner is drawn by weighted rendezvous hashing: a node
//! wins in proportion to its free capacity, so that many claims made at once spread out although the published
//! capacities lag behind.

use k8s_openapi::api::storage::v1::{CSIStorageCapacity, StorageClass};
use resources::labels;
use sha2::{Digest, Sha256};
use values::{Quantity, Segments};

use super::request;
use crate::place::Place;

/// A candidate for a claim.
struct Candidate<'a> {
    id: &'a str,
    room: f64,
    is_here: bool,
}

/// A claim to be drawn for.
#[derive(Clone, Copy)]
pub(super) struct Draw<'a> {
    pub(super) uid: &'a str,
    pub(super) bytes: i64,
    pub(super) class: &'a StorageClass,
}

/// Whether this place wins the claim.
///
/// Candidates are the published capacities of the claim's class that fit, of nodes that live. If none fits, all nodes
/// with the driver are, with equal chances: a driver may publish none, and of one that is full somebody must try, so
/// that the user is told what it says.
pub(super) fn is_ours(
    draw: Draw<'_>,
    driver: &str,
    place: &Place,
    capacities: &[impl AsRef<CSIStorageCapacity>],
) -> bool {
    let is_dead = place.is_dead();
    let fitting: Vec<_> = capacities
        .iter()
        .filter_map(|capacity| fitting(draw, driver, &place.segments, capacity.as_ref()))
        .filter(|(_, there)| !is_dead(there))
        .map(|(candidate, _)| candidate)
        .collect();
    if !fitting.is_empty() {
        return winner(draw.uid, &fitting).is_some_and(|candidate| candidate.is_here);
    }
    place.is_drawn(Some(draw.uid), |_| true)
}

/// Whether a published capacity elsewhere fits the claim.
pub(super) fn fits_elsewhere(
    draw: Draw<'_>,
    driver: &str,
    segments: &Segments,
    capacities: &[impl AsRef<CSIStorageCapacity>],
) -> bool {
    let mut fitting =
        capacities.iter().filter_map(|capacity| fitting(draw, driver, segments, capacity.as_ref()));
    fitting.any(|(candidate, _)| !candidate.is_here)
}

fn fitting<'a>(
    draw: Draw<'_>,
    driver: &str,
    segments: &Segments,
    capacity: &'a CSIStorageCapacity,
) -> Option<(Candidate<'a>, Segments)> {
    let of_driver =
        capacity.metadata.labels.as_ref()?.get(labels::CAPACITY_DRIVER).map(String::as_str) == Some(driver);
    if !of_driver || Some(capacity.storage_class_name.as_str()) != draw.class.metadata.name.as_deref() {
        return None;
    }
    // Capacities name their segment by equal labels only.
    let topology = capacity.node_topology.as_ref()?;
    let there = topology.match_labels.clone().unwrap_or_default();
    if topology.match_expressions.as_ref().is_some_and(|one| !one.is_empty())
        || !request::allows(draw.class, &there)
    {
        return None;
    }
    let size = capacity.maximum_volume_size.as_ref().or(capacity.capacity.as_ref())?;
    let largest = size.0.parse::<Quantity>().ok()?.ceil()?;
    let total = capacity.capacity.as_ref().and_then(|total| total.0.parse::<Quantity>().ok()?.ceil());
    let is_here = there.iter().all(|(key, value)| segments.get(key) == Some(value));
    let id = capacity.metadata.name.as_deref()?;
    let room = total.unwrap_or(largest) as f64;
    (largest >= draw.bytes).then_some((Candidate { id, room, is_here }, there))
}

/// The node that takes care of a volume that several can reach: all of them draw the same.
pub(crate) fn draw<'a>(volume: &str, nodes: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let candidates: Vec<_> =
        nodes.into_iter().map(|id| Candidate { id, room: 1.0, is_here: false }).collect();
    winner(volume, &candidates).map(|candidate| candidate.id)
}

/// The candidate with the highest score; scores depend only on the claim, the candidate and its room.
fn winner<'a, 'b>(uid: &str, candidates: &'b [Candidate<'a>]) -> Option<&'b Candidate<'a>> {
    let score = |candidate: &Candidate<'_>| {
        let digest = Sha256::new().chain_update(uid).chain_update([0]).chain_update(candidate.id).finalize();
        let number = digest.iter().take(8).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
        let between_0_and_1 = (number as f64 + 0.5) / (u64::MAX as f64 + 1.0);
        -candidate.room.max(1.0) / between_0_and_1.ln()
    };
    candidates.iter().max_by(|a, b| score(a).total_cmp(&score(b)).then_with(|| a.id.cmp(b.id)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_one_candidate_wins_in_proportion_to_its_room() {
        let candidates = [("a", 1.0), ("b", 3.0)].map(|(id, room)| Candidate { id, room, is_here: false });
        let reversed = [("b", 3.0), ("a", 1.0)].map(|(id, room)| Candidate { id, room, is_here: false });
        let mut wins = 0;
        for claim in 0..1000 {
            let uid = format!("claim-{claim}");
            let (one, other) = (winner(&uid, &candidates), winner(&uid, &reversed));
            assert_eq!(one.map(|candidate| candidate.id), other.map(|candidate| candidate.id));
            wins += u32::from(one.is_some_and(|candidate| candidate.id == "b"));
        }
        assert!((700..=800).contains(&wins), "three quarters of 1000, got {wins}");
        assert!(winner("claim", &[]).is_none());
    }
}
