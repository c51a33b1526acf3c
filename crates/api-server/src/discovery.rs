//! Documents that the server writes about itself: versions, groups, resources, OpenAPI, health.

use std::sync::Arc;

use http::{HeaderValue, Method, StatusCode, header};
use serde_json::{Value, json};

use crate::answer::{self, Answer, AnswerBody};
use crate::catalog::{Catalog, Served, Snapshot};
use crate::error::ApiError;
use crate::negotiate::{self, OpenApiForm, Shape};
use crate::openapi::{self, Described};
use crate::request::Document;

/// The Kubernetes version whose API is spoken.
const MAJOR: &str = "1";
const MINOR: &str = "36";
const GIT_VERSION: &str = concat!("v1.36.0+orlop-", env!("CARGO_PKG_VERSION"));

/// Answers `/healthz`, `/livez` and `/readyz`: by whether the store takes writes.
pub(crate) fn health(request: &http::request::Parts, store: Result<(), String>) -> Result<Answer, ApiError> {
    if request.method != Method::GET && request.method != Method::HEAD {
        return Err(ApiError::MethodNotAllowed);
    }
    let (status, text) = match store {
        Ok(()) => (StatusCode::OK, passed(&request.uri)),
        Err(why) => (StatusCode::INTERNAL_SERVER_ERROR, format!("[-]store failed: {why}\n")),
    };
    Ok(answer::with_type(status, "text/plain", AnswerBody::whole(text)))
}

/// Answers a request for a document.
pub(crate) fn answer(
    catalog: &Catalog,
    document: &Document,
    request: &http::request::Parts,
) -> Result<Answer, ApiError> {
    if request.method != Method::GET && request.method != Method::HEAD {
        return Err(ApiError::MethodNotAllowed);
    }
    let served = catalog.now();
    if let Document::OpenApiV2 | Document::OpenApiV3Index | Document::OpenApiV3 { .. } = document {
        return openapi_document(&served, document, request);
    }
    let shape = negotiate::shape(&request.headers)?;
    let body = match (document, shape) {
        (Document::CoreVersions, Shape::Aggregated(version)) => {
            return Ok(aggregated_answer(&aggregated(&served, version, true), version));
        }
        (Document::Groups, Shape::Aggregated(version)) => {
            return Ok(aggregated_answer(&aggregated(&served, version, false), version));
        }
        (Document::Version, _) => version(),
        (Document::CoreVersions, _) => json!({
            "kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [],
        }),
        (Document::Groups, _) => {
            let groups: Vec<Value> =
                named_groups(&served).map(|(name, versions)| group(&name, &versions)).collect();
            json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
        }
        (Document::Group(name), _) => {
            let (name, versions) =
                named_groups(&served).find(|(known, _)| known == name).ok_or(ApiError::UnknownPath)?;
            let mut one = group(&name, &versions);
            one["kind"] = "APIGroup".into();
            one["apiVersion"] = "v1".into();
            one
        }
        (Document::Resources { group, version }, _) => {
            let kinds = served.of_version(group, version);
            if kinds.is_empty() {
                return Err(ApiError::UnknownPath);
            }
            let resources: Vec<Value> = kinds.iter().flat_map(|served| resources(served)).collect();
            json!({"kind": "APIResourceList", "apiVersion": "v1",
                "groupVersion": kinds[0].api_version, "resources": resources})
        }
        (
            Document::Health | Document::OpenApiV2 | Document::OpenApiV3Index | Document::OpenApiV3 { .. },
            _,
        ) => return Err(ApiError::UnknownPath),
    };
    Ok(answer::json(StatusCode::OK, &body))
}

/// What a passed health check says: one word, or with `verbose` what was looked at.
fn passed(uri: &http::Uri) -> String {
    let mut query = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
    if !query.any(|(name, _)| name == "verbose") {
        return "ok".to_owned();
    }
    let check = uri.path().trim_start_matches('/').split('/').next().unwrap_or_default();
    format!("[+]ping ok\n[+]store ok\n{check} check passed\n")
}

fn version() -> Value {
    json!({"major": MAJOR, "minor": MINOR, "gitVersion": GIT_VERSION, "gitCommit": "", "gitTreeState": "clean",
    "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "rustc",
    "platform": format!("{}/{}", std::env::consts::OS, match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    })})
}

/// Groups but the core one, which has its own document.
fn named_groups(served: &Snapshot) -> impl Iterator<Item = (String, Vec<String>)> {
    served.groups().into_iter().filter(|(name, _)| !name.is_empty())
}

fn group(name: &str, versions: &[String]) -> Value {
    let versions: Vec<Value> = versions
        .iter()
        .map(|version| json!({"groupVersion": format!("{name}/{version}"), "version": version}))
        .collect();
    json!({"name": name, "preferredVersion": versions.first(), "versions": versions})
}

const STATUS_VERBS: &[&str] = &["get", "patch", "update"];

