//! What is bound to nodes that are no more: nobody is left who could end it.

use std::fmt::Debug;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::api::{DeleteParams, Preconditions};
use kube::{Api, Client, Resource, ResourceExt};
use runtime::{Change, Context, Informer, Next, Queue};
use serde::de::DeserializeOwned;

use crate::attach_detach;

/// How long a node must be missing before its pods are given up: it may be registering.
const PODS_AFTER: Duration = Duration::from_secs(40);
/// How long before volumes are taken from it: as long as from one that does not answer.
const ATTACHMENTS_AFTER: Duration = Duration::from_secs(360);

/// An object on a node.
trait OnNode: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static {
    /// The node, if the object is to go with it.
    fn node(&self) -> Option<&str>;
    /// The objects beside this one.
    fn api(&self, client: Client) -> Api<Self>;
}

impl OnNode for Pod {
    fn node(&self) -> Option<&str> {
        self.spec.as_ref()?.node_name.as_deref().filter(|node| !node.is_empty())
    }

    fn api(&self, client: Client) -> Api<Pod> {
        Api::namespaced(client, &self.namespace().unwrap_or_default())
    }
}

impl OnNode for VolumeAttachment {
    /// The attach-detach controller's own are left to it: it knows what the node had mounted.
    fn node(&self) -> Option<&str> {
        (!attach_detach::is_ours(self)).then_some(&self.spec.node_name)
    }

    fn api(&self, client: Client) -> Api<VolumeAttachment> {
        Api::all(client)
    }
}

/// Deletes pods of vanished nodes until the context is shut down.
pub async fn pods(context: Context) {
    sweep(&context, "lost-pods", context.informers.pods(), PODS_AFTER).await;
}

/// Deletes VolumeAttachments to vanished nodes that people or other programs have made, until the context is shut down.
/// Their attachers detach the volumes.
pub async fn attachments(context: Context) {
    sweep(&context, "lost-attachments", context.informers.attachments(), ATTACHMENTS_AFTER).await;
}

async fn sweep<K: OnNode>(context: &Context, name: &'static str, objects: Informer<K>, after: Duration) {
    let queue = Queue::<String>::new(name, &context.metrics);
    let nodes = context.informers.nodes();
    nodes.subscribe({
        let queue = queue.clone();
        move |change| {
            if let Change::Deleted(node) = change {
                queue.add_after(node.name_any(), after);
            }
        }
    });
    let synced = async { tokio::join!(nodes.synced(), objects.synced()) };
    if context.shutdown.run_until_cancelled(synced).await.is_none() {
        return;
    }
    objects.subscribe({
        let (queue, nodes) = (queue.clone(), nodes.clone());
        move |change| {
            if let Change::Applied { old: None, new } = change
                && let Some(node) = new.node().filter(|node| nodes.get("", node).is_none())
            {
                queue.add_after(node.to_owned(), after);
            }
        }
    });
    runtime::work(queue, 1, context.shutdown.clone(), |node| {
        let mut lost = objects.all();
        lost.retain(|object| object.node() == Some(node.as_str()));
        let is_back = nodes.get("", &node).is_some();
        let client = context.client.clone();
        async move {
            if lost.is_empty() || is_back || Api::<Node>::all(client.clone()).get_opt(&node).await?.is_some()
            {
                return Ok::<_, kube::Error>(Next::Done);
            }
            let mut next = Next::Done;
            for object in lost {
                if !delete(&*object, &node, client.clone()).await? {
                    next = Next::Overtaken;
                }
            }
            Ok(next)
        }
    })
    .await;
}

/// False: another object has the name, or this one changed. Its news tell which.
async fn delete<K: OnNode>(object: &K, node: &str, client: Client) -> Result<bool, kube::Error> {
    tracing::info!(
        kind = %K::kind(&()),
        name = object.name_any(),
        namespace = object.namespace(),
        node,
        "deleting what was bound to a node that is gone"
    );
    let preconditions = Preconditions { uid: object.uid(), resource_version: None };
    let now = DeleteParams::default().grace_period(0).preconditions(preconditions);
    match object.api(client).delete(&object.name_any(), &now).await {
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(true),
        Err(kube::Error::Api(status)) if status.is_conflict() => Ok(false),
        result => result.map(|_| true),
    }
}

#[cfg(test)]
mod tests {
    use api_server::ApiServer;
    use kube::api::PostParams;
    use runtime::Metrics;
    use serde_json::{Value, json};
    use tokio_util::sync::CancellationToken;

    use super::*;

    fn object<K: DeserializeOwned>(value: Value) -> K {
        serde_json::from_value(value).expect("a test's object has Kubernetes' form")
    }

    fn attachment(name: &str, node: &str) -> VolumeAttachment {
        object(
            json!({"metadata": {"name": name}, "spec": {"attacher": "driver.example.com", "nodeName": node,
            "source": {"persistentVolumeName": "pv"}}}),
        )
    }

    #[tokio::test]
    async fn what_is_on_a_deleted_node_goes_with_it() {
        let api = ApiServer::start(object_store::Store::in_memory(), api_server::Options::default());
        let api = api.await.expect("the API server starts");
        let client = api.in_process("system:test");
        let shutdown = CancellationToken::new();
        let context = Context::new(Client::new(client, "default"), Metrics::new(), shutdown.clone());
        let all = Api::<VolumeAttachment>::all(context.client.clone());
        let nodes = Api::<Node>::all(context.client.clone());
        let pods = Api::<Pod>::namespaced(context.client.clone(), "default");
        let make = PostParams::default();
        for node in ["here", "there"] {
            nodes.create(&make, &object(json!({"metadata": {"name": node}}))).await.expect("a node");
        }
        let ours = resources::attachment::name("handle", "driver.example.com", "there");
        for (name, node) in [("stays", "here"), ("goes", "there"), ("never-was", "nowhere"), (&ours, "there")]
        {
            all.create(&make, &attachment(name, node)).await.expect("an attachment");
        }
        for (name, node) in [("stays", "here"), ("goes", "there")] {
            let pod = json!({"metadata": {"name": name}, "spec": {"nodeName": node,
                "containers": [{"name": "c", "image": "i"}]}});
            pods.create(&make, &object(pod)).await.expect("a pod");
        }
        // Nobody is left who would confirm its end.
        pods.delete("goes", &DeleteParams::default()).await.expect("it is being deleted");
        let context = &context;
        let sweeping = async {
            tokio::join!(
                sweep(context, "pods", context.informers.pods(), Duration::ZERO),
                sweep(context, "attachments", context.informers.attachments(), Duration::ZERO),
            )
        };
        let test = async {
            nodes.delete("there", &DeleteParams::default()).await.expect("deleted");
            let list = Default::default();
            let left = async || -> Vec<String> {
                let (pods, all) = (pods.list(&list).await, all.list(&list).await);
                let pods = pods.expect("pods").items.into_iter().map(|pod| pod.name_any());
                pods.chain(all.expect("attachments").items.into_iter().map(|one| one.name_any())).collect()
            };
            let expected = ["stays".to_owned(), ours.clone(), "stays".to_owned()];
            let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
            while left().await != expected {
                assert!(tokio::time::Instant::now() < deadline, "{:?}", left().await);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            _ = sweeping => unreachable!("it goes on"),
            () = test => shutdown.cancel(),
        }
    }
}
