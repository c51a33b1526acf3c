use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::pin::pin;
use std::sync::Arc;

use futures::StreamExt;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource, ResourceExt};
use parking_lot::{Mutex, RwLock};
use serde::de::DeserializeOwned;
use tokio::sync::SetOnce;
use tokio_util::sync::CancellationToken;

use crate::metrics::InformerMetrics;

/// One list and watch of a kind, kept as a store that all controllers of the process share.
///
/// Objects are kept without `metadata.managedFields`. The store is bounded by the number of objects that the
/// server holds; nothing else queues here, because subscribers are called in the watch's own task.
pub struct Informer<K> {
    shared: Arc<Shared<K>>,
}

/// What happened to an object of the store.
#[derive(Debug)]
pub enum Change<K> {
    /// Created or changed. `old` is the state before, of the same object: one that was deleted and created again
    /// under its name is announced as deleted first.
    Applied {
        /// The state before, if there was one.
        old: Option<Arc<K>>,
        /// The state now.
        new: Arc<K>,
    },
    /// Gone, with its last known state.
    Deleted(Arc<K>),
}

impl<K> Change<K> {
    /// The object's newest known state.
    pub fn object(&self) -> &Arc<K> {
        match self {
            Change::Applied { new, .. } => new,
            Change::Deleted(last) => last,
        }
    }
}

type Subscriber<K> = Box<dyn Fn(&Change<K>) + Send + Sync>;

struct Shared<K> {
    objects: RwLock<Objects<K>>,
    /// Held while a change is applied and announced, so that every subscriber sees every change once, in order.
    subscribers: Mutex<Vec<Subscriber<K>>>,
    synced: SetOnce<()>,
    metrics: Option<InformerMetrics>,
}

/// Objects by namespace ("" for cluster-scoped ones) and name: two levels, so that looking up allocates nothing.
struct Objects<K>(BTreeMap<String, BTreeMap<String, Arc<K>>>);

impl<K> Objects<K> {
    fn get(&self, namespace: &str, name: &str) -> Option<&Arc<K>> {
        self.0.get(namespace)?.get(name)
    }

    fn insert(&mut self, namespace: String, name: String, object: Arc<K>) {
        self.0.entry(namespace).or_default().insert(name, object);
    }

    fn remove(&mut self, namespace: &str, name: &str) -> Option<Arc<K>> {
        let names = self.0.get_mut(namespace)?;
        let removed = names.remove(name);
        if names.is_empty() {
            self.0.remove(namespace);
        }
        removed
    }

    fn len(&self) -> usize {
        self.0.values().map(BTreeMap::len).sum()
    }
}

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Informer { shared: self.shared.clone() }
    }
}

impl<K> Informer<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    /// Starts listing and watching in the background until `shutdown` is cancelled.
    ///
    /// The list is streamed if the server can (Kubernetes 1.32, our own API server) and paged otherwise. Failures
    /// are retried for ever, with backoff.
    pub fn start(api: Api<K>, config: watcher::Config, shutdown: CancellationToken) -> Informer<K> {
        Informer::start_counted(api, config, shutdown, None)
    }

    pub(crate) fn start_counted(
        api: Api<K>,
        config: watcher::Config,
        shutdown: CancellationToken,
        metrics: Option<InformerMetrics>,
    ) -> Informer<K> {
        let shared = Arc::new(Shared {
            objects: RwLock::new(Objects(BTreeMap::new())),
            subscribers: Mutex::new(Vec::new()),
            synced: SetOnce::new(),
            metrics,
        });
        tokio::spawn(follow(shared.clone(), api, config, shutdown));
        Informer { shared }
    }
}

impl<K> Informer<K> {
    /// Waits until the first complete list is in the store. Does not return while the server can't be reached.
    pub fn synced(&self) -> impl Future<Output = ()> + use<K> {
        let shared = Arc::clone(&self.shared);
        async move {
            shared.synced.wait().await;
        }
    }

    /// Whether the first complete list is in the store.
    pub fn is_synced(&self) -> bool {
        self.shared.synced.initialized()
    }

    /// The object as last seen. `namespace` is "" for cluster-scoped kinds.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.shared.objects.read().get(namespace, name).cloned()
    }

    /// Every object, ordered by namespace and name.
    pub fn all(&self) -> Vec<Arc<K>> {
        self.shared.objects.read().0.values().flat_map(BTreeMap::values).cloned().collect()
    }

    /// Every object of a namespace, ordered by name.
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let objects = self.shared.objects.read();
        objects.0.get(namespace).map(|names| names.values().cloned().collect()).unwrap_or_default()
    }

    /// Calls `notify` for every present object at once, then for every change, in order.
    ///
    /// The store already holds the change when it is announced. `notify` must not block, and must not subscribe to
    /// this informer: it typically adds a key to a queue.
    pub fn subscribe(&self, notify: impl Fn(&Change<K>) + Send + Sync + 'static) {
        let mut subscribers = self.shared.subscribers.lock();
        for object in self.all() {
            notify(&Change::Applied { old: None, new: object });
        }
        subscribers.push(Box::new(notify));
    }
}

