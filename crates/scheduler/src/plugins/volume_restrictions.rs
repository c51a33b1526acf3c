//! Claims for one pod alone, and network disks that one pod may write.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::Volume;
use resources::claim;
use runtime::Key;

use super::{Asks, taken};
use crate::cycle::Cycle;
use crate::reasons::{Reason, Whole};

/// A claim that is for one pod, and in use, refuses every node: also the one that uses it.
pub(super) fn filter<'c>(cycle: &'c Cycle<'c>) -> Result<Asks<'c>, Whole> {
    let volumes = cycle.pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    let mut in_use = false;
    for source in volumes.iter().filter_map(|volume| volume.persistent_volume_claim.as_ref()) {
        let key = Key { namespace: cycle.key.namespace.clone(), name: source.claim_name.clone() };
        let Some(claim) = cycle.world.claim(&key) else {
            return Err(Whole::new(format!("persistentvolumeclaim {:?} not found", key.name)));
        };
        let exclusive = claim::access_modes(claim).iter().any(|mode| mode == "ReadWriteOncePod");
        in_use |= exclusive
            && cycle.world.users_of(&key).any(|user| *user != cycle.key && cycle.world.is_placed(user));
    }
    let disks: Vec<&Volume> = volumes.iter().filter(|volume| is_disk(volume)).collect();
    if !in_use && disks.is_empty() {
        return Ok(Asks::Nothing);
    }
    Ok(Asks::Each(Box::new(move |node| {
        let conflicts = |key: &Key| {
            let pod = cycle.world.pod(key).filter(|_| *key != cycle.key);
            let others = pod.and_then(|pod| pod.spec.as_ref()?.volumes.as_deref()).unwrap_or_default();
            disks.iter().any(|disk| others.iter().any(|other| excludes(disk, other)))
        };
        if !disks.is_empty() && node.usage.pods.iter().any(conflicts) {
            return taken(Reason::DiskInUse);
        }
        if in_use { taken(Reason::ClaimInUse) } else { Ok(()) }
    })))
}

fn is_disk(volume: &Volume) -> bool {
    volume.gce_persistent_disk.is_some()
        || volume.aws_elastic_block_store.is_some()
        || volume.iscsi.is_some()
        || volume.rbd.is_some()
}

/// Whether two volumes are one disk which not both of their pods may use on a node.
fn excludes(one: &Volume, other: &Volume) -> bool {
    let writes = |one: Option<bool>, other: Option<bool>| !(one == Some(true) && other == Some(true));
    if let (Some(one), Some(other)) = (&one.gce_persistent_disk, &other.gce_persistent_disk)
        && one.pd_name == other.pd_name
        && writes(one.read_only, other.read_only)
    {
        return true;
    }
    if let (Some(one), Some(other)) = (&one.aws_elastic_block_store, &other.aws_elastic_block_store)
        && one.volume_id == other.volume_id
    {
        return true;
    }
    if let (Some(one), Some(other)) = (&one.iscsi, &other.iscsi)
        && one.iqn == other.iqn
        && writes(one.read_only, other.read_only)
    {
        return true;
    }
    if let (Some(one), Some(other)) = (&one.rbd, &other.rbd) {
        let pool = |pool: &Option<String>| pool.as_deref().unwrap_or("rbd").to_owned();
        let monitors: HashSet<&String> = one.monitors.iter().collect();
        return other.monitors.iter().any(|monitor| monitors.contains(monitor))
            && pool(&one.pool) == pool(&other.pool)
            && one.image == other.image
            && writes(one.read_only, other.read_only);
    }
    false
}
