//! Volumes are as the VolumeAttributesClasses of their claims say, and as everybody says.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use resources::{claim, fit, modification, volume};

use crate::Ledger;

pub(super) fn settled(ledger: &Ledger) -> Vec<String> {
    let mut wrong = Vec::new();
    for (name, claim) in &ledger.claims {
        if claim::phase(claim) == "Bound"
            && claim.metadata.deletion_timestamp.is_none()
            && let Some(volume) = ledger.volumes.get(claim::volume_name(claim))
            && volume::is_bound_to(volume, claim)
            && let Err(why) = agree(ledger, claim, volume)
        {
            wrong.push(format!("claim {name}: {why}"));
        }
    }
    wrong
}

fn agree(ledger: &Ledger, claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Result<(), String> {
    let (wanted, current) = (fit::attributes_class_of_claim(claim), modification::current(claim));
    if let Some(change) = modification::under_way(claim) {
        return Err(format!("its change is not at its end: {change:?}"));
    }
    let conditions = claim.status.iter().flat_map(|status| status.conditions.iter().flatten());
    if conditions.into_iter().any(|condition| condition.type_.contains("Modif")) {
        return Err("a condition tells of a change, and there is none".to_owned());
    }
    if !wanted.is_empty() && wanted != current {
        return Err(format!("has attributes {current:?}, though {wanted:?} are asked for"));
    }
    let said = fit::attributes_class_of_volume(volume);
    if said != current {
        return Err(format!("has attributes {current:?}, and its volume {said:?}"));
    }
    ledger.is_made_so(volume, current)
}
