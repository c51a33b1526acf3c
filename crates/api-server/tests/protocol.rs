//! The protocol as clients see it, through `kube::Client` and the server in process.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use api_server::{ApiServer, Options};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use kube::api::{
    Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions, WatchEvent, WatchParams,
};
use kube::{Client, ResourceExt};
use object_store::Store;
use serde_json::{Value, json};

async fn server() -> ApiServer {
    ApiServer::start(Store::in_memory(), Options::default()).await.unwrap()
}

async fn client() -> Client {
    Client::new(server().await.in_process("test"), "default")
}

fn map(name: &str, value: &str) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name, "labels": {"v": value}}, "data": {"v": value}}))
        .unwrap()
}

fn pod(name: &str) -> Pod {
    serde_json::from_value(
        json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "host"}]}}),
    )
    .unwrap()
}

/// The Status of a refused request.
fn refused<T: std::fmt::Debug>(result: kube::Result<T>) -> (u16, String, String) {
    match result.unwrap_err() {
        kube::Error::Api(status) => (status.code, status.reason.clone(), status.message.clone()),
        other => panic!("no Status: {other}"),
    }
}

/// A raw request; status code and body.
async fn raw(
    client: &Client,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Value,
) -> (u16, Value) {
    let mut request = http::Request::builder().method(method).uri(path);
    for (key, value) in headers {
        request = request.header(*key, *value);
    }
    let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    let answer = client.send(request.body(body.into()).unwrap()).await.unwrap();
    let code = answer.status().as_u16();
    let bytes = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap().to_bytes();
    (code, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

#[tokio::test]
async fn an_object_is_created_read_changed_and_deleted() {
    let maps: Api<ConfigMap> = Api::default_namespaced(client().await);
    let created = maps.create(&PostParams::default(), &map("a", "1")).await.unwrap();
    assert!(created.uid().is_some() && created.creation_timestamp().is_some());
    assert_eq!(maps.get("a").await.unwrap(), created);
    let mut changed = created.clone();
    changed.data.as_mut().unwrap().insert("w".into(), "2".into());
    let updated = maps.replace("a", &PostParams::default(), &changed).await.unwrap();
    assert_ne!(updated.resource_version(), created.resource_version());
    let again = maps.replace("a", &PostParams::default(), &updated).await.unwrap();
    assert_eq!(again.resource_version(), updated.resource_version(), "nothing changed, nothing written");
    maps.delete("a", &DeleteParams::default()).await.unwrap();
    assert_eq!(refused(maps.get("a").await), (404, "NotFound".into(), "configmaps \"a\" not found".into()));
}

#[tokio::test]
async fn a_stale_update_gets_conflict() {
    let maps: Api<ConfigMap> = Api::default_namespaced(client().await);
    let old = maps.create(&PostParams::default(), &map("a", "1")).await.unwrap();
    let mut first = old.clone();
    first.data = None;
    maps.replace("a", &PostParams::default(), &first).await.unwrap();
    let (code, reason, message) = refused(maps.replace("a", &PostParams::default(), &old).await);
    assert_eq!((code, reason.as_str()), (409, "Conflict"));
    assert_eq!(
        message,
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your \
         changes to the latest version and try again"
    );
    let stale = json!({"metadata": {"resourceVersion": old.resource_version()}, "data": {"x": "y"}});
    assert_eq!(refused(maps.patch("a", &PatchParams::default(), &Patch::Merge(stale)).await).0, 409);
}

#[tokio::test]
async fn common_refusals_are_word_for_word() {
    let client = client().await;
    let maps = "/api/v1/namespaces/default/configmaps";
    let a = json!({"metadata": {"name": "a"}});
    assert_eq!(raw(&client, "POST", maps, &[], a.clone()).await.0, 201);
    let (code, status) = raw(&client, "POST", maps, &[], a.clone()).await;
    assert_eq!(
        (code, status),
        (
            409,
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "configmaps \"a\" already exists", "reason": "AlreadyExists",
                "details": {"name": "a", "kind": "configmaps"}, "code": 409})
        )
    );
    let (code, status) =
        raw(&client, "GET", "/apis/storage.k8s.io/v1/storageclasses/x", &[], Value::Null).await;
    assert_eq!(
        (code, status),
        (
            404,
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "storageclasses.storage.k8s.io \"x\" not found", "reason": "NotFound",
                "details": {"name": "x", "group": "storage.k8s.io", "kind": "storageclasses"}, "code": 404})
        )
    );
    let (code, status) = raw(&client, "GET", "/api/v1/nothing", &[], Value::Null).await;
    assert_eq!(
        (code, status["message"].as_str().unwrap()),
        (404, "the server could not find the requested resource")
    );
    let missing = "/api/v1/namespaces/missing/configmaps";
    let (code, status) = raw(&client, "POST", missing, &[], a.clone()).await;
    assert_eq!((code, status["message"].as_str().unwrap()), (404, "namespaces \"missing\" not found"));
    let (code, status) = raw(&client, "POST", &format!("{maps}/a"), &[], a.clone()).await;
    assert_eq!((code, status["reason"].as_str().unwrap()), (405, "MethodNotAllowed"));
    let protobuf = [("accept", "application/vnd.kubernetes.protobuf")];
    assert_eq!(raw(&client, "GET", maps, &protobuf, Value::Null).await.0, 406);
    let cbor = [("content-type", "application/cbor")];
    assert_eq!(raw(&client, "POST", maps, &cbor, a.clone()).await.0, 415);
    let apply = [("content-type", "application/apply-patch+yaml")];
    let (code, status) = raw(&client, "PATCH", &format!("{maps}/a"), &apply, a).await;
    assert_eq!((code, status["reason"].as_str().unwrap()), (415, "UnsupportedMediaType"));
    let huge = json!({"metadata": {"name": "huge"}, "data": {"x": "y".repeat(4 << 20)}});
    let (code, status) = raw(&client, "POST", maps, &[], huge).await;
    assert_eq!((code, status["reason"].as_str().unwrap()), (413, "RequestEntityTooLarge"));
}

