//! Pods that can't have what they ask for: the reason is told in words, nothing is left, and no retry comes too soon.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use common::{World, driver::Driver, is_root};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams},
};
use serde_json::{Value, json};

async fn world(name: &str) -> (World, Driver) {
    let spec = json!({"attachRequired": false, "fsGroupPolicy": "File"});
    let (world, driver) = World::with_driver(name, Driver::default(), spec).await;
    world.bound_claim("data", "1Mi", json!({"accessModes": ["ReadWriteOnce"]})).await;
    (world, driver)
}

fn mounting(mounts: Value, volumes: Value) -> Value {
    json!({"restartPolicy": "Never", "containers": [{"volumeMounts": mounts}], "volumes": volumes})
}

fn claimed(mounts: Value) -> Value {
    mounting(mounts, json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]))
}

/// Waits until the pod's container says why it waits, with this reason.
async fn waiting(world: &World, name: &str, reason: &str) -> String {
    world
        .until(&format!("pod {name} waits: {reason}"), async || {
            let status = world.pods().get(name).await.unwrap().status?;
            let waiting = status.container_statuses?.first()?.state.clone()?.waiting?;
            waiting.message.filter(|_| waiting.reason.as_deref() == Some(reason))
        })
        .await
}

/// The control groups of the node's pods.
fn groups(world: &World) -> Vec<PathBuf> {
    let mount = Path::new("/sys/fs/cgroup");
    let hierarchies =
        fs::read_dir(mount).unwrap().flatten().map(|entry| entry.path()).chain([mount.to_path_buf()]);
    let nodes = hierarchies.map(|hierarchy| hierarchy.join("orlop").join(&world.node));
    nodes
        .flat_map(|node| fs::read_dir(node).into_iter().flatten().flatten())
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect()
}

async fn ends_without_a_trace(world: &World, name: &str) {
    world.pods().delete(name, &DeleteParams::default()).await.unwrap();
    world.gone(name).await;
    // One that had ended is gone from the API before it is gone from the node.
    let empty = |directory: &str| fs::read_dir(world.root.join(directory)).unwrap().count() == 0;
    let left = async || {
        (groups(world).is_empty() && ["pods", "logs", "runtime"].iter().all(|of| empty(of))).then_some(())
    };
    world.until(&format!("nothing is left of {name}"), left).await;
}

