//! The kinds that the API server serves, custom ones included, and watches over their metadata.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::core::{ApiResource, DynamicObject, ObjectMeta, PartialObjectMeta};
use kube::discovery::{Discovery, Scope, verbs};
use kube::runtime::watcher;
use kube::{Api, Client};
use parking_lot::RwLock;
use runtime::{Context, Informers};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// The pause before discovery is tried again; doubles up to the longest while that fails.
const PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A kind that can be listed, watched and deleted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Kind {
    /// How it is addressed.
    pub resource: ApiResource,
    /// Whether its objects are in namespaces.
    pub namespaced: bool,
}

impl Kind {
    /// The objects of a kind, in a namespace if it has them.
    pub fn api(&self, client: &Client, namespace: &str) -> Api<DynamicObject> {
        if self.namespaced && !namespace.is_empty() {
            Api::namespaced_with(client.clone(), namespace, &self.resource)
        } else {
            Api::all_with(client.clone(), &self.resource)
        }
    }

    /// Events are many, short-lived and own nothing.
    fn is_event(&self) -> bool {
        self.resource.plural == "events"
    }
}

/// The kinds served now.
#[derive(Clone, Default)]
pub struct Kinds(Arc<RwLock<Vec<Arc<Kind>>>>);

impl Kinds {
    /// Every kind.
    pub fn all(&self) -> Vec<Arc<Kind>> {
        self.0.read().clone()
    }

    /// The kind that an owner reference names, whichever version it names.
    pub fn named(&self, api_version: &str, kind: &str) -> Option<Arc<Kind>> {
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        let all = self.0.read();
        all.iter().find(|one| one.resource.group == group && one.resource.kind == kind).cloned()
    }

    /// Whether a definition's kind is among them.
    fn serve(&self, definition: &CustomResourceDefinition) -> bool {
        let (group, plural) = (&definition.spec.group, &definition.spec.names.plural);
        self.0.read().iter().any(|kind| kind.resource.group == *group && kind.resource.plural == *plural)
    }

    /// Asks the API server.
    pub(super) async fn discover(&self, client: &Client) -> Result<(), kube::Error> {
        let discovery = Discovery::new(client.clone()).run().await?;
        let served = discovery.groups().flat_map(kube::discovery::ApiGroup::recommended_resources);
        let usable = served.filter(|(_, able)| {
            [verbs::LIST, verbs::WATCH, verbs::DELETE].iter().all(|verb| able.supports_operation(verb))
        });
        let kinds = usable
            .map(|(resource, able)| Arc::new(Kind { resource, namespaced: able.scope == Scope::Namespaced }));
        let mut kinds: Vec<Arc<Kind>> = kinds.collect();
        // They come in the order of a hash; what follows from them is to happen in one order.
        kinds.sort_by(|a, b| {
            (&a.resource.group, &a.resource.plural).cmp(&(&b.resource.group, &b.resource.plural))
        });
        *self.0.write() = kinds;
        Ok(())
    }
}

fn is_established(definition: &CustomResourceDefinition) -> bool {
    let conditions =
        definition.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let going = definition.metadata.deletion_timestamp.is_some();
    !going
        && conditions.iter().any(|condition| condition.type_ == "Established" && condition.status == "True")
}

/// What a watch says of an object.
pub(super) enum News {
    /// There are other kinds than before.
    Kinds,
    /// It is there, or changed.
    Applied(Arc<Kind>, ObjectMeta),
    /// It is gone.
    Gone(ObjectMeta),
    /// These are all objects of a kind, by uid; others are gone.
    All(Arc<Kind>, Vec<String>),
}

/// Watches the metadata of every kind served, those included that come later, until the context is shut down.
pub(super) async fn watch(
    context: &Context,
    kinds: &Kinds,
    tell: impl Fn(News) + Clone + Send + Sync + 'static,
) {
    let changed = Arc::new(Notify::new());
    let definitions = context.informers.of::<CustomResourceDefinition>();
    definitions.subscribe({
        let changed = Arc::clone(&changed);
        move |_| changed.notify_one()
    });
    let mut running = HashMap::<Arc<Kind>, CancellationToken>::new();
    let (mut said, mut pause) = (None, PAUSE);
    loop {
        if let Err(error) = kinds.discover(&context.client).await {
            let error = runtime::explain(&error);
            if said.as_ref() != Some(&error) {
                tracing::warn!(error, "can't discover kinds, trying again");
                said = Some(error);
            }
            tokio::select! {
                biased;
                () = context.shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
            continue;
        }
        (said, pause) = (None, PAUSE);
        let served = kinds.all();
        running.retain(|kind, stop| {
            let stays = served.contains(kind);
            if !stays {
                stop.cancel();
                tell(News::All(Arc::clone(kind), Vec::new()));
            }
            stays
        });
        for kind in served.into_iter().filter(|kind| !kind.is_event()) {
            running.entry(Arc::clone(&kind)).or_insert_with(|| {
                let stop = context.shutdown.child_token();
                let name = format!("watch over the metadata of {}", kind.resource.kind);
                let following = follow(context.informers.clone(), kind, tell.clone());
                let following = stop.clone().run_until_cancelled_owned(following);
                context.parts.until(stop.clone()).spawn(name, async move { _ = following.await });
                stop
            });
        }
        tell(News::Kinds);
        // A definition may be established a moment before its kind is served.
        let complete =
            definitions.all().iter().all(|definition| !is_established(definition) || kinds.serve(definition));
        tokio::select! {
            biased;
            () = context.shutdown.cancelled() => return,
            () = changed.notified() => {}
            () = tokio::time::sleep(PAUSE), if !complete => {}
        }
    }
}

async fn follow(informers: Informers, kind: Arc<Kind>, tell: impl Fn(News)) {
    let what = format!("metadata of {}", kind.resource.kind);
    let resource = kind.resource.clone();
    let api = move |client| Api::<PartialObjectMeta<DynamicObject>>::all_with(client, &resource);
    let mut listed = Vec::new();
    let tell = |event| match event {
        watcher::Event::Init => listed.clear(),
        watcher::Event::InitApply(object) => {
            let object: PartialObjectMeta<DynamicObject> = object;
            listed.extend(object.metadata.uid.clone());
            tell(News::Applied(Arc::clone(&kind), object.metadata));
        }
        watcher::Event::InitDone => tell(News::All(Arc::clone(&kind), std::mem::take(&mut listed))),
        watcher::Event::Apply(object) => tell(News::Applied(Arc::clone(&kind), object.metadata)),
        watcher::Event::Delete(object) => tell(News::Gone(object.metadata)),
    };
    informers.follow(what, api, watcher::Config::default(), tell).await;
}
