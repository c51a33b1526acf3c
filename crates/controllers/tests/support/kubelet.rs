//! What a scheduler and a node would do about pods: they start at once, are ready unless held back, and end when asked.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Binding, Pod};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use parking_lot::Mutex;
use runtime::{Change, Context, Key, Metrics};
use serde_json::json;
use tokio::sync::mpsc::unbounded_channel;
use tokio_util::sync::{CancellationToken, DropGuard};

/// A node that runs every pod; it stops when this is dropped.
pub(crate) struct Kubelet {
    held: Arc<Mutex<BTreeSet<String>>>,
    look: tokio::sync::mpsc::UnboundedSender<Key>,
    log: Arc<Mutex<Vec<String>>>,
    _running: DropGuard,
}

impl Kubelet {
    pub(crate) fn start(client: Client) -> Self {
        let shutdown = CancellationToken::new();
        let context = Context::new(client.clone(), Metrics::new(), shutdown.clone());
        let (look, mut looks) = unbounded_channel::<Key>();
        let (held, log) = (Arc::new(Mutex::new(BTreeSet::new())), Arc::new(Mutex::new(Vec::new())));
        let pods = context.informers.pods();
        pods.subscribe({
            let (look, log) = (look.clone(), Arc::clone(&log));
            move |change| {
                let name = change.object().name_any();
                match change {
                    Change::Applied { old: None, .. } => log.lock().push(format!("+{name}")),
                    Change::Applied { .. } => {}
                    Change::Deleted(_) => log.lock().push(format!("-{name}")),
                }
                look.send(Key::of(&**change.object())).ok();
            }
        });
        let known = Arc::clone(&held);
        tokio::spawn(shutdown.clone().run_until_cancelled_owned(async move {
            while let Some(key) = looks.recv().await {
                if let Some(pod) = pods.get(&key.namespace, &key.name) {
                    let ready = !known.lock().contains(&key.name);
                    advance(&Api::namespaced(client.clone(), &key.namespace), &pod, ready).await;
                }
            }
        }));
        Self { held, look, log, _running: shutdown.drop_guard() }
    }

    /// Keeps pods of that name from starting.
    pub(crate) fn hold(&self, name: &str) {
        self.held.lock().insert(name.to_owned());
    }

    pub(crate) fn release(&self, name: &str) {
        self.held.lock().remove(name);
        self.look.send(Key { namespace: "default".to_owned(), name: name.to_owned() }).ok();
    }

    /// Pods that came (`+name`) and went (`-name`), in order.
    pub(crate) fn log(&self) -> Vec<String> {
        self.log.lock().clone()
    }
}

/// Whatever fails is tried again with the next news of the pod.
async fn advance(api: &Api<Pod>, pod: &Pod, ready: bool) {
    let name = pod.name_any();
    if pod.metadata.deletion_timestamp.is_some() {
        api.delete(&name, &DeleteParams::default().grace_period(0)).await.ok();
    } else if pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_none()) {
        let binding: Binding =
            serde_json::from_value(json!({"metadata": {"name": name}, "target": {"name": "node"}}))
                .expect("a binding");
        let _: Result<serde_json::Value, _> =
            api.create_subresource("binding", &name, &PostParams::default(), &binding).await;
    } else if ready && pod.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Pending")) {
        let status = json!({"status": {"phase": "Running", "conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
        api.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await.ok();
    }
}
