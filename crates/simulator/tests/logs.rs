//! A claim can be followed by its UID through the logs of all that work on it.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::io;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::ResourceExt;
use parking_lot::Mutex;
use serde_json::{Value, json};
use simulator::{Role, World};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn one_id_follows_a_claim_through_the_logs() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .json()
        .with_max_level(tracing::Level::INFO)
        .with_writer(move || writer.clone())
        .finish();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let uid = tracing::subscriber::with_default(subscriber, || runtime.block_on(a_pod_with_a_claim()));
    let lines: Vec<Value> = String::from_utf8(log.0.lock().clone())
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let is_about = |line: &Value| {
        let spans = line["spans"].as_array().into_iter().flatten();
        spans.chain([&line["fields"]]).any(|fields| fields["claim"] == json!(uid))
    };
    let from: Vec<&str> = lines
        .iter()
        .filter(|line| is_about(line))
        .map(|line| line["target"].as_str().unwrap().split("::").next().unwrap())
        .collect();
    for room in ["api_server", "scheduler", "sidecars"] {
        assert!(from.contains(&room), "{room} is not among {from:?}");
    }
}

/// The claim's UID.
async fn a_pod_with_a_claim() -> String {
    let mut world = World::new(1).await;
    for role in Role::ALL {
        world.start(role);
    }
    let claim = json!({"metadata": {"name": "data", "namespace": "default"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "storageClassName": "late", "resources": {"requests": {"storage": "1Gi"}}}});
    let uid = world.create::<PersistentVolumeClaim>(claim).await.unwrap().uid().unwrap();
    let pod = json!({"metadata": {"name": "user", "namespace": "default"}, "spec": {
        "containers": [{"name": "main", "image": "host"}],
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]}});
    world.create::<Pod>(pod).await.unwrap();
    world.calm_down().await.unwrap();
    let pod = world.get::<Pod>("user").await.unwrap();
    assert!(pod.spec.unwrap().node_name.is_some(), "the pod is placed");
    uid
}
