//! The server: from an HTTP request to the verb that answers it.

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::Request;
use http_body::Body;
use object_store::{Key, Store, WriteError};
use serde_json::json;
use tokio::sync::{RwLock, Semaphore};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::answer::{self, Answer};
use crate::body::{self, Payload};
use crate::catalog::Catalog;
use crate::context::{Cleanups, Context, Options, Target};
use crate::error::ApiError;
use crate::kinds::NAMESPACE;
use crate::kinds::row::Act;
use crate::negotiate::{self, Shape};
use crate::nodes::Nodes;
use crate::request::{self, Document, Path, Query, Verb};
use crate::unreadable::Unreadable;
use crate::user::User;
use crate::verbs::{delete, log, proxy, read, scale, subresource, watch, write};
use crate::{
    absent, aside, authorize, bootstrap, cleanup, definitions, discovery, events, kinds, object, review,
};

/// Why the server could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An object that must exist could not be written.
    #[error("can't create the {kind} {name}: {why}; check the data directory and start again")]
    Object {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
        /// The refusal.
        why: String,
    },
}

/// An embedded Kubernetes API server over a store. Clones are handles on the same server; when the last one is gone,
/// its background work stops and its watches end.
#[derive(Clone)]
pub struct ApiServer {
    context: Arc<Context>,
    _running: Arc<DropGuard>,
}

impl std::fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiServer").field("revision", &self.context.store.revision()).finish_non_exhaustive()
    }
}

impl ApiServer {
    /// Serves what the store holds. What can't be read of it is left out and told of in the log. The namespaces `default` and
    /// `kube-system` and the priority classes of the system exist afterwards.
    pub async fn start(store: Store, options: Options) -> Result<Self, StartError> {
        let shutdown = CancellationToken::new();
        let (cleanups, asked) = Cleanups::new();
        let context = Arc::new(Context {
            catalog: Catalog::new(),
            watches: Arc::new(Semaphore::new(options.max_watches)),
            heavy: aside::places(),
            namespaces: RwLock::new(()),
            cleanups,
            unreadable: Unreadable::default(),
            seen: Arc::default(),
            nodes: OnceLock::new(),
            shutdown: shutdown.clone(),
            options,
            store,
        });
        aside::at_once(|| {
            for served in &context.catalog.now().all {
                context.unreadable.examine(&context.store, &served.resource);
            }
            definitions::load(&context);
        });
        let namespaces =
            ["default", "kube-system"].map(|name| (&NAMESPACE, json!({"metadata": {"name": name}})));
        for (kind, object) in namespaces.into_iter().chain(kinds::system_priority_classes()) {
            let name = object::name(&object).to_owned();
            bootstrap::ensure(&context, kind, object).await.map_err(|error| StartError::Object {
                kind: kind.kind.into(),
                name,
                why: error.to_string(),
            })?;
        }
        definitions::resume_cleanups(&context);
        tokio::spawn(cleanup::run(context.clone(), asked));
        tokio::spawn(events::expire(context.clone()));
        Ok(Self { context, _running: Arc::new(shutdown.drop_guard()) })
    }

    /// Drops those stored objects that can't be read and that are `made_anew` by who owns them, each with a word in the
    /// log. Nothing else happens as it would after a deletion: no clean-up, no event. To be called before anything is served.
    ///
    /// # Errors
    /// When the store takes no writes.
    pub async fn drop_unreadable(&self, made_anew: impl Fn(&Key) -> bool) -> Result<(), WriteError> {
        let Context { store, unreadable, .. } = &*self.context;
        for found in unreadable.picked(store, made_anew) {
            tracing::warn!(key = %found.key, "the stored object is dropped, to be made anew by who owns it");
            let last = found.value.clone();
            store.delete(found.key, found.revision, Box::new(move |_| last)).await?;
        }
        Ok(())
    }

    /// Says who answers `pods/log` and `nodes/proxy`. Only the first call counts.
    pub fn serve_nodes(&self, nodes: Arc<dyn Nodes>) {
        if self.context.nodes.set(nodes).is_err() {
            tracing::warn!("the nodes were set twice; the first ones stay");
        }
    }

