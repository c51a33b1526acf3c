//! What can be written can be read, changed and deleted again; what got into the store by another hand and can't be read
//! keeps nothing else from being served.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use api_server::{ApiServer, Options};
use kube::Client;
use object_store::{Key, Precondition, Store};
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const BIGS: &str = "/apis/evil.io/v1/namespaces/default/bigs";
const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const JSON: &str = "application/json";

async fn served(store: &Store) -> (ApiServer, Client) {
    let api = ApiServer::start(store.clone(), Options::default()).await.unwrap();
    let client = Client::new(api.in_process("test"), "default");
    (api, client)
}

/// An answer's code, its warnings, and its body.
async fn ask(
    client: &Client,
    method: &str,
    path: &str,
    media: &str,
    body: &str,
) -> (u16, Vec<String>, Value) {
    let request = http::Request::builder().method(method).uri(path).header("content-type", media);
    let answer = client.send(request.body(body.as_bytes().to_vec().into()).unwrap()).await.unwrap();
    let code = answer.status().as_u16();
    let warnings =
        answer.headers().get_all("warning").iter().map(|one| one.to_str().unwrap().to_owned()).collect();
    let bytes = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap().to_bytes();
    (
        code,
        warnings,
        serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{method} {path}: {error}")),
    )
}

async fn code(client: &Client, method: &str, path: &str, media: &str, body: &Value) -> u16 {
    ask(client, method, path, media, &body.to_string()).await.0
}

fn definition(schema: Value) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "bigs.evil.io"},
        "spec": {"group": "evil.io", "scope": "Namespaced", "names": {"plural": "bigs", "kind": "Big"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]},
    })
}

fn anything() -> Value {
    json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

fn big(field: &str, value: Value) -> Value {
    json!({"apiVersion": "evil.io/v1", "kind": "Big", "metadata": {"name": "n"}, field: value})
}

fn nested(levels: usize) -> Value {
    (0..levels).fold(json!("x"), |inner, _| json!({ "a": inner }))
}

async fn until_gone(client: &Client, path: &str) {
    let gone = async {
        while ask(client, "GET", path, JSON, "").await.0 != 404 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), gone).await.expect("it goes");
}

