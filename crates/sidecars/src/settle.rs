use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::{Api, Client};
use runtime::{Key, update_status_if_changed};

/// Changes the status of a claim, first as it was seen last, then, if somebody else wrote it, as it is. A claim that is
/// gone needs no change.
pub(crate) async fn settle(
    client: &Client,
    key: &Key,
    mut claim: PersistentVolumeClaim,
    change: impl Fn(&mut PersistentVolumeClaim),
) -> Result<(), kube::Error> {
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), &key.namespace);
    let uid = claim.metadata.uid.clone();
    for attempt in 1.. {
        match update_status_if_changed(&claims, &claim, &change).await {
            Ok(_) => return Ok(()),
            Err(kube::Error::Api(status)) if status.is_not_found() => return Ok(()),
            Err(kube::Error::Api(status)) if status.is_conflict() && attempt < 4 => {}
            Err(error) => return Err(error),
        }
        match claims.get_opt(&key.name).await? {
            Some(live) if live.metadata.uid == uid => claim = live,
            _ => return Ok(()),
        }
    }
    Ok(())
}
