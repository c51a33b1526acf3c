use serde_json::{Value, json};

use super::*;
use crate::kinds::{self, builtin as kind};

fn now() -> Timestamp {
    "2026-01-01T01:00:00Z".parse().expect("a time")
}

/// The cells of one row; wide ones after a bar.
fn line(name: &str, object: &Value) -> String {
    let mut object = object.clone();
    object["metadata"]["name"] = "x".into();
    object["metadata"]["creationTimestamp"] = "2026-01-01T00:55:00Z".into();
    let table = render(kind(name), &[object], None, IncludeObject::None, now());
    let cells = table["rows"][0]["cells"].as_array().expect("cells");
    let columns = table["columnDefinitions"].as_array().expect("columns");
    assert_eq!(cells.len(), columns.len());
    let of = |priority: i64| -> Vec<String> {
        let cells = cells.iter().zip(columns).filter(|(_, column)| column["priority"] == priority);
        cells.map(|(cell, _)| cell.as_str().map_or_else(|| cell.to_string(), str::to_owned)).collect()
    };
    let (narrow, wide) = (of(0).join(","), of(1).join(","));
    if wide.is_empty() { narrow } else { format!("{narrow} | {wide}") }
}

#[test]
fn objects_print_as_kubectl_shows_them() {
    let cases = [
        ("Namespace", json!({"status": {"phase": "Active"}}), "x,Active,5m"),
        ("ConfigMap", json!({"data": {"a": "1"}, "binaryData": {"b": "MQ=="}}), "x,2,5m"),
        ("Secret", json!({"type": "Opaque", "data": {"a": "MQ=="}}), "x,Opaque,1,5m"),
        ("ServiceAccount", json!({}), "x,5m"),
        ("Lease", json!({"spec": {"holderIdentity": "me"}}), "x,me,5m"),
        (
            "StorageClass",
            json!({
                "metadata": {"annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
                "provisioner": "orlop.dev", "reclaimPolicy": "Delete",
                "volumeBindingMode": "WaitForFirstConsumer", "allowVolumeExpansion": true,
            }),
            "x (default),orlop.dev,Delete,WaitForFirstConsumer,true,5m",
        ),
        (
            "PersistentVolumeClaim",
            json!({
                "spec": {"storageClassName": "orlop", "volumeMode": "Filesystem",
                    "resources": {"requests": {"storage": "1Gi"}}},
                "status": {"phase": "Pending"},
            }),
            "x,Pending,,,,orlop,<unset>,5m | Filesystem",
        ),
        (
            "PersistentVolumeClaim",
            json!({
                "metadata": {"deletionTimestamp": "2026-01-01T00:59:00Z"},
                "spec": {"storageClassName": "orlop", "volumeMode": "Filesystem", "volumeName": "pv"},
                "status": {"phase": "Bound", "capacity": {"storage": "1Gi"},
                    "accessModes": ["ReadWriteMany", "ReadWriteOnce"]},
            }),
            "x,Terminating,pv,1Gi,RWO,RWX,orlop,<unset>,5m | Filesystem",
        ),
        (
            "PersistentVolume",
            json!({
                "spec": {"capacity": {"storage": "2Gi"}, "accessModes": ["ReadWriteOncePod"],
                    "persistentVolumeReclaimPolicy": "Retain", "storageClassName": "s", "volumeMode": "Block",
                    "claimRef": {"namespace": "default", "name": "c"}},
                "status": {"phase": "Released"},
            }),
            "x,2Gi,RWOP,Retain,Released,default/c,s,<unset>,,5m | Block",
        ),
        (
            "StatefulSet",
            json!({"spec": {"replicas": 3, "template": {"spec": {"containers": [{"name": "c", "image": "host"}]}}},
                "status": {"readyReplicas": 2}}),
            "x,2/3,5m | c,host",
        ),
        (
            "ControllerRevision",
            json!({"revision": 2, "metadata": {"ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "db", "controller": true}]}}),
            "x,statefulset.apps/db,2,5m",
        ),
        (
            "Service",
            json!({"spec": {"type": "ClusterIP", "clusterIP": "None", "selector": {"app": "db"},
                "ports": [{"port": 5432, "protocol": "TCP"}]}}),
            "x,ClusterIP,None,<none>,5432/TCP,5m | app=db",
        ),
        ("CSINode", json!({"spec": {"drivers": [{}, {}]}}), "x,2,5m"),
        (
            "CSIDriver",
            json!({"spec": {"attachRequired": false, "storageCapacity": true, "volumeLifecycleModes": ["Persistent"]}}),
            "x,false,false,true,<unset>,false,Persistent,5m",
        ),
        ("CSIStorageCapacity", json!({"storageClassName": "s", "capacity": "5Gi"}), "x,s,5Gi"),
        (
            "VolumeAttachment",
            json!({"spec": {"attacher": "d", "nodeName": "n", "source": {"persistentVolumeName": "p"}},
                "status": {"attached": true}}),
            "x,d,p,n,true,5m",
        ),
        ("VolumeAttributesClass", json!({"driverName": "d"}), "x,d,5m"),
        ("CustomResourceDefinition", json!({}), "x,2026-01-01T00:55:00Z"),
        (
            "Node",
            json!({
                "metadata": {"labels": {"node-role.kubernetes.io/control-plane": ""}},
                "spec": {"unschedulable": true},
                "status": {"conditions": [{"type": "Ready", "status": "True"}],
                    "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
                    "nodeInfo": {"kubeletVersion": "v1", "kernelVersion": "6", "architecture": "amd64"}},
            }),
            "x,Ready,SchedulingDisabled,control-plane,5m,v1 | 10.0.0.1,<none>,<unknown>,6 (amd64),<unknown>",
        ),
        (
            "Event",
            json!({
                "type": "Warning", "reason": "Failed", "message": " text\n", "count": 3,
                "involvedObject": {"kind": "Pod", "name": "p"}, "source": {"component": "c", "host": "h"},
                "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:59:50Z",
            }),
            "10s,Warning,Failed,pod/p,text | ,c, h,60m,3,x",
        ),
    ];
    for (kind, object, expected) in cases {
        assert_eq!(line(kind, &object), expected, "{kind} {object}");
    }
}

#[test]
fn pods_tell_their_state_in_one_word() {
    let container = |status: Value| json!({"spec": {"containers": [{"name": "c"}]}, "status": status});
    let cases = [
        (container(json!({"phase": "Pending"})), "0/1,Pending,0"),
        (container(json!({"phase": "Failed", "reason": "Evicted"})), "0/1,Evicted,0"),
        (
            container(json!({"phase": "Running", "containerStatuses": [
                {"ready": true, "restartCount": 2, "state": {"running": {}},
                 "lastState": {"terminated": {"finishedAt": "2026-01-01T00:59:30Z"}}}]})),
            "1/1,Running,2 (30s ago)",
        ),
        (
            container(json!({"phase": "Pending", "containerStatuses": [
                {"restartCount": 0, "state": {"waiting": {"reason": "ContainerCreating"}}}]})),
            "0/1,ContainerCreating,0",
        ),
        (
            container(json!({"phase": "Running", "containerStatuses": [
                {"restartCount": 4, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]})),
            "0/1,CrashLoopBackOff,4",
        ),
        (
            container(json!({"phase": "Succeeded", "containerStatuses": [
                {"restartCount": 0, "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}]})),
            "0/1,Completed,0",
        ),
        (
            container(json!({"phase": "Failed", "containerStatuses": [
                {"restartCount": 0, "state": {"terminated": {"exitCode": 3}}}]})),
            "0/1,ExitCode:3,0",
        ),
        (
            container(json!({"phase": "Failed", "containerStatuses": [
                {"restartCount": 0, "state": {"terminated": {"exitCode": 137, "signal": 9}}}]})),
            "0/1,Signal:9,0",
        ),
        (
            container(json!({"phase": "Pending",
                "conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]})),
            "0/1,SchedulingGated,0",
        ),
        (
            json!({
                "metadata": {"deletionTimestamp": "2026-01-01T00:59:00Z"},
                "spec": {"containers": [{}]},
                "status": {"phase": "Running", "containerStatuses": [{"ready": true, "state": {"running": {}}}]},
            }),
            "1/1,Terminating,0",
        ),
        (
            json!({
                "spec": {"initContainers": [{"name": "a"}, {"name": "b"}], "containers": [{}]},
                "status": {"phase": "Pending", "initContainerStatuses": [
                    {"name": "a", "state": {"terminated": {"exitCode": 0}}}, {"name": "b", "state": {"running": {}}}]},
            }),
            "0/1,Init:1/2,0",
        ),
        (
            json!({
                "spec": {"initContainers": [{"name": "a"}], "containers": [{}]},
                "status": {"phase": "Pending", "initContainerStatuses": [
                    {"name": "a", "restartCount": 1, "state": {"terminated": {"exitCode": 1, "reason": "Error"}}}]},
            }),
            "0/1,Init:Error,1",
        ),
        (
            json!({
                "spec": {"initContainers": [{"name": "a", "restartPolicy": "Always"}], "containers": [{}]},
                "status": {"phase": "Running",
                    "initContainerStatuses": [{"name": "a", "started": true, "ready": true, "restartCount": 1}],
                    "containerStatuses": [{"ready": true, "state": {"running": {}}}]},
            }),
            "2/2,Running,1",
        ),
        (
            json!({
                "spec": {"containers": [{}, {}]},
                "status": {"phase": "Running", "containerStatuses": [
                    {"state": {"terminated": {"exitCode": 0, "reason": "Completed"}}},
                    {"ready": true, "state": {"running": {}}}]},
            }),
            "1/2,NotReady,0",
        ),
    ];
    for (pod, expected) in cases {
        let expected = format!("x,{expected},5m | <none>,<none>,<none>,<none>");
        assert_eq!(line("Pod", &pod), expected, "{pod}");
    }
}

#[test]
fn custom_columns_follow_their_types() {
    let row = kinds::custom("w.example.com", "Widget");
    let widget =
        Kind { group: "w.example.com".into(), kind: "Widget".into(), row, ..kind("ConfigMap").clone() };
    let object = json!({
        "metadata": {"name": "x", "creationTimestamp": "2026-01-01T00:59:00Z"},
        "spec": {"size": 3.7, "on": true, "list": [1]},
    });
    let columns = json!([
        {"name": "Size", "type": "integer", "jsonPath": ".spec.size"},
        {"name": "On", "type": "boolean", "jsonPath": ".spec.on", "priority": 1},
        {"name": "List", "type": "string", "jsonPath": ".spec.list"},
        {"name": "Gone", "type": "string", "jsonPath": ".spec.gone"},
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    ]);
    let objects = [object];
    let table = render(&widget, &objects, Some(&columns), IncludeObject::Metadata, now());
    assert_eq!(table["rows"][0]["cells"], json!(["x", 3, true, "[1]", null, "60s"]));
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    assert_eq!(table["columnDefinitions"][2]["priority"], 1);
    let table = render(&widget, &objects, None, IncludeObject::Object, now());
    assert_eq!(table["rows"][0]["cells"], json!(["x", "60s"]));
    assert_eq!(table["rows"][0]["object"], objects[0]);
}