#[tokio::test]
async fn nothing_is_stored_deeper_than_it_can_be_read_whichever_way_it_is_made() {
    let store = Store::in_memory();
    let (_api, client) = served(&store).await;
    assert_eq!(code(&client, "POST", DEFINITIONS, JSON, &definition(anything())).await, 201);
    let one = &format!("{BIGS}/n");
    // The deepest that is taken can be read, listed, changed and deleted.
    let deepest = big("x", nested(119));
    assert_eq!(code(&client, "POST", BIGS, JSON, &deepest).await, 201);
    for path in [one.as_str(), BIGS] {
        assert_eq!(code(&client, "GET", path, JSON, &json!(null)).await, 200, "{path}");
    }
    let mut changed = ask(&client, "GET", one, JSON, "").await.2;
    changed["y"] = json!(1);
    assert_eq!(code(&client, "PUT", one, JSON, &changed).await, 200);
    assert_eq!(code(&client, "DELETE", one, JSON, &json!({})).await, 200);

    assert_eq!(code(&client, "POST", BIGS, JSON, &big("x", nested(120))).await, 400);
    let flow = format!("{}1{}", "{a: ".repeat(120), "}".repeat(120));
    let yaml = format!("apiVersion: evil.io/v1\nkind: Big\nmetadata: {{name: n}}\nx: {flow}\n");
    assert_eq!(ask(&client, "POST", BIGS, "application/yaml", &yaml).await.0, 400);
    assert_eq!(code(&client, "POST", BIGS, JSON, &big("x", json!({}))).await, 201);
    assert_eq!(code(&client, "PUT", one, JSON, &big("x", nested(120))).await, 400);
    let copies: Value = (0..150).map(|_| json!({"op": "copy", "from": "/x", "path": "/x/a"})).collect();
    let value = json!([{"op": "add", "path": "/x/y", "value": nested(119)}]);
    for patch in [copies, value] {
        assert_eq!(code(&client, "PATCH", one, "application/json-patch+json", &patch).await, 422);
    }
    let merge = json!({ "x": nested(120) });
    assert_eq!(code(&client, "PATCH", one, "application/merge-patch+json", &merge).await, 422);
    assert_eq!(code(&client, "DELETE", one, JSON, &json!({})).await, 200);

    // The definition itself is an object, too.
    let properties = "/spec/versions/0/schema/openAPIV3Schema/properties";
    let start =
        json!({"op": "add", "path": properties, "value": {"a": {"type": "object", "properties": {}}}});
    let copy = json!({"op": "copy", "from": format!("{properties}/a"), "path": format!("{properties}/a/properties/a")});
    let deep: Value = std::iter::once(start).chain(std::iter::repeat_n(copy, 75)).collect();
    let own = &format!("{DEFINITIONS}/bigs.evil.io");
    assert_eq!(code(&client, "PATCH", own, "application/json-patch+json", &deep).await, 422);
    let mut example = definition(anything());
    example["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["example"] = nested(119);
    for media in ["application/merge-patch+json", "application/strategic-merge-patch+json"] {
        assert_eq!(
            code(&client, "PATCH", own, media, &json!({"spec": example["spec"]})).await,
            422,
            "{media}"
        );
    }
    assert_eq!(code(&client, "DELETE", own, JSON, &json!({})).await, 200);
    until_gone(&client, own).await;
}

#[tokio::test]
async fn defaults_make_nothing_that_is_too_large() {
    let store = Store::in_memory();
    let (_api, client) = served(&store).await;
    let item =
        json!({"type": "object", "properties": {"text": {"type": "string", "default": "x".repeat(10_000)}}});
    let schema = json!({"type": "object", "properties": {"x": {"type": "array", "items": item}}});
    assert_eq!(code(&client, "POST", DEFINITIONS, JSON, &definition(schema)).await, 201);
    assert_eq!(code(&client, "POST", BIGS, JSON, &big("x", json!([{}, {}]))).await, 201);
    let mut many = big("x", Value::Array(vec![json!({}); 100_000]));
    many["metadata"]["name"] = json!("m");
    assert_eq!(code(&client, "POST", BIGS, JSON, &many).await, 413);
    let patch = json!({"x": many["x"]});
    assert_eq!(
        code(&client, "PATCH", &format!("{BIGS}/n"), "application/merge-patch+json", &patch).await,
        413
    );
}

#[tokio::test]
async fn the_largest_object_can_be_deleted() {
    let store = Store::in_memory();
    let (_api, client) = served(&store).await;
    assert_eq!(code(&client, "POST", DEFINITIONS, JSON, &definition(anything())).await, 201);
    let sized = |bytes| {
        let mut one = big("x", json!("y".repeat(bytes)));
        one["metadata"]["finalizers"] = json!(["example.com/hold"]);
        one
    };
    // As large as is taken at all.
    let (mut taken, mut refused) = (1 << 20, 3 << 19);
    while refused - taken > 1 {
        let middle = usize::midpoint(taken, refused);
        let answer = code(&client, "POST", &format!("{BIGS}?dryRun=All"), JSON, &sized(middle)).await;
        if answer == 201 { taken = middle } else { refused = middle }
    }
    assert_eq!(code(&client, "POST", BIGS, JSON, &sized(taken)).await, 201);
    let one = &format!("{BIGS}/n");
    let foreground = json!({"propagationPolicy": "Foreground"});
    assert_eq!(code(&client, "DELETE", one, JSON, &foreground).await, 200);
    let release = json!({"metadata": {"finalizers": null}});
    assert_eq!(code(&client, "PATCH", one, "application/merge-patch+json", &release).await, 200);
    assert_eq!(code(&client, "GET", one, JSON, &json!(null)).await, 404);
}

async fn put(store: &Store, resource: &str, namespace: &str, name: &str, bytes: &str) {
    let bytes = bytes.to_owned();
    let key = Key::new(resource, namespace, name);
    store.put(key, Precondition::Absent, Box::new(move |_| bytes.into())).await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_read_is_told_of_left_out_and_deleted() {
    let store = Store::in_memory();
    let deep = format!("{}1{}", "{\"a\":".repeat(200), "}".repeat(200));
    let map = |name: &str| {
        format!(
            r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{name}","namespace":"default"}},"#
        )
    };
    put(&store, "configmaps", "default", "good", &format!("{}\"data\":{{}}}}", map("good"))).await;
    put(&store, "configmaps", "default", "deep", &format!("{}\"x\":{deep}}}", map("deep"))).await;
    put(&store, "configmaps", "default", "cut", &map("cut")[..50]).await;
    put(&store, "configmaps", "default", "list", "[]").await;
    put(&store, "events", "default", "cut", "{").await;
    put(&store, "namespaces", "", "default", "rubbish").await;
    let (_api, client) = served(&store).await;

    for (path, media) in [(MAPS, JSON), ("/api/v1/configmaps", JSON)] {
        let (code, warnings, list) = ask(&client, "GET", path, media, "").await;
        let names: Vec<&str> = list["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| item["metadata"]["name"].as_str().unwrap())
            .collect();
        assert_eq!((code, names, warnings.len()), (200, vec!["good"], 3), "{warnings:?}");
        assert!(warnings[0].contains("configmaps/default/cut is stored but can't be read"), "{warnings:?}");
    }
    for name in ["deep", "cut", "list"] {
        let one = &format!("{MAPS}/{name}");
        let (code_of_get, _, status) = ask(&client, "GET", one, JSON, "").await;
        assert_eq!((code_of_get, &status["reason"]), (500, &json!("StoreReadError")), "{status}");
        assert!(
            status["message"].as_str().unwrap().contains(&format!("kubectl delete --raw {one}")),
            "{status}"
        );
        let change = json!({"data": {"a": "b"}});
        assert_eq!(code(&client, "PATCH", one, "application/merge-patch+json", &change).await, 500);
        assert_eq!(code(&client, "DELETE", one, JSON, &json!({})).await, 200);
        assert_eq!(code(&client, "GET", one, JSON, &json!(null)).await, 404);
        let again = json!({"metadata": {"name": name}});
        assert_eq!(code(&client, "POST", MAPS, JSON, &again).await, 201, "the name is free");
        assert_eq!(code(&client, "GET", one, JSON, &json!(null)).await, 200);
    }
    let (_, warnings, _) = ask(&client, "GET", MAPS, JSON, "").await;
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!(code(&client, "DELETE", "/api/v1/namespaces/default/events", JSON, &json!({})).await, 200);
    assert_eq!(code(&client, "GET", "/api/v1/namespaces/default/events/cut", JSON, &json!(null)).await, 404);
}

#[tokio::test]
async fn a_definition_that_cannot_be_served_keeps_no_other_from_it_and_goes_with_its_objects() {
    let store = Store::in_memory();
    let established = json!({"conditions": [{"type": "Established", "status": "True"}]});
    let bytes = |name: &str, mut definition: Value| {
        definition["metadata"] =
            json!({"name": name, "uid": name, "finalizers": ["customresourcecleanup.apiextensions.k8s.io"]});
        definition["status"] = established.clone();
        definition.to_string()
    };
    let mut good = definition(anything());
    good["spec"]["names"] = json!({"plural": "goods", "kind": "Good"});
    let resource = "customresourcedefinitions.apiextensions.k8s.io";
    put(
        &store,
        resource,
        "",
        "bigs.evil.io",
        &bytes("bigs.evil.io", definition(json!({"type": "object", "properties": {"x": {}}}))),
    )
    .await;
    put(&store, resource, "", "cuts.evil.io", "{\"apiVersion\":\"apiextensions").await;
    put(&store, resource, "", "goods.evil.io", &bytes("goods.evil.io", good)).await;
    // Patterns that an earlier version took.
    let patterns: serde_json::Map<String, Value> = (0..20)
        .map(|at| (format!("p{at}"), json!({"type": "string", "pattern": format!("\\pL{{200}}{at}")})))
        .collect();
    let mut bombs = definition(json!({"type": "object", "properties": patterns}));
    bombs["spec"]["names"] = json!({"plural": "bombs", "kind": "Bomb"});
    put(&store, resource, "", "bombs.evil.io", &bytes("bombs.evil.io", bombs.clone())).await;
    let mut held = big("x", json!(1));
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    for resource in ["bigs.evil.io", "cuts.evil.io"] {
        put(&store, resource, "default", "n", &held.to_string()).await;
    }
    let (_api, client) = served(&store).await;
    assert_eq!(
        code(&client, "GET", "/apis/evil.io/v1/namespaces/default/goods", JSON, &json!(null)).await,
        200
    );
    assert_eq!(code(&client, "GET", BIGS, JSON, &json!(null)).await, 404);
    for name in ["bigs.evil.io", "cuts.evil.io", "bombs.evil.io"] {
        let own = &format!("{DEFINITIONS}/{name}");
        assert_eq!(code(&client, "DELETE", own, JSON, &json!({})).await, 200, "{name}");
        until_gone(&client, own).await;
        assert_eq!(store.get(&Key::new(name, "default", "n")), None);
    }
    assert_eq!(code(&client, "POST", DEFINITIONS, JSON, &definition(anything())).await, 201);
    assert_eq!(code(&client, "GET", BIGS, JSON, &json!(null)).await, 200);
    bombs["metadata"] = json!({"name": "bombs.evil.io"});
    let (code, _, status) = ask(&client, "POST", DEFINITIONS, JSON, &bombs.to_string()).await;
    let message = status["message"].as_str().unwrap();
    assert_eq!(code, 422, "{message}");
    assert!(
        message.contains("spec.validation.openAPIV3Schema.properties[p0].pattern: Invalid value"),
        "{message}"
    );
    assert!(message.contains("must take at most 1024 KiB when compiled"), "{message}");
}
