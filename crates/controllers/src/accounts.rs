//! Every namespace has a service account `default`, as kube-controller-manager keeps it.

use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, ResourceExt};
use runtime::{Change, Context, Next, Queue, WatchConfig};

/// The account of pods that name none.
const DEFAULT: &str = "default";

fn takes_objects(namespace: &Namespace) -> bool {
    namespace.metadata.deletion_timestamp.is_none()
}

/// Makes the account where it is missing, until the context is shut down.
pub async fn run(context: Context) {
    let queue = Queue::<String>::new("service-accounts", &context.metrics);
    let namespaces = context.informers.namespaces();
    let accounts = context
        .informers
        .select::<ServiceAccount>(WatchConfig::default().fields(&format!("metadata.name={DEFAULT}")));
    namespaces.subscribe({
        let queue = queue.clone();
        move |change| {
            if let Change::Applied { old: None, new } = change {
                queue.add(new.name_any());
            }
        }
    });
    accounts.subscribe({
        let queue = queue.clone();
        move |change| {
            if let Change::Deleted(old) = change {
                queue.add(old.namespace().unwrap_or_default());
            }
        }
    });
    let synced = async { tokio::join!(namespaces.synced(), accounts.synced()) };
    if context.shutdown.run_until_cancelled(synced).await.is_none() {
        return;
    }
    runtime::work(queue, 1, context.shutdown.clone(), |name| {
        let is_missing = accounts.get(&name, DEFAULT).is_none()
            && namespaces.get("", &name).is_some_and(|namespace| takes_objects(&namespace));
        let api = Api::<ServiceAccount>::namespaced(context.client.clone(), &name);
        async move {
            if !is_missing {
                return Ok::<_, kube::Error>(Next::Done);
            }
            let metadata = ObjectMeta { name: Some(DEFAULT.to_owned()), ..ObjectMeta::default() };
            let account = ServiceAccount { metadata, ..ServiceAccount::default() };
            match api.create(&PostParams::default(), &account).await {
                // The namespace ends, or somebody else was first.
                Err(kube::Error::Api(status))
                    if status.is_already_exists() || status.is_not_found() || status.is_forbidden() =>
                {
                    Ok(Next::Done)
                }
                made => made.map(|_| Next::Done),
            }
        }
    })
    .await;
}
