//! Get and list.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::StatusCode;
use object_store::{ListError, Object, Page};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::answer::{self, Answer, AnswerBody};
use crate::catalog::Served;
use crate::context::{Context, Target};
use crate::error::ApiError;
use crate::negotiate::Shape;
use crate::present::{View, include_object};
use crate::request::{Query, VersionMatch};
use crate::schema::FieldError;
use crate::seen::Facts;
use crate::selector::Selection;

/// Answers a get of one object.
pub(crate) fn get(
    context: &Context,
    target: &Target,
    shape: Shape,
    query: &Query,
) -> Result<Answer, ApiError> {
    let stored = fetch(context, target)?;
    let view = View { served: &target.served, shape, include: include_object(&query.include_object)? };
    Ok(answer::bytes(StatusCode::OK, view.one(&stored.value)?))
}

/// The stored object that the target names.
pub(crate) fn fetch(context: &Context, target: &Target) -> Result<Object, ApiError> {
    let stored = fetch_any(context, target)?;
    context.unreadable.check(&target.served, &stored)?;
    Ok(stored)
}

/// The same, also when it can't be read.
pub(crate) fn fetch_any(context: &Context, target: &Target) -> Result<Object, ApiError> {
    let key = target.served.key(&target.namespace, &target.name);
    context.store.get(&key).ok_or_else(|| ApiError::not_found(&target.served.kind, &target.name))
}

/// Answers a list.
pub(crate) fn list(
    context: &Context,
    target: &Target,
    shape: Shape,
    query: &Query,
) -> Result<Answer, ApiError> {
    let include = include_object(&query.include_object)?;
    let (page, metadata) = page(context, target, query)?;
    let view = View { served: &target.served, shape, include };
    let left_out = left_out(context, target);
    let mut answer = if shape == Shape::Table {
        answer::json(StatusCode::OK, &view.list_table(&page.objects, &metadata)?)
    } else {
        let items = items(target.served.clone(), shape, view.list_head(&metadata), page.objects);
        answer::with_type(StatusCode::OK, "application/json", AnswerBody::chunks(items))
    };
    answer::warn(&mut answer, &left_out);
    Ok(answer)
}

/// A warning for each object that the list can't show.
fn left_out(context: &Context, target: &Target) -> Vec<String> {
    let objects = context.unreadable.of(&context.store, &target.served.resource, target.list_namespace());
    let told = |stored: &Object| Some(context.unreadable.check(&target.served, stored).err()?.to_string());
    objects.iter().take(10).filter_map(told).collect()
}

/// Pieces of about this many bytes are sent at a time.
const CHUNK: usize = 64 * 1024;

/// The list's bytes in chunks, so that a long list is never in memory twice.
fn items(
    served: Arc<Served>,
    shape: Shape,
    head: String,
    objects: Vec<Object>,
) -> impl futures::Stream<Item = Bytes> + Send {
    let mut objects = objects.into_iter();
    let mut pending = Some(head.into_bytes());
    let mut first = true;
    futures::stream::iter(std::iter::from_fn(move || {
        let mut chunk = pending.take()?;
        while chunk.len() < CHUNK {
            let Some(stored) = objects.next() else {
                chunk.extend_from_slice(b"]}");
                return Some(Bytes::from(chunk));
            };
            let view = View { served: &served, shape, include: Default::default() };
            match view.one(&stored.value) {
                Ok(bytes) => {
                    if !std::mem::take(&mut first) {
                        chunk.push(b',');
                    }
                    chunk.extend_from_slice(&bytes);
                }
                Err(error) => tracing::error!(key = %stored.key, %error, "an object was left out of a list"),
            }
        }
        pending = Some(Vec::with_capacity(CHUNK + CHUNK / 4));
        Some(Bytes::from(chunk))
    }))
}

/// Where a list goes on. Opaque to clients.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Continue {
    /// The revision of the list; -1 continues at whatever is newest.
    rv: i64,
    /// The last object that was sent.
    ns: String,
    name: String,
}

impl Continue {
    fn encode(&self) -> String {
        URL_SAFE_NO_PAD.encode(json!(self).to_string())
    }

    fn decode(token: &str) -> Result<Self, ApiError> {
        URL_SAFE_NO_PAD.decode(token).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).ok_or_else(
            || {
                ApiError::BadRequest(
                    "invalid continue token: continue key is not valid: it was not made by this server"
                        .into(),
                )
            },
        )
    }
}

const EXPIRED_CONTINUE: &str = "The provided continue parameter is too old to display a consistent list result. \
     You can start a new list without the continue parameter, or use the continue token in this response to \
     retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - \
     objects that were created, modified, or deleted between the time the first chunk was returned and now may \
     show up in the list.";

