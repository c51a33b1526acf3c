//! Watches: every change in order, through a selector, in the shape that the client wants.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use object_store::{Event, EventKind, Object, Watch, WatchEnd};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::read::parse_revision;
use crate::answer::{self, Answer, AnswerBody};
use crate::catalog::Served;
use crate::context::{Context, Target};
use crate::error::ApiError;
use crate::negotiate::Shape;
use crate::present::{View, include_object};
use crate::request::{Query, VersionMatch};
use crate::schema::FieldError;
use crate::seen::{Facts, Form, Seen};
use crate::selector::Selection;
use crate::table::IncludeObject;

/// A quiet watch with bookmarks gets one this often.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// How long a watch lasts when the client does not say; spread by [`Context::spread`].
const DEFAULT_DURATION: Duration = Duration::from_secs(1800);

/// Pieces of about this many bytes are sent at a time.
const CHUNK: usize = 16 * 1024;

/// Objects that a watch looks at in one go, before others have their turn.
const AT_ONCE: usize = 64;

/// Annotation on the bookmark that ends the initial events.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// Answers a watch.
pub(crate) fn watch(
    context: &Arc<Context>,
    target: &Target,
    shape: Shape,
    query: &Query,
    ends: CancellationToken,
) -> Result<Answer, ApiError> {
    let permit = context.watches.clone().try_acquire_owned().map_err(|_| {
        ApiError::TooManyRequests("too many watches are open, please close some or try again later".into())
    })?;
    let asked = parse_revision(&query.resource_version)?.unwrap_or(0);
    let initial = wants_initial_events(query, asked)?;
    let namespace = target.list_namespace();
    let (first, source) = if initial {
        if asked > context.store.revision() {
            return Err(ApiError::TooLargeRevision { asked, current: context.store.revision() });
        }
        let (page, watch) = context
            .store
            .list_and_watch(&target.served.resource, namespace, |_| true)
            .map_err(|error| ApiError::from_list(error, asked))?;
        let objects = page.objects.into_iter().filter(|stored| context.unreadable.allows(stored)).collect();
        (objects, Ok(watch))
    } else {
        let from = if asked == 0 { context.store.revision() } else { asked };
        (Vec::new(), context.store.watch(&target.served.resource, namespace, from))
    };
    let lasts = query.timeout_seconds.filter(|seconds| *seconds > 0).map_or_else(
        || DEFAULT_DURATION + context.spread(DEFAULT_DURATION),
        |seconds| Duration::from_secs(seconds.min(24 * 3600)),
    );
    let lines = Lines {
        served: target.served.clone(),
        shape,
        include: include_object(&query.include_object)?,
        selection: target.selection(query)?,
        seen: context.seen.clone(),
        columns_sent: false,
    };
    let mut stream = Stream {
        lines,
        initial: first.into_iter(),
        after_initial: None,
        bookmarks: query.bookmarks,
        ends: Instant::now() + lasts,
        next_bookmark: Instant::now() + BOOKMARK_EVERY,
        shutdown: ends,
        source: None,
        _permit: permit,
    };
    match source {
        Ok(watch) => {
            if initial && query.send_initial_events == Some(true) && query.bookmarks {
                stream.after_initial = Some(stream.lines.bookmark(watch.revision(), true));
            }
            stream.source = Some(watch);
        }
        Err(error) => stream.after_initial = Some(error_line(&ApiError::from_watch(error, asked))),
    }
    Ok(answer::with_type(StatusCode::OK, "application/json", AnswerBody::chunks(stream.chunks())))
}

/// Whether existing objects come first as ADDED.
fn wants_initial_events(query: &Query, asked: u64) -> Result<bool, ApiError> {
    let forbidden = |detail: &str| {
        let error = FieldError::forbidden("resourceVersionMatch", detail);
        Err(ApiError::invalid_options("ListOptions", error))
    };
    match (query.send_initial_events, query.version_match) {
        (Some(_), Some(VersionMatch::NotOlderThan)) => {}
        (Some(_), _) => {
            return forbidden("sendInitialEvents requires setting resourceVersionMatch to NotOlderThan");
        }
        (None, Some(_)) => {
            return forbidden(
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            );
        }
        (None, None) => {}
    }
    Ok(query.send_initial_events.unwrap_or(asked == 0))
}

struct Stream {
    lines: Lines,
    /// What is still to be sent as ADDED, and what follows it.
    initial: std::vec::IntoIter<Object>,
    after_initial: Option<Bytes>,
    bookmarks: bool,
    ends: Instant,
    next_bookmark: Instant,
    shutdown: CancellationToken,
    /// Absent when there is nothing more to come.
    source: Option<Watch>,
    _permit: tokio::sync::OwnedSemaphorePermit,
}

impl Stream {
    fn chunks(self) -> impl futures::Stream<Item = Bytes> + Send {
        futures::stream::unfold((self, true), |(mut stream, first)| async move {
            let begin = stream.begin().await;
            // The first chunk, even an empty one, tells the client that the watch stands.
            let chunk = if first || !begin.is_empty() { begin } else { stream.next().await? };
            Some((chunk, (stream, false)))
        })
    }

    /// A piece of what comes before the changes; empty when that is over.
    async fn begin(&mut self) -> Bytes {
        let mut chunk = Vec::new();
        let mut looked_at = 0;
        while chunk.len() < CHUNK {
            looked_at += 1;
            if looked_at % AT_ONCE == 0 {
                tokio::task::yield_now().await;
            }
            let Some(stored) = self.initial.next() else {
                chunk.extend_from_slice(&self.after_initial.take().unwrap_or_default());
                break;
            };
            if let Some(line) = self.lines.initial(&stored) {
                chunk.extend_from_slice(&line);
            }
        }
        chunk.into()
    }