#[tokio::test]
async fn generated_names_differ_and_dry_run_stores_nothing() {
    let client = client().await;
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let generated: ConfigMap = serde_json::from_value(json!({"metadata": {"generateName": "a-"}})).unwrap();
    let first = maps.create(&PostParams::default(), &generated).await.unwrap().name_any();
    let second = maps.create(&PostParams::default(), &generated).await.unwrap().name_any();
    assert!(first.starts_with("a-") && first.len() == 7 && first != second);
    let dry = PostParams { dry_run: true, ..Default::default() };
    let before = maps.list(&ListParams::default()).await.unwrap();
    maps.create(&dry, &map("dry", "1")).await.unwrap();
    maps.replace(&first, &dry, &map(&first, "9")).await.unwrap();
    maps.patch(
        &first,
        &PatchParams { dry_run: true, ..Default::default() },
        &Patch::Merge(json!({"data": {"a": "b"}})),
    )
    .await
    .unwrap();
    maps.delete(&first, &DeleteParams { dry_run: true, ..Default::default() }).await.unwrap();
    let after = maps.list(&ListParams::default()).await.unwrap();
    assert_eq!(after.metadata.resource_version, before.metadata.resource_version);
    assert_eq!(after.items, before.items);
}

#[tokio::test]
async fn lists_page_at_a_fixed_revision_while_writes_go_on() {
    let maps: Api<ConfigMap> = Api::default_namespaced(client().await);
    for at in 0..7 {
        maps.create(&PostParams::default(), &map(&format!("m{at}"), "1")).await.unwrap();
    }
    let mut params = ListParams::default().limit(3);
    let (mut names, mut remaining) = (Vec::new(), Vec::new());
    loop {
        let page = maps.list(&params).await.unwrap();
        names.extend(page.items.iter().map(ResourceExt::name_any));
        remaining.push(page.metadata.remaining_item_count);
        maps.delete(&format!("m{}", 7 - remaining.len()), &DeleteParams::default()).await.unwrap();
        maps.create(&PostParams::default(), &map(&format!("n{}", remaining.len()), "1")).await.unwrap();
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => break,
        }
    }
    assert_eq!(names, ["m0", "m1", "m2", "m3", "m4", "m5", "m6"]);
    assert_eq!(remaining, [Some(4), Some(1), None]);
    let selected = maps.list(&ListParams::default().labels("v=1").fields("metadata.name=n1")).await.unwrap();
    assert_eq!(selected.items.len(), 1);
}

#[tokio::test]
async fn a_watch_sees_every_change_in_order_under_concurrent_writes() {
    let client = client().await;
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let start = maps.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    let mut events = maps.watch(&WatchParams::default(), &start).await.unwrap().boxed();
    let writers = (0..8).map(|writer| {
        let maps = maps.clone();
        tokio::spawn(async move {
            let name = format!("w{writer}");
            maps.create(&PostParams::default(), &map(&name, "0")).await.unwrap();
            for value in 1..20 {
                let patch = json!({"data": {"v": value.to_string()}});
                maps.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
            }
            maps.delete(&name, &DeleteParams::default()).await.unwrap();
        })
    });
    futures::future::try_join_all(writers).await.unwrap();
    let mut last = 0;
    let mut next = std::collections::HashMap::<String, u32>::new();
    for _ in 0..8 * 21 {
        let event =
            tokio::time::timeout(Duration::from_secs(5), events.try_next()).await.unwrap().unwrap().unwrap();
        let (object, deleted) = match &event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => (object, false),
            WatchEvent::Deleted(object) => (object, true),
            other => panic!("{other:?}"),
        };
        let revision: u64 = object.resource_version().unwrap().parse().unwrap();
        assert!(revision > last, "events are in order");
        last = revision;
        let seen = next.entry(object.name_any()).or_default();
        if deleted {
            assert_eq!(*seen, 20, "nothing was missed");
        } else {
            assert_eq!(object.data.as_ref().unwrap()["v"], seen.to_string());
            *seen += 1;
        }
    }
}

