use serde_json::{Value, json};

use super::*;
use crate::kinds::{self, Kind, builtin};

fn spec(containers: Value) -> Value {
    json!({"spec": {"containers": containers}})
}

#[test]
fn patches_apply() {
    let cases = [
        (
            "fields merge and nulls delete",
            json!({"metadata": {"labels": {"a": "1", "b": "2"}}}),
            json!({"metadata": {"labels": {"a": null, "c": "3"}, "annotations": {"x": "y", "z": null}}}),
            json!({"metadata": {"labels": {"b": "2", "c": "3"}, "annotations": {"x": "y"}}}),
        ),
        (
            "containers merge by name",
            spec(json!([{"name": "a", "image": "1", "env": [{"name": "x", "value": "1"}]}, {"name": "b"}])),
            spec(json!([{"name": "a", "env": [{"name": "y", "value": "2"}]}, {"name": "c", "image": "3"}])),
            spec(json!([
                {"name": "a", "image": "1", "env": [{"name": "y", "value": "2"}, {"name": "x", "value": "1"}]},
                {"name": "c", "image": "3"}, {"name": "b"}])),
        ),
        (
            "an item is deleted",
            spec(json!([{"name": "a"}, {"name": "b"}])),
            spec(json!([{"$patch": "delete", "name": "a"}])),
            spec(json!([{"name": "b"}])),
        ),
        (
            "an item is replaced where its list is",
            spec(json!([{"name": "a", "image": "1"}, {"name": "b"}])),
            spec(json!([{"name": "c"}, {"$patch": "replace"}])),
            spec(json!([{"name": "c"}])),
        ),
        (
            "an object is replaced",
            json!({"metadata": {"labels": {"a": "1"}}}),
            json!({"metadata": {"labels": {"$patch": "replace", "b": "2"}}}),
            json!({"metadata": {"labels": {"b": "2"}}}),
        ),
        (
            "an object is deleted",
            json!({"metadata": {"labels": {"a": "1"}, "name": "x"}}),
            json!({"metadata": {"labels": {"$patch": "delete"}}}),
            json!({"metadata": {"name": "x"}}),
        ),
        (
            "atomic lists are replaced",
            json!({"spec": {"tolerations": [{"key": "a"}], "containers": [{"name": "a", "args": ["1", "2"]}]}}),
            json!({"spec": {"tolerations": [{"key": "b"}], "containers": [{"name": "a", "args": ["3"]}]}}),
            json!({"spec": {"tolerations": [{"key": "b"}], "containers": [{"name": "a", "args": ["3"]}]}}),
        ),
        (
            "finalizers are a set",
            json!({"metadata": {"finalizers": ["a", "b"]}}),
            json!({"metadata": {"finalizers": ["b", "c"]}}),
            json!({"metadata": {"finalizers": ["a", "b", "c"]}}),
        ),
        (
            "scalars are deleted",
            json!({"metadata": {"finalizers": ["a", "b"]}}),
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}}),
            json!({"metadata": {"finalizers": ["b"]}}),
        ),
        (
            "the order is set, and others keep their place",
            spec(json!([{"name": "a"}, {"name": "server"}, {"name": "b"}, {"name": "c"}])),
            json!({"spec": {
                "$setElementOrder/containers": [{"name": "c"}, {"name": "a"}, {"name": "new"}],
                "containers": [{"name": "new"}, {"$patch": "delete", "name": "b"}]}}),
            spec(json!([{"name": "server"}, {"name": "c"}, {"name": "a"}, {"name": "new"}])),
        ),
        (
            "a volume changes its source",
            json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}}]}}),
            json!({"spec": {"volumes": [{"$retainKeys": ["name", "hostPath"], "name": "v", "hostPath": {"path": "/x"}}]}}),
            json!({"spec": {"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]}}),
        ),
        (
            "conditions merge by type",
            json!({"status": {"conditions": [{"type": "A", "status": "False"}, {"type": "B", "status": "True"}]}}),
            json!({"status": {"conditions": [{"type": "A", "status": "True"}]}}),
            json!({"status": {"conditions": [{"type": "A", "status": "True"}, {"type": "B", "status": "True"}]}}),
        ),
        (
            "owners merge by uid",
            json!({"metadata": {"ownerReferences": [{"uid": "1"}]}}),
            json!({"metadata": {"ownerReferences": [{"$patch": "delete", "uid": "1"}]}}),
            json!({"metadata": {"ownerReferences": []}}),
        ),
        (
            "mounts merge by path",
            spec(json!([{"name": "a", "volumeMounts": [{"mountPath": "/x", "name": "v"}]}])),
            spec(
                json!([{"name": "a", "volumeMounts": [{"mountPath": "/x", "name": "w"}, {"mountPath": "/y", "name": "v"}]}]),
            ),
            spec(
                json!([{"name": "a", "volumeMounts": [{"mountPath": "/x", "name": "w"}, {"mountPath": "/y", "name": "v"}]}]),
            ),
        ),
    ];
    for (what, target, patch, expected) in cases {
        assert_eq!(apply(builtin("Pod"), &target, &patch).expect(what), expected, "{what}");
    }
}

#[test]
fn malformed_patches_are_refused() {
    for (patch, expected) in [
        (spec(json!([{"image": "x"}])), r#"map: {"image":"x"} does not contain declared merge key: name"#),
        (json!({"metadata": {"$patch": "move"}}), r#"unknown $patch: "move""#),
        (json!({"metadata": {"$deleteFromPrimitiveList/finalizers": "a"}}), "must be a list"),
        (
            json!({"spec": {"$retainKeys": ["a"], "b": 1}}),
            r#"$retainKeys does not name the patched field "b""#,
        ),
    ] {
        let error = apply(builtin("Pod"), &json!({}), &patch).expect_err("malformed").to_string();
        assert!(error.ends_with(expected) || error.contains(expected), "{error}");
    }
    let widget = Kind { row: kinds::custom("w.example.com", "Widget"), ..builtin("Pod").clone() };
    assert!(matches!(apply(&widget, &json!({}), &json!({})), Err(PatchError::UnknownKind(_))));
}
