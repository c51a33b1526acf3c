//! What particular kinds need of the server: definitions and their objects, claims, events, logs, Tables.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use api_server::{ApiServer, LogError, LogRequest, Nodes, Options, Page, PageError};
use futures::future::BoxFuture;
use futures::stream::{BoxStream, StreamExt};
use futures::{AsyncBufReadExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Node, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, LogParams, Patch,
    PatchParams, PostParams, PropagationPolicy,
};
use kube::{Client, ResourceExt};
use object_store::Store;
use serde_json::{Value, json};

async fn client() -> Client {
    let api = ApiServer::start(Store::in_memory(), Options::default()).await.unwrap();
    Client::new(api.in_process("test"), "default")
}

fn of<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn code<T: std::fmt::Debug>(result: kube::Result<T>) -> (u16, String) {
    match result.unwrap_err() {
        kube::Error::Api(status) => (status.code, status.message.clone()),
        other => panic!("no Status: {other}"),
    }
}

async fn until_gone<T>(api: &Api<T>, name: &str)
where
    T: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let gone = async {
        while api.get_opt(name).await.unwrap().is_some() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), gone).await.expect("it goes");
}

fn drives() -> Value {
    let spec = json!({"type": "object", "required": ["node"], "properties": {
        "node": {"type": "string"}, "mode": {"type": "string", "default": "auto"}}});
    let status = json!({"type": "object", "properties": {"free": {"type": "integer"}}});
    let schema =
        json!({"openAPIV3Schema": {"type": "object", "properties": {"spec": spec, "status": status}}});
    json!({
        "metadata": {"name": "drives.example.com"},
        "spec": {
            "group": "example.com", "scope": "Cluster",
            "names": {"kind": "Drive", "plural": "drives"},
            "versions": [
                {"name": "v1", "served": true, "storage": true, "schema": schema, "subresources": {"status": {}},
                 "selectableFields": [{"jsonPath": ".spec.node"}],
                 "additionalPrinterColumns": [{"name": "Node", "type": "string", "jsonPath": ".spec.node"}]},
                {"name": "v1beta1", "served": true, "storage": false, "schema": schema},
            ],
        },
    })
}

fn drive_api(client: &Client, version: &str) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("example.com", version, "Drive");
    Api::all_with(client.clone(), &ApiResource::from_gvk_with_plural(&kind, "drives"))
}

fn drive(name: &str, spec: Value) -> DynamicObject {
    of(json!({"apiVersion": "example.com/v1", "kind": "Drive", "metadata": {"name": name}, "spec": spec}))
}

