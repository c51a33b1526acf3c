//! Informers and recorders against a scripted server: what a real one answers only now and then.

#![allow(clippy::unwrap_used, reason = "a test says by its panic what went wrong")]

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use k8s_openapi::api::core::v1::{ConfigMap, ObjectReference};
use kube::client::Body;
use kube::{Api, Client, ResourceExt};
use parking_lot::Mutex;
use runtime::{Change, Informer, Recorder, WatchConfig};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// Method, path with query, and body of the requests so far.
type Requests = Arc<Mutex<Vec<(String, String, Value)>>>;

/// A client of a server that gives these answers in turn, and then none any more.
fn scripted(answers: impl IntoIterator<Item = (u16, String)>) -> (Client, Requests) {
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

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(20), "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn map(name: &str, uid: &str, version: u32) -> Value {
    let metadata = json!({
        "name": name, "namespace": "default", "uid": uid, "resourceVersion": version.to_string(),
        "managedFields": [{"manager": "someone"}],
    });
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata})
}

fn list(version: u32, items: &[Value]) -> (u16, String) {
    let metadata = json!({"resourceVersion": version.to_string()});
    (
        200,
        json!({"apiVersion": "v1", "kind": "ConfigMapList", "metadata": metadata, "items": items})
            .to_string(),
    )
}

fn watch(events: &[(&str, Value)]) -> (u16, String) {
    let line = |(kind, object): &(&str, Value)| format!("{}\n", json!({"type": kind, "object": object}));
    (200, events.iter().map(line).collect())
}

fn status(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": reason})
}

fn refusal(code: u16, reason: &str) -> (u16, String) {
    (code, status(code, reason).to_string())
}

fn initial_end(version: u32) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {
        "resourceVersion": version.to_string(), "annotations": {"k8s.io/initial-events-end": "true"}}})
}

/// Starts an informer whose changes are written down.
fn informer(client: Client) -> (Informer<ConfigMap>, Arc<Mutex<Vec<String>>>) {
    let informer = Informer::start(Api::all(client), WatchConfig::default(), CancellationToken::new());
    let heard = Arc::new(Mutex::new(Vec::new()));
    let notes = heard.clone();
    informer.subscribe(move |change: &Change<ConfigMap>| {
        let version = |object: &ConfigMap| object.resource_version().unwrap();
        notes.lock().push(match change {
            Change::Applied { old: None, new } => format!("+{} {}", new.name_any(), version(new)),
            Change::Applied { old: Some(old), new } => {
                format!("{} {}>{}", new.name_any(), version(old), version(new))
            }
            Change::Deleted(last) => format!("-{} {}", last.name_any(), version(last)),
        });
    });
    (informer, heard)
}

async fn heard(notes: &Mutex<Vec<String>>, expected: &[&str]) {
    eventually(&format!("{expected:?}"), || notes.lock().len() >= expected.len()).await;
    assert_eq!(*notes.lock(), expected);
}

#[tokio::test]
async fn a_streamed_list_is_followed_by_its_changes() {
    let (client, requests) = scripted([watch(&[
        ("ADDED", map("a", "1", 1)),
        ("BOOKMARK", initial_end(2)),
        ("ADDED", map("b", "2", 3)),
        ("MODIFIED", map("a", "1", 4)),
        ("DELETED", map("b", "2", 5)),
    ])]);
    let (informer, notes) = informer(client);
    informer.synced().await;
    heard(&notes, &["+a 1", "+b 3", "a 1>4", "-b 5"]).await;
    assert!(requests.lock()[0].1.contains("sendInitialEvents=true"));
    let a = informer.get("default", "a").unwrap();
    assert!(a.managed_fields().is_empty());
    assert!(informer.get("default", "b").is_none() && informer.get("", "a").is_none());
    assert_eq!(informer.all().len(), 1);
    assert_eq!(informer.in_namespace("default").len(), 1);
    // Who comes late hears what is there.
    let (late, name) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(String::new())));
    let (notes, seen) = (late.clone(), name.clone());
    informer.subscribe(move |change| {
        notes.lock().push(matches!(change, Change::Applied { old: None, .. }));
        *seen.lock() = change.object().name_any();
    });
    assert_eq!((late.lock().as_slice(), name.lock().as_str()), (&[true][..], "a"));
}