/// The objects that a list or a collection asks for, with the list's metadata.
pub(crate) fn page(
    context: &Context,
    target: &Target,
    query: &Query,
) -> Result<(Page, serde_json::Value), ApiError> {
    let selection = target.selection(query)?;
    let namespace = target.list_namespace();
    let asked = parse_revision(&query.resource_version)?;
    let from = match query.continue_token.as_str() {
        "" => None,
        token => Some(Continue::decode(token)?),
    };
    let at = revision_to_list(query, asked, from.as_ref(), context.store.revision())?;
    let after = from.as_ref().map(|from| (from.ns.as_str(), from.name.as_str()));
    let keep = |object: &Object| context.unreadable.allows(object) && selected(&selection, object);
    let page = context.store.list(&target.served.resource, namespace, at, after, query.limit, keep);
    let page = page.map_err(|error| match (error, &from) {
        (ListError::Expired { .. }, Some(from)) => ApiError::Expired {
            message: EXPIRED_CONTINUE.into(),
            fresh_continue: Some(Continue { rv: -1, ns: from.ns.clone(), name: from.name.clone() }.encode()),
        },
        (error, _) => ApiError::from_list(error, at.unwrap_or_default()),
    })?;
    let mut metadata = json!({"resourceVersion": page.revision.to_string()});
    if let (true, Some(last)) = (page.more(), page.objects.last()) {
        let next = Continue {
            rv: i64::try_from(page.revision).unwrap_or(-1),
            ns: last.key.namespace.to_string(),
            name: last.key.name.to_string(),
        };
        metadata["continue"] = next.encode().into();
        if selection.is_everything() {
            metadata["remainingItemCount"] = page.remaining.into();
        }
    }
    Ok((page, metadata))
}

/// Whether a stored object is selected; the name is compared before anything is decoded.
fn selected(selection: &Selection, object: &Object) -> bool {
    selection.allows_name(&object.key.name) && selection.matches(&Facts::of(&object.value))
}

/// A `resourceVersion` as a number; absent is `None`.
pub(crate) fn parse_revision(text: &str) -> Result<Option<u64>, ApiError> {
    match text {
        "" => Ok(None),
        _ => text.parse().map(Some).map_err(|_| {
            ApiError::BadRequest(format!("resourceVersion: Invalid value: {text:?}: must be a number"))
        }),
    }
}

/// The revision to list at; `None` is the newest. Everything here is newest or exact: a read from memory is always
/// as new as the newest acknowledged write.
fn revision_to_list(
    query: &Query,
    asked: Option<u64>,
    from: Option<&Continue>,
    newest: u64,
) -> Result<Option<u64>, ApiError> {
    let bad = |text: &str| Err(ApiError::BadRequest(text.to_owned()));
    let forbidden = |field: &str, detail: &str| {
        Err(ApiError::invalid_options("ListOptions", FieldError::forbidden(field, detail)))
    };
    if query.send_initial_events.is_some() {
        return forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list");
    }
    if let Some(from) = from {
        if query.version_match.is_some() {
            return forbidden("resourceVersionMatch", "resourceVersionMatch is forbidden for continue");
        }
        if asked.is_some_and(|asked| asked != 0) {
            return bad("specifying resource version is not allowed when using continue");
        }
        return Ok(u64::try_from(from.rv).ok());
    }
    match (asked, query.version_match) {
        (None, Some(_)) => forbidden(
            "resourceVersionMatch",
            "resourceVersionMatch is forbidden unless resourceVersion is provided",
        ),
        (Some(0), Some(VersionMatch::Exact)) => forbidden(
            "resourceVersionMatch",
            "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
        ),
        (Some(asked), Some(VersionMatch::Exact)) => Ok(Some(asked)),
        (Some(asked), _) if asked > newest => Err(ApiError::TooLargeRevision { asked, current: newest }),
        // A paged list at a revision means that revision, unless told otherwise.
        (Some(asked), None) if asked > 0 && query.limit > 0 => Ok(Some(asked)),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resource_versions_mean_what_kubernetes_says() {
        use VersionMatch::{Exact, NotOlderThan};
        for (asked, version_match, limit, expected) in [
            (None, None, 0, Some(None)),
            (Some(0), None, 0, Some(None)),
            (Some(5), None, 0, Some(None)),
            (Some(5), None, 2, Some(Some(5))),
            (Some(5), Some(NotOlderThan), 2, Some(None)),
            (Some(5), Some(Exact), 0, Some(Some(5))),
            (Some(11), Some(NotOlderThan), 0, None),
            (Some(0), Some(Exact), 0, None),
            (None, Some(Exact), 0, None),
        ] {
            let query = Query { version_match, limit, ..Default::default() };
            let got = revision_to_list(&query, asked, None, 10).ok();
            assert_eq!(got, expected, "{asked:?} {version_match:?} {limit}");
        }
    }

    #[test]
    fn continue_tokens_come_back() {
        let token = Continue { rv: 7, ns: "a".into(), name: "b".into() };
        assert_eq!(Continue::decode(&token.encode()).unwrap(), token);
        assert!(Continue::decode("???").is_err());
    }
}