impl<K: Resource<DynamicType = ()>> Shared<K> {
    fn apply(&self, object: K) {
        let subscribers = self.subscribers.lock();
        let (namespace, name) = key(&object);
        let new = Arc::new(object);
        let old = self.objects.read().get(&namespace, &name).cloned();
        // A list that follows a broken watch repeats what is known: nobody needs to hear it again.
        if let Some(old) = &old
            && same_version(old.as_ref(), new.as_ref())
        {
            return;
        }
        self.objects.write().insert(namespace, name, new.clone());
        let old = match old {
            Some(old) if old.meta().uid != new.meta().uid => {
                announce(&subscribers, Change::Deleted(old));
                None
            }
            old => old,
        };
        announce(&subscribers, Change::Applied { old, new });
        self.count();
    }

    fn delete(&self, namespace: &str, name: &str, last: Option<K>) {
        let subscribers = self.subscribers.lock();
        let known = self.objects.write().remove(namespace, name);
        if let Some(known) = known {
            announce(&subscribers, Change::Deleted(last.map(Arc::new).unwrap_or(known)));
            self.count();
        }
    }

    /// Removes what the server did not list.
    fn retain(&self, listed: &BTreeSet<(String, String)>) {
        let gone: Vec<_> = {
            let objects = self.objects.read();
            let keys = objects.0.iter().flat_map(|(namespace, names)| {
                names.keys().map(move |name| (namespace.clone(), name.clone()))
            });
            keys.filter(|key| !listed.contains(key)).collect()
        };
        for (namespace, name) in gone {
            self.delete(&namespace, &name, None);
        }
    }

    fn count(&self) {
        if let Some(metrics) = &self.metrics {
            metrics.objects.set(self.objects.read().len() as i64);
        }
    }
}

fn announce<K>(subscribers: &[Subscriber<K>], change: Change<K>) {
    for notify in subscribers {
        notify(&change);
    }
}

fn key<K: Resource<DynamicType = ()>>(object: &K) -> (String, String) {
    (object.namespace().unwrap_or_default(), object.name_any())
}

fn same_version<K: Resource<DynamicType = ()>>(a: &K, b: &K) -> bool {
    let (a, b) = (a.meta(), b.meta());
    a.resource_version.is_some() && a.resource_version == b.resource_version && a.uid == b.uid
}

/// Why a watch ended for good: the server can't stream its initial list.
struct NoStreaming;

async fn follow<K>(shared: Arc<Shared<K>>, api: Api<K>, config: watcher::Config, shutdown: CancellationToken)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let streaming = config.clone().streaming_lists();
    let run = async {
        if let Err(NoStreaming) = consume(&shared, watcher(api.clone(), streaming)).await {
            tracing::debug!(kind = %K::kind(&()), "the server can't stream lists: listing in pages");
            let _ = consume(&shared, watcher(api, config)).await;
        }
    };
    shutdown.run_until_cancelled(run).await;
}

async fn consume<K>(
    shared: &Shared<K>,
    events: impl futures::Stream<Item = watcher::Result<watcher::Event<K>>> + Send,
) -> Result<(), NoStreaming>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let mut events = pin!(events.modify(|object| object.managed_fields_mut().clear()).default_backoff());
    let mut listed = BTreeSet::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Init) => listed.clear(),
            Ok(watcher::Event::InitApply(object)) => {
                listed.insert(key(&object));
                shared.apply(object);
            }
            Ok(watcher::Event::InitDone) => {
                shared.retain(&std::mem::take(&mut listed));
                shared.synced.set(()).ok();
            }
            Ok(watcher::Event::Apply(object)) => shared.apply(object),
            Ok(watcher::Event::Delete(object)) => {
                let (namespace, name) = key(&object);
                shared.delete(&namespace, &name, Some(object));
            }
            Err(error) if refuses_streaming(&error) => return Err(NoStreaming),
            // A custom resource that is not installed here, or not yet: there are none of it.
            Err(error) if is_not_served(&error) => {
                if shared.synced.set(()).is_ok() {
                    tracing::info!(kind = %K::kind(&()), "the server has no such kind; asking again now and then");
                }
            }
            Err(error) => {
                if let Some(metrics) = &shared.metrics {
                    metrics.failures.inc();
                }
                tracing::warn!(kind = %K::kind(&()), error = crate::explain(&error), "watch broke, retrying");
            }
        }
    }
    Ok(())
}

/// Objects of a kind that was served before stay: they are announced as deleted before their kind goes.
fn is_not_served(error: &watcher::Error) -> bool {
    let (watcher::Error::WatchStartFailed(kube::Error::Api(status))
    | watcher::Error::InitialListFailed(kube::Error::Api(status))) = error
    else {
        return false;
    };
    status.code == 404
}

/// A server without streaming lists answers `sendInitialEvents` with 422 Invalid (or 400 from a proxy's view).
fn refuses_streaming(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchStartFailed(kube::Error::Api(status)) if matches!(status.code, 400 | 422))
}