#[tokio::test]
async fn a_server_that_does_not_stream_is_listed() {
    let (client, requests) = scripted([
        refusal(422, "Invalid"),
        list(2, &[map("a", "1", 1)]),
        watch(&[("MODIFIED", map("a", "1", 3))]),
    ]);
    let (informer, notes) = informer(client);
    informer.synced().await;
    heard(&notes, &["+a 1", "a 1>3"]).await;
    assert!(!requests.lock()[1].1.contains("watch="));
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_is_not_served_has_no_objects_until_it_is() {
    let (client, _) =
        scripted([refusal(404, "NotFound"), refusal(404, "NotFound"), watch(&[("ADDED", map("a", "1", 1))])]);
    let (informer, notes) = informer(client);
    informer.synced().await;
    assert!(informer.all().is_empty());
    heard(&notes, &["+a 1"]).await;
}

#[tokio::test]
async fn a_list_after_a_lost_watch_tells_only_what_changed_meanwhile() {
    let (client, _) = scripted([
        watch(&[
            ("ADDED", map("same", "1", 1)),
            ("ADDED", map("changed", "2", 1)),
            ("ADDED", map("gone", "3", 1)),
            ("ADDED", map("again", "4", 1)),
            ("BOOKMARK", initial_end(2)),
            ("ERROR", status(410, "Expired")),
        ]),
        watch(&[
            ("ADDED", map("same", "1", 1)),
            ("ADDED", map("changed", "2", 5)),
            ("ADDED", map("again", "9", 6)),
            ("BOOKMARK", initial_end(7)),
        ]),
    ]);
    let (_informer, notes) = informer(client);
    let first = ["+same 1", "+changed 1", "+gone 1", "+again 1"];
    let then = ["changed 1>5", "-again 1", "+again 6", "-gone 1"];
    heard(&notes, &[&first[..], &then[..]].concat()).await;
}

#[tokio::test]
async fn an_event_that_repeats_is_counted_and_one_that_expired_is_written_again() {
    let event = || (201, json!({"metadata": {"name": "x"}, "involvedObject": {}}).to_string());
    let gone = || refusal(404, "NotFound");
    let (client, requests) =
        scripted([event(), refusal(503, "ServiceUnavailable"), event(), gone(), event()]);
    let recorder = Recorder::new(client, "binder", "n1");
    let object = ObjectReference {
        kind: Some("PersistentVolume".to_owned()),
        name: Some("pv".to_owned()),
        uid: Some("7".to_owned()),
        ..ObjectReference::default()
    };
    for _ in 0..3 {
        recorder.warning(&object, "VolumeMismatch", "too small");
    }
    eventually("five writes", || requests.lock().len() == 5).await;
    let requests = requests.lock().clone();
    let methods: Vec<_> = requests.iter().map(|(method, _, _)| method.as_str()).collect();
    assert_eq!(methods, ["POST", "PATCH", "PATCH", "PATCH", "POST"]);
    let (_, path, first) = &requests[0];
    assert!(path.starts_with("/api/v1/namespaces/default/events"), "{path}");
    assert_eq!(first["source"], json!({"component": "binder", "host": "n1"}));
    assert_eq!(
        (&first["type"], &first["reason"], &first["count"]),
        (&json!("Warning"), &json!("VolumeMismatch"), &json!(1))
    );
    assert_eq!(first["involvedObject"]["uid"], "7");
    let name = first["metadata"]["name"].as_str().unwrap();
    assert!(name.starts_with("pv.") && requests[1].1.contains(name), "{name}");
    assert_eq!(requests[2].2["count"], 2);
    assert_eq!(requests[4].2["count"], 1);
}
