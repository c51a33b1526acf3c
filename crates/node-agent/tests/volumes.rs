//! Volumes of pods with real mounts: a CSI driver that fails at every call in turn, and what local volumes do.

#![allow(clippy::unwrap_used)]

mod common;

use std::{path::PathBuf, time::Duration};

use common::{
    World,
    driver::{Driver, Fault, NAME},
    is_root,
};
use k8s_openapi::api::{
    core::v1::{ConfigMap, Node, Pod},
    storage::v1::{CSIDriver, VolumeAttachment},
};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use resources::attachment;
use serde_json::{Value, json};

async fn csi_world(name: &str) -> (World, Driver) {
    let spec = json!({"attachRequired": false, "podInfoOnMount": true, "fsGroupPolicy": "File"});
    World::with_driver(name, Driver::default(), spec).await
}

async fn claim(world: &World, name: &str, mode: &str) {
    world.bound_claim(name, "1Mi", json!({"accessModes": [mode]})).await;
}

/// A pod that mounts a claim; without a container that this node can run, so that only volumes matter.
async fn user(world: &World, name: &str, claim: &str) -> Pod {
    world.pod(name, "", with_claim(claim, "nginx")).await
}

fn with_claim(claim: &str, image: &str) -> Value {
    json!({"containers": [{"image": image, "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
           "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]})
}

fn target(world: &World, pod: &Pod, claim: &str) -> PathBuf {
    let uid = pod.metadata.uid.as_ref().unwrap();
    world.root.join(format!("pods/{uid}/volumes/kubernetes.io~csi/pv-{claim}/mount"))
}

async fn published(world: &World, pod: &Pod, claim: &str) {
    let target = target(world, pod, claim);
    let record = target.with_file_name("vol_data.json");
    world
        .until("the volume is published", async || {
            let ready = std::fs::read_to_string(&record).is_ok_and(|text| text.contains(r#""ready":true"#));
            (ready && world.mounts().contains(&target)).then_some(())
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_driver_call_may_fail_or_be_the_last() {
    if !is_root() {
        return;
    }
    let (mut world, driver) = csi_world("faults").await;
    claim(&world, "data", "ReadWriteOnce").await;
    let faults = [Fault::LostBefore, Fault::LostAfter, Fault::Refused, Fault::CrashBefore, Fault::CrashAfter];
    for fault in faults {
        for at in 0..4 {
            driver.calls.lock().clear();
            *driver.fault.lock() = Some((at, fault));
            let pod = user(&world, "user", "data").await;
            let crashes = matches!(fault, Fault::CrashBefore | Fault::CrashAfter);
            let crash = async |world: &mut World| {
                tokio::time::timeout(common::PATIENCE, driver.crash.notified()).await.unwrap();
                world.crash().await;
                world.start();
            };
            if crashes && at < 2 {
                crash(&mut world).await;
            }
            published(&world, &pod, "data").await;
            world.pods().delete("user", &DeleteParams::default()).await.unwrap();
            if crashes && at >= 2 {
                crash(&mut world).await;
            }
            world.gone("user").await;
            let calls = driver.calls.lock().clone();
            assert_eq!(world.mounts(), Vec::<PathBuf>::new(), "{fault:?} at {at}: {calls:?}");
            let left: Vec<_> = std::fs::read_dir(world.root.join("pods")).unwrap().collect();
            assert!(left.is_empty(), "{fault:?} at {at}");
            let stages = world.root.join("plugins/kubernetes.io/csi").join(NAME);
            assert_eq!(std::fs::read_dir(stages).unwrap().count(), 0, "{fault:?} at {at}: {calls:?}");
        }
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_is_staged_once_for_all_pods_of_the_node() {
    if !is_root() {
        return;
    }
    let (mut world, driver) = csi_world("shared").await;
    claim(&world, "data", "ReadWriteOnce").await;
    claim(&world, "alone", "ReadWriteOncePod").await;
    let first = user(&world, "first", "data").await;
    published(&world, &first, "data").await;
    // The agent may come and go in between.
    world.crash().await;
    world.start();
    let mut spec = with_claim("data", "host");
    spec["volumes"][0]["persistentVolumeClaim"]["readOnly"] = json!(true);
    let second = world.pod("second", "echo x > /data/f || echo refused; exec sleep 1000", spec).await;
    world.phase("second", "Running").await;
    world
        .until("writing was refused", async || {
            world.log(&second, Default::default()).await.contains("refused").then_some(())
        })
        .await;
    world.pods().delete("first", &DeleteParams::default()).await.unwrap();
    world.gone("first").await;
    let count = |what: &str| driver.calls.lock().iter().filter(|call| call.starts_with(what)).count();
    assert_eq!((count("unpublish"), count("unstage")), (1, 0));
    let publish = driver.calls.lock().iter().rfind(|call| call.starts_with("publish")).cloned().unwrap();
    assert!(publish.contains("ro=true") && publish.contains("colour"), "{publish}");
    assert!(publish.contains("csi.storage.k8s.io/pod.name"), "{publish}");
    world.pods().delete("second", &DeleteParams::default()).await.unwrap();
    world.gone("second").await;
    assert_eq!((count("unpublish"), count("unstage")), (2, 1));

    let one = user(&world, "one", "alone").await;
    published(&world, &one, "alone").await;
    user(&world, "two", "alone").await;
    event(&world, "FailedMount", "already in use by another pod").await;
    world.pods().delete("one", &DeleteParams::default()).await.unwrap();
    let two = world.pods().get("two").await.unwrap();
    published(&world, &two, "alone").await;
    world.pods().delete("two", &DeleteParams::default()).await.unwrap();
    world.gone("two").await;
    world.end().await;
}

/// Names that the Node's status lists under a field.
async fn on_node(world: &World, field: &str) -> Vec<String> {
    let node = Api::<Node>::all(world.client.clone()).get(&world.node).await.unwrap();
    let status = serde_json::to_value(node.status.unwrap()).unwrap();
    let all = status[field].as_array().cloned().unwrap_or_default().into_iter();
    all.map(|one| one["name"].as_str().or(one.as_str()).unwrap().to_owned()).collect()
}

async fn in_use(world: &World, volumes: &[&str]) {
    let names: Vec<_> = volumes.iter().map(|volume| attachment::status_name(NAME, volume)).collect();
    world
        .until(&format!("{names:?} are in use"), async || {
            (on_node(world, "volumesInUse").await == names).then_some(())
        })
        .await;
}

async fn waits_for(world: &World, pod: &str, what: &str) {
    world
        .until(&format!("the pod waits for {what}"), async || {
            let status = serde_json::to_string(&world.pods().get(pod).await.unwrap().status).unwrap();
            status.contains(what).then_some(())
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_that_needs_attaching_is_reported_awaited_and_given_back() {
    if !is_root() {
        return;
    }
    let (mut world, driver) = csi_world("attach").await;
    let drivers = Api::<CSIDriver>::all(world.client.clone());
    drivers.delete(NAME, &DeleteParams::default()).await.unwrap();
    claim(&world, "data", "ReadWriteOnce").await;
    let pod = user(&world, "user", "data").await;
    waits_for(&world, "user", "waiting for the attach-detach controller to create the VolumeAttachment")
        .await;
    in_use(&world, &["data"]).await;

    let attachments = Api::<VolumeAttachment>::all(world.client.clone());
    let name = attachment::name("data", NAME, &world.node);
    let wanted = json!({"metadata": {"name": name}, "spec": {"attacher": NAME, "nodeName": world.node,
        "source": {"persistentVolumeName": "pv-data"}}});
    attachments.create(&PostParams::default(), &serde_json::from_value(wanted).unwrap()).await.unwrap();
    waits_for(&world, "user", "waiting for the attacher of driver").await;
    let say = async |status: Value| {
        let patch = Patch::Merge(json!({"status": status}));
        attachments.patch_status(&name, &PatchParams::default(), &patch).await.unwrap();
    };
    say(json!({"attachError": {"message": "no slot left"}})).await;
    waits_for(&world, "user", "no slot left").await;
    say(json!({"attached": true, "attachError": null, "attachmentMetadata": {"device": "sdx"}})).await;
    waits_for(&world, "user", "does not list it on the Node").await;
    assert!(driver.calls.lock().is_empty(), "nothing is mounted before the node may rely on it");
    let list = async |names: &[&str]| {
        let list: Vec<_> = names
            .iter()
            .map(|name| json!({"name": attachment::status_name(NAME, name), "devicePath": ""}))
            .collect();
        let patch = Patch::Merge(json!({"status": {"volumesAttached": list}}));
        let nodes = Api::<Node>::all(world.client.clone());
        nodes.patch_status(&world.node, &PatchParams::default(), &patch).await.unwrap();
    };
    list(&["data"]).await;
    published(&world, &pod, "data").await;
    let contexts = driver.contexts.lock().clone();
    assert!(contexts.len() == 2 && contexts.iter().all(|context| context["device"] == "sdx"), "{contexts:?}");
    assert!(!world.events().await.iter().any(|(reason, _)| reason == "FailedMount"), "waiting is no failure");

    // A restart knows what is mounted, even if the Node was made anew.
    world.crash().await;
    let patch = Patch::Merge(json!({"status": {"volumesInUse": null}}));
    let nodes = Api::<Node>::all(world.client.clone());
    nodes.patch_status(&world.node, &PatchParams::default(), &patch).await.unwrap();
    world.start();
    in_use(&world, &["data"]).await;
    world.pods().delete("user", &DeleteParams::default()).await.unwrap();
    world.gone("user").await;
    in_use(&world, &[]).await;

    // One that was never attached is not in use any more when its pod is gone.
    claim(&world, "late", "ReadWriteOnce").await;
    user(&world, "late", "late").await;
    in_use(&world, &["late"]).await;
    world.pods().delete("late", &DeleteParams::default()).await.unwrap();
    world.gone("late").await;
    in_use(&world, &[]).await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_is_told_that_it_waits_for_long_and_rejected_where_there_is_no_room() {
    if !is_root() {
        return;
    }
    let (mut world, driver) = csi_world("room").await;
    world.crash().await;
    world.attach_patience = Some(Duration::from_millis(100));
    world.start();
    let drivers = Api::<CSIDriver>::all(world.client.clone());
    drivers.delete(NAME, &DeleteParams::default()).await.unwrap();
    let attached = json!({"metadata": {"name": NAME}, "spec": {"attachRequired": true}});
    drivers.create(&PostParams::default(), &serde_json::from_value(attached).unwrap()).await.unwrap();
    claim(&world, "data", "ReadWriteOnce").await;
    user(&world, "user", "data").await;
    event(&world, "FailedMount", "Unable to attach or mount volumes: unmounted volumes=[data]").await;

    let attachments = Api::<VolumeAttachment>::all(world.client.clone());
    let name = attachment::name("data", NAME, &world.node);
    let wanted = json!({"metadata": {"name": name}, "spec": {"attacher": NAME, "nodeName": world.node,
        "source": {"persistentVolumeName": "pv-data"}}});
    attachments.create(&PostParams::default(), &serde_json::from_value(wanted).unwrap()).await.unwrap();
    let full = json!({"status": {"attachError": {"message": "no slot left", "errorCode": 8}}});
    attachments.patch_status(&name, &PatchParams::default(), &Patch::Merge(full)).await.unwrap();
    // A driver that does not change its limits may have room soon.
    event(&world, "FailedMount", "no slot left").await;
    assert_eq!(world.phase("user", "Pending").await.metadata.name.as_deref(), Some("user"));
    let changes = Patch::Merge(json!({"spec": {"nodeAllocatableUpdatePeriodSeconds": 60}}));
    drivers.patch(NAME, &PatchParams::default(), &changes).await.unwrap();
    let status = world.phase("user", "Failed").await.status.unwrap();
    assert_eq!(status.reason.as_deref(), Some("VolumeAttachmentLimitExceeded"));
    assert!(status.message.is_some_and(|message| message.contains("no slot left")));
    event(&world, "VolumeAttachmentLimitExceeded", "Node has reached its volume attachment limit").await;
    in_use(&world, &[]).await;
    assert_eq!(world.phase("user", "Failed").await.status.unwrap().reason, status.reason);
    assert!(driver.calls.lock().is_empty());
    world.end().await;
}

async fn event(world: &World, reason: &str, message: &str) {
    world
        .until(&format!("an event {reason}: {message}"), async || {
            let events = world.events().await;
            events.iter().any(|(r, m)| r == reason && m.contains(message)).then_some(())
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_missing_is_told_and_waited_for() {
    if !is_root() {
        return;
    }
    let (world, _driver) = csi_world("missing").await;
    let volume = |name: &str, source: Value| {
        let mut volume = source;
        volume["name"] = json!("v");
        (
            name.to_owned(),
            json!({"containers": [{"image": "nginx", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
               "volumes": [volume]}),
        )
    };
    for (name, spec) in [
        volume("config", json!({"configMap": {"name": "late"}})),
        volume("claim", json!({"persistentVolumeClaim": {"claimName": "late"}})),
        volume("path", json!({"hostPath": {"path": "/no/such/directory", "type": "Directory"}})),
        volume("nfs", json!({"nfs": {"server": "s", "path": "/"}})),
    ] {
        let mut spec = spec;
        if name == "path" {
            spec["containers"][0]["image"] = json!("host");
        }
        world.pod(&name, "", spec).await;
    }
    for (reason, message) in [
        ("FailedMount", "configmap \"late\" not found"),
        ("FailedMount", "PVC late: not found"),
        ("FailedMount", "hostPath type check failed: /no/such/directory is not a directory"),
        ("FailedMount", "volumes of kind nfs are not served"),
    ] {
        event(&world, reason, message).await;
    }
    let waiting = |pod: Pod| pod.status?.container_statuses?.remove(0).state?.waiting?.message;
    world
        .until("the status names the cause", async || {
            let message = waiting(world.pods().get("path").await.unwrap());
            message.is_some_and(|message| message.contains("hostPath type check failed")).then_some(())
        })
        .await;
    world.create::<ConfigMap>(json!({"metadata": {"name": "late"}, "data": {"a": "1"}})).await;
    claim(&world, "late", "ReadWriteOnce").await;
    let pod = world.pods().get("claim").await.unwrap();
    published(&world, &pod, "late").await;
    let pod = world.pods().get("config").await.unwrap();
    let file =
        world.root.join(format!("pods/{}/volumes/kubernetes.io~configmap/v/a", pod.metadata.uid.unwrap()));
    let shows = async |wanted: &str| {
        world
            .until("the file's content", async || {
                std::fs::read_to_string(&file).is_ok_and(|text| text == wanted).then_some(())
            })
            .await;
    };
    shows("1").await;
    let api = Api::<ConfigMap>::namespaced(world.client.clone(), "default");
    let change = json!({"data": {"a": "2"}});
    api.patch("late", &PatchParams::default(), &Patch::Merge(change)).await.unwrap();
    shows("2").await;
    for name in ["config", "claim", "path", "nfs"] {
        world.pods().delete(name, &DeleteParams::default()).await.unwrap();
        world.gone(name).await;
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sub_paths_stay_inside_and_groups_own() {
    if !is_root() {
        return;
    }
    let (world, _driver) = csi_world("inside").await;
    claim(&world, "data", "ReadWriteOnce").await;
    let mut spec = with_claim("data", "host");
    spec["securityContext"] = json!({"fsGroup": 4242, "runAsUser": 1000, "runAsGroup": 1000});
    spec["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}, {"name": "data", "mountPath": "/part", "subPath": "a/b"}]);
    let pod = world
        .pod("good", "echo x > /part/f; id -G; stat -c %g /data /data/a/b/f; exec sleep 1000", spec.clone())
        .await;
    world.phase("good", "Running").await;
    let log = world
        .until("the script has run", async || {
            let log = world.log(&pod, Default::default()).await;
            (log.lines().count() >= 3).then_some(log)
        })
        .await;
    assert!(log.contains("4242\n4242\n"), "{log}");
    let data = target(&world, &pod, "data");
    std::os::unix::fs::symlink("/etc", data.join("link")).unwrap();
    spec["containers"][0]["volumeMounts"] =
        json!([{"name": "data", "mountPath": "/etc-of-host", "subPath": "link"}]);
    world.pod("evil", "true", spec).await;
    event(&world, "Failed", "link").await;
    let evil = world.pods().get("evil").await.unwrap();
    let waiting = evil.status.unwrap().container_statuses.unwrap().remove(0).state.unwrap().waiting.unwrap();
    assert!(waiting.reason.as_deref() == Some("ContainerCreating") || waiting.message.is_some());
    for name in ["good", "evil"] {
        world.pods().delete(name, &DeleteParams::default()).await.unwrap();
        world.gone(name).await;
    }
    tokio::time::timeout(Duration::from_secs(10), world.end()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_described_in_the_pod_comes_and_goes_with_it() {
    if !is_root() {
        return;
    }
    let (mut world, driver) = csi_world("inline").await;
    let spec = json!({"securityContext": {"fsGroup": 4242},
        "containers": [{"image": "nginx", "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}]}],
        "volumes": [{"name": "scratch", "csi": {"driver": NAME, "volumeAttributes": {"orlop.dev/size": "1Mi"}}}]});
    let pod = world.pod("user", "", spec).await;
    event(&world, "FailedMount", "volume mode \"Ephemeral\" not supported by driver").await;
    assert!(driver.calls.lock().is_empty());
    let drivers = Api::<CSIDriver>::all(world.client.clone());
    drivers.delete(NAME, &DeleteParams::default()).await.unwrap();
    let both = json!({"metadata": {"name": NAME}, "spec": {"attachRequired": false, "podInfoOnMount": true,
                      "fsGroupPolicy": "File", "volumeLifecycleModes": ["Persistent", "Ephemeral"]}});
    drivers.create(&PostParams::default(), &serde_json::from_value(both).unwrap()).await.unwrap();
    let target = world
        .root
        .join(format!("pods/{}/volumes/kubernetes.io~csi/scratch/mount", pod.metadata.uid.clone().unwrap()));
    let record = target.with_file_name("vol_data.json");
    world
        .until("it is published", async || {
            std::fs::read_to_string(&record).is_ok_and(|text| text.contains(r#""ready":true"#)).then_some(())
        })
        .await;
    let text = std::fs::read_to_string(&record).unwrap();
    assert!(text.contains(r#""volumeLifecycleMode":"Ephemeral""#), "{text}");
    assert_eq!(std::os::unix::fs::MetadataExt::gid(&std::fs::metadata(&target).unwrap()), 4242);
    // The agent may come and go in between.
    world.crash().await;
    world.start();
    world.pods().delete("user", &DeleteParams::default()).await.unwrap();
    world.gone("user").await;
    let calls = driver.calls.lock().clone();
    let names: Vec<&str> = calls.iter().filter_map(|call| call.split(' ').next()).collect();
    assert_eq!(names, ["publish", "unpublish"], "{calls:?}");
    assert!(calls[0].starts_with("publish csi-") && calls[0].contains("orlop.dev/size"), "{calls:?}");
    assert!(calls[1].starts_with("unpublish csi-") && world.mounts().is_empty(), "{calls:?}");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_takes_the_node_that_one_killed_before_it_had_asked_for() {
    if !is_root() {
        return;
    }
    let mut world = World::new("registers").await;
    world.crash().await;
    let (nodes, name) = (Api::<Node>::all(world.client.clone()), world.node.clone());
    nodes.delete(&name, &DeleteParams::default()).await.ok();
    let (api, before) = (world.api.in_process("system:orlop"), nodes.clone());
    // What was asked for arrives right after the next agent has looked.
    let late = tower::service_fn(move |request: http::Request<kube::client::Body>| {
        let (mut api, before, name) = (api.clone(), before.clone(), name.clone());
        let is_look = request.method() == http::Method::GET && request.uri().path().contains("/nodes/");
        async move {
            let answer = tower::Service::call(&mut api, request).await;
            if is_look && matches!(&answer, Ok(answer) if answer.status() == 404) {
                let node = json!({"metadata": {"name": name}});
                let node = serde_json::from_value(node).unwrap();
                before.create(&PostParams::default(), &node).await.unwrap();
            }
            answer
        }
    });
    world.client = kube::Client::new(late, "default");
    world.start();
    world
        .until("the node is ready", async || {
            let conditions = nodes.get_opt(&world.node).await.unwrap()?.status?.conditions?;
            conditions.iter().any(|one| one.type_ == "Ready" && one.status == "True").then_some(())
        })
        .await;
    world.end().await;
}
