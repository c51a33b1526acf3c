//! Nothing that a client sends takes more than its share: four times as much input may take a little more than four times
//! the work, and never sixteen times. Work is the processor time of this thread, which others on the machine don't add to.

use std::time::Duration;

use serde_json::{Value, json};

use crate::kinds::row::{Cluster, Row};
use crate::request::FieldValidation;
use crate::schema::Schema;
use crate::selector::Selection;
use crate::table::IncludeObject;
use crate::{body, bounds, catalog, change, kinds, patch, strategic_merge, table};

/// Processor time that this thread has had; `None` where the kernel does not tell.
fn spent() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

/// The least of three tries, so that what the machine does besides counts little.
fn work(size: usize, prepare: Prepare) -> Duration {
    let once = || {
        let mut act = prepare(size);
        // The kernel counts when it switches threads.
        std::thread::yield_now();
        let before = spent().expect("the kernel tells");
        act();
        std::thread::yield_now();
        spent().expect("the kernel tells") - before
    };
    (0..3).map(|_| once()).min().unwrap_or_default()
}

fn served(kind: &str) -> catalog::Served {
    catalog::Served::new(kinds::builtin(kind).clone(), None)
}

/// A cluster without objects.
struct Nothing;

impl Cluster for Nothing {
    fn get(&self, _: &Row, _: &str, _: &str) -> Option<Value> {
        None
    }

    fn list(&self, _: &Row) -> Vec<Value> {
        Vec::new()
    }

    fn is_taken(&self, _: &str, _: &str, _: &str) -> bool {
        false
    }
}