#[tokio::test]
async fn a_definition_is_served_at_once_and_takes_its_objects_along() {
    let client = client().await;
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let created = definitions.create(&PostParams::default(), &of(drives())).await.unwrap();
    let conditions = created.status.unwrap().conditions.unwrap();
    assert!(
        conditions.iter().any(|condition| condition.type_ == "Established" && condition.status == "True")
    );

    let v1 = drive_api(&client, "v1");
    let made =
        v1.create(&PostParams::default(), &drive("d1", json!({"node": "a", "extra": 1}))).await.unwrap();
    assert_eq!(made.data["spec"], json!({"node": "a", "mode": "auto"}), "pruned and defaulted");
    let (refused, message) = code(v1.create(&PostParams::default(), &drive("d2", json!({}))).await);
    assert_eq!(refused, 422, "{message}");
    let (refused, message) = code(v1.create(&PostParams::default(), &drive("d2", json!({"node": 7}))).await);
    assert_eq!(refused, 422, "{message}");

    let status = json!({"spec": {"node": "b"}, "status": {"free": 5}});
    let after = v1.patch_status("d1", &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
    assert_eq!((&after.data["spec"]["node"], &after.data["status"]["free"]), (&json!("a"), &json!(5)));
    assert_eq!(after.metadata.generation, Some(1));
    let after = v1.patch("d1", &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
    assert_eq!((after.data["spec"]["node"].as_str(), after.metadata.generation), (Some("b"), Some(2)));
    let strategic = v1.patch("d1", &PatchParams::default(), &Patch::Strategic(&status)).await;
    assert_eq!(code(strategic).0, 415);

    let old = drive_api(&client, "v1beta1").get("d1").await.unwrap();
    assert_eq!(old.types.unwrap().api_version, "example.com/v1beta1");
    assert_eq!(v1.list(&ListParams::default().fields("spec.node=b")).await.unwrap().items.len(), 1);

    let hold = json!({"metadata": {"finalizers": ["example.com/hold"]}});
    v1.patch("d1", &PatchParams::default(), &Patch::Merge(&hold)).await.unwrap();
    definitions.delete("drives.example.com", &DeleteParams::default()).await.unwrap();
    v1.create(&PostParams::default(), &drive("late", json!({"node": "a"}))).await.unwrap();
    until_gone(&v1, "late").await;
    assert!(v1.get("d1").await.unwrap().metadata.deletion_timestamp.is_some());
    assert!(definitions.get("drives.example.com").await.is_ok(), "it waits for its objects");
    let release = json!({"metadata": {"finalizers": null}});
    v1.patch("d1", &PatchParams::default(), &Patch::Merge(&release)).await.unwrap();
    until_gone(&definitions, "drives.example.com").await;
    assert_eq!(code(v1.get("d1").await), (404, "the server could not find the requested resource".into()));
    definitions.create(&PostParams::default(), &of(drives())).await.unwrap();
    assert!(v1.list(&ListParams::default()).await.unwrap().items.is_empty(), "nothing comes back");
}

#[tokio::test]
async fn definitions_and_objects_are_served_again_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    for start in 0..2 {
        let store = Store::open(&path, object_store::Options::default()).unwrap();
        let api = ApiServer::start(store.clone(), Options::default()).await.unwrap();
        let client = Client::new(api.in_process("test"), "default");
        if start == 0 {
            let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
            definitions.create(&PostParams::default(), &of(drives())).await.unwrap();
            let one = drive("d1", json!({"node": "a"}));
            drive_api(&client, "v1").create(&PostParams::default(), &one).await.unwrap();
        } else {
            drive_api(&client, "v1").get("d1").await.unwrap();
        }
        drop((client, api));
        store.close().await;
    }
}

#[tokio::test]
async fn a_claim_without_a_class_gets_the_newest_default_and_protection() {
    let client = client().await;
    let classes: Api<StorageClass> = Api::all(client.clone());
    for (name, default) in [("plain", "false"), ("chosen", "true")] {
        let class = json!({"metadata": {"name": name,
            "annotations": {"storageclass.kubernetes.io/is-default-class": default}}, "provisioner": "x.y"});
        classes.create(&PostParams::default(), &of(class)).await.unwrap();
    }
    let claims: Api<PersistentVolumeClaim> = Api::default_namespaced(client);
    let claim = |name: &str, class: Value| {
        let mut spec =
            json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
        if !class.is_null() {
            spec["storageClassName"] = class;
        }
        of::<PersistentVolumeClaim>(json!({"metadata": {"name": name}, "spec": spec}))
    };
    let made = claims.create(&PostParams::default(), &claim("a", Value::Null)).await.unwrap();
    assert_eq!(made.finalizers(), ["kubernetes.io/pvc-protection"]);
    assert_eq!(made.spec.unwrap().storage_class_name.as_deref(), Some("chosen"));
    let made = claims.create(&PostParams::default(), &claim("b", json!(""))).await.unwrap();
    assert_eq!(made.spec.unwrap().storage_class_name.as_deref(), Some(""), "an empty class means none");
}

#[tokio::test]
async fn unknown_fields_are_ignored_warned_of_or_refused() {
    let client = client().await;
    let post = |validation: &str, name: &str| {
        let body = format!(
            "{{\"metadata\":{{\"name\":\"{name}\"}},\"colour\":\"blue\",\"data\":{{}},\"data\":{{}}}}"
        );
        let path = format!("/api/v1/namespaces/default/configmaps?fieldValidation={validation}");
        http::Request::post(path)
            .header("content-type", "application/json")
            .body(body.into_bytes().into())
            .unwrap()
    };
    let answer = client.send(post("Ignore", "a")).await.unwrap();
    assert_eq!(
        (answer.status(), answer.headers().get_all("warning").iter().count()),
        (http::StatusCode::CREATED, 0)
    );
    let answer = client.send(post("", "b")).await.unwrap();
    let warnings: Vec<_> =
        answer.headers().get_all("warning").iter().map(|value| value.to_str().unwrap()).collect();
    assert_eq!(
        warnings,
        ["299 - \"unknown field \\\"colour\\\"\"", "299 - \"duplicate field \\\"data\\\"\""]
    );
    let answer = client.send(post("Strict", "c")).await.unwrap();
    assert_eq!(answer.status(), http::StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_collection_is_deleted_by_selector_and_foreground_waits() {
    let client = client().await;
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    for (name, group) in [("a", "x"), ("b", "x"), ("c", "y")] {
        let map = json!({"metadata": {"name": name, "labels": {"group": group}}});
        maps.create(&PostParams::default(), &of(map)).await.unwrap();
    }
    maps.delete_collection(&DeleteParams::default(), &ListParams::default().labels("group=x")).await.unwrap();
    let left: Vec<String> =
        maps.list(&ListParams::default()).await.unwrap().iter().map(ResourceExt::name_any).collect();
    assert_eq!(left, ["c"]);
    let foreground =
        DeleteParams { propagation_policy: Some(PropagationPolicy::Foreground), ..Default::default() };
    let kept = maps.delete("c", &foreground).await.unwrap().left().unwrap();
    assert_eq!(kept.finalizers(), ["foregroundDeletion"]);
}

#[tokio::test]
async fn tables_and_metadata_are_shown_when_asked_for_also_on_watches() {
    let client = client().await;
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "host"}]}});
    pods.create(&PostParams::default(), &of(pod)).await.unwrap();
    let get = |path: &str, kind: &str| {
        let accept = format!("application/json;as={kind};v=v1;g=meta.k8s.io,application/json");
        http::Request::get(path).header("accept", accept).body(Vec::new()).unwrap()
    };
    let table: Value = client.request(get("/api/v1/pods", "Table")).await.unwrap();
    assert_eq!((&table["kind"], &table["rows"][0]["cells"][0]), (&json!("Table"), &json!("p")));
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    assert!(table["metadata"]["resourceVersion"].is_string());
    let list: Value = client.request(get("/api/v1/pods", "PartialObjectMetadataList")).await.unwrap();
    assert_eq!(
        (&list["kind"], &list["items"][0]["kind"]),
        (&json!("PartialObjectMetadataList"), &json!("PartialObjectMetadata"))
    );
    assert!(list["items"][0].get("spec").is_none());
    let watched = client.request_text(get("/api/v1/pods?watch=1&timeoutSeconds=1", "Table")).await.unwrap();
    let event: Value = serde_json::from_str(watched.lines().next().unwrap()).unwrap();
    assert_eq!((&event["type"], &event["object"]["rows"][0]["cells"][0]), (&json!("ADDED"), &json!("p")));
}

