//! How many volumes of a driver a node takes.

use std::collections::{HashMap, HashSet};

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use resources::claim;
use runtime::Key;

use crate::world::{World, claims_of};

/// Whether a pod's volumes are more than a node's drivers still take.
pub(crate) fn exceeded(world: &World, node: &str, pod: &Pod) -> bool {
    let drivers = world.csi_nodes.get(node).map(|node| node.spec.drivers.as_slice()).unwrap_or_default();
    let limits: HashMap<&str, usize> = drivers
        .iter()
        .filter_map(|driver| Some((driver.name.as_str(), driver.allocatable.as_ref()?.count?)))
        .map(|(name, count)| (name, usize::try_from(count).unwrap_or(0)))
        .collect();
    if limits.is_empty() {
        return false;
    }
    let wanted: HashSet<_> =
        volumes_of(world, pod).filter(|(driver, _)| limits.contains_key(driver.as_str())).collect();
    if wanted.is_empty() {
        return false;
    }
    let key = Key::of(pod);
    let others = world.pods_on(node).filter(|other| **other != key).filter_map(|other| world.pod(other));
    let mut used: HashSet<_> = others.flat_map(|pod| volumes_of(world, pod)).collect();
    // Only what the pod adds can exceed a limit.
    let added: HashSet<_> =
        wanted.iter().filter(|volume| !used.contains(*volume)).map(|(driver, _)| driver.clone()).collect();
    used.extend(wanted);
    added.iter().any(|driver| {
        let count = used.iter().filter(|(other, _)| other == driver).count();
        limits.get(driver.as_str()).is_some_and(|limit| count > *limit)
    })
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
