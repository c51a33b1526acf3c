//! Claims that a populator fills are filled; where there is none for what they ask, they are told.

use k8s_openapi::api::core::v1::{Event, PersistentVolumeClaim};
use kube::ResourceExt;
use resources::claim;
use resources::populator::VolumePopulator;

use crate::deeds::is_sound;
use crate::populator::{BACKUP, TAPE, is_filled_from, is_own};
use crate::{Ledger, World};

/// Which claims wait in vain, and which of the populator's own are left.
pub(super) async fn settled(world: &World, ledger: &Ledger) -> Vec<String> {
    let is_registered = !world.list::<VolumePopulator>().await.is_empty();
    let told = world.list::<Event>().await;
    let told = |claim: &PersistentVolumeClaim| {
        told.iter().any(|event| {
            event.involved_object.uid == claim.metadata.uid
                && event.reason.as_deref() == Some("UnrecognizedDataSourceKind")
        })
    };
    let mut wrong = Vec::new();
    let waits = |claim: &&PersistentVolumeClaim| {
        claim.metadata.deletion_timestamp.is_none() && claim::volume_name(claim).is_empty()
    };
    for claim in ledger.claims.values().filter(waits) {
        let name = claim.name_any();
        let from_backup = is_filled_from(BACKUP, claim);
        if from_backup && ["fast", "kept"].contains(&claim::class(claim)) && is_sound(claim) {
            wrong.push(format!("claim {name} is not filled"));
        }
        let in_vain = is_filled_from(TAPE, claim) || (from_backup && !is_registered);
        if in_vain && !told(claim) {
            wrong.push(format!("claim {name} is not told that nobody is known to fill it"));
        }
    }
    let is_filled = |own: &&PersistentVolumeClaim| {
        let uid = own.name_any();
        !ledger.claims.values().any(|one| {
            is_filled_from(BACKUP, one)
                && claim::phase(one) != "Bound"
                && one.uid().is_some_and(|one| uid.ends_with(&one))
        })
    };
    let left = ledger.claims.values().filter(|one| is_own(one)).filter(is_filled);
    wrong.extend(left.map(|own| format!("the populator's claim {} is left", own.name_any())));
    wrong
}
