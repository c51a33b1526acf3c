//! Informers and recorders against a scripted server: what a real one answers only now and then.

#![allow(clippy::unwrap_used, reason = "a test says by its panic what went wrong")]

mod scripted;

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use k8s_openapi::api::core::v1::{ConfigMap, ObjectReference};
use kube::client::Body;
use kube::{Client, ResourceExt};
use parking_lot::Mutex;
use runtime::{Change, Context, Informer, Metrics, Recorder};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use scripted::{initial_end, list, map, refusal, scripted, status, watch};

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(20), "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Starts an informer whose changes are written down.
fn informer(client: Client) -> (Informer<ConfigMap>, Arc<Mutex<Vec<String>>>) {
    let informer = Context::new(client, Metrics::new(), CancellationToken::new()).informers.of::<ConfigMap>();
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

/// A client of a server that takes every event, and how many it took for each object.
fn takes_events() -> (Client, Arc<Mutex<HashMap<String, usize>>>) {
    let taken = Arc::new(Mutex::new(HashMap::new()));
    let counted = taken.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let counted = counted.clone();
        async move {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let event: Value = serde_json::from_slice(&body).unwrap();
            let object = event["involvedObject"]["name"].as_str().unwrap_or("again").to_owned();
            *counted.lock().entry(object).or_insert(0) += 1;
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(
                json!({"metadata": {"name": "x"}, "involvedObject": {}}).to_string(),
            ))))
        }
    });
    (Client::new(service, "default"), taken)
}

#[tokio::test]
async fn more_objects_than_a_recorder_remembers_all_have_their_events() {
    let (client, taken) = takes_events();
    let recorder = Recorder::new(client, "binder", "");
    for number in 0..5000 {
        let name = format!("claim-{number}");
        let object =
            ObjectReference { name: Some(name.clone()), uid: Some(name), ..ObjectReference::default() };
        recorder.warning(&object, "ProvisioningFailed", "no room");
        if number % 500 == 0 {
            eventually("the events so far", || taken.lock().len() == number + 1).await;
        }
    }
    eventually("all events", || taken.lock().len() == 5000).await;
}
