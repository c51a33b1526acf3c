//! Why pods are refused: the pure placement, as a table.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::collections::HashSet;
use std::sync::Arc;

use scheduler::{Placement, Refusal, World, place};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

fn object<K: DeserializeOwned>(value: Value) -> Arc<K> {
    Arc::new(serde_json::from_value(value).unwrap())
}

fn claim(name: &str, class: &str, change: Value) -> Value {
    let mut claim = json!({
        "metadata": {"namespace": "default", "name": name, "uid": name},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": class,
            "resources": {"requests": {"storage": "10Gi"}}},
        "status": {"phase": "Pending"},
    });
    json_patch(&mut claim, change);
    claim
}

/// Merges a patch into a value.
fn json_patch(target: &mut Value, patch: Value) {
    match patch {
        Value::Object(fields) => {
            for (key, value) in fields {
                json_patch(&mut target[key], value);
            }
        }
        other => *target = other,
    }
}

fn bound(name: &str, volume: &str) -> Value {
    let change = json!({"metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}},
        "spec": {"volumeName": volume}, "status": {"phase": "Bound"}});
    claim(name, "late", change)
}

fn pod(name: &str, claims: &[&str], node: Option<&str>) -> Value {
    let volume = |claim: &&str| json!({"name": claim, "persistentVolumeClaim": {"claimName": claim}});
    json!({
        "metadata": {"namespace": "default", "name": name, "uid": name},
        "spec": {"containers": [], "nodeName": node, "volumes": claims.iter().map(volume).collect::<Vec<_>>()},
    })
}

/// Two nodes; a driver with 100Gi on node a, of which the largest volume is 40Gi, and 20Gi on node b.
fn world() -> World {
    let mut world = World::default();
    for (name, free, largest) in [("a", "100Gi", "40Gi"), ("b", "20Gi", "20Gi")] {
        let labels = json!({"host": name});
        let status = json!({"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}});
        world.put_node(&object(json!({"metadata": {"name": name, "labels": labels}, "status": status})));
        world.ledger.publish(&object::<k8s_openapi::api::storage::v1::CSIStorageCapacity>(json!({
            "metadata": {"namespace": "default", "name": name}, "storageClassName": "late",
            "nodeTopology": {"matchLabels": labels}, "capacity": free, "maximumVolumeSize": largest})));
        let drivers = json!([{"name": "driver", "nodeID": name, "allocatable": {"count": 2}}]);
        world.csi_nodes.insert(
            name.to_owned(),
            object(json!({"metadata": {"name": name}, "spec": {"drivers": drivers}})),
        );
    }
    for (name, mode) in [("late", "WaitForFirstConsumer"), ("now", "Immediate")] {
        let class = json!({"metadata": {"name": name}, "provisioner": "driver", "volumeBindingMode": mode});
        world.classes.insert(name.to_owned(), object(class));
    }
    let driver = json!({"metadata": {"name": "driver"}, "spec": {"storageCapacity": true}});
    world.drivers.insert("driver".to_owned(), object(driver));
    let foreign = json!({"metadata": {"name": "foreign"}, "provisioner": "driver", "volumeBindingMode": "WaitForFirstConsumer",
        "allowedTopologies": [{"matchLabelExpressions": [{"key": "zone", "values": ["x", "y"]}]}]});
    world.classes.insert("foreign".to_owned(), object(foreign));
    let useless = json!({"metadata": {"name": "useless"}, "provisioner": "driver", "volumeBindingMode": "WaitForFirstConsumer"});
    world.classes.insert("useless".to_owned(), object(useless));
    for node in ["a", "b"] {
        world.ledger.publish(&object::<k8s_openapi::api::storage::v1::CSIStorageCapacity>(json!({
            "metadata": {"namespace": "default", "name": format!("useless-{node}"),
                "annotations": {"orlop.dev/no-capacity": "parameter sice is unknown"}},
            "storageClassName": "useless", "nodeTopology": {"matchLabels": {"host": node}}, "capacity": "0"})));
    }
    for (name, host) in [("va", "a"), ("vb", "b")] {
        world.put_volume(&object(json!({
            "metadata": {"name": name},
            "spec": {"csi": {"driver": "driver", "volumeHandle": name}, "claimRef": {"namespace": "default", "name": name},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                    {"key": "host", "operator": "In", "values": [host]}]}]}}},
            "status": {"phase": "Bound"},
        })));
    }
    for claim in [
        claim("plain", "late", json!({})),
        claim("forty", "late", json!({"spec": {"resources": {"requests": {"storage": "40Gi"}}}})),
        claim("fifty", "late", json!({"spec": {"resources": {"requests": {"storage": "50Gi"}}}})),
        claim("boundless", "late", json!({"spec": {"resources": {"requests": {"storage": "1.5e400"}}}})),
        claim("thirty-1", "late", json!({"spec": {"resources": {"requests": {"storage": "30Gi"}}}})),
        claim("thirty-2", "late", json!({"spec": {"resources": {"requests": {"storage": "30Gi"}}}})),
        claim(
            "on-b",
            "late",
            json!({"metadata": {"annotations": {"volume.kubernetes.io/selected-node": "b"}}}),
        ),
        claim("immediate", "now", json!({})),
        claim("classless", "absent", json!({})),
        claim("named", "late", json!({"spec": {"volumeName": "va"}})),
        claim("abroad", "foreign", json!({})),
        claim("typo", "useless", json!({})),
        claim("lost", "late", json!({"spec": {"volumeName": "vx"}, "status": {"phase": "Lost"}})),
        claim("going", "late", json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})),
        claim("alone", "late", json!({"spec": {"accessModes": ["ReadWriteOncePod"]}})),
        bound("bound-a", "va"),
        bound("bound-b", "vb"),
        bound("bound-x", "vx"),
    ] {
        world.put_claim(&object(claim));
    }
    world
}

