//! What the verbs stand on: the store, what is served, and what a request is about.

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use object_store::{Key, Store};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::{RwLock, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::catalog::{Catalog, Served};
use crate::error::ApiError;
use crate::kinds::row::{Cluster, Row};
use crate::nodes::Nodes;
use crate::object;
use crate::request::{Query, ResourcePath};
use crate::seen::Seen;
use crate::selector::Selection;
use crate::unreadable::Unreadable;

/// Bounds of a server, and where its UIDs come from.
#[derive(Debug, Clone)]
pub struct Options {
    /// Watches that may be open at the same time; more get `TooManyRequests`.
    pub max_watches: usize,
    /// How long any request but a watch or a followed log may take.
    pub request_timeout: Duration,
    /// How long a connection may stay without showing a credential, the TLS handshake included.
    pub stranger_timeout: Duration,
    /// How long Events are kept after their last change.
    pub event_ttl: Duration,
    /// Events that are kept; the oldest go first.
    pub max_events: usize,
    /// Bytes that they may have altogether, as JSON.
    pub max_event_bytes: usize,
    /// Where UIDs come from.
    pub uids: Uids,
}

/// Where the UIDs of new objects come from: chance, unless a simulation wants its runs to be alike.
#[derive(Clone)]
pub struct Uids(Arc<dyn Fn(&str) -> uuid::Uuid + Send + Sync>);

impl Uids {
    /// Random ones, as everybody expects them.
    pub fn random() -> Uids {
        Uids::by(|_| uuid::Uuid::new_v4())
    }

    /// As `choose` says for `RESOURCE/NAMESPACE/NAME`. No two may be the same.
    pub fn by(choose: impl Fn(&str) -> uuid::Uuid + Send + Sync + 'static) -> Uids {
        Uids(Arc::new(choose))
    }

    pub(crate) fn choose(&self, served: &Served, namespace: &str, name: &str) -> uuid::Uuid {
        (self.0)(&format!("{}/{namespace}/{name}", served.kind.plural))
    }
}

impl std::fmt::Debug for Uids {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Uids")
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_watches: 4096,
            request_timeout: Duration::from_secs(60),
            stranger_timeout: Duration::from_secs(15),
            event_ttl: Duration::from_secs(3600),
            max_events: 20_000,
            max_event_bytes: 16 << 20,
            uids: Uids::random(),
        }
    }
}

/// What all requests share.
pub(crate) struct Context {
    pub(crate) store: Store,
    pub(crate) catalog: Catalog,
    pub(crate) options: Options,
    pub(crate) watches: Arc<Semaphore>,
    /// Places for what takes longer than a moment.
    pub(crate) heavy: Arc<Semaphore>,
    /// Held for reading while something is created in a namespace, for writing while one begins to terminate: nothing
    /// is created in a namespace behind the back of its emptying.
    pub(crate) namespaces: RwLock<()>,
    pub(crate) cleanups: Cleanups,
    pub(crate) unreadable: Unreadable,
    /// What all watches share.
    pub(crate) seen: Arc<Seen>,
    pub(crate) nodes: OnceLock<Arc<dyn Nodes>>,
    pub(crate) shutdown: CancellationToken,
}

/// Definitions that are being deleted, whose objects go first: those that are asked for and those that are worked on.
pub(crate) struct Cleanups {
    known: Mutex<HashSet<String>>,
    asked: mpsc::UnboundedSender<String>,
}

impl Cleanups {
    /// With the end at which the names come out: each once, until [`Cleanups::done`] says so.
    pub(crate) fn new() -> (Self, mpsc::UnboundedReceiver<String>) {
        let (asked, names) = mpsc::unbounded_channel();
        (Self { known: Mutex::default(), asked }, names)
    }

    /// Asks for the clean-up after a definition, unless it is asked for.
    pub(crate) fn ask(&self, definition: &str) {
        if self.known.lock().insert(definition.to_owned()) && self.asked.send(definition.to_owned()).is_err()
        {
            tracing::debug!(definition, "the server stops: a clean-up goes on at the next start");
        }
    }

    /// The clean-up is over, however it ended.
    pub(crate) fn done(&self, definition: &str) {
        self.known.lock().remove(definition);
    }
}

impl Context {
    /// A random part of `span`, so that what began together does not end together.
    pub(crate) fn spread(&self, span: Duration) -> Duration {
        span.mul_f64(f64::from(uuid::Uuid::new_v4().as_fields().0) / f64::from(u32::MAX))
    }
}

impl Cluster for Context {
    fn get(&self, of: &Row, namespace: &str, name: &str) -> Option<Value> {
        object::decode(&self.store.get(&Key::new(&*of.resource(), namespace, name))?.value).ok()
    }

    fn list(&self, of: &Row) -> Vec<Value> {
        let page = self.store.list(&of.resource(), None, None, None, 0, |_| true);
        let objects = page.map(|page| page.objects).unwrap_or_default();
        objects.iter().filter_map(|stored| object::decode(&stored.value).ok()).collect()
    }

    fn is_taken(&self, group: &str, plural: &str, kind: &str) -> bool {
        self.catalog.now().is_taken(group, plural, kind)
    }
}

/// What a request is about: a served kind, and where and which object.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) served: Arc<Served>,
    /// Empty for cluster-scoped kinds and lists over all namespaces.
    pub(crate) namespace: String,
    /// Empty for collections.
    pub(crate) name: String,
    pub(crate) subresource: Option<String>,
    /// What of a proxied node is asked for.
    pub(crate) page: Option<String>,
}

impl Target {
    pub(crate) fn resolve(catalog: &Catalog, path: ResourcePath) -> Result<Self, ApiError> {
        let served =
            catalog.now().find(&path.group, &path.version, &path.resource).ok_or(ApiError::UnknownPath)?;
        let needs_namespace = served.kind.namespaced && path.name.is_some();
        if (path.namespace.is_some() && !served.kind.namespaced)
            || (needs_namespace && path.namespace.is_none())
        {
            return Err(ApiError::UnknownPath);
        }
        Ok(Self {
            served,
            namespace: path.namespace.unwrap_or_default(),
            name: path.name.unwrap_or_default(),
            subresource: path.subresource,
            page: path.page,
        })
    }

    /// The namespace that a list is confined to.
    pub(crate) fn list_namespace(&self) -> Option<&str> {
        Some(self.namespace.as_str()).filter(|namespace| !namespace.is_empty())
    }

    /// The request's selectors.
    pub(crate) fn selection(&self, query: &Query) -> Result<Selection, ApiError> {
        let selectable = self.served.custom.as_ref().map(|custom| custom.selectable.as_slice());
        Selection::parse(
            &self.served.kind,
            &query.label_selector,
            &query.field_selector,
            selectable.unwrap_or_default(),
        )
    }
}
