//! The server: from an HTTP request to its answer.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, StatusCode};
use http_body::Body;
use object_store::Store;
use parking_lot::Mutex;
use tokio::sync::{RwLock, Semaphore};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::answer::{self, Answer, AnswerBody};
use crate::body::{self, Payload};
use crate::catalog::{Catalog, Served};
use crate::error::ApiError;
use crate::negotiate::{self, Shape};
use crate::request::{self, Document, Path, Query, ResourcePath, Verb};
use crate::selector::Selection;
use crate::unreadable::Unreadable;
use crate::{
    aside, authorize, crds, delete, discovery, events, log, namespaces, pods, read, review, scale, watch,
    write,
};

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

/// Why the server could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A namespace that must exist could not be written.
    #[error("can't create the namespace {name}: {why}; check the data directory and start again")]
    Namespace {
        /// The namespace.
        name: String,
        /// The refusal.
        why: String,
    },
}

/// Who makes a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// User name, such as `kubernetes-admin`.
    pub name: String,
    /// Groups, such as `system:masters`.
    pub groups: Vec<String>,
}

/// An embedded Kubernetes API server over a store. Clones are handles on the same server; when the last one is gone,
/// its background work stops and its watches end.
#[derive(Clone)]
pub struct ApiServer {
    shared: Arc<Shared>,
    _running: Arc<DropGuard>,
}

impl std::fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiServer").field("revision", &self.shared.store.revision()).finish_non_exhaustive()
    }
}

/// What all requests share.
pub(crate) struct Shared {
    pub(crate) store: Store,
    pub(crate) catalog: Catalog,
    pub(crate) options: Options,
    pub(crate) watches: Arc<Semaphore>,
    /// Places for what takes longer than a moment.
    pub(crate) heavy: Arc<Semaphore>,
    /// Held for reading while something is created in a namespace, for writing while one begins to terminate: nothing
    /// is created in a namespace behind the back of its emptying.
    pub(crate) namespaces: RwLock<()>,
    /// Definitions whose objects are being deleted.
    pub(crate) cleanups: Mutex<HashSet<String>>,
    pub(crate) unreadable: Unreadable,
    pub(crate) logs: OnceLock<Arc<dyn log::Logs>>,
    pub(crate) shutdown: CancellationToken,
}