/// Each message is another one, so each failure writes the status: that must not be news to who wrote it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_in_ever_new_words_is_not_retried_before_its_time() {
    if !is_root() {
        return;
    }
    let (world, driver) = world("words").await;
    driver.refuses.store(true, Ordering::SeqCst);
    let mut changes = world.pods().watch(&WatchParams::default(), "0").await.unwrap().boxed();
    let begun = Instant::now();
    world.pod("pod", "true", claimed(json!([{"name": "data", "mountPath": "/data"}]))).await;
    let tries = || driver.calls.lock().iter().filter(|call| call.starts_with("publish")).count();
    world.until("five tries", async || (tries() >= 5).then_some(())).await;
    // 50, 100, 200 and 400 ms lie between them.
    assert!(begun.elapsed() >= Duration::from_millis(750), "{:?} for {} tries", begun.elapsed(), tries());
    let last = driver.calls.lock().len() - 1;
    let mut writes = 0;
    while let Some(change) = changes.next().await {
        writes += 1;
        let (WatchEvent::Added(pod) | WatchEvent::Modified(pod)) = change.unwrap() else { continue };
        let size = serde_json::to_vec(&pod.status).unwrap().len();
        assert!(size < 8 << 10, "the status has {size} bytes");
        if serde_json::to_string(&pod.status).unwrap().contains(&format!("refusal {last}")) {
            break;
        }
    }
    assert!(writes <= 2 * tries() + 2, "{writes} changes of the pod for {} tries", tries());
    driver.refuses.store(false, Ordering::SeqCst);
    world.phase("pod", "Succeeded").await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_missing_leaves_nothing_behind() {
    if !is_root() {
        return;
    }
    let (world, _) = world("traces").await;
    let secret = json!({"spec": {"csi": {"nodeStageSecretRef": {"namespace": "default", "name": "nope"}}}});
    let volumes = Api::<PersistentVolume>::all(world.client.clone());
    let mut volume = volumes.get("pv-data").await.unwrap();
    volumes
        .patch("pv-data", &PatchParams::default(), &Patch::Merge(json!({"metadata": {"finalizers": null}})))
        .await
        .unwrap();
    volumes.delete("pv-data", &DeleteParams::default()).await.unwrap();
    volume.metadata.resource_version = None;
    let mut volume = serde_json::to_value(volume).unwrap();
    common::lay_over(&mut volume, &secret);
    volumes.create(&PostParams::default(), &serde_json::from_value(volume).unwrap()).await.unwrap();
    world.pod("secret", "true", claimed(json!([{"name": "data", "mountPath": "/data"}]))).await;
    world
        .until("it says what is missing", async || {
            let events = world.events().await;
            events.iter().any(|(_, message)| message.contains("\"nope\" not found")).then_some(())
        })
        .await;
    ends_without_a_trace(&world, "secret").await;

    let mounts = json!([{"name": "scratch", "mountPath": "/scratch"}]);
    world
        .pod(
            "object",
            "true",
            mounting(mounts.clone(), json!([{"name": "scratch", "configMap": {"name": "nope"}}])),
        )
        .await;
    waiting(&world, "object", "ContainerCreating").await;
    ends_without_a_trace(&world, "object").await;

    let mut spec = mounting(mounts, json!([{"name": "scratch", "emptyDir": {}}]));
    spec["containers"][0]["env"] =
        json!([{"name": "A", "valueFrom": {"secretKeyRef": {"name": "nope", "key": "k"}}}]);
    world.pod("variable", "true", spec).await;
    waiting(&world, "variable", "CreateContainerConfigError").await;
    ends_without_a_trace(&world, "variable").await;

    // One that an agent before this one left.
    let mut world = world;
    world.crash().await;
    let unified = Path::new("/sys/fs/cgroup");
    let hierarchy = [unified.join("unified"), unified.to_path_buf()];
    let hierarchy = hierarchy.iter().find(|path| path.join("cgroup.procs").exists());
    let stray = hierarchy.map(|hierarchy| hierarchy.join("orlop").join(&world.node).join("gone/app-0"));
    stray.iter().for_each(|stray| fs::create_dir_all(stray).unwrap());
    let logs = world.root.join("logs/default_gone_gone/app");
    fs::create_dir_all(&logs).unwrap();
    world.start();
    world
        .until("strays are gone", async || (groups(&world).is_empty() && !logs.exists()).then_some(()))
        .await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sub_paths_that_can_not_be_are_refused_by_name() {
    if !is_root() {
        return;
    }
    let (world, _) = world("paths").await;
    let data = json!({"name": "data", "mountPath": "/all"});
    for (name, mounts, message) in [
        (
            "undefined",
            json!([{"name": "data", "mountPath": "/a", "subPathExpr": "$(NOPE)/a"}, data]),
            "missing value for NOPE",
        ),
        (
            "empty",
            json!([{"name": "data", "mountPath": "/a", "subPath": "made"}, {"name": "data", "mountPath": "/b", "subPathExpr": "t/$(EMPTY)"}, data]),
            "missing value for EMPTY",
        ),
        (
            "absolute",
            json!([{"name": "data", "mountPath": "/a", "subPathExpr": "$(ABS)"}, data]),
            "must be a path below the volume",
        ),
    ] {
        let mut spec = claimed(mounts);
        spec["containers"][0]["env"] =
            json!([{"name": "EMPTY", "value": ""}, {"name": "ABS", "value": "/etc"}]);
        let pod = world.pod(name, "true", spec).await;
        let said = waiting(&world, name, "CreateContainerConfigError").await;
        assert!(said.contains(message), "{name}: {said}");
        let uid = pod.metadata.uid.unwrap();
        let volume = world.root.join(format!("pods/{uid}/volumes/kubernetes.io~csi/pv-data/mount"));
        assert_eq!(fs::read_dir(volume).unwrap().count(), 0, "{name}: nothing is made");
        ends_without_a_trace(&world, name).await;
    }

    let _: ConfigMap = world.create(json!({"metadata": {"name": "settings"}, "data": {"a": "1"}})).await;
    let mounts = json!([{"name": "settings", "mountPath": "/a", "subPath": "a"}, {"name": "settings", "mountPath": "/b", "subPath": "nope"}]);
    let spec = mounting(mounts, json!([{"name": "settings", "configMap": {"name": "settings"}}]));
    let pod = world.pod("key", "cat /a; ls -d /b; ls /b | wc -l", spec).await;
    world.phase("key", "Succeeded").await;
    assert_eq!(world.log(&pod, Default::default()).await, "1/b\n0\n");
    ends_without_a_trace(&world, "key").await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_longest_names_run_and_are_logged() {
    if !is_root() {
        return;
    }
    let (world, _) = world("long").await;
    let name = "p".repeat(253);
    let pod = world.pod(&name, "hostname | tr -d '\n' | wc -c", json!({"restartPolicy": "Never"})).await;
    world.phase(&name, "Succeeded").await;
    assert_eq!(world.log(&pod, Default::default()).await, "63\n");
    ends_without_a_trace(&world, &name).await;
    world.end().await;
}

/// The static volumes that every introduction shows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn directories_of_the_node_are_volumes() {
    if !is_root() {
        return;
    }
    let (world, _) = world("static").await;
    let page = world.directory.path().join("page");
    fs::create_dir(&page).unwrap();
    fs::write(page.join("index.html"), "page").unwrap();
    let here = json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [
        {"key": "kubernetes.io/hostname", "operator": "In", "values": [world.node]}]}]}});
    for (name, source) in [
        ("local", json!({"local": {"path": page}, "nodeAffinity": here})),
        ("host", json!({"hostPath": {"path": page}})),
        (
            "new",
            json!({"hostPath": {"path": world.directory.path().join("new"), "type": "DirectoryOrCreate"}}),
        ),
        ("none", json!({"local": {"path": page.join("none")}, "nodeAffinity": here})),
    ] {
        bound(&world, name, source).await;
        let spec = mounting(
            json!([{"name": "data", "mountPath": "/d"}]),
            json!([{"name": "data", "persistentVolumeClaim": {"claimName": name}}]),
        );
        let pod = world.pod(name, "cat /d/index.html || echo none; echo x > /d/written", spec).await;
        if name == "none" {
            let said = waiting(&world, name, "ContainerCreating").await;
            assert!(said.contains("is not a directory"), "{said}");
        } else {
            world.phase(name, "Succeeded").await;
            let (log, expected) =
                (world.log(&pod, Default::default()).await, if name == "new" { "none" } else { "page" });
            assert!(log.contains(expected), "{log}");
        }
        ends_without_a_trace(&world, name).await;
    }
    assert!(page.join("written").exists() && world.directory.path().join("new/written").exists());
    assert_eq!(world.mounts(), Vec::<PathBuf>::new());
    world.end().await;
}

