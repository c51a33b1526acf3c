//! Work of in-tree plugins on volumes, done apart from decisions.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;
use resources::annotations::{BOUND_BY_CONTROLLER, PROVISIONED_BY, SELECTED_NODE};
use resources::{claim, finalizers};

use super::cluster::Cluster;
use super::plugins::{Plugin, PluginError};
use super::reclaim::failed;
use super::step::{Operation, Step, Write, claim_reference, volume_reference};
use super::volume::unbind;
use super::world::ClaimKey;

/// How often the object of a volume that was just made is tried to be saved, and its volume to be deleted if not.
const TRIES: usize = 5;
/// The pause between those tries.
const PAUSE: Duration = Duration::from_secs(10);

/// How an operation ended.
#[derive(Default)]
pub struct Outcome {
    /// The writes and events that follow from it.
    pub step: Step,
    /// It should be tried again, after a while.
    pub again: bool,
}

/// Runs an operation to its end. What was decided from caches is confirmed by live reads before anything is lost.
///
/// # Errors
/// The API server could not be asked.
pub async fn run(cluster: &impl Cluster, operation: Operation) -> Result<Outcome, kube::Error> {
    match operation {
        Operation::Provision(plugin, claim, class) => provision(cluster, &*plugin, *claim, &class).await,
        Operation::Delete(plugin, volume) => match released(cluster, &volume).await? {
            Some(volume) => Ok(delete(plugin, volume).await),
            None => Ok(Outcome::default()),
        },
        Operation::Recycle(plugin, volume) => match released(cluster, &volume).await? {
            Some(volume) => Ok(recycle(plugin, volume).await),
            None => Ok(Outcome::default()),
        },
    }
}

/// The volume as it is now, if nobody uses it: its claim is gone, or took another volume.
async fn released(
    cluster: &impl Cluster,
    volume: &PersistentVolume,
) -> Result<Option<PersistentVolume>, kube::Error> {
    let Some(live) = cluster.volume(&volume.name_any()).await? else { return Ok(None) };
    let uid = live
        .spec
        .as_ref()
        .and_then(|spec| spec.claim_ref.as_ref()?.uid.clone())
        .filter(|uid| !uid.is_empty());
    let (Some(uid), Some(key)) = (uid, ClaimKey::referred(&live)) else { return Ok(None) };
    let claim = cluster.claim(&key).await?.filter(|claim| claim.metadata.uid.as_ref() == Some(&uid));
    let taken = claim.is_some_and(|claim| {
        let name = claim::volume_name(&claim);
        name.is_empty() || name == live.name_any()
    });
    Ok((!taken).then_some(live))
}

async fn delete(plugin: Arc<dyn Plugin>, mut volume: PersistentVolume) -> Outcome {
    let mut step = Step::default();
    match plugin.delete(&volume).await {
        Ok(()) => {
            let before = volume.finalizers().len();
            volume.finalizers_mut().retain(|name| name != finalizers::IN_TREE_VOLUME);
            if volume.finalizers().len() != before {
                step.writes.push(Write::Volume(Box::new(volume.clone())));
            }
            step.writes.push(Write::DeleteVolume(Box::new(volume)));
            Outcome { step, again: false }
        }
        Err(PluginError::InUse(message)) => {
            step.normal(volume_reference(&volume), "VolumeDelete", message);
            Outcome { step, again: true }
        }
        Err(PluginError::Failed(message)) => {
            failed(&mut step, &mut volume, "VolumeFailedDelete", &message);
            Outcome { step, again: true }
        }
    }
}

async fn recycle(plugin: Arc<dyn Plugin>, mut volume: PersistentVolume) -> Outcome {
    let mut step = Step::default();
    match plugin.recycle(&volume).await {
        Ok(()) => {
            step.normal(volume_reference(&volume), "VolumeRecycled", "Volume recycled");
            unbind(&mut step, &mut volume);
            Outcome { step, again: false }
        }
        Err(error) => {
            failed(&mut step, &mut volume, "VolumeFailedRecycle", &format!("Recycle failed: {error}"));
            Outcome { step, again: true }
        }
    }
}

async fn provision(
    cluster: &impl Cluster,
    plugin: &dyn Plugin,
    mut claim: PersistentVolumeClaim,
    class: &StorageClass,
) -> Result<Outcome, kube::Error> {
    let mut step = Step::default();
    let about = claim_reference(&claim);
    let name = format!("pvc-{}", claim.metadata.uid.as_deref().unwrap_or_default());
    if cluster.volume(&name).await?.is_some() {
        return Ok(Outcome::default());
    }
    let mut volume = match plugin.provision(&claim, class).await {
        Ok(volume) => volume,
        Err(error) => {
            // The node chosen may be the reason: let the scheduler choose again.
            if claim.annotations_mut().remove(SELECTED_NODE).is_some() {
                step.writes.push(Write::Claim(Box::new(claim)));
            }
            let message =
                format!("Failed to provision volume with StorageClass {:?}: {error}", class.name_any());
            step.warning(about, "ProvisioningFailed", message);
            return Ok(Outcome { step, again: true });
        }
    };

    complete(&mut volume, name.clone(), &claim, class);
    let mut tries = 0;
    let error = loop {
        tries += 1;
        match cluster.write(Write::CreateVolume(Box::new(volume.clone()))).await {
            Ok(_) => break None,
            Err(kube::Error::Api(status)) if status.is_already_exists() => break None,
            Err(error) if tries == TRIES => break Some(error),
            Err(error) => {
                let error = runtime::explain(&error);
                tracing::warn!(volume = name, error, "can't save a new volume, trying again");
            }
        }
        tokio::time::sleep(PAUSE).await;
    };
    let Some(error) = error else {
        let message = format!("Successfully provisioned volume {name} using {}", plugin.name());
        step.normal(about, "ProvisioningSucceeded", message);
        return Ok(Outcome { step, again: false });
    };

    let message = format!(
        "Error creating provisioned PV object for claim {}: {}. Deleting the volume.",
        claim.name_any(),
        runtime::explain(&error)
    );
    step.warning(about.clone(), "ProvisioningFailed", message);
    let mut tries = 0;
    while let Err(error) = plugin.delete(&volume).await {
        tries += 1;
        if tries == TRIES {
            let message = format!(
                "Error cleaning provisioned volume for claim {}: {error}. Please delete manually.",
                claim.name_any()
            );
            step.warning(about, "ProvisioningCleanupFailed", message);
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(Outcome { step, again: true })
}

/// Fills in what every volume made for a claim carries.
fn complete(
    volume: &mut PersistentVolume,
    name: String,
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
) {
    volume.metadata.name = Some(name);
    let annotations = volume.annotations_mut();
    annotations.insert(BOUND_BY_CONTROLLER.to_owned(), "yes".to_owned());
    annotations.insert(PROVISIONED_BY.to_owned(), class.provisioner.clone());
    let policy = class.reclaim_policy.clone().unwrap_or_else(|| "Delete".to_owned());
    if policy == "Delete" {
        volume.finalizers_mut().push(finalizers::IN_TREE_VOLUME.to_owned());
    }
    let spec = volume.spec.get_or_insert_default();
    spec.claim_ref = Some(claim_reference(claim));
    spec.storage_class_name = Some(class.name_any());
    spec.persistent_volume_reclaim_policy = Some(policy);
    spec.mount_options.clone_from(&class.mount_options);
    volume.status.get_or_insert_default().phase = Some("Bound".to_owned());
}
