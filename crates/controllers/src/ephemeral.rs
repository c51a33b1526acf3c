//! Generic ephemeral volumes: a claim made for a pod's volume, which goes with the pod.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::PostParams;
use kube::core::ObjectMeta;
use kube::{Api, ResourceExt};
use parking_lot::Mutex;
use resources::reference;
use runtime::{Change, Context, Key, Next, Queue};

/// Pods looked at side by side.
const CONCURRENCY: usize = 16;

/// Why a pod can't have its ephemeral volumes yet.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Taken(String),
    #[error("ephemeral volume {volume}: its claim could not be made: {source}")]
    Create { volume: String, source: kube::Error },
    #[error("whether the pod is still there could not be read: {0}")]
    Pod(kube::Error),
}

/// The claims that a pod's ephemeral volumes need, with the name of the volume: pure.
pub fn claims_for(pod: &Pod) -> Vec<(String, PersistentVolumeClaim)> {
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Pod".to_owned(),
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    };
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let templates = volumes.filter_map(|volume| {
        let template = volume.ephemeral.as_ref()?.volume_claim_template.as_ref()?;
        Some((volume.name.clone(), template))
    });
    templates
        .map(|(volume, template)| {
            let meta = template.metadata.clone().unwrap_or_default();
            let claim = PersistentVolumeClaim {
                metadata: ObjectMeta {
                    name: Some(format!("{}-{volume}", pod.name_any())),
                    namespace: pod.namespace(),
                    labels: meta.labels,
                    annotations: meta.annotations,
                    owner_references: Some(vec![owner.clone()]),
                    ..ObjectMeta::default()
                },
                spec: Some(template.spec.clone()),
                status: None,
            };
            (volume, claim)
        })
        .collect()
}

/// Whether a claim was made for a pod.
pub fn is_made_for(claim: &PersistentVolumeClaim, pod: &Pod) -> bool {
    let owners = claim.owner_references();
    owners.iter().any(|owner| owner.controller == Some(true) && Some(&owner.uid) == pod.metadata.uid.as_ref())
}

/// Makes claims for ephemeral volumes until the context is shut down.
pub async fn run(context: Context) {
    let queue = Queue::<Key>::new("ephemeral", &context.metrics);
    let (pods, claims) = (context.informers.pods(), context.informers.claims());
    let wanted = Arc::new(Mutex::new(HashMap::<Key, BTreeSet<Key>>::new()));
    // Pods that lost a claim: perhaps because they are gone, and the news of that late.
    let doubted = Arc::new(Mutex::new(HashSet::<Key>::new()));
    pods.subscribe({
        let (queue, wanted) = (queue.clone(), wanted.clone());
        move |change| {
            let pod = Key::of(&**change.object());
            let claims = claims_for(change.object());
            let mut wanted = wanted.lock();
            for (_, claim) in &claims {
                let claim = Key::of(claim);
                match change {
                    Change::Applied { .. } => _ = wanted.entry(claim).or_default().insert(pod.clone()),
                    Change::Deleted(_) => {
                        if let Some(pods) = wanted.get_mut(&claim) {
                            pods.remove(&pod);
                            if pods.is_empty() {
                                wanted.remove(&claim);
                            }
                        }
                    }
                }
            }
            if matches!(change, Change::Applied { old: None, .. }) && !claims.is_empty() {
                queue.add(pod);
            }
        }
    });
    claims.subscribe({
        let (queue, doubted) = (queue.clone(), doubted.clone());
        move |change| {
            // One that was in the way is gone, or the pod's own was deleted.
            if let Change::Deleted(claim) = change {
                let pods = wanted.lock().get(&Key::of(&**claim)).cloned();
                for pod in pods.into_iter().flatten() {
                    doubted.lock().insert(pod.clone());
                    queue.add(pod);
                }
            }
        }
    });
    if context
        .shutdown
        .run_until_cancelled(async { tokio::join!(pods.synced(), claims.synced()) })
        .await
        .is_none()
    {
        return;
    }
    let recorder = context.recorder("persistentvolume-controller", "");
    runtime::work(queue, CONCURRENCY, context.shutdown.clone(), |key| {
        let pod = pods.get(&key.namespace, &key.name);
        let in_doubt = doubted.lock().remove(&key);
        let (claims, recorder, client, doubted) = (&claims, &recorder, context.client.clone(), &doubted);
        async move {
            let Some(pod) = pod.filter(|pod| pod.metadata.deletion_timestamp.is_none()) else { return Ok(Next::Done) };
            if in_doubt {
                let live = lives(&Api::namespaced(client.clone(), &key.namespace), &pod).await;
                if !live.inspect_err(|_| _ = doubted.lock().insert(key.clone()))? {
                    return Ok(Next::Done);
                }
            }
            for (volume, claim) in claims_for(&pod) {
                let made = match claims.get(&key.namespace, &claim.name_any()) {
                    Some(present) if is_made_for(&present, &pod) => Ok(()),
                    Some(_) => Err(Failure::Taken(format!(
                        "ephemeral volume {volume}: claim {} exists and was not made for this pod; delete it or rename the pod",
                        claim.name_any()
                    ))),
                    None => create(&Api::namespaced(client.clone(), &key.namespace), &volume, &claim).await,
                };
                if let Err(failure) = made {
                    recorder.warning(&reference(&*pod), "FailedBinding", failure.to_string());
                    match failure {
                        // The other claim's end brings the pod back.
                        Failure::Taken(_) => {}
                        Failure::Create { .. } | Failure::Pod(_) => return Err(failure),
                    }
                }
            }
            Ok(Next::Done)
        }
    })
    .await;
}

/// Whether the pod is still there, and to stay.
async fn lives(api: &Api<Pod>, pod: &Pod) -> Result<bool, Failure> {
    let live = api.get_opt(&pod.name_any()).await.map_err(Failure::Pod)?;
    Ok(live.is_some_and(|live| live.uid() == pod.uid() && live.metadata.deletion_timestamp.is_none()))
}

async fn create(
    api: &Api<PersistentVolumeClaim>,
    volume: &str,
    claim: &PersistentVolumeClaim,
) -> Result<(), Failure> {
    api.create(&PostParams::default(), claim)
        .await
        .map(drop)
        .map_err(|source| Failure::Create { volume: volume.to_owned(), source })
}