async fn bound(world: &World, name: &str, source: Value) {
    let both = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": ""});
    let mut spec = json!({"resources": {"requests": {"storage": "1Mi"}}, "volumeName": format!("pv-{name}")});
    common::lay_over(&mut spec, &both);
    let claim: PersistentVolumeClaim = world.create(json!({"metadata": {"name": name}, "spec": spec})).await;
    let mut spec = json!({"capacity": {"storage": "1Mi"}, "claimRef": {"kind": "PersistentVolumeClaim",
        "namespace": "default", "name": name, "uid": claim.metadata.uid}});
    common::lay_over(&mut spec, &both);
    common::lay_over(&mut spec, &source);
    let volume = json!({"metadata": {"name": format!("pv-{name}")}, "spec": spec});
    let volumes = Api::<PersistentVolume>::all(world.client.clone());
    volumes.create(&PostParams::default(), &serde_json::from_value(volume).unwrap()).await.unwrap();
    let claims = Api::<PersistentVolumeClaim>::namespaced(world.client.clone(), "default");
    let status = json!({"status": {"phase": "Bound", "capacity": {"storage": "1Mi"}}});
    claims.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
}

/// Fields that confine a pod or end it, each seen from inside.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_pod_asks_for_holds() {
    if !is_root() {
        return;
    }
    let (world, _) = world("holds").await;
    let never = json!({"restartPolicy": "Never"});
    let asked = |spec: Value| {
        let mut all = never.clone();
        common::lay_over(&mut all, &spec);
        all
    };
    for (name, script, spec, expected) in [
        (
            "seccomp",
            "grep Seccomp: /proc/self/status; unshare -U true 2>/dev/null || echo refused",
            json!({"securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}}),
            "Seccomp:\t2\nrefused\n",
        ),
        (
            "hosts",
            "grep -w far.example /etc/hosts",
            json!({"hostAliases": [{"ip": "192.0.2.7", "hostnames": ["far.example", "far"]}]}),
            "192.0.2.7\tfar.example\tfar\n",
        ),
        (
            "sysctl",
            "cat /proc/sys/kernel/shm_rmid_forced",
            json!({"securityContext": {"sysctls": [{"name": "kernel.shm_rmid_forced", "value": "1"}]}}),
            "1\n",
        ),
        (
            "resource",
            "echo $MEM",
            json!({"containers": [{"resources": {"limits": {"memory": "192Mi"}}, "env": [{"name": "MEM", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}}]}]}),
            "192\n",
        ),
    ] {
        let pod = world.pod(name, script, asked(spec)).await;
        world.phase(name, "Succeeded").await;
        assert_eq!(world.log(&pod, Default::default()).await, expected, "{name}");
    }

    let profile = json!({"securityContext": {"seccompProfile": {"type": "Localhost", "localhostProfile": "nope.json"}}});
    world.pod("profile", "true", asked(profile)).await;
    let said = waiting(&world, "profile", "CreateContainerConfigError").await;
    assert!(said.contains("nope.json") && said.contains("node/seccomp"), "{said}");

    let policy = json!({"containers": [{"terminationMessagePolicy": "FallbackToLogsOnError"}]});
    world.pod("burns", "echo it burns; exit 3", asked(policy)).await;
    let pod = world.phase("burns", "Failed").await;
    let state = pod.status.unwrap().container_statuses.unwrap().remove(0).state.unwrap();
    assert_eq!(state.terminated.unwrap().message.as_deref(), Some("it burns"));

    world.pod("deadline", "exec sleep 1000", asked(json!({"activeDeadlineSeconds": 1}))).await;
    let pod = world.phase("deadline", "Failed").await;
    assert_eq!(pod.status.unwrap().reason.as_deref(), Some("DeadlineExceeded"));

    let over = json!({"containers": [{"volumeMounts": [{"name": "d", "mountPath": "/d"}]}],
        "volumes": [{"name": "d", "emptyDir": {"sizeLimit": "2Mi"}}]});
    world.pod("over", "head -c 6M /dev/zero > /d/f; exec sleep 1000", asked(over)).await;
    let pod = world.phase("over", "Failed").await;
    assert_eq!(pod.status.unwrap().reason.as_deref(), Some("Evicted"));
    world.until("their containers have ended", async || world.processes().is_empty().then_some(())).await;

    world.pod("shares", "true", asked(json!({"shareProcessNamespace": true}))).await;
    world
        .until("what is not served is told", async || {
            let events = world.events().await;
            events
                .iter()
                .any(|(reason, said)| reason == "NotServed" && said.contains("shareProcess"))
                .then_some(())
        })
        .await;
    world.end().await;
}

