//! Drives as API objects, for people to see. The drives are the truth; the objects follow.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use drives::Drives;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::{DeleteParams, ObjectMeta, PostParams, Preconditions};
use kube::{Api, ResourceExt};
use resources::{Drive, DriveSpec, DriveState, DriveStatus};
use runtime::{Change, Context};
use tokio::sync::Notify;

/// Keeps the Drive objects of one node equal to its drives, until the context's shutdown.
pub(super) async fn run(context: Context, node: String, drives: Drives) -> Result<(), Infallible> {
    let informer = context.informers.of::<Drive>();
    if context.shutdown.run_until_cancelled(informer.synced()).await.is_none() {
        return Ok(());
    }
    let mut changed = drives.changed();
    let labelled = Arc::new(Notify::new());
    informer.subscribe({
        let labelled = labelled.clone();
        move |change| {
            if let Change::Applied { old: Some(old), new } = change
                && old.metadata.labels != new.metadata.labels
            {
                labelled.notify_one();
            }
        }
    });
    loop {
        changed.mark_unchanged();
        let retry = match write(&context, &node, &drives).await {
            Ok(()) => std::time::Duration::MAX,
            Err(error) => {
                tracing::warn!(
                    node,
                    error = runtime::explain(&error),
                    "the Drive objects could not be brought up to date"
                );
                std::time::Duration::from_secs(5)
            }
        };
        tokio::select! {
            () = context.shutdown.cancelled() => return Ok(()),
            _ = changed.changed() => {}
            () = labelled.notified() => {}
            () = tokio::time::sleep(retry) => {}
        }
    }
}

/// Writes the differences between the drives of `node` and their objects.
async fn write(context: &Context, node: &str, drives: &Drives) -> Result<(), kube::Error> {
    let api: Api<Drive> = Api::all(context.client.clone());
    let mine = context.informers.of::<Drive>().all().into_iter().filter(|drive| drive.spec.node == node);
    let mut stale: BTreeMap<String, _> = mine.map(|drive| (drive.name_any(), drive)).collect();
    for drive in drives.drives() {
        let Some(wanted) = object(node, &drive) else { continue };
        let name = wanted.name_any();
        let known = stale.remove(&name);
        if let Some(known) = &known {
            relabel(drives, &drive, known.labels()).await;
        }
        let same_spec = known.as_ref().is_some_and(|known| known.spec == wanted.spec);
        if same_spec && known.as_ref().is_some_and(|known| known.status == wanted.status) {
            continue;
        }
        let mut current = match known {
            Some(known) => Drive { spec: wanted.spec.clone(), ..Drive::clone(&known) },
            None => wanted.clone(),
        };
        if current.metadata.resource_version.is_none() {
            current = match api.create(&PostParams::default(), &current).await {
                Err(kube::Error::Api(status)) if status.is_already_exists() => {
                    let existing = api.get(&name).await?;
                    let moved = Drive { spec: wanted.spec.clone(), ..existing };
                    api.replace(&name, &PostParams::default(), &moved).await?
                }
                created => created?,
            };
        } else if !same_spec {
            current = api.replace(&name, &PostParams::default(), &current).await?;
        }
        current.status = wanted.status;
        api.replace_status(&name, &PostParams::default(), &current).await?;
    }
    for (name, seen) in &stale {
        // Unchanged only: a drive that was moved is another node's by now.
        let preconditions = Preconditions { resource_version: seen.resource_version(), uid: seen.uid() };
        let unchanged = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match api.delete(name, &unchanged).await {
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {}
            deleted => drop(deleted?),
        }
    }
    Ok(())
}

/// People label drives by their objects, so what an object says is what is wanted. The labels are kept on the drive: an
/// object that is made anew has them from there.
async fn relabel(drives: &Drives, drive: &drives::Drive, wanted: &BTreeMap<String, String>) {
    let Some(id) = drive.id.as_ref().filter(|_| drive.state == drives::DriveState::Ready) else { return };
    if drive.labels != *wanted
        && let Err(error) = drives.label(id, wanted.clone()).await
    {
        tracing::warn!(drive = %id, %error, "the labels of a drive could not be kept on it");
    }
}

/// The object of a drive; none for a drive that has never been identified.
fn object(node: &str, drive: &drives::Drive) -> Option<Drive> {
    let bytes = |number: u64| Quantity(values::Quantity::from_bytes(number).to_string());
    let (state, reason) = match &drive.state {
        drives::DriveState::Ready => (DriveState::Ready, drive.trouble.clone()),
        drives::DriveState::Failed { reason } => (DriveState::Failed, Some(reason.clone())),
    };
    Some(Drive {
        metadata: ObjectMeta {
            name: Some(drive.id.as_ref()?.to_string()),
            labels: (!drive.labels.is_empty()).then(|| drive.labels.clone()),
            ..ObjectMeta::default()
        },
        spec: DriveSpec {
            node: node.to_owned(),
            path: drive.device.as_deref().unwrap_or(drive.source.path()).display().to_string(),
            backend: drive.backend.map(|backend| backend.to_string()).unwrap_or_default(),
        },
        status: Some(DriveStatus {
            state,
            reason,
            capacity: bytes(drive.capacity),
            allocated: bytes(drive.allocated),
            free: bytes(drive.free),
            volumes: i32::try_from(drive.volumes).unwrap_or(i32::MAX),
        }),
    })
}