#[tokio::test]
async fn selectors_turn_updates_into_added_and_deleted() {
    let client = client().await;
    let maps: Api<ConfigMap> = Api::default_namespaced(client);
    maps.create(&PostParams::default(), &map("a", "1")).await.unwrap();
    let params = WatchParams::default().labels("v=2");
    let mut events = maps.watch(&params, "0").await.unwrap().boxed();
    for value in ["2", "2", "3"] {
        let patch =
            json!({"metadata": {"labels": {"v": value}}, "data": {"n": uuid::Uuid::new_v4().to_string()}});
        maps.patch("a", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    }
    let mut kinds = Vec::new();
    while kinds.len() < 3 {
        match events.try_next().await.unwrap().unwrap() {
            WatchEvent::Added(_) => kinds.push("added"),
            WatchEvent::Modified(_) => kinds.push("modified"),
            WatchEvent::Deleted(_) => kinds.push("deleted"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(kinds, ["added", "modified", "deleted"]);
}

#[tokio::test]
async fn initial_events_end_with_a_bookmark_and_a_timeout_with_another() {
    let client = client().await;
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    maps.create(&PostParams::default(), &map("a", "1")).await.unwrap();
    let path = "/api/v1/configmaps?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan\
                &allowWatchBookmarks=true&timeoutSeconds=1";
    let request = http::Request::get(path).body(Vec::new()).unwrap();
    let text = client.request_text(request).await.unwrap();
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["ADDED", "BOOKMARK", "BOOKMARK"]);
    assert_eq!(events[1]["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert!(events[2]["object"]["metadata"].get("annotations").is_none());
}

#[tokio::test]
async fn a_revision_from_before_history_is_gone() {
    let options = object_store::Options { history_events: 4, ..Default::default() };
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("store"), options).unwrap();
    let api = ApiServer::start(store, Options::default()).await.unwrap();
    let client = Client::new(api.in_process("test"), "default");
    let maps: Api<ConfigMap> = Api::default_namespaced(client);
    for at in 0..3 {
        maps.create(&PostParams::default(), &map(&format!("m{at}"), "1")).await.unwrap();
    }
    let page = maps.list(&ListParams::default().limit(1)).await.unwrap();
    for at in 3..30 {
        maps.create(&PostParams::default(), &map(&format!("m{at}"), "1")).await.unwrap();
    }
    let token = page.metadata.continue_.unwrap();
    let (code, reason, _) = refused(maps.list(&ListParams::default().limit(1).continue_token(&token)).await);
    assert_eq!((code, reason.as_str()), (410, "Expired"));
    let mut events = maps.watch(&WatchParams::default(), "2").await.unwrap().boxed();
    match events.try_next().await.unwrap() {
        Some(WatchEvent::Error(status)) => assert_eq!(status.code, 410),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn finalizers_hold_a_deleted_object() {
    let maps: Api<ConfigMap> = Api::default_namespaced(client().await);
    let mut held = map("a", "1");
    held.finalizers_mut().push("example.com/hold".into());
    maps.create(&PostParams::default(), &held).await.unwrap();
    let answer = maps.delete("a", &DeleteParams::default()).await.unwrap();
    assert!(answer.left().unwrap().metadata.deletion_timestamp.is_some());
    let wrong = DeleteParams {
        preconditions: Some(Preconditions { uid: Some("other".into()), ..Default::default() }),
        ..Default::default()
    };
    assert_eq!(refused(maps.delete("a", &wrong).await).0, 409);
    let release = json!([{"op": "remove", "path": "/metadata/finalizers/0"}]);
    let patch: json_patch::Patch = serde_json::from_value(release).unwrap();
    maps.patch("a", &PatchParams::default(), &Patch::Json::<()>(patch)).await.unwrap();
    assert_eq!(refused(maps.get("a").await).0, 404);
}

#[tokio::test]
async fn a_bound_pod_waits_for_its_node() {
    let client = client().await;
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    pods.create(&PostParams::default(), &pod("p")).await.unwrap();
    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n1"}});
    let path = "/api/v1/namespaces/default/pods/p/binding";
    assert_eq!(raw(&client, "POST", path, &[], binding.clone()).await.0, 201);
    assert_eq!(raw(&client, "POST", path, &[], binding).await.0, 409);
    let mine = pods.list(&ListParams::default().fields("spec.nodeName=n1")).await.unwrap();
    assert_eq!(mine.items.len(), 1);
    pods.delete("p", &DeleteParams::default()).await.unwrap();
    let ending = pods.get("p").await.unwrap();
    assert_eq!(ending.metadata.deletion_grace_period_seconds, Some(30));
    pods.delete("p", &DeleteParams { grace_period_seconds: Some(0), ..Default::default() }).await.unwrap();
    assert_eq!(refused(pods.get("p").await).0, 404);
}

#[tokio::test]
async fn status_and_spec_are_written_apart() {
    let client = client().await;
    let pods: Api<Pod> = Api::default_namespaced(client);
    let created = pods.create(&PostParams::default(), &pod("p")).await.unwrap();
    let both = json!({"metadata": {"labels": {"a": "b"}}, "status": {"message": "hello"}});
    let main = pods.patch("p", &PatchParams::default(), &Patch::Merge(both.clone())).await.unwrap();
    assert_eq!(main.status.as_ref().and_then(|status| status.message.clone()), None);
    let status = json!({"spec": {"hostname": "x"}, "status": {"message": "hello"}});
    let after = pods.patch_status("p", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    assert_eq!(after.status.unwrap().message.as_deref(), Some("hello"));
    assert_eq!(after.spec.unwrap().hostname, created.spec.unwrap().hostname);
}

#[tokio::test]
async fn a_namespace_terminates_takes_nothing_new_and_goes_when_finalized() {
    let client = client().await;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let new: Namespace = serde_json::from_value(json!({"metadata": {"name": "a"}})).unwrap();
    let created = namespaces.create(&PostParams::default(), &new).await.unwrap();
    assert_eq!(created.spec.unwrap().finalizers.unwrap(), ["kubernetes"]);
    namespaces.delete("a", &DeleteParams::default()).await.unwrap();
    let mut ending = namespaces.get("a").await.unwrap();
    assert_eq!(ending.status.as_ref().unwrap().phase.as_deref(), Some("Terminating"));
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "a");
    let (code, reason, message) = refused(maps.create(&PostParams::default(), &map("m", "1")).await);
    assert_eq!((code, reason.as_str()), (403, "Forbidden"));
    assert_eq!(
        message,
        "configmaps \"m\" is forbidden: unable to create new content in namespace a because it is being terminated"
    );
    ending.spec.as_mut().unwrap().finalizers = None;
    let body = serde_json::to_value(&ending).unwrap();
    assert_eq!(raw(&client, "PUT", "/api/v1/namespaces/a/finalize", &[], body).await.0, 200);
    assert_eq!(refused(namespaces.get("a").await).0, 404);
    assert_eq!(refused(namespaces.delete("default", &DeleteParams::default()).await).0, 403);
}

#[tokio::test]
async fn watches_are_bounded_and_large_objects_refused() {
    let options = Options { max_watches: 1, ..Default::default() };
    let api = ApiServer::start(Store::in_memory(), options).await.unwrap();
    let client = Client::new(api.in_process("test"), "default");
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let first = maps.watch(&WatchParams::default(), "0").await.unwrap();
    let second = maps.watch(&WatchParams::default(), "0").await.map(|_| ());
    assert_eq!(refused(second).0, 429);
    drop(first);
    drop(maps.watch(&WatchParams::default(), "0").await.unwrap());
    let pods: Api<Pod> = Api::default_namespaced(client);
    let mut large = pod("large");
    large.spec.as_mut().unwrap().containers[0].args = Some(vec!["x".repeat(2 << 20)]);
    assert_eq!(refused(pods.create(&PostParams::default(), &large).await).0, 413);
}

#[tokio::test]
async fn kubes_watcher_keeps_up_with_lists_and_with_streamed_lists() {
    use kube::runtime::watcher::{self, Event};
    for config in [watcher::Config::default().page_size(2), watcher::Config::default().streaming_lists()] {
        let maps: Api<ConfigMap> = Api::default_namespaced(client().await);
        for at in 0..5 {
            maps.create(&PostParams::default(), &map(&format!("m{at}"), "1")).await.unwrap();
        }
        let mut events = kube::runtime::watcher(maps.clone(), config).boxed();
        let (mut initial, mut done) = (0, false);
        while !done {
            match tokio::time::timeout(Duration::from_secs(5), events.try_next())
                .await
                .unwrap()
                .unwrap()
                .unwrap()
            {
                Event::InitApply(_) => initial += 1,
                Event::InitDone => done = true,
                Event::Init => {}
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(initial, 5);
        maps.delete("m3", &DeleteParams::default()).await.unwrap();
        match events.try_next().await.unwrap().unwrap() {
            Event::Delete(map) => assert_eq!(map.name_any(), "m3"),
            other => panic!("{other:?}"),
        }
    }
}