/// What a pod was is known again after everything was taken down.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_are_counted_on_after_everything_was_taken_down() {
    if !is_root() {
        return;
    }
    let (mut world, _) = world("again").await;
    let pod = world.pod("pod", "echo here; exec sleep 1000", json!({})).await;
    let restarts = async |count: i32| {
        let status = world.pods().get("pod").await.unwrap().status?;
        let container = status.container_statuses?.remove(0);
        (container.restart_count == count && container.state?.running.is_some()).then_some(())
    };
    world.until("it runs", async || restarts(0).await).await;
    let now = || node_agent::logs::Query::default();
    world.until("it has spoken", async || (world.log(&pod, now()).await == "here\n").then_some(())).await;
    world.crash().await;
    node_agent::teardown(&world.node, &world.root, world.drivers.clone()).await.unwrap();
    assert_eq!((world.mounts(), world.processes()), (vec![], vec![]));
    world.start();
    let restarts = async |count: i32| {
        let status = world.pods().get("pod").await.unwrap().status?;
        let container = status.container_statuses?.remove(0);
        (container.restart_count == count && container.state?.running.is_some()).then_some(())
    };
    world.until("it runs again", async || restarts(1).await).await;
    let previous = node_agent::logs::Query { previous: true, ..Default::default() };
    assert_eq!(world.log(&pod, previous).await, "here\n");

    // Another image is another container.
    let image = json!({"spec": {"containers": [{"name": "app", "image": "host:latest"}]}});
    world.pods().patch("pod", &PatchParams::default(), &Patch::Strategic(image)).await.unwrap();
    world.until("it runs with its new image", async || restarts(2).await).await;
    world.pods().delete("pod", &DeleteParams::default()).await.unwrap();
    world.gone("pod").await;
    world.end().await;
}