fn placed(world: &World, claims: &[&str]) -> Result<Placement, Refusal> {
    place(world, &object::<k8s_openapi::api::core::v1::Pod>(pod("new", claims, None)), &HashSet::new())
}

#[test]
fn claims_decide_over_nodes() {
    let world = world();
    let cases: &[(&[&str], Result<&str, &str>)] = &[
        (&["plain"], Ok("a")),
        (&["forty"], Ok("a")),
        (&["on-b"], Ok("b")),
        (&["bound-a"], Ok("a")),
        (&["bound-b"], Ok("b")),
        (&["bound-b", "plain"], Ok("b")),
        (&["thirty-1", "thirty-2"], Ok("a")),
        (&["nowhere"], Err("persistentvolumeclaim \"nowhere\" not found")),
        (&["immediate"], Err("pod has unbound immediate PersistentVolumeClaims")),
        (&["classless"], Err("pod has unbound immediate PersistentVolumeClaims")),
        (&["named"], Err("pod has unbound immediate PersistentVolumeClaims")),
        (&["lost"], Err("persistentvolumeclaim \"lost\" bound to non-existent persistentvolume \"vx\"")),
        (&["going"], Err("persistentvolumeclaim \"going\" is being deleted")),
        (&["bound-x"], Err("persistentvolume \"vx\" not found")),
        (&["bound-a", "bound-b"], Err("2 node(s) didn't match PersistentVolume's node affinity")),
        (
            &["fifty"],
            Err(
                "2 node(s) did not have enough free storage. Claim \"fifty\" asks for 50Gi; the largest free volume is \
                 40Gi, on a. Ask for less, delete volumes or add a drive.",
            ),
        ),
        (
            &["boundless"],
            Err("2 node(s) did not have enough free storage. Claim \"boundless\" asks for 1.5e400;"),
        ),
        (
            &["typo"],
            Err(
                "2 node(s) did not have enough free storage. For claim \"typo\" nothing can be made of the StorageClass \
                 \"useless\": parameter sice is unknown.",
            ),
        ),
        (
            &["abroad"],
            Err(
                "2 node(s) didn't find available persistent volumes to bind. For claim \"abroad\" the StorageClass \
                 \"foreign\" allows nodes where zone is x or y (allowedTopologies), and there is no such node.",
            ),
        ),
        (
            &["bound-b", "forty"],
            Err("1 node(s) did not have enough free storage, 1 node(s) didn't match PersistentVolume's \
                                     node affinity"),
        ),
        (&["plain", "bound-a", "forty"], Err("2 node(s) exceed max volume count")),
    ];
    for (claims, expected) in cases {
        match (placed(&world, claims), expected) {
            (Ok(placement), Ok(node)) => assert_eq!(placement.node, *node, "{claims:?}"),
            (Err(refusal), Err(message)) => {
                let got = refusal.message();
                assert!(
                    got.starts_with("0/2 nodes are available: ") && got.contains(message),
                    "{claims:?}: {got}"
                );
            }
            (got, _) => panic!("{claims:?}: expected {expected:?}, got {got:?}"),
        }
    }
}

#[test]
fn a_claim_for_one_pod_is_not_shared() {
    let mut world = world();
    assert!(placed(&world, &["alone"]).is_ok());
    let other = object(pod("other", &["alone"], Some("a")));
    world.put_pod(&other);
    let message = placed(&world, &["alone"]).unwrap_err().message();
    assert!(message.contains("ReadWriteOncePod access mode already in-use by another pod"), "{message}");
    world.remove_pod(&other);
    assert!(placed(&world, &["alone"]).is_ok());
}

#[test]
fn pods_on_a_node_count_against_its_volume_limit() {
    let mut world = world();
    world.put_pod(&object(pod("first", &["bound-a"], Some("a"))));
    assert_eq!(placed(&world, &["plain"]).unwrap().node, "a");
    world.put_pod(&object(pod("second", &["forty"], Some("a"))));
    assert_eq!(placed(&world, &["plain"]).unwrap().node, "b", "two volumes are on a");
    assert_eq!(placed(&world, &["bound-a"]).unwrap().node, "a", "this one is there already");
}
