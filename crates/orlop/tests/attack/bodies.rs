//! Objects, patches and definitions that are made to be large, deep, slow or unreadable.

use std::time::{Duration, Instant};

use http::{Method, Request, StatusCode};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

use crate::common::{Orlop, Place};
use crate::tally::Tally;

const NOTES: &str = "/api/v1/namespaces/default/configmaps";
const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const THINGS: &str = "/apis/attack.example/v1/namespaces/default/things";
/// Of any single request, and of another client's request meanwhile.
const ANSWER: Duration = Duration::from_secs(60);
/// What a request of a few kilobytes may never cost.
const MEMORY: u64 = 1 << 30;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "an attack: cargo xtask attack"]
async fn what_is_sent_is_refused_or_can_be_read_changed_and_deleted() {
    let place = Place::new();
    let orlop = place.up(&["--loop-drive", "300Mi"]);
    let client = orlop.client().await;
    let mut tally = Tally::new("bodies");
    let thing = definition("things", json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}));
    assert_eq!(post(&client, DEFINITIONS, &thing.to_string()).await, StatusCode::CREATED);
    establish(&client).await;

    for body in bodies() {
        let neighbour = neighbour(&orlop).await;
        let status = post(&client, NOTES, &body).await;
        tally.count(word(status));
        let longest = neighbour.stop().await;
        assert!(longest < ANSWER, "another client waited {longest:?}");
    }
    for (kind, patch) in patches() {
        for path in [NOTES, THINGS] {
            let (group, noun) =
                if path == NOTES { ("v1", "ConfigMap") } else { ("attack.example/v1", "Thing") };
            let victim = json!({"apiVersion": group, "kind": noun, "metadata": {"name": "victim"}, "data": {"a": "b"}});
            assert_eq!(post(&client, path, &victim.to_string()).await, StatusCode::CREATED);
            let victim = format!("{path}/victim");
            let status = send(&client, Method::PATCH, &victim, kind, &patch).await;
            tally.count(word(status));
            assert_eq!(get(&client, &victim).await, StatusCode::OK, "unreadable after a patch of {kind}");
            let label = json!({"metadata": {"labels": {"changed": "yes"}}}).to_string();
            let status = send(&client, Method::PATCH, &victim, "application/merge-patch+json", &label).await;
            assert_eq!(status, StatusCode::OK, "unchangeable after {kind}: {}", short(&patch));
            let status = send(&client, Method::DELETE, &victim, "application/json", "").await;
            assert!(status.is_success(), "undeletable after {kind}: {}", short(&patch));
        }
    }
    for (number, schema) in schemas().into_iter().enumerate() {
        let neighbour = neighbour(&orlop).await;
        let plural = format!("trials{number}");
        let status = post(&client, DEFINITIONS, &definition(&plural, schema).to_string()).await;
        tally.count(word(status));
        let longest = neighbour.stop().await;
        assert!(longest < ANSWER, "another client waited {longest:?}");
    }
    for query in queries() {
        let status = get(&client, &format!("{NOTES}?{query}")).await;
        tally.count(word(status));
    }
    let used = peak_memory(orlop.pid());
    assert!(used < MEMORY, "{} MiB of memory were used", used >> 20);
    orlop.stop();
    // Whatever was stored does not keep the next start.
    let orlop = place.up(&[]);
    assert_eq!(get(&orlop.client().await, NOTES).await, StatusCode::OK);
    orlop.stop();
}

