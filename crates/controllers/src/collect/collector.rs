//! The executor: follows owners and dependents, and deletes what lost its owners.

use std::sync::Arc;

use kube::api::{DeleteParams, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::core::DynamicObject;
use parking_lot::Mutex;
use runtime::{Context, Next, Queue};
use serde_json::json;

use super::graph::{Action, Graph, ORPHAN, Object, Owner};
use super::kinds::{Kinds, News, watch};

/// Objects looked at side by side.
const CONCURRENCY: usize = 20;

#[derive(Clone)]
struct Collector {
    context: Context,
    kinds: Kinds,
    graph: Arc<Mutex<Graph>>,
    queue: Queue<String>,
}

/// Collects dependents of deleted owners until the context is shut down.
pub async fn run(context: Context) {
    let collector = Collector {
        queue: Queue::new("collect", &context.metrics),
        kinds: Kinds::default(),
        graph: Arc::default(),
        context,
    };
    let it = collector.clone();
    let watching = watch(&collector.context, &collector.kinds, move |news| it.learn(news));
    let working =
        runtime::work(collector.queue.clone(), CONCURRENCY, collector.context.shutdown.clone(), |uid| {
            Box::pin(collector.look(uid))
        });
    tokio::join!(watching, working);
}

impl Collector {
    fn learn(&self, news: News) {
        let mut graph = self.graph.lock();
        let next = match news {
            News::Applied(kind, meta) => {
                Object::of(&kind, &meta).map(|object| graph.put(object)).unwrap_or_default()
            }
            News::Gone(meta) => meta.uid.map(|uid| graph.remove(&uid)).unwrap_or_default(),
            // Owners of a kind that was not known can be asked for now.
            News::Kinds => graph.owned(),
            News::All(kind, present) => {
                let known = graph.of_kind(&kind);
                let gone = known.into_iter().filter(|uid| !present.contains(uid));
                gone.flat_map(|uid| graph.remove(&uid)).collect()
            }
        };
        next.into_iter().for_each(|uid| self.queue.add(uid));
    }

    async fn look(&self, uid: String) -> Result<Next, kube::Error> {
        let mut gone = Vec::new();
        loop {
            let (action, object) = {
                let graph = self.graph.lock();
                (graph.decide(&uid, &gone), graph.get(&uid).cloned())
            };
            let Some(object) = object else { return Ok(Next::Done) };
            let done = match action {
                Action::Keep => return Ok(Next::Done),
                Action::Confirm(owners) => {
                    match self.confirm(&object, &owners).await? {
                        Some(absent) => gone.extend(absent),
                        // One of them is there after all, or can't be asked for.
                        None => return Ok(Next::Done),
                    }
                    continue;
                }
                Action::Delete { foreground } => self.delete(&object, foreground).await,
                Action::Disown(owners) => self.disown(&object, &owners).await,
                Action::Unblock(finalizer) => self.unblock(&object, finalizer).await,
                Action::CutLoose(dependents) => self.cut_loose(&object, &dependents).await,
            };
            return match done {
                Ok(()) => Ok(Next::Done),
                Err(kube::Error::Api(status)) if status.is_not_found() => Ok(Next::Done),
                Err(kube::Error::Api(status)) if status.is_conflict() => Ok(Next::Overtaken),
                Err(error) => Err(error),
            };
        }
    }

    /// Asks for owners that the watches don't show. `None` if any of them exists, or is of a kind that isn't served.
    async fn confirm(&self, object: &Object, owners: &[Owner]) -> Result<Option<Vec<String>>, kube::Error> {
        let mut absent = Vec::new();
        for owner in owners {
            let Some(kind) = self.kinds.named(&owner.api_version, &owner.kind) else { return Ok(None) };
            let api = kind.api(&self.context.client, &object.namespace);
            // A cluster-scoped object can't be owned by one in a namespace.
            if kind.namespaced && object.namespace.is_empty() {
                return Ok(None);
            }
            let found = api.get_metadata_opt(&owner.name).await?;
            if found.is_some_and(|found| found.metadata.uid.as_ref() == Some(&owner.uid)) {
                return Ok(None);
            }
            absent.push(owner.uid.clone());
        }
        Ok(Some(absent))
    }

    async fn delete(&self, object: &Object, foreground: bool) -> Result<(), kube::Error> {
        let policy = if foreground { PropagationPolicy::Foreground } else { PropagationPolicy::Background };
        let preconditions =
            Preconditions { uid: Some(object.uid.clone()), resource_version: object.version.clone() };
        let params = DeleteParams {
            propagation_policy: Some(policy),
            preconditions: Some(preconditions),
            ..DeleteParams::default()
        };
        tracing::info!(
            kind = object.kind.resource.kind,
            namespace = object.namespace,
            name = object.name,
            "collecting"
        );
        let api = object.kind.api(&self.context.client, &object.namespace);
        api.delete(&object.name, &params).await.map(drop)
    }

    async fn disown(&self, object: &Object, owners: &[String]) -> Result<(), kube::Error> {
        self.patch(object, |live| {
            let references = live.metadata.owner_references.clone().unwrap_or_default();
            let kept: Vec<_> = references.into_iter().filter(|owner| !owners.contains(&owner.uid)).collect();
            json!({"metadata": {"ownerReferences": kept}})
        })
        .await
    }

    async fn unblock(&self, object: &Object, finalizer: &str) -> Result<(), kube::Error> {
        self.patch(object, |live| {
            let finalizers = live.metadata.finalizers.clone().unwrap_or_default();
            let kept: Vec<_> = finalizers.into_iter().filter(|name| name != finalizer).collect();
            json!({"metadata": {"finalizers": kept}})
        })
        .await
    }

    async fn cut_loose(&self, object: &Object, dependents: &[String]) -> Result<(), kube::Error> {
        for uid in dependents {
            let dependent = self.graph.lock().get(uid).cloned();
            if let Some(dependent) = dependent {
                match self.disown(&dependent, std::slice::from_ref(&object.uid)).await {
                    Err(kube::Error::Api(status)) if status.is_not_found() => {}
                    result => result?,
                }
            }
        }
        self.unblock(object, ORPHAN).await
    }

    /// Patches an object as it is now, if it is the same one still.
    async fn patch(
        &self,
        object: &Object,
        change: impl FnOnce(&kube::core::PartialObjectMeta<DynamicObject>) -> serde_json::Value,
    ) -> Result<(), kube::Error> {
        let api = object.kind.api(&self.context.client, &object.namespace);
        let live = api.get_metadata(&object.name).await?;
        if live.metadata.uid.as_ref() != Some(&object.uid) {
            return Ok(());
        }
        let mut patch = change(&live);
        patch["metadata"]["uid"] = json!(live.metadata.uid);
        patch["metadata"]["resourceVersion"] = json!(live.metadata.resource_version);
        api.patch_metadata(&object.name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
    }
}