fn widget(spec: Value) -> Schema {
    let version = json!({"schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}}});
    Schema::from_crd_version(&version).expect("structural")
}

fn named(count: usize) -> Vec<Value> {
    (0..count).map(|at| json!({"name": format!("n{at}"), "value": "x"})).collect()
}

fn env(list: Vec<Value>) -> Value {
    json!({"spec": {"containers": [{"name": "c", "env": list}]}})
}

/// Makes an input of a size, and what is to be done with it.
type Prepare = fn(usize) -> Box<dyn FnMut()>;

/// What is done to inputs of a size, by name.
const CASES: &[(&str, usize, Prepare)] = &[
    ("a long key over a long list", 20_000, |size| {
        let text = format!("{{{:?}:[{}0]}}", "k".repeat(size), "0,".repeat(size));
        Box::new(move || drop(body::json(text.as_bytes()).expect("JSON")))
    }),
    ("a field again and again", 20_000, |size| {
        let text = format!("{{{:?}:{{{}\"a\":0}}}}", "k".repeat(size), "\"a\":0,".repeat(size));
        Box::new(move || assert_eq!(body::json(text.as_bytes()).expect("JSON").1.len(), 100))
    }),
    ("unknown fields below a long key", 10_000, |size| {
        let schema =
            widget(json!({"type": "object", "additionalProperties": {"type": "object", "properties": {}}}));
        let fields: serde_json::Map<String, Value> =
            (0..size).map(|at| (format!("f{at}"), json!(1))).collect();
        let mut object = json!({"spec": {"k".repeat(size): fields}});
        Box::new(move || drop(schema.prune(&mut object)))
    }),
    ("mistyped items below a long key", 10_000, |size| {
        let schema = widget(
            json!({"type": "object", "additionalProperties": {"type": "array", "items": {"type": "string"}}}),
        );
        let object = json!({"spec": {"k".repeat(size): vec![1; size]}});
        Box::new(move || assert_eq!(schema.validate(&object).len(), 100))
    }),
    ("good items below a long key", 10_000, |size| {
        let schema = widget(
            json!({"type": "object", "additionalProperties": {"type": "array", "items": {"type": "integer"}}}),
        );
        let object = json!({"spec": {"k".repeat(size): vec![1; size]}});
        Box::new(move || assert!(schema.validate(&object).is_empty()))
    }),
    ("a list that is a map, and one that is a set", 4_000, |size| {
        let item = json!({"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}, "value": {"type": "string"}}});
        let schema = widget(json!({"type": "object", "properties": {
            "map": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"], "items": item},
            "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "integer"}}}}));
        let object = json!({"spec": {"map": named(size), "set": (0..size).collect::<Vec<_>>()}});
        Box::new(move || assert!(schema.validate(&object).is_empty()))
    }),
    ("a long enumeration of a long list", 4_000, |size| {
        let values: Vec<String> = (0..size).map(|at| format!("v{at}")).collect();
        let schema = widget(json!({"type": "array", "items": {"type": "string", "enum": values}}));
        let object = json!({"spec": values});
        Box::new(move || assert!(schema.validate(&object).is_empty()))
    }),
    ("many fields without defaults, many empty items", 2_000, |size| {
        let fields: serde_json::Map<String, Value> =
            (0..size).map(|at| (format!("f{at}"), json!({"type": "string"}))).collect();
        let schema = widget(json!({"type": "array", "items": {"type": "object", "properties": fields}}));
        let mut object = json!({"spec": vec![json!({}); size * 4]});
        Box::new(move || schema.apply_defaults(&mut object, bounds::LARGEST).expect("room"))
    }),
    ("a definition with a long name over many", 2_000, |size| {
        let fields: serde_json::Map<String, Value> =
            (0..size).map(|at| (format!("f{at}"), json!({"type": "string"}))).collect();
        let inner = json!({"type": "object", "properties": fields});
        let version = json!({"schema": {"openAPIV3Schema": {"type": "object", "properties": {"k".repeat(size * 10): inner}}}});
        Box::new(move || assert!(Schema::from_crd_version(&version).is_ok()))
    }),
    ("a definition with many keys of a list", 2_000, |size| {
        let keys: Vec<String> = (0..size).map(|at| format!("f{at}")).collect();
        let fields: serde_json::Map<String, Value> =
            keys.iter().map(|key| (key.clone(), json!({"type": "string"}))).collect();
        let item = json!({"type": "object", "properties": fields, "required": keys});
        let version = json!({"schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {
            "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": keys, "items": item}}}}});
        Box::new(move || assert!(Schema::from_crd_version(&version).is_ok()))
    }),
    ("a definition of many versions", 500, |size| {
        let version = |at: usize| json!({"name": format!("v{at}"), "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}});
        let mut definition = json!({"metadata": {"name": "as.b.c"}, "spec": {"group": "b.c", "scope": "Cluster",
            "names": {"plural": "as", "kind": "A"}, "versions": (0..size).map(version).collect::<Vec<_>>()}});
        let served = served("CustomResourceDefinition");
        Box::new(move || {
            drop((served.kind.row.hooks.on_create)(&mut definition, &Nothing));
            drop(kinds::validate_create(&served.kind, &definition));
        })
    }),
    ("a strategic merge of one list into another", 2_000, |size| {
        let (target, patch) = (env(named(size)), env(named(size * 2)[size / 2..].to_vec()));
        Box::new(move || {
            drop(strategic_merge::apply(kinds::builtin("Pod"), &target, &patch).expect("applies"))
        })
    }),
    ("a strategic deletion of a list, in a new order", 2_000, |size| {
        let target = env(named(size));
        let gone: Vec<Value> =
            (0..size / 2).map(|at| json!({"$patch": "delete", "name": format!("n{at}")})).collect();
        let order: Vec<Value> = (0..size).rev().map(|at| json!({"name": format!("n{at}")})).collect();
        let patch =
            json!({"spec": {"containers": [{"name": "c", "env": gone, "$setElementOrder/env": order}]}});
        Box::new(move || {
            drop(strategic_merge::apply(kinds::builtin("Pod"), &target, &patch).expect("applies"))
        })
    }),
    ("finalizers merged and deleted", 4_000, |size| {
        let names: Vec<String> = (0..size).map(|at| format!("a.b/{at}")).collect();
        let target = json!({"metadata": {"finalizers": names}});
        let patches = [
            json!({"metadata": {"finalizers": names}}),
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": names}}),
        ];
        Box::new(move || {
            for patch in &patches {
                drop(strategic_merge::apply(kinds::builtin("Pod"), &target, patch).expect("applies"));
            }
        })
    }),
    ("finalizers let go one by one", 4_000, |size| {
        let names: Vec<String> = (0..size).map(|at| format!("a.b/{at}")).collect();
        let metadata = |names: &[String]| json!({"name": "c", "namespace": "n", "deletionTimestamp": "2020-01-01T00:00:00Z", "finalizers": names});
        let object =
            |names: &[String]| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata(names)});
        let (old, new, served) = (object(&names), object(&names[1..]), served("ConfigMap"));
        Box::new(move || drop(change::replace(&served, change::Part::Main, &old, new.clone()).expect("goes")))
    }),
    ("label selectors", 10_000, |size| {
        let values: Vec<String> = (0..size).map(|at| format!("v{at}")).collect();
        let selector = format!("a in ({0}),b notin ({0})", values.join(","));
        let labels: serde_json::Map<String, Value> =
            values.iter().map(|value| (value.clone(), json!("x"))).collect();
        let object = json!({"metadata": {"labels": labels}}).to_string();
        let kind = served("Pod").kind;
        Box::new(move || {
            let selection = Selection::parse(&kind, &selector, "", &[]).expect("a selector");
            assert!(!selection.matches(&crate::seen::Facts::of(&object.clone().into())));
        })
    }),
    ("field selectors of a large object", 2_000, |size| {
        let selector = (0..size).map(|at| format!("spec.nodeName!=n{at}")).collect::<Vec<_>>().join(",");
        let object =
            json!({"metadata": {}, "spec": {"nodeName": "x", "containers": named(size)}}).to_string();
        let kind = served("Pod").kind;
        Box::new(move || {
            let selection = Selection::parse(&kind, "", &selector, &[]).expect("a selector");
            assert!(selection.matches(&crate::seen::Facts::of(&object.clone().into())));
        })
    }),
    ("a JSON patch of a long list", 2_000, |size| {
        let object = json!({"spec": named(size)});
        let operations: Vec<Value> = (0..size)
            .map(|at| json!({"op": "replace", "path": format!("/spec/{at}/value"), "value": "y"}))
            .collect();
        let bytes = Value::Array(operations).to_string();
        let payload = body::Payload { media_type: "application/json-patch+json".into(), bytes: bytes.into() };
        let kind = served("ConfigMap").kind;
        Box::new(move || {
            let (patch, _) = patch::Patch::parse(&payload, false).expect("a patch");
            drop(patch.apply(&kind, &object).expect("applies"));
        })
    }),
    ("a Table whose columns look through lists", 4_000, |size| {
        let columns = json!([
            {"name": "A", "type": "string", "jsonPath": ".spec[*].list[?(@.name==\"none\")].value"},
            {"name": "B", "type": "string", "jsonPath": ".spec[?(@.name==\"none\")].value"}]);
        let mut kind = served("ConfigMap").kind;
        kind.group = "example.com".into();
        let object = json!({"metadata": {"name": "a"}, "spec": [{"list": named(size)}, {"name": "x"}]});
        Box::new(move || {
            drop(table::render(
                &kind,
                std::slice::from_ref(&object),
                Some(&columns),
                IncludeObject::None,
                clock::now(),
            ));
        })
    }),
    ("a pod of many volumes, mounts and devices", 500, |size| {
        let volumes: Vec<Value> =
            (0..size).map(|at| json!({"name": format!("n{at}"), "emptyDir": {}})).collect();
        let mounts: Vec<Value> =
            (0..size).map(|at| json!({"name": format!("n{at}"), "mountPath": format!("/m{at}")})).collect();
        let devices: Vec<Value> =
            (0..size).map(|at| json!({"name": format!("d{at}"), "devicePath": format!("/d{at}")})).collect();
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"volumes": volumes,
            "containers": [{"name": "c", "image": "host", "volumeMounts": mounts, "volumeDevices": devices}]}});
        let served = served("Pod");
        Box::new(move || {
            let mut pod = pod.clone();
            drop(change::admit_fields(&served, &mut pod, Vec::new(), FieldValidation::Warn));
            drop(change::check_new(&served, &pod));
        })
    }),
];

#[test]
fn work_grows_with_the_input_and_not_with_its_square() {
    if spent().is_none() {
        eprintln!(
            "NOT TESTED: the kernel does not tell a thread's processor time (/proc/thread-self/schedstat)"
        );
        assert!(std::env::var("CI").as_deref() != Ok("true"), "it is required under CI=true");
        return;
    }
    let mut bad = Vec::new();
    for (what, size, prepare) in CASES {
        let (small, large) = (work(*size, *prepare), work(size * 4, *prepare));
        let growth = large.as_secs_f64() / small.as_secs_f64().max(1e-6);
        let told = format!("{what}: {size} takes {small:?}, four times as much {growth:.1} times as long");
        eprintln!("{told}");
        // Less is too little to tell from chance.
        if growth > 9.0 && large > Duration::from_millis(10) {
            bad.push(told);
        }
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}
