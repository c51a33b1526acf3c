//! A server that gives the answers of a script.

#![allow(dead_code, unreachable_pub, reason = "each test takes what it needs")]

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use kube::Client;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};

/// Method, path with query, and body of the requests so far.
pub type Requests = Arc<Mutex<Vec<(String, String, Value)>>>;

/// A client of a server that gives these answers in turn, and then none any more.
pub fn scripted(answers: impl IntoIterator<Item = (u16, String)>) -> (Client, Requests) {
    let answers = Arc::new(Mutex::new(answers.into_iter().collect::<VecDeque<_>>()));
    let requests = Requests::default();
    let seen = requests.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let (answers, seen) = (answers.clone(), seen.clone());
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
            seen.lock().push((parts.method.to_string(), parts.uri.to_string(), body));
            let answer = answers.lock().pop_front();
            let Some((code, text)) = answer else { std::future::pending().await };
            let mut response = Response::new(Full::new(Bytes::from(text)));
            *response.status_mut() = StatusCode::from_u16(code).unwrap();
            Ok::<_, Infallible>(response)
        }
    });
    (Client::new(service, "default"), requests)
}

pub fn map(name: &str, uid: &str, version: u32) -> Value {
    let metadata = json!({
        "name": name, "namespace": "default", "uid": uid, "resourceVersion": version.to_string(),
        "managedFields": [{"manager": "someone"}],
    });
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata})
}

pub fn list(version: u32, items: &[Value]) -> (u16, String) {
    let metadata = json!({"resourceVersion": version.to_string()});
    (
        200,
        json!({"apiVersion": "v1", "kind": "ConfigMapList", "metadata": metadata, "items": items})
            .to_string(),
    )
}

pub fn watch(events: &[(&str, Value)]) -> (u16, String) {
    let line = |(kind, object): &(&str, Value)| format!("{}\n", json!({"type": kind, "object": object}));
    (200, events.iter().map(line).collect())
}

pub fn status(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": reason})
}

pub fn refusal(code: u16, reason: &str) -> (u16, String) {
    (code, status(code, reason).to_string())
}

pub fn initial_end(version: u32) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {
        "resourceVersion": version.to_string(), "annotations": {"k8s.io/initial-events-end": "true"}}})
}