impl Shared {
    /// A random part of `span`, so that what began together does not end together.
    pub(crate) fn spread(&self, span: Duration) -> Duration {
        span.mul_f64(f64::from(uuid::Uuid::new_v4().as_fields().0) / f64::from(u32::MAX))
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
}

impl Target {
    fn resolve(catalog: &Catalog, path: ResourcePath) -> Result<Self, ApiError> {
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

impl ApiServer {
    /// Serves what the store holds. What can't be read of it is left out and told of in the log. The namespaces `default` and `kube-system` exist afterwards.
    pub async fn start(store: Store, options: Options) -> Result<Self, StartError> {
        let shutdown = CancellationToken::new();
        let shared = Arc::new(Shared {
            catalog: Catalog::new(),
            watches: Arc::new(Semaphore::new(options.max_watches)),
            heavy: aside::places(),
            namespaces: RwLock::new(()),
            cleanups: Mutex::default(),
            unreadable: Unreadable::default(),
            logs: OnceLock::new(),
            shutdown: shutdown.clone(),
            options,
            store,
        });
        aside::at_once(|| {
            for served in &shared.catalog.now().all {
                shared.unreadable.examine(&shared.store, &served.resource);
            }
            crds::load(&shared);
        });
        for name in ["default", "kube-system"] {
            namespaces::ensure(&shared, name)
                .await
                .map_err(|error| StartError::Namespace { name: name.into(), why: error.to_string() })?;
        }
        crds::resume_cleanups(&shared);
        tokio::spawn(events::expire(shared.clone()));
        Ok(Self { shared, _running: Arc::new(shutdown.drop_guard()) })
    }

    /// Says where `pods/log` comes from. Only the first call counts.
    pub fn serve_logs(&self, logs: Arc<dyn log::Logs>) {
        if self.shared.logs.set(logs).is_err() {
            tracing::warn!("the source of pod logs was set twice; the first one stays");
        }
    }

    pub(crate) fn options(&self) -> &Options {
        &self.shared.options
    }

    /// The server as a `tower::Service` for clients in this process, which are trusted to be `user`.
    pub fn in_process(&self, user: &str) -> InProcess {
        let user = User { name: user.to_owned(), groups: vec!["system:masters".into()] };
        InProcess { api: self.clone(), user: Arc::new(user) }
    }

    /// The answer to a request of an authenticated user; watches end when `ends` is cancelled.
    pub(crate) async fn answer<B>(&self, user: &User, request: Request<B>, ends: CancellationToken) -> Answer
    where
        B: Body<Data = Bytes> + Send,
    {
        let (parts, body) = request.into_parts();
        let mut body = Box::pin(body);
        let timeout = self.shared.options.request_timeout;
        let responding = respond(&self.shared, user, &parts, &mut body, ends);
        let answered = tokio::time::timeout(timeout, responding).await;
        body::drain(&parts.headers, &mut body).await;
        match answered.unwrap_or(Err(ApiError::Timeout)) {
            Ok(answer) => answer,
            Err(error) => {
                if error.status_code().is_server_error() {
                    tracing::warn!(%error, "a request failed");
                }
                answer::refusal(&error)
            }
        }
    }
}

async fn respond<B>(
    shared: &Arc<Shared>,
    sender: &User,
    parts: &http::request::Parts,
    body: &mut B,
    ends: CancellationToken,
) -> Result<Answer, ApiError>
where
    B: Body<Data = Bytes> + Send + Unpin,
{
    let user = &authorize::acting(sender, &parts.headers)?;
    let path = request::parse_path(parts.uri.path()).ok_or(ApiError::UnknownPath)?;
    let query = Query::parse(parts.uri.query().unwrap_or(""), &parts.method)?;
    let path = match path {
        Path::Document(Document::Health) => {
            return discovery::health(parts, shared.store.health().map_err(|failure| failure.to_string()));
        }
        Path::Document(document) => return discovery::answer(&shared.catalog, &document, parts),
        Path::Resource(path) => path,
    };
    let verb = request::verb(&parts.method, &path, query.watch)?;
    if let Some(review) = review::find(&path) {
        return review::answer(review, verb, user);
    }
    authorize::check(user, verb, &path)?;
    let target = Target::resolve(&shared.catalog, path)?;
    if let Some(unserved) = target.subresource.as_deref().and_then(pods::unserved)
        && target.served.is_builtin("Pod")
    {
        return Err(ApiError::NotServed(unserved));
    }
    let shape = negotiate::shape(&parts.headers)?;
    match (verb, target.subresource.as_deref()) {
        (_, Some("status")) if !target.served.kind.status => Err(ApiError::UnknownPath),
        (Verb::Get, Some("log")) if target.served.is_builtin("Pod") => {
            log::get(shared, &target, &query).await
        }
        (Verb::Get, None | Some("status")) => read::get(shared, &target, shape, &query),
        (Verb::Get, Some("scale")) if target.served.scale().is_some() => scale::get(shared, &target),
        (Verb::List, None) if is_heavy_list(shape, &query) => {
            let (places, shared) = (shared.heavy.clone(), shared.clone());
            aside::run(&places, true, async move { read::list(&shared, &target, shape, &query) }).await
        }
        (Verb::List, None) => read::list(shared, &target, shape, &query),
        (Verb::Watch, None) => watch::watch(shared, &target, shape, &query, ends),
        _ => {
            let payload = body::collect(&parts.headers, body).await?;
            let (places, shared) = (shared.heavy.clone(), shared.clone());
            let heavy = is_heavy(&shared, &target, &payload);
            aside::run(
                &places,
                heavy,
                async move { change(&shared, verb, &target, shape, &query, payload).await },
            )
            .await
        }
    }
}

/// Whether a list has to look into every object, of which there may be many.
fn is_heavy_list(shape: Shape, query: &Query) -> bool {
    shape == Shape::Table || !query.label_selector.is_empty() || !query.field_selector.is_empty()
}

/// Whether a write takes longer than a moment: for what is sent, what is stored, or what its schema demands.
fn is_heavy(shared: &Shared, target: &Target, payload: &Payload) -> bool {
    let served = &target.served;
    // Patterns take long to compile, and a few lines of YAML may stand for many by their aliases.
    if served.is_builtin("CustomResourceDefinition") || payload.media_type.contains("yaml") {
        return true;
    }
    let key = served.key(&target.namespace, &target.name);
    let stored = shared.store.get(&key).map_or(0, |stored| stored.value.len());
    let schema = served.custom.as_ref().map_or(0, |custom| custom.schema.places());
    payload.bytes.len() + stored + 16 * schema > aside::LIGHT
}

/// Requests that may write.
async fn change(
    shared: &Arc<Shared>,
    verb: Verb,
    target: &Target,
    shape: Shape,
    query: &Query,
    payload: Payload,
) -> Result<Answer, ApiError> {
    match (verb, target.subresource.as_deref()) {
        (Verb::Create, None) => write::create(shared, target, shape, query, payload).await,
        (Verb::Create, Some("binding")) if target.served.is_builtin("Pod") => {
            pods::bind(shared, target, query, payload).await
        }
        (Verb::Create, Some("eviction")) if target.served.is_builtin("Pod") => {
            pods::evict(shared, target, query, payload).await
        }
        (Verb::Update, None | Some("status" | "finalize")) => {
            write::update(shared, target, shape, query, payload).await
        }
        (Verb::Update | Verb::Patch, Some("scale")) if target.served.scale().is_some() => {
            scale::set(shared, verb, target, query, &payload).await
        }
        (Verb::Patch, None | Some("status")) => write::patch(shared, target, shape, query, payload).await,
        (Verb::Delete, None) => delete::delete(shared, target, shape, query, payload).await,
        (Verb::DeleteCollection, None) if !target.served.is_builtin("Namespace") => {
            delete::collection(shared, target, query, payload).await
        }
        (_, None | Some("status" | "scale" | "finalize" | "binding" | "eviction" | "log")) => {
            Err(ApiError::MethodNotAllowed)
        }
        _ => Err(ApiError::UnknownPath),
    }
}

/// A client's end of the server inside the process.
#[derive(Debug, Clone)]
pub struct InProcess {
    api: ApiServer,
    user: Arc<User>,
}

impl<B> tower::Service<Request<B>> for InProcess
where
    B: Body<Data = Bytes> + Send + 'static,
{
    type Response = Answer;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Answer, Infallible>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (api, user) = (self.api.clone(), self.user.clone());
        Box::pin(async move {
            let ends = api.shared.shutdown.clone();
            Ok(api.answer(&user, request, ends).await)
        })
    }
}

/// An answer to a write: what is stored now, in the client's shape.
pub(crate) fn written(
    target: &Target,
    shape: Shape,
    query: &Query,
    status: StatusCode,
    stored: &Bytes,
    warnings: &[String],
) -> Result<Answer, ApiError> {
    let include = crate::present::include_object(&query.include_object)?;
    let view = crate::present::View { served: &target.served, shape, include };
    let mut answer = answer::with_type(status, "application/json", AnswerBody::whole(view.one(stored)?));
    answer::warn(&mut answer, warnings);
    Ok(answer)
}
