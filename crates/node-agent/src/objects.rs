//! Watches on the few objects that pods of this node use: config maps and secrets; claims, attachments and the Node
//! where something of them is waited for.
//!
//! One watch per object, shared by its pods and ended with the last of them. A change marks the pods and wakes
//! them; they read the object live.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Debug,
    sync::Arc,
};

use futures::StreamExt;
use k8s_openapi::api::{
    core::v1::{ConfigMap, Node, PersistentVolumeClaim, Secret},
    storage::v1::VolumeAttachment,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    runtime::{WatchStreamExt, watcher::watch_object},
};
use parking_lot::Mutex;
use runtime::Queue;
use serde::de::DeserializeOwned;
use tokio::task::AbortHandle;

use crate::containers::environment::{Data, Reference};

/// The kinds that are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    ConfigMap,
    Secret,
    Claim,
    Attachment,
    Node,
}

type Key = (Kind, String, String);

/// The watches of one node.
#[derive(Clone)]
pub(crate) struct Objects {
    client: Client,
    wake: Queue<String>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    watches: HashMap<Key, Watch>,
    changed: BTreeSet<String>,
}

struct Watch {
    users: BTreeSet<String>,
    /// The version that its users have read; None: it was absent.
    seen: Option<String>,
    task: AbortHandle,
}

impl Objects {
    /// No watch yet; pods are woken through `wake`, by UID.
    pub(crate) fn new(client: Client, wake: Queue<String>) -> Objects {
        Objects { client, wake, state: Arc::default() }
    }

    /// Reads a config map or secret live, and lets the pod know of its changes from now on.
    pub(crate) async fn data(
        &self,
        namespace: &str,
        reference: &Reference,
        uid: &str,
    ) -> Result<Option<BTreeMap<String, Vec<u8>>>, kube::Error> {
        let (data, version) = match reference {
            Reference::ConfigMap(name) | Reference::ConfigMapText(name) => {
                let mut object =
                    Api::<ConfigMap>::namespaced(self.client.clone(), namespace).get_opt(name).await?;
                let version = object.as_ref().and_then(|object| object.resource_version());
                if let (Some(object), Reference::ConfigMapText(_)) = (&mut object, reference) {
                    object.binary_data = None;
                }
                (object.map(config_map_data), version)
            }
            Reference::Secret(name) => {
                let object = Api::<Secret>::namespaced(self.client.clone(), namespace).get_opt(name).await?;
                let version = object.as_ref().and_then(|object| object.resource_version());
                (
                    object.map(|secret| {
                        secret.data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.0)).collect()
                    }),
                    version,
                )
            }
        };
        let (kind, name) = match reference {
            Reference::ConfigMap(name) | Reference::ConfigMapText(name) => (Kind::ConfigMap, name),
            Reference::Secret(name) => (Kind::Secret, name),
        };
        self.follow(kind, namespace, name, uid, version);
        Ok(data)
    }

    /// Data of all these objects; absent ones are left out.
    pub(crate) async fn all(
        &self,
        namespace: &str,
        wanted: Vec<Reference>,
        uid: &str,
    ) -> Result<Data, kube::Error> {
        let mut found = Data::new();
        for reference in wanted {
            if let Some(data) = self.data(namespace, &reference, uid).await? {
                found.insert(reference, data);
            }
        }
        Ok(found)
    }

    /// Wakes the pod when the object changes from the version that was `seen`.
    pub(crate) fn follow(&self, kind: Kind, namespace: &str, name: &str, uid: &str, seen: Option<String>) {
        let key: Key = (kind, namespace.to_owned(), name.to_owned());
        let mut state = self.state.lock();
        if let Some(watch) = state.watches.get_mut(&key) {
            watch.users.insert(uid.to_owned());
            watch.seen = seen;
            return;
        }
        let client = self.client.clone();
        let task = match kind {
            Kind::ConfigMap => self.watch(Api::<ConfigMap>::namespaced(client, namespace), key.clone()),
            Kind::Secret => self.watch(Api::<Secret>::namespaced(client, namespace), key.clone()),
            Kind::Claim => {
                self.watch(Api::<PersistentVolumeClaim>::namespaced(client, namespace), key.clone())
            }
            Kind::Attachment => self.watch(Api::<VolumeAttachment>::all(client), key.clone()),
            Kind::Node => self.watch(Api::<Node>::all(client), key.clone()),
        };
        state.watches.insert(key, Watch { users: BTreeSet::from([uid.to_owned()]), seen, task });
    }

    fn watch<K>(&self, api: Api<K>, key: Key) -> AbortHandle
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
    {
        let (wake, state) = (self.wake.clone(), self.state.clone());
        let task = tokio::spawn(async move {
            let mut changes = std::pin::pin!(watch_object(api, &key.2).default_backoff());
            let mut said = None;
            while let Some(change) = changes.next().await {
                let object = match change {
                    Ok(object) => object,
                    Err(error) => {
                        let error = runtime::explain(&error);
                        // Once, not at every attempt.
                        if said.as_ref() != Some(&error) {
                            let (kind, namespace, name) = (K::kind(&()), &key.1, &key.2);
                            tracing::warn!(%kind, namespace, name, error, "can't watch what a pod uses, trying again");
                            said = Some(error);
                        }
                        continue;
                    }
                };
                let version = object.and_then(|object| object.resource_version());
                let mut state = state.lock();
                let State { watches, changed } = &mut *state;
                let Some(watch) = watches.get_mut(&key) else { return };
                if watch.seen != version {
                    watch.seen = version;
                    changed.extend(watch.users.iter().cloned());
                    watch.users.iter().for_each(|uid| wake.add(uid.clone()));
                }
            }
        });
        task.abort_handle()
    }

    /// Whether an object of the pod has changed since this was last asked.
    pub(crate) fn take_changed(&self, uid: &str) -> bool {
        self.state.lock().changed.remove(uid)
    }

    /// Ends the pod's interest in an object.
    pub(crate) fn unfollow(&self, kind: Kind, namespace: &str, name: &str, uid: &str) {
        let key: Key = (kind, namespace.to_owned(), name.to_owned());
        let watches = &mut self.state.lock().watches;
        if let Some(watch) = watches.get_mut(&key) {
            watch.users.remove(uid);
            if watch.users.is_empty() {
                watches.remove(&key);
            }
        }
    }

    /// Ends the pod's interest in everything.
    pub(crate) fn forget(&self, uid: &str) {
        let mut state = self.state.lock();
        state.changed.remove(uid);
        state.watches.retain(|_, watch| {
            watch.users.remove(uid);
            if watch.users.is_empty() {
                watch.task.abort();
            }
            !watch.users.is_empty()
        });
    }
}

fn config_map_data(object: ConfigMap) -> BTreeMap<String, Vec<u8>> {
    let text = object.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.into_bytes()));
    let binary = object.binary_data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0));
    text.chain(binary).collect()
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}