fn bodies() -> Vec<String> {
    let note = |rest: &str| {
        format!(r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"generateName":"a-"}}{rest}}}"#)
    };
    let deep =
        |open: &str, close: &str, levels: usize| format!("{}{}", open.repeat(levels), close.repeat(levels));
    let mut bodies = vec![
        String::new(),
        "null".to_owned(),
        "[]".to_owned(),
        "{".to_owned(),
        "\u{feff}{}".to_owned(),
        deep("[", "]", 100_000),
        deep(r#"{"a":"#, "}", 50_000),
        note(&format!(r#","{}":[{}]"#, "a".repeat(600_000), vec!["0"; 400_000].join(","))),
        note(&format!(r#","x":{}"#, deep("[", "]", 120))),
        note(&format!(r#","data":{{"a":"{}"}}"#, "x".repeat(2_900_000))),
        note(&format!(r#","data":{{"a":"{}"}}"#, "x".repeat(4_000_000))),
        note(r#","data":{"a":1e999}"#),
        note(r#","data":{"a":"\ud800"}"#),
        note(r#","data":{"a":"b","a":"c"}"#),
    ];
    let many = |item: fn(usize) -> String| (0..60_000).map(item).collect::<Vec<_>>().join(",");
    bodies.push(note(&format!(r#","data":{{{}}}"#, many(|n| format!(r#""k{n}":"v""#)))));
    bodies.push(note(&format!(r#","{}"#, many(|n| format!(r#""unknown{n}":1"#)).trim_start_matches('"'))));
    let labels = many(|n| format!(r#""l{n}":"v""#));
    bodies.push(format!(
        r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"l","labels":{{{labels}}}}}}}"#
    ));
    let owners = many(|n| format!(r#"{{"apiVersion":"v1","kind":"Pod","name":"p","uid":"{n}"}}"#));
    bodies.push(format!(
        r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"o","ownerReferences":[{owners}]}}}}"#
    ));
    bodies
}

fn patches() -> Vec<(&'static str, String)> {
    const JSON: &str = "application/json-patch+json";
    const MERGE: &str = "application/merge-patch+json";
    const STRATEGIC: &str = "application/strategic-merge-patch+json";
    let copies = |times: usize| -> Vec<Value> {
        (0..times).map(|n| json!({"op": "copy", "from": "/x", "path": format!("/x/c{n}")})).collect()
    };
    let begin = json!({"op": "add", "path": "/x", "value": {"y": "z".repeat(1000)}});
    let doubling = [vec![begin], copies(22)].concat();
    let nesting: Vec<Value> = std::iter::once(json!({"op": "add", "path": "/x", "value": {}}))
        .chain((0..150).map(|_| json!({"op": "copy", "from": "/x", "path": "/x/a"})))
        .collect();
    let annotations: Vec<Value> = std::iter::once(json!({"op": "add", "path": "/metadata/annotations", "value": {"a": "z".repeat(100_000)}}))
        .chain((0..200).map(|n| json!({"op": "copy", "from": "/metadata/annotations/a", "path": format!("/metadata/annotations/a{n}")})))
        .collect();
    let many = vec![json!({"op": "test", "path": "/kind", "value": "x"}); 20_000];
    let long_path = format!("/{}", "a/".repeat(200_000));
    let deep = |levels: usize| format!("{}1{}", r#"{"x":"#.repeat(levels), "}".repeat(levels));
    let wide = (0..40_000).map(|n| format!(r#""k{n}":"v""#)).collect::<Vec<_>>().join(",");
    vec![
        (JSON, Value::from(doubling).to_string()),
        (JSON, Value::from(nesting).to_string()),
        (JSON, Value::from(annotations).to_string()),
        (JSON, Value::from(many).to_string()),
        (JSON, json!([{"op": "add", "path": long_path, "value": 1}]).to_string()),
        (JSON, json!([{"op": "move", "from": "", "path": "/data/a"}]).to_string()),
        (JSON, json!([{"op": "remove", "path": ""}]).to_string()),
        (
            JSON,
            json!([{"op": "add", "path": "/metadata/finalizers/99999999999", "value": "a/b"}]).to_string(),
        ),
        (JSON, "[".repeat(50_000)),
        (MERGE, deep(120)),
        (MERGE, deep(127)),
        (MERGE, deep(9_000)),
        (MERGE, format!(r#"{{"data":{{{wide}}}}}"#)),
        (MERGE, r#"{"metadata":{"name":"other"}}"#.to_owned()),
        (MERGE, r#"{"metadata":null}"#.to_owned()),
        (STRATEGIC, deep(120)),
        (STRATEGIC, format!(r#"{{"data":{{{wide}}}}}"#)),
        (STRATEGIC, r#"{"$patch":"delete"}"#.to_owned()),
        (STRATEGIC, r#"{"metadata":{"$retainKeys":["name"]}}"#.to_owned()),
    ]
}

fn schemas() -> Vec<Value> {
    let object = |properties: Value| json!({"type": "object", "properties": properties});
    let patterns = |pattern: &str, count: usize| {
        let fields = (0..count)
            .map(|n| (format!("p{n}"), json!({"type": "string", "pattern": format!("{pattern}{n}")})));
        object(Value::Object(fields.collect()))
    };
    let deep = (0..60).fold(json!({"type": "string"}), |inner, _| object(json!({"a": inner})));
    let deeper = (0..150).fold(json!({"type": "string"}), |inner, _| object(json!({"a": inner})));
    let example = (0..150).fold(json!({}), |inner, _| json!({"a": inner}));
    vec![
        patterns(r"\pL{200}", 20),
        patterns(r"((a{100}){100}){100}", 1),
        patterns(r"(?:\w{50}){50}", 200),
        patterns(r"[^\x00-\x{10FFFF}]", 5),
        patterns(&"(".repeat(5_000), 1),
        deep,
        deeper,
        json!({"type": "object", "example": example}),
        json!({"type": "object", "default": {"a": "x".repeat(500_000)}, "x-kubernetes-preserve-unknown-fields": true}),
    ]
}

fn queries() -> Vec<String> {
    let long = (0..3_000).map(|n| format!("k{n}%3Dv")).collect::<Vec<_>>().join(",");
    let set = format!("k%20in%20({})", (0..8_000).map(|n| format!("v{n}")).collect::<Vec<_>>().join(","));
    vec![
        format!("labelSelector={long}"),
        format!("labelSelector={set}"),
        format!("fieldSelector={}", "metadata.name%3Da,".repeat(3_000)),
        "labelSelector=%00".to_owned(),
        "labelSelector=((((((".to_owned(),
        "limit=99999999999999999999".to_owned(),
        "continue=AAAA".to_owned(),
        format!("continue={}", "A".repeat(40_000)),
        "resourceVersion=-1&watch=1".to_owned(),
        "resourceVersion=18446744073709551615&watch=1&timeoutSeconds=1".to_owned(),
        "watch=1&timeoutSeconds=1&allowWatchBookmarks=maybe".to_owned(),
    ]
}

fn definition(plural: &str, schema: Value) -> Value {
    let kind = if plural == "things" { "Thing".to_owned() } else { plural.replace("trials", "Trial") };
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.attack.example")},
        "spec": {
            "group": "attack.example", "scope": "Namespaced", "names": {"plural": plural, "kind": kind},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}],
        },
    })
}

async fn establish(client: &Client) {
    let deadline = Instant::now() + ANSWER;
    while get(client, THINGS).await != StatusCode::OK {
        assert!(Instant::now() < deadline, "the definition is not served");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Another administrator, who asks for something small all the time.
struct Neighbour {
    stop: tokio_util::sync::CancellationToken,
    asks: tokio::task::JoinHandle<Duration>,
}

async fn neighbour(orlop: &Orlop) -> Neighbour {
    let client = orlop.client().await;
    let stop = tokio_util::sync::CancellationToken::new();
    let stopped = stop.clone();
    let asks = tokio::spawn(async move {
        let mut longest = Duration::ZERO;
        while !stopped.is_cancelled() {
            let began = Instant::now();
            get(&client, &format!("{NOTES}?limit=1")).await;
            longest = longest.max(began.elapsed());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        longest
    });
    Neighbour { stop, asks }
}

impl Neighbour {
    async fn stop(self) -> Duration {
        self.stop.cancel();
        self.asks.await.expect("the neighbour is answered")
    }
}

async fn get(client: &Client, path: &str) -> StatusCode {
    send(client, Method::GET, path, "application/json", "").await
}

async fn post(client: &Client, path: &str, body: &str) -> StatusCode {
    send(client, Method::POST, path, "application/json", body).await
}

/// The answer's status; a connection that ends under a body that is too large counts as refused.
async fn send(client: &Client, method: Method, path: &str, content_type: &str, body: &str) -> StatusCode {
    let request = Request::builder().method(method).uri(path).header("content-type", content_type);
    let request = request.body(Body::from(body.as_bytes().to_vec())).expect("a request");
    match tokio::time::timeout(ANSWER, client.send(request)).await.expect("an answer in time") {
        Ok(answer) => answer.status(),
        Err(_) if body.len() > 3 << 20 => StatusCode::PAYLOAD_TOO_LARGE,
        Err(error) => panic!("{path}: {error}; sent was {}", short(body)),
    }
}

fn word(status: StatusCode) -> &'static str {
    assert_ne!(status, StatusCode::INTERNAL_SERVER_ERROR, "what a client sends is the client's fault");
    if status.is_success() { "accepted" } else { "refused" }
}

fn short(text: &str) -> String {
    text.chars().take(200).collect()
}

/// Bytes of physical memory at the most, so far.
fn peak_memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("Orlop runs");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("VmHWM");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") << 10
}
