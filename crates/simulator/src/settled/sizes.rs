//! Volumes are as large as their claims ask for, and as everybody says.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use resources::{claim, expansion, fit, volume};
use values::Quantity;

use crate::Ledger;
use crate::storage::{DRIVER, Held};

pub(super) fn settled(ledger: &Ledger, held: &Held) -> Vec<String> {
    let mut wrong = Vec::new();
    for (name, claim) in &ledger.claims {
        if claim::phase(claim) == "Bound"
            && claim.metadata.deletion_timestamp.is_none()
            && let Some(volume) = ledger.volumes.get(claim::volume_name(claim))
            && volume::provisioned_by(volume) == Some(DRIVER)
            && volume.metadata.deletion_timestamp.is_none()
            && let Err(why) = agree(claim, volume, held)
        {
            wrong.push(format!("claim {name}: {why}"));
        }
    }
    wrong
}

fn agree(claim: &PersistentVolumeClaim, volume: &PersistentVolume, held: &Held) -> Result<(), String> {
    let said = expansion::capacity(claim).and_then(|size| size.0.parse::<Quantity>().ok());
    let handle = volume.spec.as_ref().and_then(|spec| Some(&*spec.csi.as_ref()?.volume_handle));
    let held = handle.and_then(|handle| held.volumes.get(handle));
    let bytes = held.map(|held| Quantity::from_bytes(held.bytes.unsigned_abs()));
    let (asked, has) = (fit::requested(claim), fit::capacity(volume));
    if said < asked {
        return Err(format!("has {said:?}, though {asked:?} is asked for"));
    }
    match said <= has && has <= bytes {
        true => Ok(()),
        false => Err(format!("has {said:?} of {has:?}, and the storage has {bytes:?}")),
    }
}
