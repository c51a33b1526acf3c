mod feed;
mod follow;
mod lenient;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::Arc;

use kube::runtime::watcher::{Config, Event};
use kube::{Api, Client, Resource, ResourceExt};
use parking_lot::{Mutex, RwLock};
use serde::de::DeserializeOwned;
use tokio::sync::SetOnce;

pub(crate) use self::feed::{Feed, Feeds};
pub(crate) use self::follow::follow;
use self::lenient::Lenient;
use crate::{Key, Parts};

/// One list and watch of a kind, kept as a store that all controllers of the process share.
///
/// Objects are kept without `metadata.managedFields`. The store is bounded by the number of objects that the
/// server holds; nothing else queues here, because subscribers are called in the watch's own task.
///
/// It never ends by itself: whatever the watch meets, it begins again, with backoff. An object that is not of the kind's
/// form is named in the log and left out, and others are not kept from being known.
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
    feed: Arc<Feed>,
    /// Objects that are not of the kind's form, with their versions.
    unreadable: Mutex<BTreeMap<Key, Option<String>>>,
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
    /// Starts listing and watching in the background, as one of the `parts`, until their shutdown.
    ///
    /// The list is streamed if the server can (Kubernetes 1.32, our own API server) and paged otherwise.
    pub(crate) fn start(client: Client, config: Config, parts: &Parts, feed: Arc<Feed>) -> Informer<K> {
        let shared = Arc::new(Shared {
            objects: RwLock::new(Objects(BTreeMap::new())),
            subscribers: Mutex::new(Vec::new()),
            synced: SetOnce::new(),
            feed,
            unreadable: Mutex::default(),
        });
        let (name, shutdown) = (format!("informer of {}", shared.feed.kind()), parts.shutdown());
        let run = run(shared.clone(), client, config.streaming_lists());
        parts.spawn(name, async move {
            let _ = shutdown.run_until_cancelled(run).await;
        });
        Informer { shared }
    }

    /// Announces every object once more, as to a new subscriber.
    pub(crate) fn resync(&self) {
        let subscribers = self.shared.subscribers.lock();
        for object in self.all() {
            announce(&subscribers, Change::Applied { old: None, new: object });
        }
    }
}

impl<K> Informer<K> {
    /// Waits until the first complete list is in the store. Does not return while the server can't be reached; the log
    /// and the process's readiness tell that.
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
        self.feed.metrics().objects.set(self.objects.read().len() as i64);
    }

    /// An object that is not of the kind's form: what was known of it before stays known.
    fn leave_out(&self, key: Key, version: Option<String>, error: &str) {
        let mut unreadable = self.unreadable.lock();
        if unreadable.get(&key) != Some(&version) {
            tracing::error!(
                kind = self.feed.kind(),
                object = %key,
                error,
                "an object is not of its kind's form, so it is not seen; mend or delete it"
            );
            unreadable.insert(key, version);
        }
        self.feed.metrics().unreadable.set(unreadable.len() as i64);
    }

    fn readable(&self, keep: impl Fn(&Key) -> bool) {
        let mut unreadable = self.unreadable.lock();
        if !unreadable.is_empty() {
            unreadable.retain(|key, _| keep(key));
            self.feed.metrics().unreadable.set(unreadable.len() as i64);
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

async fn run<K>(shared: Arc<Shared<K>>, client: Client, config: Config)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let (feed, mut listed) = (shared.feed.clone(), BTreeSet::new());
    let tell = |event: Event<K>| shared.tell(event, &mut listed, |object| Ok(object));
    follow(&feed, Api::<K>::all(client.clone()), config.clone(), true, tell).await;
    tracing::warn!(kind = feed.kind(), "an object is not of its kind's form: reading the others one by one");
    listed.clear();
    let tell = |event: Event<Lenient<K>>| shared.tell(event, &mut listed, |lenient| lenient.object);
    follow(&feed, Api::<Lenient<K>>::all(client), config, false, tell).await;
}

impl<K: Resource<DynamicType = ()>> Shared<K> {
    fn tell<T: Resource<DynamicType = ()>>(
        &self,
        event: Event<T>,
        listed: &mut BTreeSet<(String, String)>,
        read: impl FnOnce(T) -> Result<K, String>,
    ) {
        match event {
            Event::Init => listed.clear(),
            Event::InitApply(object) => {
                listed.insert(key(&object));
                self.put(object, read);
            }
            Event::InitDone => {
                let listed = std::mem::take(listed);
                self.retain(&listed);
                self.readable(|known| listed.contains(&(known.namespace.clone(), known.name.clone())));
                self.synced.set(()).ok();
            }
            Event::Apply(object) => self.put(object, read),
            Event::Delete(object) => {
                let ((namespace, name), gone) = (key(&object), Key::of(&object));
                self.readable(|known| *known != gone);
                self.delete(&namespace, &name, read(object).ok());
            }
        }
    }

    fn put<T: Resource<DynamicType = ()>>(&self, object: T, read: impl FnOnce(T) -> Result<K, String>) {
        let (seen, version) = (Key::of(&object), object.resource_version());
        match read(object) {
            Ok(mut object) => {
                object.managed_fields_mut().clear();
                self.readable(|known| *known != seen);
                self.apply(object);
            }
            Err(error) => self.leave_out(seen, version, &error),
        }
    }
}