/// Subresources of a kind: name, kind (with its version if that is another), verbs.
fn subresources(
    served: &Served,
) -> Vec<(&'static str, String, Option<&'static str>, &'static [&'static str])> {
    let own = || served.kind.kind.to_string();
    let mut all: Vec<(_, _, _, &'static [&'static str])> = Vec::new();
    for one in served.kind.row.subresources {
        all.push((one.name, one.kind.map_or_else(own, str::to_owned), one.group, one.verbs));
    }
    if served.scale().is_some() {
        all.push(("scale", "Scale".into(), Some("autoscaling"), STATUS_VERBS));
    }
    if served.kind.status {
        all.push(("status", own(), None, STATUS_VERBS));
    }
    all
}

/// A kind and its subresources as plain discovery lists them.
fn resources(served: &Served) -> Vec<Value> {
    let kind = &served.kind;
    let mut main = json!({"name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced,
        "kind": kind.kind, "verbs": kind.verbs()});
    if !kind.short_names.is_empty() {
        main["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        main["categories"] = json!(kind.categories);
    }
    let mut all = vec![main];
    for (name, sub_kind, group, verbs) in subresources(served) {
        let mut one = json!({"name": format!("{}/{name}", kind.plural), "singularName": "",
            "namespaced": kind.namespaced, "kind": sub_kind, "verbs": verbs});
        if let Some(group) = group {
            one["group"] = group.into();
            one["version"] = "v1".into();
        }
        all.push(one);
    }
    all
}

/// All groups and resources in one document: the core group alone, or all others.
fn aggregated(served: &Snapshot, version: &str, core: bool) -> Value {
    let items: Vec<Value> = served
        .groups()
        .into_iter()
        .filter(|(name, _)| name.is_empty() == core)
        .map(|(name, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|version| {
                    let resources: Vec<Value> =
                        served.of_version(&name, version).iter().map(aggregated_resource).collect();
                    json!({"version": version, "resources": resources, "freshness": "Current"})
                })
                .collect();
            let metadata = if name.is_empty() {
                json!({"creationTimestamp": null})
            } else {
                json!({"name": name, "creationTimestamp": null})
            };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {}, "items": items})
}

fn aggregated_resource(served: &Arc<Served>) -> Value {
    let kind = &served.kind;
    let response =
        |group: &str, kind_name: &str| json!({"group": group, "version": kind.version, "kind": kind_name});
    let mut one = json!({"resource": kind.plural, "singularResource": kind.singular, "verbs": kind.verbs(),
        "responseKind": response(&kind.group, &kind.kind),
        "scope": if kind.namespaced { "Namespaced" } else { "Cluster" }});
    if !kind.short_names.is_empty() {
        one["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        one["categories"] = json!(kind.categories);
    }
    let subresources: Vec<Value> = subresources(served)
        .into_iter()
        .map(|(name, sub_kind, group, verbs)| {
            json!({"subresource": name, "responseKind": response(group.unwrap_or(&kind.group), &sub_kind), "verbs": verbs})
        })
        .collect();
    if !subresources.is_empty() {
        one["subresources"] = subresources.into();
    }
    one
}

fn aggregated_answer(body: &Value, version: &'static str) -> Answer {
    let media_type = match version {
        "v2" => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
        _ => "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
    };
    let mut answer = answer::with_type(StatusCode::OK, media_type, AnswerBody::whole(body.to_string()));
    answer.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    answer
}

fn openapi_document(
    served: &Snapshot,
    document: &Document,
    request: &http::request::Parts,
) -> Result<Answer, ApiError> {
    let form = negotiate::openapi(&request.headers, *document == Document::OpenApiV2)?;
    let body = match document {
        Document::OpenApiV3 { group, version } => {
            let kinds = served.of_version(group, version);
            if kinds.is_empty() {
                return Err(ApiError::UnknownPath);
            }
            openapi::v3_document(group, version, &described(&kinds))
        }
        Document::OpenApiV2 if form == OpenApiForm::Protobuf => {
            let document =
                served.openapi_protobuf.get_or_init(|| openapi::v2_protobuf(&described(&served.all)).into());
            let body = AnswerBody::whole(document.clone());
            let mut answer = answer::with_type(StatusCode::OK, negotiate::OPENAPI_PROTOBUF, body);
            answer.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
            return Ok(answer);
        }
        Document::OpenApiV2 => openapi::v2(&described(&served.all)),
        _ => openapi::v3_index(&described(&served.all)),
    };
    let mut answer = answer::json(StatusCode::OK, &body);
    // The index names each document with a hash of what it says: a document asked for by hash never changes.
    if request.uri.query().is_some_and(|query| query.contains("hash=")) {
        let forever = HeaderValue::from_static("public, max-age=31536000, immutable");
        answer.headers_mut().insert(header::CACHE_CONTROL, forever);
        answer.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    }
    Ok(answer)
}

fn described(kinds: &[Arc<Served>]) -> Vec<Described<'_>> {
    kinds
        .iter()
        .map(|served| Described {
            kind: &served.kind,
            schema: served.custom.as_ref().map(|custom| &custom.schema),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_is_that_of_the_store() {
        let (request, ()) = http::Request::get("/livez").body(()).expect("a request").into_parts();
        let code = |store| health(&request, store).expect("an answer").status();
        assert_eq!(code(Ok(())), StatusCode::OK);
        assert_eq!(code(Err("full".to_owned())), StatusCode::INTERNAL_SERVER_ERROR);
    }
}