#[tokio::test]
async fn events_expire_and_are_bounded() {
    // Five are more than three, and than 1,200 bytes.
    for (max_events, max_event_bytes) in [(3, 1 << 20), (1000, 1200)] {
        let options = Options {
            event_ttl: Duration::from_millis(300),
            max_events,
            max_event_bytes,
            ..Default::default()
        };
        events_are_bounded(options).await;
    }
}

async fn events_are_bounded(options: Options) {
    let api = ApiServer::start(Store::in_memory(), options).await.unwrap();
    let client = Client::new(api.in_process("test"), "default");
    let events: Api<k8s_openapi::api::core::v1::Event> = Api::default_namespaced(client);
    for at in 0..5 {
        let event = json!({"metadata": {"name": format!("e{at}")}, "reason": "Tried", "type": "Normal",
            "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"}});
        events.create(&PostParams::default(), &of(event)).await.unwrap();
    }
    let bounded = async {
        loop {
            let names: Vec<String> = events
                .list(&ListParams::default())
                .await
                .unwrap()
                .iter()
                .map(ResourceExt::name_any)
                .collect();
            if names.len() <= 3 {
                break names;
            }
            tokio::task::yield_now().await;
        }
    };
    let names = tokio::time::timeout(Duration::from_secs(5), bounded).await.unwrap();
    assert!(!names.contains(&"e0".to_owned()), "the oldest go first: {names:?}");
    until_gone(&events, "e4").await;
}

struct Fixed;

impl Nodes for Fixed {
    fn log(
        &self,
        request: LogRequest,
    ) -> BoxFuture<'static, Result<BoxStream<'static, bytes::Bytes>, LogError>> {
        Box::pin(async move {
            if request.container == "init" {
                return Err(LogError::NotStarted);
            }
            if request.options.previous {
                return Err(LogError::NotThere("there was no previous run".into()));
            }
            let line = format!("{} on {}\n", request.container, request.node);
            Ok(futures::stream::iter([bytes::Bytes::from(line), "second\n".into()]).boxed())
        })
    }

    fn page(&self, node: &str, path: &str) -> BoxFuture<'static, Result<Page, PageError>> {
        let page = match path {
            "metrics" => Ok(Page { media_type: "text/plain", body: format!("of {node}\n").into() }),
            "hung" => Err(PageError::Failed("it hangs".into())),
            other => Err(PageError::NotThere(format!("/{other} is no page"))),
        };
        Box::pin(async move { page })
    }
}

