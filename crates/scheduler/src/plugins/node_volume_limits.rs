//! How many volumes of a driver a node takes.

use std::collections::{HashMap, HashSet};

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use resources::claim;

use super::{Asks, taken};
use crate::cycle::Cycle;
use crate::reasons::{Reason, Whole};
use crate::world::{World, claims_of};

/// Volumes count once however many pods use them, those not made yet by their class. Without an entry of the driver in
/// the node's CSINode there is no limit.
pub(super) fn filter<'c>(cycle: &'c Cycle<'c>) -> Result<Asks<'c>, Whole> {
    let wanted: Vec<(String, String)> = volumes_of(cycle.world, cycle.pod).collect();
    if wanted.is_empty() {
        return Ok(Asks::Nothing);
    }
    Ok(Asks::Each(Box::new(move |node| match exceeded(cycle, node.name, &wanted) {
        true => taken(Reason::VolumeLimit),
        false => Ok(()),
    })))
}

fn exceeded(cycle: &Cycle<'_>, node: &str, wanted: &[(String, String)]) -> bool {
    let world = cycle.world;
    let drivers = world.csi_nodes.get(node).map(|node| node.spec.drivers.as_slice()).unwrap_or_default();
    let limits: HashMap<&str, usize> = drivers
        .iter()
        .filter_map(|driver| Some((driver.name.as_str(), driver.allocatable.as_ref()?.count?)))
        .map(|(name, count)| (name, usize::try_from(count).unwrap_or(0)))
        .collect();
    if !wanted.iter().any(|(driver, _)| limits.contains_key(driver.as_str())) {
        return false;
    }
    let others =
        world.pods_on(node).filter(|other| **other != cycle.key).filter_map(|other| world.pod(other));
    let used: HashSet<_> = others.flat_map(|pod| volumes_of(world, pod)).collect();
    // Only what the pod adds can exceed a limit.
    let added: HashSet<_> = wanted.iter().filter(|volume| !used.contains(*volume)).collect();
    let count = |driver: &str| {
        let used = used.iter().filter(|(other, _)| other == driver).count();
        used + added.iter().filter(|(other, _)| other == driver).count()
    };
    added.iter().any(|(driver, _)| limits.get(driver.as_str()).is_some_and(|limit| count(driver) > *limit))
}

/// A pod's CSI volumes by driver and handle. A volume that is not made yet goes by its claim.
fn volumes_of<'a>(world: &'a World, pod: &'a Pod) -> impl Iterator<Item = (String, String)> + 'a {
    claims_of(pod).into_iter().filter_map(|(key, _)| {
        let claim = world.claim(&key)?;
        match world.volume(claim::volume_name(claim)) {
            Some(volume) => {
                let csi = volume.spec.as_ref()?.csi.as_ref()?;
                Some((csi.driver.clone(), csi.volume_handle.clone()))
            }
            None => {
                let class = world.classes.get(claim::class(claim))?;
                Some((class.provisioner.clone(), format!("{}/{}", key.namespace, claim.name_any())))
            }
        }
    })
}