    async fn next(&mut self) -> Option<Bytes> {
        let mut looked_at = 0;
        loop {
            looked_at += 1;
            if looked_at % AT_ONCE == 0 {
                tokio::task::yield_now().await;
            }
            let source = self.source.as_mut()?;
            let bookmark_at = if self.bookmarks { self.next_bookmark.min(self.ends) } else { self.ends };
            let shutdown = self.shutdown.clone();
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return None,
                event = source.next() => match event {
                    Ok(event) => {
                        if let Some(line) = self.lines.event(&event) {
                            return Some(self.with_more(line));
                        }
                    }
                    Err(WatchEnd::Closed) => return None,
                    Err(end @ WatchEnd::Lagged { .. }) => {
                        self.source = None;
                        let error = ApiError::Expired { message: end.to_string(), fresh_continue: None };
                        return Some(error_line(&error));
                    }
                },
                () = tokio::time::sleep_until(bookmark_at) => {
                    let revision = source.revision();
                    self.next_bookmark = Instant::now() + BOOKMARK_EVERY;
                    if Instant::now() >= self.ends {
                        self.source = None;
                    }
                    if self.bookmarks {
                        return Some(self.lines.bookmark(revision, false));
                    }
                }
            }
        }
    }

    /// Adds what is there already, so that a burst of events is not a burst of tiny chunks.
    fn with_more(&mut self, first: Bytes) -> Bytes {
        let mut chunk = Vec::new();
        while chunk.len() + first.len() < CHUNK {
            let Some(Ok(Some(event))) = self.source.as_mut().map(Watch::try_next) else { break };
            if let Some(line) = self.lines.event(&event) {
                chunk.extend_from_slice(&line);
            }
        }
        if chunk.is_empty() { first } else { [first.as_ref(), &chunk].concat().into() }
    }
}

/// How events are written.
struct Lines {
    served: Arc<Served>,
    shape: Shape,
    include: IncludeObject,
    selection: Selection,
    seen: Arc<Seen>,
    /// Only the first Table of a watch carries column definitions.
    columns_sent: bool,
}

impl Lines {
    /// An object that is there when the watch begins, if it is selected. It is no news to other watchers.
    fn initial(&mut self, stored: &Object) -> Option<Bytes> {
        let facts = Facts::of(&stored.value);
        let is_selected = self.selection.allows_name(&stored.key.name) && self.selection.matches(&facts);
        is_selected.then(|| self.line("ADDED", stored, &facts))
    }

    /// The event as the selector's view saw it, if it saw anything.
    fn event(&mut self, event: &Event) -> Option<Bytes> {
        if !self.selection.allows_name(&event.object.key.name) {
            return None;
        }
        let facts = self.seen.facts(&event.object);
        let now = event.kind != EventKind::Deleted && self.selection.matches(&facts);
        let before = event.previous.as_ref().is_some_and(|previous| {
            self.selection.is_everything() || self.selection.matches(&self.seen.facts(previous))
        });
        let change = match (before, now) {
            (false, true) => "ADDED",
            (true, true) => "MODIFIED",
            (true, false) => "DELETED",
            (false, false) => return None,
        };
        Some(self.line(change, &event.object, &facts))
    }

    fn line(&mut self, change: &'static str, stored: &Object, facts: &Facts) -> Bytes {
        let form = Form {
            change,
            api_version: self.served.api_version.clone(),
            shape: self.shape,
            include: self.include,
            with_columns: self.shape == Shape::Table && !std::mem::replace(&mut self.columns_sent, true),
        };
        let view = View { served: &self.served, shape: self.shape, include: self.include };
        facts.line(&form, || match view.one(&stored.value) {
            Ok(bytes) if self.shape == Shape::Table && !form.with_columns => {
                framed(change, &without_columns(&bytes).unwrap_or(bytes))
            }
            Ok(bytes) => framed(change, &bytes),
            Err(error) => error_line(&error),
        })
    }

    fn bookmark(&self, revision: u64, ends_initial: bool) -> Bytes {
        let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if ends_initial {
            metadata["annotations"] = json!({INITIAL_EVENTS_END: "true"});
        }
        let (kind, api_version) = match self.shape {
            Shape::Metadata => ("PartialObjectMetadata", "meta.k8s.io/v1"),
            _ => (self.served.kind.kind.as_ref(), self.served.api_version.as_str()),
        };
        if self.shape == Shape::Table {
            let metadata_object = json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata});
            let table = json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "columnDefinitions": null,
                "metadata": {"resourceVersion": revision.to_string()},
                "rows": [{"cells": [], "object": metadata_object}]});
            return framed("BOOKMARK", table.to_string().as_bytes());
        }
        let object = json!({"kind": kind, "apiVersion": api_version, "metadata": metadata});
        framed("BOOKMARK", object.to_string().as_bytes())
    }
}

fn without_columns(table: &Bytes) -> Option<Bytes> {
    let mut table: Value = serde_json::from_slice(table).ok()?;
    table["columnDefinitions"] = Value::Null;
    Some(table.to_string().into())
}

fn framed(kind: &str, object: &[u8]) -> Bytes {
    let mut line = Vec::with_capacity(object.len() + 40);
    line.extend_from_slice(b"{\"type\":\"");
    line.extend_from_slice(kind.as_bytes());
    line.extend_from_slice(b"\",\"object\":");
    line.extend_from_slice(object);
    line.extend_from_slice(b"}\n");
    line.into()
}

fn error_line(error: &ApiError) -> Bytes {
    framed("ERROR", error.status().to_string().as_bytes())
}