#[tokio::test]
async fn pages_of_nodes_are_proxied() {
    let api = ApiServer::start(Store::in_memory(), Options::default()).await.unwrap();
    let client = Client::new(api.in_process("test"), "default");
    let get = async |path: &str| {
        let path = format!("/api/v1/nodes/{path}");
        client.request_text(http::Request::get(path).body(vec![]).unwrap()).await
    };
    let nodes: Api<Node> = Api::all(client.clone());
    nodes.create(&PostParams::default(), &of(json!({"metadata": {"name": "n1"}}))).await.unwrap();
    assert_eq!(code(get("n1/proxy/metrics").await).0, 503, "nobody can be asked");
    api.serve_nodes(Arc::new(Fixed));
    assert_eq!(get("n1/proxy/metrics").await.unwrap(), "of n1\n");
    for (path, status, said) in [
        ("n2/proxy/metrics", 404, "nodes \"n2\" not found"),
        (
            "n1/proxy/stats/other",
            404,
            "the server could not find the requested resource: /stats/other is no page",
        ),
        ("n1/proxy/", 404, "the server could not find the requested resource: / is no page"),
        ("n1/proxy/hung", 503, "it hangs"),
        ("n1/proxies/metrics", 404, "the server could not find the requested resource"),
    ] {
        let refused = code(get(path).await);
        assert_eq!((refused.0, refused.1.as_str()), (status, said), "{path}");
    }
}

#[tokio::test]
async fn what_containers_can_not_be_asked_for_is_refused_by_name() {
    let api = ApiServer::start(Store::in_memory(), Options::default()).await.unwrap();
    let client = Client::new(api.in_process("test"), "default");
    for subresource in ["exec", "attach", "portforward"] {
        let path = format!("/api/v1/namespaces/default/pods/p/{subresource}?command=ls");
        let refused = code(client.request_text(http::Request::get(path).body(vec![]).unwrap()).await);
        assert_eq!(refused.0, 405);
        assert!(refused.1.starts_with(&format!("{subresource} is not served by Orlop")), "{refused:?}");
    }
}

#[tokio::test]
async fn logs_come_from_the_node() {
    let api = ApiServer::start(Store::in_memory(), Options::default()).await.unwrap();
    let pods: Api<Pod> = Api::default_namespaced(Client::new(api.in_process("test"), "default"));
    let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n1",
        "containers": [{"name": "c", "image": "host"}], "initContainers": [{"name": "init", "image": "host"}]}});
    pods.create(&PostParams::default(), &of(pod)).await.unwrap();
    assert_eq!(code(pods.logs("p", &LogParams::default()).await).0, 503);
    api.serve_nodes(Arc::new(Fixed));
    assert_eq!(pods.logs("p", &LogParams::default()).await.unwrap(), "c on n1\nsecond\n");
    let limited = LogParams { limit_bytes: Some(4), ..Default::default() };
    assert_eq!(pods.logs("p", &limited).await.unwrap(), "c on");
    let lines =
        pods.log_stream("p", &LogParams { follow: true, ..Default::default() }).await.unwrap().lines();
    assert_eq!(lines.try_collect::<Vec<_>>().await.unwrap().len(), 2);
    let other = LogParams { container: Some("x".into()), ..Default::default() };
    assert_eq!(code(pods.logs("p", &other).await), (400, "container x is not valid for pod p".into()));
    let early = LogParams { container: Some("init".into()), ..Default::default() };
    let said = "container \"init\" in pod \"p\" is waiting to start - no logs yet".to_owned();
    assert_eq!(code(pods.logs("p", &early).await), (400, said));
    let status = json!({"status": {"initContainerStatuses": [{"name": "init", "ready": false, "restartCount": 0,
        "image": "host", "imageID": "", "state": {"waiting": {"reason": "PodInitializing"}}}]}});
    pods.patch_status("p", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    let said = "container \"init\" in pod \"p\" is waiting to start: PodInitializing".to_owned();
    assert_eq!(code(pods.logs("p", &early).await), (400, said));
    assert_eq!(code(pods.logs("p", &LogParams { previous: true, ..Default::default() }).await).0, 400);
}

#[tokio::test]
async fn discovery_names_what_is_served() {
    let client = client().await;
    let get = |path: &str, accept: &str| {
        http::Request::get(path).header("accept", accept).body(Vec::new()).unwrap()
    };
    let aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let core: Value = client.request(get("/api", aggregated)).await.unwrap();
    assert_eq!(core["kind"], "APIGroupDiscoveryList");
    let pods = core["items"][0]["versions"][0]["resources"].as_array().unwrap();
    let pods = pods.iter().find(|resource| resource["resource"] == "pods").unwrap();
    let names: Vec<_> =
        pods["subresources"].as_array().unwrap().iter().map(|sub| sub["subresource"].clone()).collect();
    assert_eq!(names, ["binding", "eviction", "log", "status"]);
    let groups = client.list_api_groups().await.unwrap();
    assert!(groups.groups.iter().any(|group| group.name == "storage.k8s.io"));
    let storage = client.list_api_group_resources("storage.k8s.io/v1").await.unwrap();
    assert!(storage.resources.iter().any(|resource| resource.name == "volumeattachments/status"));
    assert_eq!(client.request_text(get("/readyz", "*/*")).await.unwrap(), "ok");
}
