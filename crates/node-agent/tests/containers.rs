//! Real containers on this machine, through a real OCI runtime.

#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::{World, is_root};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::DeleteParams;
use node_agent::logs::Query;
use serde_json::json;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_with_local_volumes_lives_and_dies() {
    if !is_root() {
        return;
    }
    let world = World::new("local").await;
    let host_directory = world.directory.path().join("host");
    std::fs::create_dir(&host_directory).unwrap();
    world.create::<ConfigMap>(json!({"metadata": {"name": "settings"}, "data": {"colour": "blue"}})).await;
    world
        .create::<Secret>(
            json!({"metadata": {"name": "door"}, "stringData": {}, "data": {"key": "aHVudGVyMg=="}}),
        )
        .await;
    let before = Instant::now();
    let script = "echo hello; cat /settings/colour /door/key; echo; echo $COLOUR $POD; \
        echo disk > /scratch/f; echo shm > /memory/f; echo out > /host/f; cat /part; echo; \
        echo x > /settings/new || echo refused; echo y > /read-only/f || echo refused; echo z > /orlop-was-here; \
        ls /orlop-was-here; exec sleep 1000";
    let pod = world
        .pod(
            "one",
            script,
            json!({
                "containers": [{
                    "env": [
                        {"name": "COLOUR", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "colour"}}},
                        {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                    "volumeMounts": [
                        {"name": "scratch", "mountPath": "/scratch"},
                        {"name": "memory", "mountPath": "/memory"},
                        {"name": "host", "mountPath": "/host"},
                        {"name": "host", "mountPath": "/read-only", "readOnly": true},
                        {"name": "settings", "mountPath": "/settings"},
                        {"name": "settings", "mountPath": "/part", "subPath": "colour"},
                        {"name": "door", "mountPath": "/door"}]}],
                "volumes": [
                    {"name": "scratch", "emptyDir": {}},
                    {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
                    {"name": "host", "hostPath": {"path": host_directory, "type": "Directory"}},
                    {"name": "settings", "configMap": {"name": "settings"}},
                    {"name": "door", "secret": {"secretName": "door"}}]
            }),
        )
        .await;
    let running = world.phase("one", "Running").await;
    eprintln!("assigned to running: {:?}", before.elapsed());
    let status = running.status.unwrap();
    let ready = status.conditions.unwrap().into_iter().find(|of| of.type_ == "Ready").unwrap();
    assert_eq!(ready.status, "True");
    let text = world
        .until("the script has run", async || {
            let text = world.log(&pod, Query::default()).await;
            text.contains("/orlop-was-here").then_some(text)
        })
        .await;
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("sh:")).collect();
    assert_eq!(
        lines,
        ["hello", "bluehunter2", "blue one", "blue", "refused", "refused", "/orlop-was-here"],
        "{text}"
    );
    assert!(!std::path::Path::new("/orlop-was-here").exists(), "the root is an overlay");
    assert_eq!(std::fs::read_to_string(host_directory.join("f")).unwrap(), "out\n");
    let uid = pod.metadata.uid.clone().unwrap();
    let directory = world.root.join("pods").join(&uid);
    let scratch = directory.join("volumes/kubernetes.io~empty-dir/scratch/f");
    assert_eq!(std::fs::read_to_string(scratch).unwrap(), "disk\n");

    world.pods().delete("one", &DeleteParams::default()).await.unwrap();
    world.gone("one").await;
    assert!(!directory.exists());
    assert_eq!(world.mounts(), Vec::<std::path::PathBuf>::new());
    assert!(host_directory.join("f").exists(), "what the host owns stays");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exits_are_seen_and_policies_kept() {
    if !is_root() {
        return;
    }
    let world = World::new("exits").await;
    world.pod("good", "exit 0", json!({"restartPolicy": "Never"})).await;
    world.pod("bad", "exit 7", json!({"restartPolicy": "Never"})).await;
    world.pod("killed", "kill -9 $$$$; sleep 5", json!({"restartPolicy": "Never", "hostPID": true})).await;
    world.pod("again", "echo attempt; exit 3", json!({"restartPolicy": "OnFailure"})).await;
    world
        .pod("none", "", json!({"restartPolicy": "Never", "containers": [{"command": ["/no/such/program"]}]}))
        .await;
    world.pod("image", "", json!({"containers": [{"image": "nginx"}]})).await;
    let end = |pod: k8s_openapi::api::core::v1::Pod| {
        let status = pod.status.unwrap().container_statuses.unwrap().remove(0);
        let end = status.state.unwrap().terminated.unwrap();
        (end.exit_code, end.reason.unwrap())
    };
    assert_eq!(end(world.phase("good", "Succeeded").await), (0, "Completed".into()));
    assert_eq!(end(world.phase("bad", "Failed").await), (7, "Error".into()));
    assert_eq!(end(world.phase("killed", "Failed").await), (137, "Error".into()));
    let none = world.phase("none", "Failed").await;
    let message = serde_json::to_string(&none.status).unwrap();
    assert!(message.contains("no such file or directory"), "{message}");
    assert_eq!(end(none), (128, "StartError".into()));
    let again = world
        .until("a back-off", async || {
            let pod = world.pods().get("again").await.unwrap();
            let status = pod.status.clone()?.container_statuses?.remove(0);
            let reason = status.state?.waiting?.reason?;
            (reason == "CrashLoopBackOff" && status.restart_count == 1).then_some(pod)
        })
        .await;
    let previous = Query { previous: true, ..Query::default() };
    assert_eq!(world.log(&again, previous).await, "attempt\n");
    let image = world.pods().get("image").await.unwrap().status.unwrap();
    let waiting = image.container_statuses.unwrap().remove(0).state.unwrap().waiting.unwrap();
    assert_eq!(waiting.reason.as_deref(), Some("ContainerRuntimeMissing"));
    // An event follows the status that it explains: each is written for itself.
    world
        .until("an event of each kind", async || {
            let told = world.events().await;
            ["Created", "Started", "BackOff", "Failed", "ContainerRuntimeMissing"]
                .iter()
                .all(|wanted| told.iter().any(|(reason, _)| reason == wanted))
                .then_some(())
        })
        .await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_outlive_the_agent() {
    if !is_root() {
        return;
    }
    let mut world = World::new("outlive").await;
    let pod = world
        .pod(
            "tick",
            "trap 'echo bye; exit 0' TERM; while :; do echo tick; sleep 0.05; done",
            json!({
        "terminationGracePeriodSeconds": 20}),
        )
        .await;
    let short = world.pod("short", "sleep 0.5; exit 4", json!({"restartPolicy": "Never"})).await;
    world.phase("tick", "Running").await;
    world.phase("short", "Running").await;
    let processes = world.processes();
    world.crash().await;
    let lines = async || world.log(&pod, Query::default()).await.lines().count();
    let before = lines().await;
    world.until("the log goes on", async || (lines().await > before + 2).then_some(())).await;
    let exit =
        world.root.join("pods").join(short.metadata.uid.as_ref().unwrap()).join("containers/app/0/exit.json");
    world.until("an exit is written down without an agent", async || exit.exists().then_some(())).await;

    world.start();
    let ended = world.phase("short", "Failed").await;
    let status = ended.status.unwrap().container_statuses.unwrap().remove(0);
    assert_eq!(status.state.unwrap().terminated.unwrap().exit_code, 4);
    let tick = world.pods().get("tick").await.unwrap().status.unwrap();
    assert_eq!(tick.container_statuses.unwrap()[0].restart_count, 0);
    assert!(processes.iter().any(|pid| world.processes().contains(pid)), "the container was found again");

    let before = Instant::now();
    world.pods().delete("tick", &DeleteParams::default()).await.unwrap();
    world.gone("tick").await;
    assert!(
        before.elapsed() < Duration::from_secs(10),
        "it ends on SIGTERM, not at the end of its grace period"
    );
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stubborn_containers_are_killed_after_their_grace_period() {
    if !is_root() {
        return;
    }
    let world = World::new("stubborn").await;
    world.pod("deaf", "trap '' TERM; while :; do sleep 0.1; done", json!({})).await;
    world.phase("deaf", "Running").await;
    let before = Instant::now();
    world.pods().delete("deaf", &DeleteParams::default()).await.unwrap();
    world.gone("deaf").await;
    assert!(before.elapsed() >= Duration::from_millis(900), "{:?}", before.elapsed());
    assert!(before.elapsed() < Duration::from_secs(8), "{:?}", before.elapsed());
    assert_eq!(world.processes(), Vec::<i32>::new());
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_runs_soon_after_it_was_assigned() {
    if !is_root() {
        return;
    }
    let world = World::new("soon").await;
    let mut times = Vec::new();
    for number in 0..10 {
        let name = format!("pod-{number}");
        let before = Instant::now();
        world.pod(&name, "exec sleep 1000", json!({})).await;
        world.phase(&name, "Running").await;
        times.push(before.elapsed());
    }
    times.sort();
    eprintln!("from assigned to Running: p50 {:?}, longest {:?}", times[5], times[9]);
    assert!(times[5] < Duration::from_secs(2), "{times:?}");
    world.end().await;
}