    pub(crate) fn options(&self) -> &Options {
        &self.context.options
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
        let timeout = self.context.options.request_timeout;
        let responding = respond(&self.context, user, &parts, &mut body, ends);
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
    context: &Arc<Context>,
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
            return discovery::health(parts, context.store.health().map_err(|failure| failure.to_string()));
        }
        Path::Document(document) => return discovery::answer(&context.catalog, &document, parts),
        Path::Resource(path) => path,
    };
    let verb = request::verb(&parts.method, &path, query.watch)?;
    if let Some(review) = review::find(&path) {
        return review::answer(review, verb, user);
    }
    authorize::check(user, verb, &path)?;
    if verb == Verb::List
        && let Some(empty) = absent::list(&path, context.store.revision())
    {
        return Ok(empty);
    }
    let target = Target::resolve(&context.catalog, path)?;
    let row = target.served.kind.row;
    let subresource = target.subresource.as_deref();
    if let Some(unserved) = row.unserved.iter().find(|name| subresource == Some(**name)) {
        return Err(ApiError::NotServed(unserved));
    }
    let act = subresource.and_then(|name| row.subresource(name)).map(|subresource| &subresource.act);
    let shape = negotiate::shape(&parts.headers)?;
    match (verb, subresource) {
        (_, Some("status")) if !target.served.kind.status => Err(ApiError::UnknownPath),
        (Verb::Get, None | Some("status")) => read::get(context, &target, shape, &query),
        (Verb::Get, Some("scale")) if target.served.scale().is_some() => scale::get(context, &target),
        (Verb::Get, _) if matches!(act, Some(Act::Log)) => log::get(context, &target, &query).await,
        (Verb::Get, _) if matches!(act, Some(Act::Page)) => proxy::get(context, &target).await,
        (Verb::List, None) if is_heavy_list(shape, &query) => {
            let (places, context) = (context.heavy.clone(), context.clone());
            aside::run(&places, true, async move { read::list(&context, &target, shape, &query) }).await
        }
        (Verb::List, None) => read::list(context, &target, shape, &query),
        (Verb::Watch, None) => watch::watch(context, &target, shape, &query, ends),
        _ => {
            let payload = body::collect(&parts.headers, body).await?;
            let (places, context) = (context.heavy.clone(), context.clone());
            let heavy = is_heavy(&context, &target, &payload);
            aside::run(&places, heavy, async move {
                change(&context, verb, &target, shape, &query, payload).await
            })
            .await
        }
    }
}

/// Whether a list has to look into every object, of which there may be many.
fn is_heavy_list(shape: Shape, query: &Query) -> bool {
    shape == Shape::Table || !query.label_selector.is_empty() || !query.field_selector.is_empty()
}

/// Whether a write takes longer than a moment: for what is sent, what is stored, or what its schema demands.
fn is_heavy(context: &Context, target: &Target, payload: &Payload) -> bool {
    let served = &target.served;
    // Patterns take long to compile, and a few lines of YAML may stand for many by their aliases.
    if served.kind.row.defines || payload.media_type.contains("yaml") {
        return true;
    }
    let key = served.key(&target.namespace, &target.name);
    let stored = context.store.get(&key).map_or(0, |stored| stored.value.len());
    let schema = served.custom.as_ref().map_or(0, |custom| custom.schema.places());
    payload.bytes.len() + stored + 16 * schema > aside::LIGHT
}

/// Requests that may write.
async fn change(
    context: &Arc<Context>,
    verb: Verb,
    target: &Target,
    shape: Shape,
    query: &Query,
    payload: Payload,
) -> Result<Answer, ApiError> {
    let row = target.served.kind.row;
    let subresource = target.subresource.as_deref();
    match (verb, subresource) {
        (Verb::Create, None) => write::create(context, target, shape, query, payload).await,
        (Verb::Update, None | Some("status")) => write::update(context, target, shape, query, payload).await,
        (Verb::Patch, None | Some("status")) => write::patch(context, target, shape, query, payload).await,
        (Verb::Delete, None) => delete::delete(context, target, shape, query, payload).await,
        (Verb::DeleteCollection, None) if row.collectable => {
            delete::collection(context, target, query, payload).await
        }
        (Verb::Update | Verb::Patch, Some("scale")) if target.served.scale().is_some() => {
            scale::set(context, verb, target, query, &payload).await
        }
        (_, None | Some("status" | "scale")) => Err(ApiError::MethodNotAllowed),
        (_, Some(name)) => match row.subresource(name).map(|subresource| (&subresource.act, verb)) {
            Some((Act::Finalize, Verb::Update)) => {
                write::update(context, target, shape, query, payload).await
            }
            Some((Act::Change { check, make }, Verb::Create)) => {
                subresource::change(context, target, query, &payload, *check, *make).await
            }
            Some((Act::Evict, Verb::Create)) => subresource::evict(context, target, query, &payload).await,
            Some(_) => Err(ApiError::MethodNotAllowed),
            None => Err(ApiError::UnknownPath),
        },
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
            let ends = api.context.shutdown.clone();
            Ok(api.answer(&user, request, ends).await)
        })
    }
}
