//! Volumes of clouds that say by labels in which zone and region they are.

use std::sync::Arc;

use k8s_openapi::api::core::v1::PersistentVolume;
use resources::{claim, volume};

use super::{Asks, unfit};
use crate::cycle::Cycle;
use crate::reasons::{Reason, Whole};
use crate::world::claims_of;

pub(super) fn filter<'c>(cycle: &'c Cycle<'c>) -> Result<Asks<'c>, Whole> {
    let world = cycle.world;
    let mut volumes: Vec<&Arc<PersistentVolume>> = Vec::new();
    for (key, _) in claims_of(cycle.pod) {
        let Some(claim) = world.claim(&key) else { continue };
        let name = claim::volume_name(claim);
        if name.is_empty() {
            continue;
        }
        match world.volume(name) {
            Some(volume) => volumes.push(volume),
            None => return Err(Whole::new(format!("persistentvolume {name:?} not found"))),
        }
    }
    if volumes.iter().all(|volume| volume.metadata.labels.is_none()) {
        return Ok(Asks::Nothing);
    }
    Ok(Asks::Each(Box::new(move |node| {
        match volumes.iter().all(|one| volume::admits_zone(one, node.labels)) {
            true => Ok(()),
            false => unfit(Reason::VolumeZone),
        }
    })))
}
